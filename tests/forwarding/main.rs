//! What a request and its response look like on the other side of a gateway.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "../support/mod.rs"]
mod support;

mod codecs;
mod forward;
mod secure_forwarding;
