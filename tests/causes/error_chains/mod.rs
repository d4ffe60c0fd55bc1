//! What the Rust stack says for each failure, and the cause this crate reads from it.
//!
//! Causes are read from errors of other crates, some of them by nothing but their text. Every row here
//! provokes one failure on a real socket with the real client, so that an upgrade that changes an error
//! chain fails the build instead of turning a named cause into `unknown`.
//!
//! A row is `(id, what, how it is provoked, what must come of it)`; each group is one table, and its test
//! names every row that is wrong, with its chain.

// a test binary exports nothing
#![allow(unreachable_pub)]

mod around;
mod before_head;
mod client;
mod connect;
mod descriptors;
mod frames;
mod grpc;
mod http2;
mod in_body;
mod in_head;
mod late;
mod low_level;
mod namespace;
mod peer;
#[path = "../../support/raw.rs"]
mod raw;
mod resolver;
mod reused;
mod table;
mod tls;
mod tls_peer;
mod two_reqwests;
