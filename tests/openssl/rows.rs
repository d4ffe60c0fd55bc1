//! The rows of `tests/causes/error_chains` that need OpenSSL's headers, in a crate of their own.
//!
//! A newcomer's `cargo run` and `cargo test` must not need a C library; CI has it and runs
//! `cargo test --manifest-path tests/openssl/Cargo.toml`.

#![cfg(target_os = "linux")]
// a test binary exports nothing, and these rows use only a part of the tables' helpers
#![allow(dead_code, unreachable_pub)]

#[path = "../causes/error_chains/client.rs"]
mod client;
mod openssl;
#[path = "../causes/error_chains/peer.rs"]
mod peer;
#[path = "../causes/error_chains/table.rs"]
mod table;
#[path = "../causes/error_chains/tls_peer.rs"]
mod tls_peer;
