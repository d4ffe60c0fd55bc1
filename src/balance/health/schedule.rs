//! The order of checks. Pure: time is an argument.
//!
//! At most a given number of checks run at a time. At most half of them are of endpoints whose last check was slow, or
//! that were not checked yet: however many of these hang, the checks of the others are not delayed.

use std::collections::BTreeSet;

use tokio::time::Instant;

/// Checks by the time at which they are due, and the number of running ones.
#[derive(Debug)]
pub(super) struct Queue {
    /// The time and the id of each check, by lane.
    due: [BTreeSet<(Instant, u64)>; 2],
    running: [usize; 2],
    most: usize,
}

/// Class of an endpoint by the duration of its last check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Quick = 0,
    /// The last check was slow, or there was none.
    Slow = 1,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self { due: [BTreeSet::new(), BTreeSet::new()], running: [0; 2], most }
    }

    pub(super) fn insert(&mut self, lane: Lane, at: Instant, id: u64) {
        self.due[lane as usize].insert((at, id));
    }

    pub(super) fn remove(&mut self, lane: Lane, at: Instant, id: u64) {
        self.due[lane as usize].remove(&(at, id));
    }

    /// Removes and returns a check that is due and may run.
    pub(super) fn start(&mut self, now: Instant) -> Option<(Lane, u64)> {
        let lane =
            [Lane::Quick, Lane::Slow].into_iter().find(|lane| self.is_due(*lane, now) && self.has_slot(*lane))?;
        let (_, id) = self.due[lane as usize].pop_first()?;
        self.running[lane as usize] += 1;
        Some((lane, id))
    }

    /// Records the end of a check of this lane.
    pub(super) fn end(&mut self, lane: Lane) {
        self.running[lane as usize] -= 1;
    }

    /// Returns the time of the next check, if none ends before.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let lanes = [Lane::Quick, Lane::Slow].into_iter().filter(|lane| self.has_slot(*lane));
        lanes.filter_map(|lane| self.due[lane as usize].first()).map(|(at, _)| *at).min()
    }

    fn is_due(&self, lane: Lane, now: Instant) -> bool {
        self.due[lane as usize].first().is_some_and(|(at, _)| *at <= now)
    }

    fn has_slot(&self, lane: Lane) -> bool {
        let is_free = self.running.iter().sum::<usize>() < self.most;
        is_free && (lane == Lane::Quick || self.running[lane as usize] < self.most / 2)
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small numbers
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slow_endpoints_leave_half_of_the_slots_to_the_others() {
        let (mut queue, now) = (Queue::new(4), Instant::now());
        for id in 0..9 {
            queue.insert(Lane::Slow, now, id);
        }
        assert_eq!(queue.start(now), Some((Lane::Slow, 0)));
        assert_eq!(queue.start(now), Some((Lane::Slow, 1)));
        assert_eq!((queue.start(now), queue.next_at()), (None, None));
        queue.insert(Lane::Quick, now + Duration::from_secs(1), 9);
        assert_eq!((queue.start(now), queue.next_at()), (None, Some(now + Duration::from_secs(1))));
        assert_eq!(queue.start(now + Duration::from_secs(1)), Some((Lane::Quick, 9)));
        queue.end(Lane::Slow);
        assert_eq!(queue.start(now), Some((Lane::Slow, 2)));
        queue.remove(Lane::Slow, now, 3);
        queue.end(Lane::Slow);
        assert_eq!(queue.start(now), Some((Lane::Slow, 4)));
    }

    proptest! {
        #[test]
        fn every_check_that_is_due_is_made_in_its_order_and_never_too_many_at_a_time(
            checks in proptest::collection::vec((any::<bool>(), 0_u64..50), 1..200), most in 2_usize..20,
        ) {
            let (mut queue, start) = (Queue::new(most), Instant::now());
            let at = |ms| start + Duration::from_millis(ms);
            for (id, (slow, due)) in checks.iter().enumerate() {
                queue.insert(if *slow { Lane::Slow } else { Lane::Quick }, at(*due), id as u64);
            }
            let (mut now, mut running, mut made) = (start, Vec::new(), vec![Vec::new(), Vec::new()]);
            while made.iter().map(Vec::len).sum::<usize>() < checks.len() {
                while let Some((lane, id)) = queue.start(now) {
                    prop_assert!(at(checks[id as usize].1) <= now);
                    made[lane as usize].push(checks[id as usize].1);
                    running.push(lane);
                    prop_assert!(running.len() <= most);
                    prop_assert!(running.iter().filter(|lane| **lane == Lane::Slow).count() <= most / 2);
                }
                match queue.next_at() {
                    Some(next) => now = now.max(next),
                    None => queue.end(running.pop().unwrap()),
                }
            }
            prop_assert!(made.iter().all(|lane| lane.is_sorted()));
        }
    }
}
