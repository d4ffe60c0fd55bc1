//! Outages of endpoints behind a stack with retries, in virtual time.
//!
//! 5 processes with 8 workers each and a mean service time of 40 ms (exponential) serve 1,000 calls per second; 700 arrive. An
//! attempt may take 0.5 s, and a client gives up after 2 s. `--nocapture` prints what happened.

#![allow(clippy::cast_precision_loss)] // small counts

use std::ops::Range;
use std::time::Duration;

use http::Method;
use tokio::time::sleep;
use tower_upstream::BadGatewayCause;
use tower_upstream::balance::{Member, Shift, ShiftReason, ShiftSnapshot, ShiftState};

use crate::site::{DOWN, Ended, Site, State, UP, clients, stack};
use crate::support::repeats;

const RATE: f64 = 700.0;
const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What became of calls that began in a range of seconds.
fn within(ended: &[Ended], seconds: Range<u64>) -> impl Iterator<Item = &Ended> {
    ended.iter().filter(move |ended| seconds.contains(&ended.begun.as_secs()))
}

fn success(ended: &[Ended], seconds: Range<u64>) -> f64 {
    let all = within(ended, seconds.clone()).count();
    within(ended, seconds).filter(|ended| ended.is_success()).count() as f64 / all as f64
}

/// The seconds after the end of an outage until five seconds in a row have 95 % successes.
fn recovery(ended: &[Ended], end: u64, length: u64) -> Option<u64> {
    (end..length - 4).find(|&from| (from..from + 5).all(|at| success(ended, at..at + 1) >= 0.95)).map(|at| at - end)
}

fn set(site: &Site, keys: &[&str], state: State) {
    for key in keys {
        site.set(key, state);
    }
}

/// The state of some of five processes from second 5 to 15 of 25; returns the calls, and the attempts per call of the outage's
/// seconds.
async fn outage(keys: &[&str], state: State, seed: u64) -> (Vec<Ended>, f64) {
    fastrand::seed(seed);
    let site = Site::default();
    let pool = site.pool(KEYS.map(Member::new));
    let calls = tokio::spawn(clients(stack(&pool), RATE, seconds(25), false, seed));
    sleep(seconds(5)).await;
    set(&site, keys, state);
    let mut attempts = site.all_calls();
    sleep(seconds(10)).await;
    attempts = site.all_calls() - attempts;
    set(&site, keys, UP);
    let ended = calls.await.unwrap();
    let load = attempts as f64 / within(&ended, 5..15).count() as f64;
    let failed = within(&ended, 5..15).filter(|ended| !ended.is_success()).count();
    println!(
        "{keys:?} {state:?}: {:.2} % successes, {failed} failures, load {load:.2} x, recovery {:?} s",
        success(&ended, 5..15) * 100.0,
        recovery(&ended, 15, 25)
    );
    (ended, load)
}

