//! Functions of the user in settings that print.

use std::fmt;
use std::ops::Deref;

/// A value without `Debug`, usually a function of the user: it prints as `..`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Opaque<T>(pub(crate) T);

impl<T> fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl<T> Deref for Opaque<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
