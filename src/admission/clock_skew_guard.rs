//! Keeps a client's wrong clock from shutting a service down.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bounds the share of calls refused because of a deadline given as a time of day.
///
/// Within ten seconds at most a fifth of those calls is refused, as in Finagle's `DeadlineFilter`: otherwise a client whose
/// clock is behind ours by more than its timeout would never be served again. Ten exact buckets of one second.
/// Two concurrent threads may both take the last permitted rejection.
#[derive(Debug, Default)]
pub(super) struct ClockSkewGuard {
    seconds: [AtomicU64; SECONDS],
}

const SECONDS: usize = 10;
/// One rejection is permitted per this many calls.
const ONE_IN: u64 = 5;

/// One bucket: its second in 24 bits, then calls and rejections in 20 bits each.
#[derive(Clone, Copy)]
struct Bucket {
    second: u64,
    calls: u64,
    refused: u64,
}

const COUNT: u64 = (1 << 20) - 1;
const SECOND: u64 = (1 << 24) - 1;

impl Bucket {
    fn unpack(word: u64) -> Self {
        Self { second: word >> 40, calls: word >> 20 & COUNT, refused: word & COUNT }
    }

    fn pack(self) -> u64 {
        self.second << 40 | self.calls.min(COUNT) << 20 | self.refused.min(COUNT)
    }
}

impl ClockSkewGuard {
    /// Counts a call with a deadline by the client's clock.
    pub(super) fn record_call(&self, second: u64) {
        self.update(second, |bucket| bucket.calls += 1);
    }

    /// Whether such a call may be rejected; if so, the rejection is counted.
    pub(super) fn may_reject(&self, second: u64) -> bool {
        let (mut seen, mut refused) = (0, 0);
        for bucket in &self.seconds {
            let bucket = Bucket::unpack(bucket.load(Relaxed));
            // a bucket one second ahead belongs to a thread that read its clock later
            let age = stamp(second).wrapping_sub(bucket.second) & SECOND;
            if age < SECONDS as u64 || age == SECOND {
                seen += bucket.calls;
                refused += bucket.refused;
            }
        }
        let may = (refused + 1) * ONE_IN <= seen;
        if may {
            self.update(second, |bucket| bucket.refused += 1);
        }
        may
    }

    fn update(&self, second: u64, change: impl Fn(&mut Bucket)) {
        let stamp = stamp(second);
        let place = usize::try_from(second % SECONDS as u64).unwrap_or_default();
        let Some(place) = self.seconds.get(place) else { return };
        let update = |word| {
            let mut bucket = Bucket::unpack(word);
            if bucket.second != stamp {
                bucket = Bucket { second: stamp, calls: 0, refused: 0 };
            }
            change(&mut bucket);
            Some(bucket.pack())
        };
        // the closure never declines
        let _ = place.fetch_update(Relaxed, Relaxed, update);
    }
}

/// The second as stored in a bucket: it wraps around after half a year.
fn stamp(second: u64) -> u64 {
    second & SECOND
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fifth_of_the_calls_with_a_wrong_clock_is_rejected() {
        let guard = ClockSkewGuard::default();
        let refused = (0..1000).filter(|call| {
            guard.record_call(call / 100);
            guard.may_reject(call / 100)
        });
        assert_eq!(refused.count(), 200);
    }

    #[test]
    fn one_late_call_among_many_is_rejected() {
        let guard = ClockSkewGuard::default();
        for _ in 0..5 {
            guard.record_call(0);
        }
        assert!(guard.may_reject(0));
        assert!(!guard.may_reject(0));
    }

    #[test]
    fn ten_seconds_later_all_is_forgotten() {
        let guard = ClockSkewGuard::default();
        for _ in 0..100 {
            guard.record_call(3);
        }
        assert!(guard.may_reject(12));
        assert!(!guard.may_reject(13));
        for _ in 0..5 {
            guard.record_call(22);
        }
        assert!(guard.may_reject(22), "what was refused before is forgotten too");
    }

    proptest! {
        #[test]
        fn never_more_than_a_fifth_of_ten_seconds(
            start in 0_u64..1 << 25,
            steps in proptest::collection::vec((0_u64..3, any::<bool>()), 0..200),
        ) {
            let guard = ClockSkewGuard::default();
            let (mut now, mut seen, mut refused) = (start, Vec::new(), Vec::new());
            for (later, late) in steps {
                now += later;
                guard.record_call(now);
                seen.push(now);
                let recent = |all: &[u64]| all.iter().filter(|second| **second + 10 > now).count();
                let room = (recent(&refused) + 1) * 5 <= recent(&seen);
                if late {
                    prop_assert_eq!(guard.may_reject(now), room);
                    refused.extend(room.then_some(now));
                }
            }
        }
    }
}
