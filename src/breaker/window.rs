//! Counts calls and failed calls over a rolling window of ten cells, on striped counters.
//!
//! A cell packs its tick, its calls and its failures into one word; recording into a cell whose tick has passed restarts
//! it. Nothing expires in the background, and a sum reads ten cells per stripe whatever the number of calls. A record or
//! a sum concurrent with the end of a tick counts in one cell or the other, never in both. A record whose clock lags by
//! a whole window or more is dropped.
//!
//! The newest cell is still filling: the window covers between nine and ten tenths of its length.

use crate::stats::sync::{AtomicU64, Ordering};

const CELL_COUNT: usize = 10;

/// The number of cells.
pub(crate) const CELLS: u64 = CELL_COUNT as u64;

/// Bits of a word from the lowest: failures, calls, and the low bits of the tick.
const COUNT: u32 = 20;
const LOW: u64 = (1 << COUNT) - 1;
const TICK: u32 = 2 * COUNT;
const TICKS: u64 = (1 << (64 - TICK)) - 1;
const CALL: u64 = 1 << COUNT;

/// The cells of the threads that share a stripe, on their own cache lines.
#[derive(Debug)]
#[repr(align(128))] // two lines: prefetchers load them in pairs
struct Stripe([AtomicU64; CELL_COUNT]);

/// The totals of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowCounts {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
}

/// Striped cells; the owner derives the tick from the time.
#[derive(Debug)]
pub(crate) struct RollingWindow {
    stripes: Box<[Stripe]>,
    /// One less than the number of stripes, a power of two.
    mask: usize,
}

impl RollingWindow {
    /// An empty window; the number of stripes is rounded up to a power of two.
    pub(crate) fn new(stripes: usize) -> Self {
        let stripes = stripes.next_power_of_two();
        let empty = || Stripe(std::array::from_fn(|_| AtomicU64::new(0)));
        Self { stripes: (0..stripes).map(|_| empty()).collect(), mask: stripes - 1 }
    }

