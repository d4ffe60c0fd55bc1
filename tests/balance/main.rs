//! Many endpoints behind one service.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod attempts;
mod clients;
mod config;
mod faults;
mod health;
mod health_over_sockets;
mod model;
mod outliers;
mod peers;
mod pool;
mod probes;
mod real_sockets;
mod scenarios;
mod shift;
mod simulation;
mod site;
mod sources;
mod sticky;
mod warm_up;
