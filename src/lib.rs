#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]

pub mod admission;
pub mod alignment;
#[cfg(feature = "balance")]
pub mod balance;
pub mod body;
pub mod breaker;
pub mod cause;
pub mod classify;
#[cfg(feature = "client")]
pub mod client;
pub mod compat;
pub mod deadline;
pub mod error_page;
pub mod event;
mod exchange;
pub mod forward;
mod free_list;
pub mod guide;
mod keyed_map;
pub mod limit;
mod opaque;
pub mod retry;
pub mod stack;
mod stats;
#[cfg(feature = "test-util")]
pub mod test_util;
pub mod timeout;

pub use cause::bad_gateway_cause::BadGatewayCause;
pub use cause::failure::Failure;
pub use classify::ClassifyLayer;
pub use stack::UpstreamLayer;
pub use stack::ext::ServiceBuilderExt;