    /// Counts a call; `stripe` may be any number that is constant for a thread.
    #[inline]
    pub(crate) fn record(&self, tick: u64, stripe: usize, bad: bool) {
        let Some(Stripe(cells)) = self.stripes.get(stripe & self.mask) else { return };
        #[allow(clippy::cast_possible_truncation)] // less than ten
        let Some(cell) = cells.get((tick % CELLS) as usize) else { return };
        let tag = tick & TICKS;
        let one = CALL + u64::from(bad);
        let mut seen = cell.load(Ordering::Relaxed);
        loop {
            let next = if seen >> TICK == tag && calls(seen) < LOW {
                seen + one
            } else {
                match restarted(seen, tag) {
                    Some(begun) => begun + one,
                    None => return,
                }
            };
            match cell.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// A call that was counted as a failure has succeeded after all.
    ///
    /// Takes the failure from the current cell; one that was counted in an earlier cell stays.
    pub(crate) fn retract(&self, tick: u64, stripe: usize) {
        let Some(Stripe(cells)) = self.stripes.get(stripe & self.mask) else { return };
        #[allow(clippy::cast_possible_truncation)] // less than ten
        let Some(cell) = cells.get((tick % CELLS) as usize) else { return };
        let fewer = |seen: u64| (seen >> TICK == tick & TICKS && seen & LOW > 0).then(|| seen - 1);
        let _ = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
    }

    /// The totals of the window that ends with this tick.
    pub(crate) fn sum(&self, tick: u64) -> WindowCounts {
        let mut sum = WindowCounts::default();
        for cell in self.cells() {
            let seen = cell.load(Ordering::Relaxed);
            // cells of a later tick, which other threads have started, count as well
            let age = tick.wrapping_sub(seen >> TICK) & TICKS;
            if !(CELLS..=TICKS - CELLS).contains(&age) {
                sum.calls += calls(seen);
                sum.failures += seen & LOW;
            }
        }
        sum
    }

    /// Resets all cells.
    pub(crate) fn clear(&self) {
        for cell in self.cells() {
            cell.store(0, Ordering::Relaxed);
        }
    }

    fn cells(&self) -> impl Iterator<Item = &AtomicU64> {
        self.stripes.iter().flat_map(|Stripe(cells)| cells)
    }
}

fn calls(cell: u64) -> u64 {
    cell >> COUNT & LOW
}

/// The new value of a cell that is full or of an earlier tick; `None` if this tick has passed.
#[cold]
fn restarted(seen: u64, tag: u64) -> Option<u64> {
    if seen >> TICK == tag {
        // full: halving both counts keeps the ratio
        return Some(tag << TICK | ((calls(seen) / 2) << COUNT) | ((seen & LOW) / 2));
    }
    let ahead = (seen >> TICK).wrapping_sub(tag) & TICKS;
    // a larger distance is wrap-around of the tick, not a lagging clock
    let over = calls(seen) > 0 && ahead <= 6 * CELLS;
    (!over).then_some(tag << TICK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(calls: u64, bad: u64) -> WindowCounts {
        WindowCounts { calls, failures: bad }
    }

    #[test]
    fn a_window_forgets_old_successes() {
        let window = RollingWindow::new(1);
        (0..20_000).for_each(|_| window.record(3, 0, false));
        assert_eq!(window.sum(12), sum(20_000, 0));
        assert_eq!(window.sum(13), sum(0, 0));
        window.record(13, 0, true);
        assert_eq!(window.sum(13), sum(1, 1));
    }

    #[test]
    fn a_failure_that_is_taken_back_was_a_success() {
        let window = RollingWindow::new(1);
        window.record(3, 0, true);
        window.retract(3, 0);
        assert_eq!(window.sum(3), sum(1, 0));
        window.retract(3, 0);
        window.retract(4, 0);
        assert_eq!(window.sum(4), sum(1, 0), "no failure is left to take back");
    }

    #[test]
    fn the_cost_does_not_grow_with_the_number_of_calls() {
        let window = RollingWindow::new(4);
        let cells = || window.cells().count();
        assert_eq!(cells(), 40);
        (0..100_000).for_each(|call| window.record(call / 10_000, 0, false));
        assert_eq!((cells(), window.sum(9)), (40, sum(100_000, 0)));
        assert_eq!(size_of::<Stripe>(), 128);
    }

    #[test]
    fn a_full_cell_keeps_its_share() {
        let window = RollingWindow::new(1);
        (0..LOW).for_each(|call| window.record(7, 0, call % 4 == 0));
        let full = window.sum(7);
        assert_eq!(full.calls, LOW);
        window.record(7, 0, false);
        assert_eq!(window.sum(7), sum(LOW / 2 + 1, full.failures / 2));
        for call in LOW..(LOW * 3) {
            window.record(7, 0, call % 4 == 0);
        }
        let held = window.sum(7);
        assert!(held.calls > LOW / 2 && held.calls <= LOW, "{held:?}");
        assert!((held.failures * 4).abs_diff(held.calls) <= 8, "{held:?}");
    }

    #[test]
    fn a_clock_that_lags_by_a_turn_is_not_counted() {
        let window = RollingWindow::new(1);
        window.record(25, 0, false);
        window.record(15, 0, true);
        assert_eq!(window.sum(25), sum(1, 0));
        window.record(24, 0, true);
        assert_eq!(window.sum(25), sum(2, 1), "one that lags less is");
        assert_eq!(window.sum(24), sum(2, 1), "and sees what others have begun");
        window.record(85, 0, false);
        window.record(35, 0, true);
        assert_eq!(window.sum(85), sum(1, 0), "nor one that lags by six");
    }

    #[test]
    fn a_cell_left_alone_for_months_is_begun_anew() {
        for silence in [TICKS / 2, TICKS / 2 + 10, TICKS - 99, TICKS + 11] {
            let window = RollingWindow::new(1);
            let later = silence / CELLS * CELLS;
            window.record(0, 0, true);
            window.record(later, 0, false);
            assert_eq!(window.sum(later), sum(1, 0), "{silence}");
        }
    }

    proptest! {
        #[test]
        fn it_counts_like_a_list_of_the_calls(
            calls in prop::collection::vec((0_u64..24, 0_usize..8, any::<bool>()), 1..300),
        ) {
            let window = RollingWindow::new(4);
            let mut listed: Vec<(u64, bool)> = Vec::new();
            let mut tick = TICKS - 30;
            for (pause, stripe, bad) in calls {
                tick += pause / 12 * (pause % 12);
                window.record(tick, stripe, bad);
                listed.push((tick, bad));
                let within = listed.iter().filter(|(at, _)| tick - at < CELLS);
                let bad = within.clone().filter(|(_, bad)| *bad).count() as u64;
                prop_assert_eq!(window.sum(tick), sum(within.count() as u64, bad));
            }
        }
    }
}
