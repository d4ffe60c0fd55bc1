//! Each layer alone, around services in virtual time and in servers over real sockets.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/raw.rs"]
mod raw;

mod adaptive_timeout;
mod admission;
mod alignment;
mod breaker;
mod cancellation;
mod classify;
mod error_page;
mod limit;
mod nested_timeouts;
mod outage;
mod replicas;
mod retry;
mod retry_over_sockets;
mod retry_storm;
mod timeouts;
mod timeouts_in_every_state;
mod timeouts_over_sockets;
