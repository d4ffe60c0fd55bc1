//! Models of `src/stats/`, of the replay body's slot, of the retry budget's tokens, of the circuit, of the limiter's slots, of the
//! streams on a shared connection and of bodies that a sweep ends for loom: the interleavings of a few steps.

#![cfg(test)]
#![allow(dead_code, unused_imports, unreachable_pub)] // the models call only a part of the crate's files that they include

#[path = "../../src/exchange"]
mod exchange {
    pub(crate) mod entry;
}
#[path = "../../src/limit"]
mod limit {
    pub(crate) mod striped_semaphore;
}
#[path = "../../src/stats/mod.rs"]
mod stats;
#[path = "../../src/breaker"]
mod breaker {
    pub(crate) mod state_machine;
    pub(crate) mod open_backoff;
    pub(crate) mod consecutive_failures;
    pub(crate) mod window;
    pub(crate) mod packed_state;
}
#[path = "breaker.rs"]
mod circuit;
#[path = "../../src/client/pool"]
mod pool {
    pub(crate) mod streams;
}
mod replay;
#[path = "../../src/retry"]
mod retry {
    pub(crate) mod token_bucket;
    pub(crate) mod rate_sampler;
}
mod streams;
mod sweep;

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

use limit::striped_semaphore::{SlotRef, StripedSemaphore};
use stats::{StripedWindow, TickLock};
use retry::token_bucket::{StripedTokenBucket, TOKEN, TokenCounts};
use retry::rate_sampler::{Minimum, RateSampler};

/// The counts by bucket, and their sum by slice.
fn counts(window: &StripedWindow, second: u32) -> ([u32; 2], u32, u32) {
    let mut counts = [0; 2];
    let mark = window.read(second, |bucket, count| counts[bucket] += count);
    (counts, mark.running, mark.before)
}

/// Two threads and this one record at these seconds, then the window is read at the last of them.
///
/// Three preemptions at most: without that bound the longest of these models takes half a minute.
fn race(before: &'static [u32], at: [u32; 2], own: u32, check: impl Fn([u32; 2], u32, u32) + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let window = Arc::new(StripedWindow::new(1, 2));
        for second in before {
            window.record(*second, 0, 0);
        }
        let threads = at.map(|second| {
            let window = window.clone();
            thread::spawn(move || window.record(second, 0, 1))
        });
        window.record(own, 0, 1);
        for thread in threads {
            thread.join().unwrap();
        }
        let (counts, running, slice_before) = counts(&window, at[0].max(at[1]).max(own));
        check(counts, running, slice_before);
    });
}

#[test]
fn records_in_one_slice_all_count() {
    race(&[], [0, 0], 0, |counts, running, _| assert_eq!((counts, running), ([0, 3], 3)));
}

#[test]
fn a_turn_between_records_loses_none_and_counts_none_twice() {
    // 29 may find either slice running, 30 and 31 only the later
    race(&[0], [29, 30], 31, |counts, running, before| {
        assert_eq!(counts, [1, 3]);
        assert!(running >= 2 && before >= 1 && running + before == 4, "{running} {before}");
    });
}

#[test]
fn a_turn_into_a_slice_that_holds_void_counters_loses_none() {
    // the slice of the third turn is that of the first: its counters are swept while others record
    race(&[0, 30], [60, 60], 60, |counts, running, before| {
        assert_eq!((counts, running, before), ([1, 3], 3, 1));
    });
}

#[test]
fn after_a_silence_the_records_of_all_who_woke_count_and_nothing_older() {
    race(&[0, 0], [60, 60], 61, |counts, running, before| {
        assert_eq!((counts, running, before), ([0, 3], 3, 0));
    });
}

#[test]
fn a_record_that_slept_through_a_silence_counts_once_or_is_as_old_as_it_is() {
    race(&[], [0, 60], 60, |counts, _, _| assert!(matches!(counts, [0, 2 | 3]), "{counts:?}"));
}

