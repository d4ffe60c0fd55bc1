//! Assigns each thread a stripe of striped counters.
//!
//! Concurrent threads should not write the same cache line. Each thread gets a number at its first use; a set of counters
//! uses as many of its low bits as it has stripes.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The maximum number of stripes: more would gain little for their memory.
const MOST: usize = 16;

const UNSET: usize = usize::MAX;

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    // const and without a destructor, so that reading it is one load
    static OWN: Cell<usize> = const { Cell::new(UNSET) };
}

/// The number of this thread; a set of counters masks it.
#[inline]
pub(crate) fn stripe() -> usize {
    let own = OWN.get();
    if own == UNSET { number() } else { own }
}

#[cold]
fn number() -> usize {
    // masked, so that it never equals UNSET
    let own = NEXT.fetch_add(1, Ordering::Relaxed) & (MOST - 1);
    OWN.set(own);
    own
}

/// The number of cores, at most 16, rounded up to a power of two.
pub(crate) fn default_stripes() -> usize {
    static STRIPES: OnceLock<usize> = OnceLock::new();
    *STRIPES.get_or_init(|| thread::available_parallelism().map_or(1, |cores| rounded(cores.get())))
}

fn rounded(cores: usize) -> usize {
    cores.clamp(1, MOST).next_power_of_two()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_the_next_thread_has_another() {
        let mine = stripe();
        assert_eq!(stripe(), mine);
        // other tests' threads draw numbers as well; some thread soon draws one that is not ours
        assert!((0..2 * MOST).any(|_| thread::spawn(stripe).join().unwrap() != mine));
    }

    #[test]
    fn stripes_are_a_power_of_two_and_no_more_than_sixteen() {
        let expected = [(1, 1), (2, 2), (3, 4), (8, 8), (12, 16), (16, 16), (192, 16)];
        for (cores, stripes) in expected {
            assert_eq!(rounded(cores), stripes, "{cores} cores");
        }
        assert!(default_stripes().is_power_of_two());
    }
}
