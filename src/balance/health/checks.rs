//! The public handle of the health checks of pools.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::runner::{Runner, WeakHandle};
use super::{HealthCheck, InvalidHealthCheck};
use crate::balance::handle::BalanceHandle;
use crate::balance::pool::locked;

/// Checks the endpoints of pools; clones refer to the same checks. See [Health checks](crate::balance#health-checks).
///
/// An address is checked once, however many pools name it: members with the same addresses, or the same key if they
/// have no addresses, have the same result.
///
/// One task makes the checks, on the runtime of the first [`watch`](Self::watch). It holds no pool, and ends when all
/// pools and this value are dropped.
#[derive(Clone)]
pub struct HealthChecks {
    shared: Arc<Shared>,
}

struct Shared {
    /// Unique in the process.
    id: u64,
    check: Arc<HealthCheck>,
    /// The sender to the task; `None` before its start.
    control: Mutex<Option<mpsc::UnboundedSender<WeakHandle>>>,
}

impl HealthChecks {
    /// Prepares checks, which begin when a pool is [watched](Self::watch).
    ///
    /// # Errors
    ///
    /// [`InvalidHealthCheck`] if a setting cannot work, such as an interval of 0.
    pub fn new(check: HealthCheck) -> Result<Self, InvalidHealthCheck> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        check.validate()?;
        let shared = Shared { id: IDS.fetch_add(1, Relaxed), check: Arc::new(check), control: Mutex::new(None) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Checks the endpoints of this pool from now on, and follows its members, until the pool is dropped.
    ///
    /// A pool is watched by one `HealthChecks`: this one replaces an earlier one.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn watch(&self, pool: &BalanceHandle) {
        if pool.state.checked_by.swap(self.shared.id, Relaxed) == self.shared.id {
            return;
        }
        let pool = WeakHandle::of(pool);
        let mut control = locked(&self.shared.control);
        let unsent = match &*control {
            Some(sender) => sender.send(pool).err().map(|unsent| unsent.0),
            None => Some(pool),
        };
        // there is no task yet, or its runtime has ended
        if let Some(pool) = unsent {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(Runner::new(self.shared.id, self.shared.check.clone(), receiver).run());
            let _ = sender.send(pool);
            *control = Some(sender);
        }
    }
}

impl fmt::Debug for HealthChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthChecks").field("check", &self.shared.check).finish_non_exhaustive()
    }
}