#[test]
fn a_reader_beside_the_records_never_sees_more_than_there_are() {
    loom::model(|| {
        let window = Arc::new(StripedWindow::new(1, 2));
        window.record(29, 0, 0);
        let writer = {
            let window = window.clone();
            thread::spawn(move || window.record(30, 0, 1))
        };
        let (seen, ..) = counts(&window, 30);
        assert!(seen[0] == 1 && seen[1] <= 1, "{seen:?}");
        writer.join().unwrap();
        assert_eq!(counts(&window, 30).0, [1, 1]);
    });
}

#[test]
fn a_reader_beside_a_turn_never_sees_what_the_turn_made_void() {
    loom::model(|| {
        let window = Arc::new(StripedWindow::new(1, 2));
        window.record(0, 0, 0);
        let writer = {
            let window = window.clone();
            thread::spawn(move || window.record(60, 0, 1))
        };
        let (seen, ..) = counts(&window, 60);
        assert!(seen[0] == 0 && seen[1] <= 1, "{seen:?}");
        writer.join().unwrap();
    });
}

#[test]
fn one_caller_at_a_time_has_the_duty_and_sees_what_the_last_one_wrote() {
    loom::model(|| {
        // loom itself watches the cell: two at once, or one who does not see the other's access, fail the model
        let shared = Arc::new((TickLock::new(), UnsafeCell::new(())));
        let work = |shared: &(TickLock, UnsafeCell<()>), second| {
            let taken = shared.0.try_lock(second).or_else(|| shared.0.try_relock());
            taken.map_or(0, |taken| {
                shared.1.with_mut(|_| ());
                u32::from(taken.since() > 0)
            })
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || work(&shared, 1) + work(&shared, 2))
        };
        let done = work(&shared, 1) + other.join().unwrap();
        assert!((1..=2).contains(&done), "{done}: a second's work is done once");
    });
}

/// More than any model earns.
const ROOM: u32 = 100 * TOKEN;

/// Two threads and this one at a ledger of this many tokens, with one look at most by each; then it is settled.
fn trade<const N: usize>(
    tokens: u32,
    cap: u32,
    deeds: [fn(&StripedTokenBucket); N],
    own: fn(&StripedTokenBucket),
    check: impl Fn(u32, TokenCounts) + Sync + Send + 'static,
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let ledger = Arc::new(StripedTokenBucket::new(500, tokens * TOKEN, 2));
        let threads = deeds.map(|deed| {
            let ledger = ledger.clone();
            thread::spawn(move || deed(&ledger))
        });
        own(&ledger);
        for thread in threads {
            thread.join().unwrap();
        }
        check(ledger.settle(cap), ledger.counts());
    });
}

/// What is left when nothing was above the cap.
fn left(tokens: u32, counts: TokenCounts) -> u32 {
    let came = u64::from(tokens) * 1000 + counts.succeeded * 500 + counts.refunded * 1000;
    u32::try_from(came - counts.withdrawn * 1000).unwrap()
}

#[test]
fn successes_beside_a_withdrawal_are_earned_once_each() {
    let earns = |ledger: &StripedTokenBucket| ledger.record_success(1);
    let own = |ledger: &StripedTokenBucket| _ = ledger.withdraw(ROOM, 0);
    trade(0, ROOM, [earns, earns], own, |tokens, counts| {
        assert_eq!((counts.succeeded, counts.withdrawn + counts.refused), (2, 1));
        assert_eq!(tokens, left(0, counts));
    });
}

#[test]
fn two_who_settle_at_once_count_nothing_twice() {
    let works = |ledger: &StripedTokenBucket| {
        ledger.record_success(1);
        ledger.withdraw(ROOM, 1);
    };
    let own = |ledger: &StripedTokenBucket| {
        ledger.record_success(0);
        ledger.withdraw(ROOM, 0);
    };
    trade(0, ROOM, [works], own, |tokens, counts| {
        // neither has to see a success of the same moment: then the token is there for the next
        assert!(counts.withdrawn <= 1, "{counts:?}");
        assert_eq!(tokens, left(0, counts));
    });
}

