//! Guide: pages that are longer than the documentation of one item.
//!
//! | page | contents |
//! |---|---|
//! | [`causes`] | all causes of failures, with status, RFC 9209 error type and meaning |
//!
//! Each page is a Markdown file in `src/guide/`.

#[doc = include_str!("causes.md")]
pub mod causes {}
