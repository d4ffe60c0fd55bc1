//! The client: its connections, its protocols, and the failures that it reports.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod closed_sockets;
mod http2_upstream;
mod not_sent;
mod pool;
mod proxy;
mod upgrade;
