//! What calls allocate, and what a process keeps of a body.
//!
//! A binary of its own: its allocator counts, and the memory of the whole process is measured.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod allocations;
mod health;
mod streaming;

use tokio::sync::Mutex;

/// Held by the test that measures: the counts are those of all threads.
static ALONE: Mutex<()> = Mutex::const_new(());
