//! Clients and upstreams that break the rules, alone and among thousands that do not.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod fairness;
mod mixed_calls;
