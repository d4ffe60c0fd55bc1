//! Whether failures are spread over the routes of an upstream, or are those of a single one.
//!
//! A client chooses which route it calls and how often. So the share of all calls that fail says little: a client can raise
//! it by calling one broken route often. The circuit therefore opens by a share only if most of the routes that were called
//! recently fail. How many segments of a path name its route is unknown; most routes have to fail whether a route is one
//! segment of the path, two or three.
//!
//! While nothing fails, one call in [`SAMPLE_RATE`] is recorded, so that the routes that work are known; from the first
//! failure on, until a window has passed without one, all are. A route's cell keeps its last 16 results. Routes whose hashes
//! collide share a cell.

use std::cell::Cell as StdCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::window::CELLS;
use crate::stats::{Ratio, RouteKey, RouteTable};

/// Of the calls of a healthy upstream, one in `SAMPLE_RATE` is recorded; a power of two.
///
/// Measured (callgrind): recording every call costs 440 instructions of 1,490, a thread's own count of calls 8.
const SAMPLE_RATE: u32 = 16;

thread_local! {
    static CALLS: StdCell<u32> = const { StdCell::new(0) };
}

/// The cells of one depth, one for each hash.
const CELL_COUNT: usize = 256;
/// How many results of a route are kept.
const HISTORY: u32 = 16;
/// Bits of a cell from the lowest: results (1: failed), their number, and the tick of the last one.
const COUNT: u32 = HISTORY;
const TICK: u32 = COUNT + 8;

/// The latest results of the routes of one upstream.
#[derive(Debug, Default)]
pub(super) struct RouteResults {
    /// Results are recorded up to this tick; 0 before the first failure.
    until: AtomicU64,
    cells: OnceLock<RouteTable<AtomicU64, CELL_COUNT>>,
}

impl RouteResults {
    /// Whether the route of a call that begins now matters; `tick` is evaluated only after a failure.
    #[inline]
    pub(super) fn are_recorded(&self, tick: impl FnOnce() -> u64) -> bool {
        let until = self.until.load(Relaxed);
        is_sampled() || (until != 0 && tick() <= until)
    }

    /// A call has failed: results are recorded for the length of a window.
    pub(super) fn start(&self, tick: u64) {
        self.until.fetch_max(tick + CELLS, Relaxed);
    }

    /// Records the result of a call by this route.
    pub(super) fn record(&self, route: RouteKey, tick: u64, failed: bool) {
        for cell in self.cells.get_or_init(RouteTable::default).of(route) {
            // the last one of two threads wins: one result more or less decides nothing
            cell.store(Cell::of(cell.load(Relaxed)).with(tick, failed).word(), Relaxed);
        }
    }

    /// The last call by this route has succeeded after all.
    pub(super) fn retract(&self, route: RouteKey) {
        for cell in self.cells.get().into_iter().flat_map(|cells| cells.of(route)) {
            cell.fetch_and(!1, Relaxed);
        }
    }

    /// Whether most of the routes called in the window that ends at `tick` fail at least this share of their calls.
    ///
    /// True if no route is known.
    pub(super) fn most_fail(&self, tick: u64, share: Ratio) -> bool {
        let Some(cells) = self.cells.get() else { return true };
        cells.depths().all(|cells| {
            let recent = cells.iter().map(|cell| Cell::of(cell.load(Relaxed))).filter(|cell| cell.is_recent(tick));
            let (called, failing) =
                recent.fold((0, 0), |(called, failing), cell| (called + 1, failing + u32::from(cell.fails(share))));
            called == 0 || failing * 2 > called
        })
    }

    /// Forgets all results.
    pub(super) fn clear(&self) {
        self.until.store(0, Relaxed);
        for cell in self.cells.get().into_iter().flat_map(|cells| cells.depths().flatten()) {
            cell.store(0, Relaxed);
        }
    }
}

fn is_sampled() -> bool {
    CALLS.with(|calls| calls.replace(calls.get().wrapping_add(1))) % SAMPLE_RATE == 0
}

/// The latest results of one route.
#[derive(Clone, Copy)]
struct Cell {
    results: u64,
    count: u32,
    tick: u64,
}

