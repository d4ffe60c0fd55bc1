//! The repository: its architecture, documents and examples, and what compiles with the crate.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/package.rs"]
mod package;

mod architecture;
mod examples;
mod gateway_example;
mod guide;
mod misuse;
mod newcomer;
