//! Guide: pages that are longer than the documentation of one item.
//!
//! | page | contents |
//! |---|---|
//! | [`testing`] | tests in virtual time, without sockets |
//! | [`cookbook`] | axum, hyper, reqwest, tonic, timeouts per route, shutdown, many upstreams, metrics |
//! | [`do_and_dont`] | for each layer: what to do, what to avoid, and why |
//! | [`causes`] | all causes of failures, with status, RFC 9209 error type and meaning |
//! | [`failure_table`] | what counts as a failure, for the circuit breaker, the limiter and retry |
//! | [`alignment`] | the 18 rules for timeouts that fit together |
//!
//! Each page is a Markdown file in `src/guide/`. `tests/repo/guide.rs` compares their tables with the code.

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("cookbook.md")]
pub mod cookbook {}

#[doc = include_str!("do_and_dont.md")]
pub mod do_and_dont {}

#[doc = include_str!("causes.md")]
pub mod causes {}

#[doc = include_str!("failure_table.md")]
pub mod failure_table {}

#[doc = include_str!("alignment.md")]
pub mod alignment {}
