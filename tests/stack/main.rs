//! The whole stack in one layer, held to its word.

// helpers fail their test
#![allow(clippy::unwrap_used, unreachable_pub)]

mod attempts;
mod bodies;
mod by_type;
mod config_errors;
mod differential;
mod handle;
mod page;
mod plain;
mod readiness;
mod support;
mod tickets;
