//! Statistics of a stack's calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::cause::BadGatewayCause;
use crate::exchange::{CallContext, Outcome};
use crate::stats::{Quantile, WindowedHistogram, default_stripes, stripe};

/// Number of calls per thread whose latency is always recorded.
const ALL: u64 = 1024;
/// Of the calls after these, one in `SAMPLE_RATE` is recorded.
const SAMPLE_RATE: u64 = 4;

/// Counts calls and failures, and records the times to the response head of the last minute.
#[derive(Debug)]
pub(super) struct StatsRecorder {
    stripes: Box<[Stripe]>,
    /// Upgraded connections that have not ended.
    tunnels: AtomicU64,
    causes: [AtomicU64; BadGatewayCause::ALL.len()],
    times: WindowedHistogram,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Times from the end of the request body to the response head, of responses below 400, sampled.
///
/// Responses that were ready at the first poll are not included. The time of a call with several attempts is that of all
/// of them, with the pauses.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// Number of samples, from the last 30 to 60 seconds.
    pub samples: u64,
    /// The median time to the response head.
    pub p50: Duration,
    /// The 90th percentile.
    pub p90: Duration,
    /// The 99th percentile.
    pub p99: Duration,
}

impl StatsRecorder {
    pub(super) fn new() -> Self {
        let stripes = default_stripes();
        Self {
            stripes: (0..stripes).map(|_| Stripe::default()).collect(),
            tunnels: AtomicU64::new(0),
            causes: [const { AtomicU64::new(0) }; BadGatewayCause::ALL.len()],
            times: WindowedHistogram::new(stripes),
        }
    }

    #[inline]
    fn own(&self) -> &Stripe {
        // the number of stripes is a power of two
        &self.stripes[stripe() & (self.stripes.len() - 1)]
    }

    #[inline]
    pub(super) fn begin(&self) {
        self.own().begun.fetch_add(1, Relaxed);
    }

    /// Records the latency of a response that was pending at least once.
    ///
    /// Sampled, because the difference of two instants is most of the cost of counting.
    #[inline]
    pub(super) fn head(&self, call: &CallContext, outcome: &Outcome) {
        if outcome.waited() && outcome.is_success() && outcome.status() != Some(StatusCode::SWITCHING_PROTOCOLS) {
            let begun = self.own().begun.load(Relaxed);
            if begun <= ALL || begun % SAMPLE_RATE == 0 {
                self.sample(call, outcome.now());
            }
        }
    }

    #[inline(never)]
    fn sample(&self, call: &CallContext, now: Instant) {
        self.times.record(self.times.second(now), call.work_time(now));
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

    /// Calls whose response body has not ended, and upgraded connections that have not.
    pub(super) fn in_flight(&self) -> u64 {
        // read `ended` first: a call that starts and ends in between counts as in flight at most
        let ended = self.sum(|stripe| &stripe.ended);
        let tunnels = self.tunnels.load(Relaxed);
        self.calls().saturating_sub(ended).saturating_add(tunnels)
    }

    fn sum(&self, of: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().map(|stripe| of(stripe).load(Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Number of failures by cause; causes without a failure are left out.
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

/// Counts an upgraded connection until it is dropped.
pub(super) struct OpenTunnel(Arc<StatsRecorder>);

impl OpenTunnel {
    pub(super) fn begin(recorder: &Arc<StatsRecorder>) -> Self {
        recorder.tunnels.fetch_add(1, Relaxed);
        Self(recorder.clone())
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_may_end_on_another_thread_than_they_began() {
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
    fn a_failure_is_counted_by_its_cause_and_a_cancelled_call_is_not() {
        let recorder = StatsRecorder::new();
        for cause in [Some(BadGatewayCause::NoRoute), None, Some(BadGatewayCause::NoRoute)] {
            recorder.begin();
            recorder.end(Some(&Outcome::response(StatusCode::BAD_GATEWAY, cause)));
        }
        assert_eq!(recorder.failures(), [(BadGatewayCause::NoRoute, 2)]);
    }

    #[test]
    fn latencies_are_those_of_successful_responses() {
        let recorder = StatsRecorder::new();
        let call = CallContext::new(Instant::now());
        let at = call.now + Duration::from_millis(40);
        recorder.head(&call, &Outcome::response(StatusCode::BAD_GATEWAY, None).at(at));
        assert_eq!(recorder.latency(at), None, "a failure is not a latency sample");
        recorder.head(&call, &Outcome::response(StatusCode::OK, None).at(at));
        let latency = recorder.latency(at).unwrap();
        assert_eq!(latency.samples, 1);
        assert!(latency.p50 >= Duration::from_millis(38) && latency.p50 <= Duration::from_millis(42), "{latency:?}");
        assert_eq!(recorder.latency(at + Duration::from_secs(120)), None, "samples expire");
    }

    #[test]
    fn a_latency_begins_at_the_end_of_the_upload_and_a_tunnel_has_none() {
        let recorder = StatsRecorder::new();
        let now = Instant::now();
        let at = now + Duration::from_secs(3);
        let call = CallContext { uploaded: Some(at - Duration::from_millis(40)), ..CallContext::new(now) };
        recorder.head(&call, &Outcome::response(StatusCode::SWITCHING_PROTOCOLS, None).at(at));
        assert_eq!(recorder.latency(at), None);
        recorder.head(&call, &Outcome::response(StatusCode::OK, None).at(at));
        assert!(recorder.latency(at).unwrap().p50 <= Duration::from_millis(42));
    }
}
