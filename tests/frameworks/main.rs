//! The whole stack at home in axum, hyper, tonic, reqwest, and among tower-http's layers, over real sockets.
//!
//! `stack.rs` composes it; nothing else here knows how.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed
#![allow(unreachable_pub)] // a test binary exports nothing

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/raw.rs"]
mod raw;

mod axum_apps;
mod grpc;
mod hyper_services;
mod real_servers;
mod stack;
mod tower_http_around;
mod two_reqwests;
