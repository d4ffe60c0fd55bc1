//! Counters of the last minute: two slices of thirty seconds, the current one and the previous one.
//!
//! A reader thus sees between 30 and 60 seconds: 30 just after a slice starts, 60 just before it ends. After a gap of a
//! whole slice no earlier sample counts.
//!
//! Starting a slice does not block and loses nothing. Each counter carries the generation it counts in its upper 8 bits, so
//! starting a slice is one compare-exchange of one word: from then on the counters of expired generations are void, and
//! the next record in each restarts it. The thread whose exchange succeeded then sets void counters to zero, again by
//! compare-exchange, so that it never erases a concurrent record. Without that sweep a counter unused for 128 generations
//! would look current.
//!
//! Invariants under any interleaving (`tests/loom` checks them):
//!
//! - A record is counted once, in the slice of the generation it found current. A thread that is suspended between finding
//!   and counting for longer than a slice counts in the then current one, or its record expires like any other of its
//!   age; it never counts twice.
//! - A reader sees every record that happened before it and belongs to the two slices.
//! - A counter saturates at 16,777,215 samples per slice and stripe; it never overflows into the generation.
use std::fmt;

use super::sync::{AtomicU32, Ordering};

/// The length of a slice in seconds.
const SLICE: u32 = 30;

/// The low bits hold a counter's count or the state's slice number; the generation is above.
const GENERATION: u32 = 24;
const LOW: u32 = (1 << GENERATION) - 1;

/// Half the range of slice numbers: a larger distance ahead means behind.
const HALF: u32 = 1 << (GENERATION - 1);

/// The number of samples in the two slices at one read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bookmark {
    pub(crate) generation: u8,
    pub(crate) running: u32,
    pub(crate) before: u32,
}

impl Bookmark {
    /// The samples since an earlier read, as far as they still count.
    pub(crate) fn since(self, earlier: Bookmark) -> u32 {
        let known = match self.generation.wrapping_sub(earlier.generation) {
            0 => return self.running.saturating_sub(earlier.running),
            1 => earlier.running,
            _ => 0,
        };
        self.before.saturating_sub(known).saturating_add(self.running)
    }
}

/// Striped counters over two slices of time.
pub(crate) struct StripedWindow {
    /// Generation and slice number: the slice number follows the clock, the generation counts the slices started.
    state: AtomicU32,
    /// By stripe, then slice, then bucket.
    counters: Box<[AtomicU32]>,
    buckets: usize,
    /// One less than the number of stripes, a power of two.
    mask: usize,
}

impl fmt::Debug for StripedWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StripedWindow").field("stripes", &(self.mask + 1)).finish_non_exhaustive()
    }
}

impl StripedWindow {
    /// An empty window; the stripes are rounded up to a power of two.
    pub(crate) fn new(stripes: usize, buckets: usize) -> Self {
        let stripes = stripes.next_power_of_two();
        let counters = (0..stripes * 2 * buckets).map(|_| AtomicU32::new(0)).collect();
        Self { state: AtomicU32::new(0), counters, buckets, mask: stripes - 1 }
    }

