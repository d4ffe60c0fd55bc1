//! Samples of completed calls, and their summary.

use std::time::Duration;

use tokio::time::Instant;

use crate::stats::{DEPTHS, RouteKey, RouteTable};

/// More than one overloaded sample in this many means overload.
const ONE_OF: u32 = 10;

/// A summary keeps at most this many times: beyond, those of every second response, every fourth, every eighth.
const MOST_TIMES: usize = 128;

/// One in this many good responses is faster than the latency.
const QUARTER: usize = 4;

/// The routes of one depth; those whose hashes collide count as one.
const CELLS: usize = 64;

/// Routes with a good response are remembered for one to two of these.
const MEMORY: Duration = Duration::from_secs(5);

/// One completed call, recorded while it still holds its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) now: Instant,
    /// Calls in flight, this one included.
    pub(super) in_flight: u32,
    pub(super) kind: SampleKind,
    /// How long the upstream has worked.
    pub(super) took: Duration,
    /// The default if it is unknown.
    pub(super) route: RouteKey,
}

/// The kind of a sample: what it shows about the load of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleKind {
    /// A good response.
    Success,
    /// The upstream responded, but how long that took says nothing about its latency.
    Responded,
    /// The upstream refused the call for load, or timed out.
    Overloaded,
}

/// Calls, and how many of them were overloaded.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    total: u32,
    overloaded: u32,
}

/// The summary of a series of samples.
#[derive(Debug)]
pub(super) struct SampleSum {
    counts: Counts,
    pub(super) successes: u32,
    pub(super) max_in_flight: u32,
    /// The times of good responses.
    times: Vec<Duration>,
    /// The time of every `stride`th good response is kept.
    stride: u32,
    routes: RouteTable<Counts, CELLS>,
    good_routes: GoodRoutes,
}

/// The routes that had a good response recently; they outlive a series.
#[derive(Clone, Copy, Debug, Default)]
struct GoodRoutes {
    since: Option<Instant>,
    /// A bit for each cell, in this period and in the one before.
    cells: [[u64; DEPTHS]; 2],
}

impl GoodRoutes {
    fn add(&mut self, route: RouteKey, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= MEMORY {
            self.since = Some(now);
            self.cells = [[0; DEPTHS], self.cells[0]];
        }
        for (cells, cell) in self.cells[0].iter_mut().zip(route.cells(CELLS)) {
            *cells |= 1 << cell;
        }
    }

    /// Whether another route than that of a cell had one.
    fn has_others(&self, depth: usize, cell: usize, now: Instant) -> bool {
        let Some(since) = self.since else { return false };
        let periods = now.saturating_duration_since(since).as_secs() / MEMORY.as_secs();
        let good = match periods {
            0 => self.cells[0][depth] | self.cells[1][depth],
            1 => self.cells[0][depth],
            _ => 0,
        };
        good & !(1 << cell) != 0
    }
}

impl SampleSum {
    pub(super) fn new() -> Self {
        Self {
            counts: Counts::default(),
            successes: 0,
            max_in_flight: 0,
            times: Vec::new(),
            stride: 1,
            routes: RouteTable::default(),
            good_routes: GoodRoutes::default(),
        }
    }

    /// Begins another series, in the same memory.
    pub(super) fn clear(&mut self) {
        (self.counts, self.successes, self.max_in_flight, self.stride) = (Counts::default(), 0, 0, 1);
        self.times.clear();
        self.routes.iter_mut().for_each(|counts| *counts = Counts::default());
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        self.max_in_flight = self.max_in_flight.max(sample.in_flight);
        let overloaded = u32::from(sample.kind == SampleKind::Overloaded);
        self.counts.add(overloaded);
        self.routes.of_mut(sample.route).for_each(|counts| counts.add(overloaded));
        if sample.kind == SampleKind::Success {
            self.add_time(sample.took);
        }
        if sample.kind != SampleKind::Overloaded {
            self.good_routes.add(sample.route, sample.now);
        }
    }

    fn add_time(&mut self, took: Duration) {
        if self.successes % self.stride == 0 {
            if self.times.len() == MOST_TIMES {
                let mut kept = false;
                self.times.retain(|_| {
                    kept = !kept;
                    kept
                });
                self.stride *= 2;
            }
            self.times.push(took);
        }
        self.successes += 1;
    }

    pub(super) fn total(&self) -> u32 {
        self.counts.total
    }

    /// The time that a quarter of the good responses do not exceed, in seconds; `None` without one.
    ///
    /// All calls wait in the upstream's queue, those of fast routes too: the fastest show the queue, and how many calls
    /// of slow routes are among the others does not matter.
    pub(super) fn latency(&mut self) -> Option<f64> {
        let rank = self.times.len().checked_sub(1)? / QUARTER;
        let (_, latency, _) = self.times.select_nth_unstable(rank);
        // zero would make the gradient meaningless
        Some(latency.as_secs_f64().max(1e-6))
    }