impl Cell {
    #[allow(clippy::cast_possible_truncation)] // the count has eight bits
    fn of(word: u64) -> Self {
        let count = (word >> COUNT) as u32 & 0xff;
        Self { results: word & ((1 << COUNT) - 1), count, tick: word >> TICK }
    }

    fn word(self) -> u64 {
        self.tick << TICK | u64::from(self.count) << COUNT | self.results
    }

    fn with(self, tick: u64, failed: bool) -> Self {
        let before = if self.is_recent(tick) { self } else { Self::of(0) };
        let results = (before.results << 1 | u64::from(failed)) & ((1 << COUNT) - 1);
        Self { results, count: (before.count + 1).min(HISTORY), tick: tick & ((1 << (64 - TICK)) - 1) }
    }

    fn is_recent(self, tick: u64) -> bool {
        self.count > 0 && tick.saturating_sub(self.tick) < CELLS
    }

    fn fails(self, share: Ratio) -> bool {
        u64::from(self.results.count_ones()) * 1000 >= u64::from(self.count) * u64::from(share.as_per_mille())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HALF: Ratio = Ratio::per_mille(500);

    fn results(calls: &[(&str, bool)]) -> RouteResults {
        let routes = RouteResults::default();
        for (path, failed) in calls {
            routes.record(RouteKey::of(path), 1, *failed);
        }
        routes
    }

    #[test]
    fn one_call_in_sixteen_is_recorded_and_each_from_the_first_failure_to_a_window_after_the_last() {
        let routes = RouteResults::default();
        let recorded = |tick| (0..32).filter(|_| routes.are_recorded(|| tick)).count();
        assert_eq!(recorded(1), 2);
        routes.start(5);
        assert_eq!((recorded(15), recorded(16)), (32, 2));
        routes.clear();
        assert_eq!(recorded(6), 2);
    }

    #[test]
    fn a_failing_upstream_fails_by_all_routes_however_many_it_has() {
        assert!(RouteResults::default().most_fail(1, HALF));
        assert!(results(&[("/", true)]).most_fail(1, HALF));
        assert!(results(&[("/a", true), ("/b", true), ("/c", true)]).most_fail(1, HALF));
        assert!(results(&[("/a", true), ("/b", true), ("/c", false)]).most_fail(1, HALF));
    }

    #[test]
    fn one_failing_route_beside_a_healthy_one_is_not_the_upstream_at_any_depth_and_with_any_parameter() {
        for (failing, healthy) in [
            ("/partner", "/"),
            ("/api/partner", "/api/orders"),
            ("/api/v1/partner/9", "/api/v1/orders"),
            ("/partner/1", "/orders/1"),
        ] {
            let routes = results(&[(healthy, false)]);
            for number in 0..1000 {
                routes.record(RouteKey::of(&format!("{failing}/{number}")), 1, true);
            }
            assert!(!routes.most_fail(1, HALF), "{failing} beside {healthy}");
        }
    }

    #[test]
    fn a_route_that_was_not_called_for_a_window_does_not_count() {
        let routes = results(&[("/a", true), ("/b", false)]);
        routes.record(RouteKey::of("/a"), 8, true);
        assert!(!routes.most_fail(10, HALF));
        assert!(routes.most_fail(11, HALF));
    }

    #[test]
    fn a_route_recovers_with_its_last_calls() {
        let routes = results(&[("/a", true); 40]);
        assert!(routes.most_fail(1, HALF));
        for _ in 0..9 {
            routes.record(RouteKey::of("/a"), 2, false);
        }
        assert!(!routes.most_fail(2, HALF));
    }

    proptest! {
        /// A client that calls one failing route does not open the circuit while other clients succeed on another route.
        #[test]
        fn no_client_outvotes_the_others(calls in prop::collection::vec((0_u64..30, "[a-z]{1,8}"), 0..200)) {
            let routes = RouteResults::default();
            for (tick, id) in calls {
                routes.record(RouteKey::of(&format!("/hostile/{id}")), 100 + tick, true);
                routes.record(RouteKey::of("/shop"), 100 + tick, false);
                prop_assert!(!routes.most_fail(100 + tick, HALF));
            }
        }
    }
}