    /// The size of the counters in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.counters)
    }

    /// Counts one sample; `stripe` may be any number that is constant for a thread.
    #[inline]
    pub(crate) fn record(&self, second: u32, stripe: usize, bucket: usize) {
        let generation = self.turn(second);
        let slice = (stripe & self.mask) * 2 + usize::from(generation & 1);
        let Some(counter) = self.counters.get(slice * self.buckets + bucket) else { return };
        let mut seen = counter.load(Ordering::Relaxed);
        loop {
            let next = match seen & LOW {
                0 => first(generation),
                _ if age(generation, seen) > 0 => first(generation),
                LOW => return,
                _ => seen + 1,
            };
            match counter.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Calls `each` for every bucket with current samples and returns the totals.
    pub(crate) fn read(&self, second: u32, mut each: impl FnMut(usize, u32)) -> Bookmark {
        let generation = self.turn(second);
        let mut mark = Bookmark { generation, ..Bookmark::default() };
        for (place, counter) in self.counters.iter().enumerate() {
            let seen = counter.load(Ordering::Relaxed);
            let count = seen & LOW;
            if count == 0 || age(generation, seen) > 1 {
                continue;
            }
            let (slice, bucket) = (place / self.buckets, place % self.buckets);
            let total = if slice & 1 == usize::from(generation & 1) { &mut mark.running } else { &mut mark.before };
            *total = total.saturating_add(count);
            each(bucket, count);
        }
        mark
    }

    /// The generation of this second; a second before the current slice changes nothing.
    #[inline]
    fn turn(&self, second: u32) -> u8 {
        let state = self.state.load(Ordering::Relaxed);
        let ahead = (second / SLICE).wrapping_sub(state) & LOW;
        if ahead == 0 { generation(state) } else { self.turn_by(state, ahead) }
    }

    #[cold]
    fn turn_by(&self, state: u32, ahead: u32) -> u8 {
        if ahead >= HALF {
            return generation(state);
        }
        // after a gap the previous slice is void as well: skip one generation
        let next = generation(state).wrapping_add(if ahead == 1 { 1 } else { 2 });
        let turned = u32::from(next) << GENERATION | (state.wrapping_add(ahead) & LOW);
        match self.state.compare_exchange(state, turned, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                self.sweep(next);
                next
            }
            // another thread started this slice, or an adjacent one
            Err(now) => generation(now),
        }
    }

    fn sweep(&self, generation: u8) {
        for counter in &self.counters {
            let seen = counter.load(Ordering::Relaxed);
            if seen != 0 && age(generation, seen) > 1 {
                // the exchange fails if a record has restarted the counter: nothing to sweep then
                let _ = counter.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

/// The counter value after the first sample of a generation.
fn first(generation: u8) -> u32 {
    u32::from(generation) << GENERATION | 1
}

#[allow(clippy::cast_possible_truncation)] // what is left after the shift has 8 bits
fn generation(word: u32) -> u8 {
    (word >> GENERATION) as u8
}

/// The number of generations a counter is behind; negative if the reading thread is slow.
fn age(running: u8, counter: u32) -> i8 {
    i8::from_ne_bytes([running.wrapping_sub(generation(counter))])
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The counts by bucket.
    fn counts(window: &StripedWindow, second: u32) -> Vec<u32> {
        let mut counts = vec![0; window.buckets];
        let mark = window.read(second, |bucket, count| counts[bucket] += count);
        assert_eq!(mark.running + mark.before, counts.iter().sum::<u32>());
        counts
    }

    #[test]
    fn a_sample_counts_for_one_slice_more_than_its_own() {
        let window = StripedWindow::new(1, 2);
        window.record(29, 0, 1);
        assert_eq!(counts(&window, 59), [0, 1]);
        assert_eq!(counts(&window, 60), [0, 0]);
    }

    #[test]
    fn after_a_silence_of_a_whole_slice_nothing_from_before_counts() {
        for silence in [60, 61, 90, 119, 30_000] {
            let window = StripedWindow::new(1, 2);
            window.record(0, 0, 0);
            window.record(silence, 0, 1);
            assert_eq!(counts(&window, silence), [0, 1], "{silence} s");
        }
    }

    #[test]
    fn a_counter_left_alone_for_hours_never_seems_fresh() {
        let window = StripedWindow::new(1, 2);
        window.record(0, 0, 0);
        for turn in 2..1000 {
            window.record(turn * SLICE, 0, 1);
            let expected = if turn == 2 { 1 } else { 2 };
            assert_eq!(counts(&window, turn * SLICE), [0, expected], "turn {turn}");
        }
    }

    #[test]
    fn a_void_counter_that_waits_to_be_swept_does_not_count() {
        let window = StripedWindow::new(1, 2);
        window.record(0, 0, 0);
        // a slice started after a gap, by a thread that has not swept yet
        window.state.store(2 << GENERATION | 2, Ordering::Relaxed);
        assert_eq!(counts(&window, 60), [0, 0]);
        window.record(60, 0, 0);
        assert_eq!(counts(&window, 60), [1, 0]);
    }

    #[test]
    fn a_clock_that_lags_counts_in_the_slice_that_runs() {
        let window = StripedWindow::new(1, 1);
        window.record(300, 0, 0);
        window.record(0, 0, 0);
        assert_eq!(counts(&window, 300), [2]);
    }

    #[test]
    fn a_full_counter_stays_full() {
        let window = StripedWindow::new(1, 1);
        window.counters[0].store(LOW - 1, Ordering::Relaxed);
        for _ in 0..3 {
            window.record(0, 0, 0);
        }
        assert_eq!(counts(&window, 0), [LOW]);
        window.record(30, 0, 0);
        assert_eq!(counts(&window, 60), [1]);
    }

    #[test]
    fn a_bookmark_counts_the_samples_since_another() {
        let window = StripedWindow::new(2, 1);
        let look = |second| window.read(second, |_, _| ());
        window.record(28, 0, 0);
        let first = look(28);
        window.record(29, 1, 0);
        window.record(29, 0, 0);
        assert_eq!(look(29).since(first), 2);
        window.record(30, 0, 0);
        assert_eq!(look(30).since(first), 3);
        window.record(60, 0, 0);
        assert_eq!(look(60).since(first), 2, "the two of the slice that ended no longer count");
        assert_eq!(look(60).since(look(60)), 0);
    }

    #[test]
    fn threads_that_write_side_by_side_lose_nothing() {
        let window = StripedWindow::new(4, 3);
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let window = &window;
                scope.spawn(move || (0..10_000).for_each(|each| window.record(each / 200, thread, 1)));
            }
        });
        assert_eq!(counts(&window, 50), [0, 80_000, 0]);
    }

    proptest! {
        #[test]
        fn it_counts_like_a_list_of_the_samples(
            samples in prop::collection::vec((0_u32..75, 0_usize..8, 0_usize..3), 1..400),
        ) {
            let window = StripedWindow::new(4, 3);
            let mut listed: Vec<(u32, usize)> = Vec::new();
            let mut second = 0;
            for (pause, stripe, bucket) in samples {
                // most steps are short: slices with many samples, and sometimes a gap
                second += if pause > 60 { pause } else { pause / 20 };
                window.record(second, stripe, bucket);
                listed.push((second, bucket));
                let counted = |bucket| {
                    let counts = |at: &&(u32, usize)| at.1 == bucket && second / SLICE - at.0 / SLICE <= 1;
                    u32::try_from(listed.iter().filter(counts).count()).unwrap()
                };
                prop_assert_eq!(counts(&window, second), [counted(0), counted(1), counted(2)]);
            }
        }
    }
}