    /// Whether more than a tenth of the calls were overloaded, also without those of any single route.
    ///
    /// A route that is in maintenance or hangs is not the upstream, and its clients decide how often it is called. If others
    /// were not called, they are not overloaded as long as they were not lately. Where a
    /// path ends and its parameters begin is unknown: the single route may be one segment of the path, two or three.
    pub(super) fn is_overloaded(&self, now: Instant) -> bool {
        let all = self.counts;
        all.is_overloaded()
            && self.routes.depths().enumerate().all(|(depth, cells)| {
                let worst = cells.iter().enumerate().max_by_key(|(_, counts)| counts.overloaded);
                let (cell, worst) = worst.map(|(cell, counts)| (cell, *counts)).unwrap_or_default();
                let others = all.without(worst);
                others.is_overloaded() || (others.total == 0 && !self.good_routes.has_others(depth, cell, now))
            })
    }

    /// The number of samples that were not overloaded.
    pub(super) fn healthy(&self) -> u32 {
        self.counts.total - self.counts.overloaded
    }
}

impl Counts {
    fn add(&mut self, overloaded: u32) {
        self.total += 1;
        self.overloaded += overloaded;
    }

    fn without(self, some: Self) -> Self {
        Self { total: self.total - some.total, overloaded: self.overloaded - some.overloaded }
    }

    fn is_overloaded(self) -> bool {
        self.overloaded * ONE_OF > self.total
    }
}

#[cfg(test)]
mod tests {
    use super::SampleKind::{Overloaded, Responded, Success};
    use super::*;

    /// Of samples with a kind, a time in milliseconds and a route.
    fn sum(samples: impl IntoIterator<Item = (SampleKind, u64, u8)>) -> SampleSum {
        let mut sum = SampleSum::new();
        for (kind, millis, route) in samples {
            let took = Duration::from_millis(millis);
            sum.add(&Sample {
                now: Instant::now(),
                in_flight: 1,
                kind,
                took,
                route: RouteKey::of_hashes([0, route, route]),
            });
        }
        sum
    }

    #[test]
    fn the_latency_is_that_of_the_fast_routes_as_long_as_they_make_a_quarter_of_the_calls() {
        let mixed = (0..100).map(|call| (Success, if call % 3 == 0 { 10 } else { 5_000 }, 0));
        assert_eq!(sum(mixed).latency(), Some(0.010));
        assert_eq!(sum([(Responded, 1, 0), (Overloaded, 1, 0)]).latency(), None);
    }

    #[test]
    fn of_many_times_an_even_part_is_kept() {
        let mut many = sum((1..=10_000).map(|millis| (Success, millis, 0)));
        assert!(many.times.len() <= MOST_TIMES);
        let latency = many.latency().unwrap();
        assert!((2.4..2.6).contains(&latency), "{latency}");
        many.clear();
        assert_eq!((many.latency(), many.total(), many.stride), (None, 0, 1));
    }

    #[test]
    fn more_than_one_overloaded_call_in_ten_is_overload() {
        for (every, overloaded) in [(10, false), (9, true)] {
            let calls = (1..=90).map(|call| (if call % every == 0 { Overloaded } else { Success }, 1, call % 7));
            assert_eq!(sum(calls).is_overloaded(Instant::now()), overloaded, "{every}");
        }
    }

    #[test]
    fn one_route_that_refuses_is_not_the_upstream_unless_it_is_the_only_one() {
        let refused = || std::iter::repeat_n((Overloaded, 1, 7), 50);
        assert!(sum(refused()).is_overloaded(Instant::now()));
        assert!(!sum(refused().chain([(Success, 1, 8)])).is_overloaded(Instant::now()));
        assert!(sum(refused().chain([(Overloaded, 1, 8), (Success, 1, 8)])).is_overloaded(Instant::now()));
    }

    #[test]
    fn one_route_that_refuses_is_the_upstream_once_no_other_has_responded_for_ten_seconds() {
        let mut sum = SampleSum::new();
        let start = Instant::now();
        let sample = |seconds, kind, route| {
            let (now, took) = (start + Duration::from_secs(seconds), Duration::ZERO);
            Sample { now, in_flight: 1, kind, took, route: RouteKey::of_hashes([0, route, route]) }
        };
        sum.add(&sample(0, Responded, 8));
        for (seconds, overloaded) in [(1, false), (9, false), (11, true)] {
            sum.clear();
            let refused = sample(seconds, Overloaded, 7);
            sum.add(&refused);
            assert_eq!(sum.is_overloaded(refused.now), overloaded, "{seconds}");
        }
        sum.add(&sample(12, Success, 9));
        sum.clear();
        let refused = sample(18, Overloaded, 7);
        sum.add(&refused);
        assert!(!sum.is_overloaded(refused.now));
    }
}
