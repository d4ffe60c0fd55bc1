//! What follows a 101, for those who hold something as long as it lives.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A tunnel that may outlive its answer, in the extensions of a 101.
///
/// A 101's exchange is over at its head, and its body is empty; the bytes that follow go past all layers. Whoever carries
/// them puts this into the response and keeps the [`TunnelEnd`] until they have ended. `ReverseProxy` does.
///
/// ```
/// use tower_upstream::exchange::Tunnel;
///
/// let (tunnel, end) = Tunnel::new();
/// let mut answer = http::Response::builder().status(101).body(()).unwrap();
/// answer.extensions_mut().insert(tunnel);
/// // where the bytes are copied
/// drop(end);
/// ```
#[derive(Clone)]
pub struct UpgradeGuard {
    attached: Arc<Mutex<Attached>>,
}

/// The end of a tunnel, when it is dropped.
pub struct UpgradeEnd {
    attached: Arc<Mutex<Attached>>,
}

#[derive(Default)]
struct Attached {
    /// One for each layer that asks, no more.
    values: Vec<Box<dyn Any + Send>>,
    ended: bool,
}

impl UpgradeGuard {
    /// A tunnel that begins, and its end.
    #[allow(clippy::new_ret_no_self)] // two halves, as of a channel
    pub fn new() -> (Self, UpgradeEnd) {
        let held = Arc::<Mutex<Attached>>::default();
        (Self { attached: held.clone() }, UpgradeEnd { attached: held })
    }

    /// Drops this when the tunnel ends; at once, if it has.
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

impl fmt::Debug for UpgradeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("over", &lock(&self.attached).ended).finish_non_exhaustive()
    }
}

impl fmt::Debug for UpgradeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelEnd").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tunnel_holds_goes_with_its_end() {
        let (tunnel, end) = UpgradeGuard::new();
        let thing = Arc::new(());
        tunnel.clone().attach(thing.clone());
        assert_eq!(Arc::strong_count(&thing), 2);
        drop(end);
        assert_eq!(Arc::strong_count(&thing), 1, "though the answer is still there");
        tunnel.attach(thing.clone());
        assert_eq!(Arc::strong_count(&thing), 1, "and nothing is held by one that is over");
    }
}
