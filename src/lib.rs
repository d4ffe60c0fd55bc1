#![cfg_attr(docsrs, feature(doc_cfg))]
//! tower-upstream

pub mod cause;
pub mod forward;

pub use cause::{BadGatewayCause, Failure};
