//! What a stack counts of its calls.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::cause::BadGatewayCause;
use crate::exchange::{CallContext, Outcome};
use crate::stats::{Quantile, WindowedHistogram, default_stripes, stripe};

/// So many calls of a thread are all looked at.
const ALL: u64 = 1024;
/// One of so many later ones is.
const MIN_SAMPLES: u64 = 4;

/// Counts of calls, of what failed, and the times to the head of the last minute.
#[derive(Debug)]
pub(super) struct StatsRecorder {
    stripes: Box<[Stripe]>,
    causes: [AtomicU64; BadGatewayCause::ALL.len()],
    times: WindowedHistogram,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// How long answers take: a sample of them, without those that were there when first asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// How many answers of the last 30 to 60 seconds it is made of.
    pub samples: u64,
    /// The median time to the head.
    pub p50: Duration,
    /// Nine of ten took no longer.
    pub p90: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
}

impl StatsRecorder {
    pub(super) fn new() -> Self {
        let stripes = default_stripes();
        Self {
            stripes: (0..stripes).map(|_| Stripe::default()).collect(),
            causes: [const { AtomicU64::new(0) }; BadGatewayCause::ALL.len()],
            times: WindowedHistogram::new(stripes),
        }
    }

    #[inline]
    fn own(&self) -> &Stripe {
        // a power of two
        &self.stripes[stripe() & (self.stripes.len() - 1)]
    }

    #[inline]
    pub(super) fn begin(&self) {
        self.own().begun.fetch_add(1, Relaxed);
    }

    /// A head that was waited for: of one that was there at once the time is not looked at.
    ///
    /// After the first few of each thread one in four is: to take the difference of two times is most of what counting costs.
    #[inline]
    pub(super) fn head(&self, call: &CallContext, outcome: &Outcome) {
        if outcome.waited() && outcome.is_success() {
            let begun = self.own().begun.load(Relaxed);
            if begun <= ALL || begun % MIN_SAMPLES == 0 {
                self.sample(call, outcome.now());
            }
        }
    }

    #[inline(never)]
    fn sample(&self, call: &CallContext, now: Instant) {
        self.times.record(self.times.second(now), now.saturating_duration_since(call.now));
    }

    #[inline]
    pub(super) fn end(&self, outcome: Option<&Outcome>) {
        self.own().ended.fetch_add(1, Relaxed);
        if let Some(cause) = outcome.and_then(Outcome::cause) {
            self.count(cause);
        }
    }

    #[cold]
    pub(super) fn count(&self, cause: BadGatewayCause) {
        self.causes[cause as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn calls(&self) -> u64 {
        self.sum(|stripe| &stripe.begun)
    }

    /// Calls that have begun and whose body has not ended.
    pub(super) fn in_flight(&self) -> u64 {
        // what has ended first: a call that begins and ends in between counts as running at most
        let ended = self.sum(|stripe| &stripe.ended);
        self.calls().saturating_sub(ended)
    }

    fn sum(&self, of: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().map(|stripe| of(stripe).load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// What failed, and how often; causes that never came are left out.
    pub(super) fn failures(&self) -> Vec<(BadGatewayCause, u64)> {
        let counts = BadGatewayCause::ALL.iter().map(|&cause| (cause, self.causes[cause as usize].load(Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn latency(&self, now: Instant) -> Option<LatencySnapshot> {
        let (times, _) = self.times.read(self.times.second(now));
        let quantile = |per_mille| times.quantile(Quantile::per_mille(per_mille));
        Some(LatencySnapshot {
            samples: times.samples(),
            p50: quantile(500)?,
            p90: quantile(900)?,
            p99: quantile(990)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn calls_are_counted_by_whichever_thread_begins_and_ends_them() {
        let recorder = StatsRecorder::new();
        recorder.begin();
        recorder.begin();
        assert_eq!((recorder.calls(), recorder.in_flight()), (2, 2));
        std::thread::scope(|scope| scope.spawn(|| recorder.end(None)).join().unwrap());
        assert_eq!((recorder.calls(), recorder.in_flight()), (2, 1));
        recorder.end(None);
        assert_eq!((recorder.calls(), recorder.in_flight(), recorder.failures().len()), (2, 0, 0));
    }

    #[test]
    fn a_failure_is_counted_by_its_cause_and_an_abandoned_call_by_none() {
        let recorder = StatsRecorder::new();
        for cause in [Some(BadGatewayCause::NoRoute), None, Some(BadGatewayCause::NoRoute)] {
            recorder.begin();
            recorder.end(Some(&Outcome::response(StatusCode::BAD_GATEWAY, cause)));
        }
        assert_eq!(recorder.failures(), [(BadGatewayCause::NoRoute, 2)]);
    }

    #[test]
    fn times_are_those_of_answers_that_were_waited_for() {
        let recorder = StatsRecorder::new();
        let call = CallContext::new(Instant::now());
        let at = call.now + Duration::from_millis(40);
        recorder.head(&call, &Outcome::response(StatusCode::BAD_GATEWAY, None).at(at));
        assert_eq!(recorder.latency(at), None, "a failure tells nothing of how long answers take");
        recorder.head(&call, &Outcome::response(StatusCode::OK, None).at(at));
        let latency = recorder.latency(at).unwrap();
        assert_eq!(latency.samples, 1);
        assert!(latency.p50 >= Duration::from_millis(38) && latency.p50 <= Duration::from_millis(42), "{latency:?}");
        assert_eq!(recorder.latency(at + Duration::from_secs(120)), None, "and is forgotten");
    }
}