#[tokio::test(start_paused = true)]
async fn one_of_five_that_refuses_costs_no_call() {
    for seed in 1..=repeats(1, 5) {
        let (ended, load) = outage(&["a"], DOWN, seed).await;
        assert!(success(&ended, 5..25) >= 0.999, "{}", success(&ended, 5..25));
        assert!(load <= 1.1, "{load}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_five_that_is_50_times_slower_costs_one_call_in_a_thousand_at_most() {
    for seed in 1..=repeats(1, 5) {
        let (ended, load) = outage(&["a"], State { slower: 50.0, ..UP }, seed).await;
        assert!(success(&ended, 5..25) >= 0.999, "{}", success(&ended, 5..25));
        assert!(load <= 1.1, "{load}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_which_all_were_down_recovers_at_once() {
    for seed in 1..=repeats(1, 5) {
        let (ended, load) = outage(&KEYS, DOWN, seed).await;
        assert_eq!(recovery(&ended, 15, 25), Some(0));
        assert!(success(&ended, 15..25) >= 0.999, "{}", success(&ended, 15..25));
        assert!(load <= 1.3, "{load}");
        let lost = within(&ended, 5..15);
        assert!(lost.filter(|ended| !ended.is_success()).all(|ended| ended.cause.is_some()), "each with its cause");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_tier_takes_the_calls_of_one_that_was_killed_at_once() {
    for seed in 1..=repeats(1, 5) {
        fastrand::seed(seed);
        let site = Site::default();
        let backup = ["v", "w", "x", "y", "z"].map(|key| Member::new(key).tier(1));
        let pool = site.pool(KEYS.map(Member::new).into_iter().chain(backup));
        let calls = tokio::spawn(clients(stack(&pool), RATE, seconds(10), true, seed));
        sleep(seconds(5)).await;
        let in_flight: usize = KEYS.iter().map(|key| site.in_flight(key)).sum();
        set(&site, &KEYS, DOWN);
        let ended = calls.await.unwrap();
        let failed: Vec<_> = ended.iter().filter(|ended| !ended.is_success()).collect();
        println!("tier 0 killed: {} failures, {in_flight} calls were in flight", failed.len());
        assert!(failed.len() <= in_flight + 5 * KEYS.len(), "{failed:?}");
        assert!(failed.iter().all(|ended| ended.begun < seconds(6)), "{failed:?}");
    }
}

/// Each process exits at SIGTERM and is replaced by another one; the membership follows three seconds later.
#[tokio::test(start_paused = true)]
async fn a_rolling_restart_fails_no_get_and_only_the_posts_of_the_killed_process() {
    for seed in 1..=repeats(1, 5) {
        fastrand::seed(seed);
        let site = Site::default();
        let pool = site.pool(KEYS.map(Member::new));
        let calls = tokio::spawn(clients(stack(&pool), RATE, seconds(35), true, seed));
        let mut in_flight = 0;
        for (index, key) in KEYS.iter().enumerate() {
            sleep(seconds(3)).await;
            in_flight += site.in_flight(key);
            site.set(key, DOWN);
            sleep(seconds(3)).await;
            let _ = pool.handle().upsert(Member::new(format!("new {index}"))).unwrap();
            let _ = pool.handle().remove(key);
        }
        let ended = calls.await.unwrap();
        let failed: Vec<_> = ended.iter().filter(|ended| !ended.is_success()).collect();
        println!("rolling restart: {} of {} failures, {in_flight} calls were in flight", failed.len(), ended.len());
        assert!(failed.iter().all(|ended| ended.method == Method::POST), "{failed:?}");
        assert!(failed.len() <= in_flight, "{failed:?}");
        for ended in failed {
            assert_eq!((ended.cause, ended.maybe_processed), (Some(BadGatewayCause::ResetBeforeResponse), true));
        }
    }
}

/// A canary beside five processes, in steps of a minute, at this rate; a part of its calls fails. Returns the shift at the end,
/// and the part of all calls that failed.
async fn canary(rate: f64, fails: f64, length: Duration, seed: u64) -> (ShiftSnapshot, f64) {
    fastrand::seed(seed);
    let site = Site::default();
    site.set("canary", State { fails, ..UP });
    let pool = site.pool(KEYS.map(|key| Member::new(key).group("old")));
    let shift = pool.handle().shift(Shift::new("old", "new"));
    let _ = pool.handle().upsert(Member::new("canary").group("new")).unwrap();
    let ended = clients(stack(&pool), rate, length, true, seed).await;
    let failed = ended.iter().filter(|ended| !ended.is_success()).count() as f64 / ended.len() as f64;
    let snapshot = shift.snapshots().borrow().clone();
    println!(
        "canary at {rate}/s, {:.0} % fail: {:?} in step {}, {:.2} % of {} calls failed, canary {:?}",
        fails * 100.0,
        snapshot.state,
        snapshot.step,
        failed * 100.0,
        ended.len(),
        snapshot.new
    );
    (snapshot, failed)
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_fails_is_rolled_back_before_one_call_in_a_hundred_was_affected() {
    for seed in 1..=repeats(1, 10) {
        // it takes less than its share of the calls, as its failures count as long response times
        for (rate, length) in [(100.0, 240), (500.0, 60)] {
            let (shift, failed) = canary(rate, 0.3, seconds(length), seed).await;
            assert_eq!((shift.state, shift.step), (ShiftState::RolledBack(ShiftReason::Failures), 0));
            assert!(shift.share <= 0.0 && shift.new.calls >= 20, "{shift:?}");
            assert!(shift.failures.worse >= shift.failures.reject_at, "{shift:?}");
            assert!(failed <= 0.01, "{failed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_canary_with_too_few_calls_is_undecided() {
    let (shift, _) = canary(5.0, 0.3, seconds(120), 1).await;
    assert_eq!((shift.state, shift.step), (ShiftState::Undecided, 0));
    assert!(shift.new.calls < 20, "{shift:?}");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_works_takes_as_many_calls_as_it_can_bear() {
    let (shift, failed) = canary(100.0, 0.0, seconds(400), 1).await;
    // one of the size of a fifth of the old group bears 1.4 fifths
    assert_eq!((shift.state, shift.step), (ShiftState::Held(ShiftReason::Capacity), 3));
    assert!((shift.share - 0.28).abs() < 1e-9, "{shift:?}");
    let part = shift.new.calls as f64 / (shift.new.calls + shift.old.calls) as f64;
    assert!((0.2..0.36).contains(&part), "{part}");
    assert!(failed <= 0.0, "{failed}");
}
