//! The atomics: those of the standard library, or loom's where `tests/loom` searches the interleavings.

#[cfg(all(test, loom))]
pub(super) use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(all(test, loom)))]
pub(super) use std::sync::atomic::{AtomicU32, Ordering};
