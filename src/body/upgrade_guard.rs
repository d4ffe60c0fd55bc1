//! Values that live as long as the connection after a 101.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Marks a 101 whose upgraded connection may outlive the response; stands in the response's extensions.
///
/// A call with a 101 ends at its head, and its body is empty: the bytes that follow pass no layer. The service that copies
/// them inserts this extension and keeps the [`UpgradeEnd`] until the connection has ended. `ReverseProxy` does.
///
/// ```
/// use tower_upstream::body::UpgradeGuard;
///
/// let (guard, end) = UpgradeGuard::new();
/// let mut response = http::Response::builder().status(101).body(()).unwrap();
/// response.extensions_mut().insert(guard);
/// // where the bytes are copied
/// drop(end);
/// ```
#[derive(Clone, Debug)]
pub struct UpgradeGuard {
    attached: Arc<Mutex<Attached>>,
}

/// Ends the upgraded connection of its [`UpgradeGuard`] when it is dropped.
#[derive(Debug)]
pub struct UpgradeEnd {
    attached: Arc<Mutex<Attached>>,
}

#[derive(Debug, Default)]
struct Attached {
    /// At most one per layer.
    values: Vec<Box<dyn Any + Send>>,
    ended: bool,
}

impl UpgradeGuard {
    /// Creates a guard and its end.
    #[allow(clippy::new_ret_no_self)] // two halves, as of a channel
    pub fn new() -> (Self, UpgradeEnd) {
        let held = Arc::<Mutex<Attached>>::default();
        (Self { attached: held.clone() }, UpgradeEnd { attached: held })
    }

    /// Keeps a value until the connection ends; drops it immediately if the connection has ended.
    pub fn attach(&self, thing: impl Any + Send) {
        let thing: Box<dyn Any + Send> = Box::new(thing);
        let mut held = lock(&self.attached);
        if held.ended {
            // not under the lock: a drop may do anything
            drop(held);
            drop(thing);
        } else {
            held.values.push(thing);
        }
    }
}

impl Drop for UpgradeEnd {
    fn drop(&mut self) {
        let mut held = lock(&self.attached);
        held.ended = true;
        let things = std::mem::take(&mut held.values);
        drop(held);
        drop(things);
    }
}

fn lock(held: &Mutex<Attached>) -> MutexGuard<'_, Attached> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attached_value_is_dropped_when_the_connection_ends() {
        let (guard, end) = UpgradeGuard::new();
        let value = Arc::new(());
        guard.clone().attach(value.clone());
        assert_eq!(Arc::strong_count(&value), 2);
        drop(end);
        assert_eq!(Arc::strong_count(&value), 1, "though the response still exists");
        guard.attach(value.clone());
        assert_eq!(Arc::strong_count(&value), 1, "a value attached after the end is dropped");
    }
}
