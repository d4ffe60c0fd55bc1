//! When an open circuit sends its probes, and the request that the next one sends.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::exchange::RequestProbe;

/// The shortest interval between two probes.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// The longest interval between two probes.
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(1);
/// The interval is this fraction of the outage so far: a long outage is probed less often.
const INTERVAL_RATIO: u32 = 500;
/// A probe is given up no sooner than after this time.
const MIN_LIMIT: Duration = Duration::from_millis(10);
/// A probe is given up after the usual time of a response, times this: the first one also connects, with three round trips.
const LIMIT_FACTOR: u32 = 4;

/// The probes of one circuit.
#[derive(Default)]
pub(super) struct RequestProbes {
    /// Calls to refuse until the next one is offered; 0 at the start of an outage.
    pub(super) left: AtomicU32,
    slot: Mutex<Slot>,
}

#[derive(Default)]
pub(super) struct Slot {
    /// The latest offer.
    pub(super) next: Option<Offer>,
    pub(super) outage: Option<Outage>,
    pub(super) running: bool,
}

pub(super) struct Offer {
    pub(super) probe: RequestProbe,
    pub(super) limit: Duration,
}

/// The schedule of one outage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    since: Instant,
    /// When the latest probe began.
    pub(super) last: Instant,
}

impl Outage {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, last: now }
    }

    /// When the next probe is due; `random` is uniform over its range.
    pub(super) fn next_at(&self, random: u32) -> Instant {
        self.last + jittered(interval(self.last.saturating_duration_since(self.since)), random)
    }
}

/// How long a probe may take, if a response usually takes `usual`; within the limit of a call that is a probe.
pub(super) fn limit(usual: Option<Duration>, most: Duration) -> Duration {
    usual.map_or(most, |usual| usual.saturating_mul(LIMIT_FACTOR).max(MIN_LIMIT).min(most))
}

impl RequestProbes {
    pub(super) fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outage is over: drops the offer, and forgets the schedule.
    pub(super) fn end_outage(&self) {
        let mut slot = self.lock();
        let offer = slot.next.take();
        slot.outage = None;
        drop(slot);
        self.left.store(0, Relaxed);
        // not under the lock: it holds a user's service
        drop(offer);
    }
}

/// The time between two probes after an outage of this length.
pub(super) fn interval(outage: Duration) -> Duration {
    (outage / INTERVAL_RATIO).clamp(MIN_INTERVAL, MAX_INTERVAL)
}

/// Takes off up to a quarter at random, so that the probes of many gateways spread; `random` is uniform over its range.
pub(super) fn jittered(interval: Duration, random: u32) -> Duration {
    interval.mul_f64(0.75 + 0.25 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_probe_has_four_times_as_long_as_usual_and_no_longer_than_a_call() {
        for (usual, expected) in [
            (None, SECOND),
            (Some(Duration::ZERO), 10 * MS),
            (Some(2 * MS), 10 * MS),
            (Some(40 * MS), 160 * MS),
            (Some(SECOND), SECOND),
            (Some(Duration::MAX), SECOND),
        ] {
            assert_eq!(limit(usual, SECOND), expected, "{usual:?}");
        }
        assert_eq!(limit(Some(MS), 3 * MS), 3 * MS);
    }

    #[test]
    fn probes_are_frequent_at_first() {
        let since = Instant::now();
        for (outage, least, most) in [(Duration::ZERO, 3, 5), (3 * SECOND, 4, 6), (60 * SECOND, 90, 120)] {
            let outage = Outage { since, last: since + outage };
            for random in [0, u32::MAX / 2, u32::MAX] {
                let apart = outage.next_at(random) - outage.last;
                assert!(apart >= least * MS && apart <= most * MS, "{apart:?}");
            }
        }
        let long = Outage { since, last: since + 10_000 * SECOND };
        assert_eq!(long.next_at(u32::MAX), long.last + SECOND);
    }
}
