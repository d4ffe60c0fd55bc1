//! Tests of the whole stack in one layer.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod attempts;
mod blame;
mod bodies;
mod by_type;
mod config_errors;
mod handle;
mod limits;
mod outage;
mod outage_probe;
mod page;
mod plain;
mod presets;
mod readiness;
mod reasons;
mod summary;
mod tickets;