#[test]
fn a_withdrawal_finds_all_that_was_earned_before_it() {
    loom::model(|| {
        let ledger = Arc::new(StripedTokenBucket::new(500, 0, 2));
        let works = |ledger: &StripedTokenBucket, stripe| {
            ledger.record_success(stripe);
            ledger.settle(ROOM);
        };
        let other = {
            let ledger = ledger.clone();
            thread::spawn(move || works(&ledger, 1))
        };
        works(&ledger, 0);
        other.join().unwrap();
        assert!(ledger.withdraw(ROOM, 0));
    });
}

#[test]
fn one_token_is_taken_by_one_of_three() {
    let takes = |ledger: &StripedTokenBucket| _ = ledger.withdraw(ROOM, 1);
    trade(1, ROOM, [takes, takes], takes, |tokens, counts| {
        assert_eq!((tokens, counts.withdrawn, counts.refused), (0, 1, 2));
    });
}

#[test]
fn a_refund_beside_a_success_and_a_withdrawal_gives_one_token_back() {
    let gives_back = |ledger: &StripedTokenBucket| {
        if ledger.withdraw(ROOM, 1) {
            ledger.refund(ROOM, 1);
        }
    };
    let earns = |ledger: &StripedTokenBucket| ledger.record_success(0);
    let own = |ledger: &StripedTokenBucket| _ = ledger.withdraw(ROOM, 0);
    trade(1, ROOM, [gives_back, earns], own, |tokens, counts| {
        assert_eq!(tokens, left(1, counts));
        assert!(counts.withdrawn >= 1 && counts.withdrawn - counts.refunded <= 1, "{counts:?}");
    });
}

#[test]
fn no_refund_and_no_settling_goes_above_the_cap() {
    let gives_back = |ledger: &StripedTokenBucket| ledger.refund(TOKEN, 1);
    let earns = |ledger: &StripedTokenBucket| (0..2).for_each(|_| ledger.record_success(0));
    let own = |ledger: &StripedTokenBucket| assert!(ledger.settle(TOKEN) <= TOKEN);
    trade(0, TOKEN, [gives_back, earns], own, |tokens, _| assert_eq!(tokens, TOKEN));
}

#[test]
fn the_clock_is_paid_for_once() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let shared = Arc::new((RateSampler::new(500, Minimum::FLEET, 1), StripedTokenBucket::new(500, 0, 1)));
        // 100,000 calls in the first tick: the whole floor of 10 a second
        shared.0.update(&shared.0.try_lock(100_000).unwrap(), 100_000);
        let looks = |shared: &(RateSampler, StripedTokenBucket), micros| {
            shared.1.grant(shared.0.take_due(micros));
            shared.1.withdraw(ROOM, 0)
        };
        let threads = [50_000, 100_000].map(|micros| {
            let shared = shared.clone();
            thread::spawn(move || looks(&shared, micros))
        });
        let own = looks(&shared, 75_000);
        let taken = threads.into_iter().fold(u32::from(own), |taken, each| taken + u32::from(each.join().unwrap()));
        assert_eq!(shared.1.settle(ROOM) + taken * TOKEN, TOKEN, "a token in a tenth of a second");
    });
}

/// How many slots are to be had.
fn had(slots: &StripedSemaphore) -> usize {
    std::iter::from_fn(|| slots.try_acquire(0)).count()
}

/// Two threads at these slots, which hold one of theirs each, and this one; then as many can be had as the limit says.
///
/// Two preemptions at most: with three the longest takes minutes.
fn share(limit: u32, deeds: [fn(&StripedSemaphore, Option<SlotRef>); 2], own: impl Fn(&StripedSemaphore) + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let slots = Arc::new(StripedSemaphore::new(limit, 2));
        let held = [0, 1].map(|stripe| slots.try_acquire(stripe));
        let mut held = held.into_iter();
        let threads = deeds.map(|deed| {
            let (slots, held) = (slots.clone(), held.next().flatten());
            thread::spawn(move || deed(&slots, held))
        });
        own(&slots);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(slots.in_flight(), 0);
        assert_eq!(had(&slots), slots.limit() as usize);
    });
}

fn gives(slots: &StripedSemaphore, held: Option<SlotRef>) {
    if let Some(slot) = held {
        slots.release(slot);
    }
}

/// Gives back and takes again, if it may.
fn goes_on(slots: &StripedSemaphore, held: Option<SlotRef>) {
    gives(slots, held);
    gives(slots, slots.try_acquire(1));
}

#[test]
fn one_slot_is_taken_by_one_of_three() {
    loom::model(|| {
        let slots = Arc::new(StripedSemaphore::new(1, 2));
        let threads = [0, 1].map(|stripe| {
            let slots = slots.clone();
            thread::spawn(move || slots.try_acquire(stripe).is_some())
        });
        let own = slots.try_acquire(0).is_some();
        let taken = threads.into_iter().map(|thread| thread.join().unwrap());
        assert_eq!(taken.filter(|taken| *taken).count() + usize::from(own), 1);
    });
}

#[test]
fn no_call_is_refused_while_there_was_always_a_slot() {
    loom::model(|| {
        let slots = Arc::new(StripedSemaphore::new(2, 2));
        let first = slots.try_acquire(0).unwrap();
        let other = {
            let slots = slots.clone();
            // gives the first back and takes the second: one is free at any moment
            thread::spawn(move || {
                slots.release(first);
                slots.try_acquire(1)
            })
        };
        assert!(slots.try_acquire(0).is_some());
        assert!(other.join().unwrap().is_some());
    });
}

#[test]
fn slots_given_back_beside_a_lower_limit_are_neither_lost_nor_too_many() {
    share(2, [gives, gives], |slots| slots.resize(1));
}

/// Takes a slot beyond the limit, and gives back both.
fn goes_beyond(slots: &StripedSemaphore, held: Option<SlotRef>) {
    gives(slots, slots.acquire_beyond(1));
    gives(slots, held);
}

#[test]
fn slots_beyond_the_limit_are_repaid_beside_slots_given_back() {
    share(2, [goes_beyond, gives], |slots| gives(slots, slots.acquire_beyond(0)));
}

#[test]
fn a_limit_lowered_beside_calls_that_go_on_comes_to_hold() {
    share(2, [goes_on, gives], |slots| slots.resize(1));
}

#[test]
fn a_limit_that_rises_again_while_a_debt_is_paid_is_whole() {
    share(2, [gives, gives], |slots| {
        slots.resize(1);
        slots.resize(2);
    });
}

#[test]
fn nobody_gets_in_above_a_lower_limit() {
    loom::model(|| {
        let slots = Arc::new(StripedSemaphore::new(2, 2));
        let [first, second] = [0, 1].map(|stripe| slots.try_acquire(stripe).unwrap());
        slots.resize(1);
        let other = {
            let slots = slots.clone();
            thread::spawn(move || slots.release(first))
        };
        // the second is in flight all the time
        assert!(slots.try_acquire(0).is_none());
        other.join().unwrap();
        assert!(slots.try_acquire(1).is_none());
        slots.release(second);
        assert_eq!(had(&slots), 1);
    });
}

#[test]
fn a_mark_of_an_old_debt_is_not_taken_off_beside_a_new_one() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let slots = Arc::new(StripedSemaphore::new(3, 2));
        let [first, second] = [0, 0].map(|stripe| slots.try_acquire(stripe).unwrap());
        let third = slots.try_acquire(1).unwrap();
        slots.resize(2);
        slots.release(third);
        // nothing is owed, and the stripe of the other two is still marked
        let other = {
            let slots = slots.clone();
            thread::spawn(move || slots.release(first))
        };
        slots.resize(1);
        other.join().unwrap();
        assert!(slots.try_acquire(0).is_none());
        slots.release(second);
        assert_eq!(had(&slots), 1);
    });
}
