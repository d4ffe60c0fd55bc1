//! Tests of the machine of a shift.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::machine::{Machine, Observation, SlowAfter, group_shares};
use super::{CallCounts, ShiftReason, ShiftState};

const SECOND: Duration = Duration::from_secs(1);

/// Calls in a second to two groups, of which the new one takes its share.
struct Calls {
    rate: f64,
    old_fails: f64,
    new_fails: f64,
    new_slow: f64,
}

const WELL: Calls = Calls { rate: 100.0, old_fails: 0.001, new_fails: 0.001, new_slow: 0.01 };

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers
impl Calls {
    fn observe(&self, share: f64, rng: &mut Rng) -> Observation {
        let mut count = |rate: f64, fails: f64, slow: f64| {
            let calls = (rate + rng.f64()) as u64;
            let failures = (0..calls).filter(|_| rng.f64() < fails).count() as u64;
            CallCounts { calls, failures, slow: (failures..calls).filter(|_| rng.f64() < slow).count() as u64 }
        };
        let old = count(self.rate * (1.0 - share), self.old_fails, 0.01);
        let new = count(self.rate * share, self.new_fails, self.new_slow);
        Observation { old, new, old_weight: 10.0, available_weight: 10.0 }
    }
}

fn machine(now: Instant) -> Machine {
    Machine::new(vec![0.01, 0.05, 0.25, 0.5], 60 * SECOND, now)
}

/// Lets seconds pass until the state is one of these or the time is over; returns the seconds.
fn run(machine: &mut Machine, calls: &Calls, now: &mut Instant, most: u32, until: fn(ShiftState) -> bool) -> u32 {
    let mut rng = Rng::with_seed(u64::from(most));
    for second in 0..most {
        if until(machine.state) {
            return second;
        }
        *now += SECOND;
        machine.on_observation(calls.observe(machine.share(), &mut rng), *now);
    }
    most
}

#[test]
fn a_release_without_faults_is_completed_in_steps() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    let took = run(&mut machine, &WELL, &mut now, 3600, ShiftState::is_over);
    assert_eq!((machine.state, machine.share()), (ShiftState::Completed, 1.0));
    assert!((240..900).contains(&took), "{took} s");
}

#[test]
fn a_release_that_fails_is_rolled_back_in_its_first_step() {
    for (new_fails, most) in [(1.0, 25), (0.3, 60), (0.1, 240)] {
        let mut now = Instant::now();
        let mut machine = machine(now);
        let took = run(&mut machine, &Calls { new_fails, ..WELL }, &mut now, 3600, ShiftState::is_over);
        assert_eq!(machine.state, ShiftState::RolledBack(ShiftReason::Failures), "{new_fails}");
        assert!(machine.share() <= 0.0 && machine.step() == 0 && took <= most, "{took} s at {new_fails}");
    }
}

#[test]
fn an_outage_of_both_groups_rolls_nothing_back() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    run(&mut machine, &Calls { old_fails: 0.5, new_fails: 0.5, ..WELL }, &mut now, 600, ShiftState::is_over);
    assert!(!matches!(machine.state, ShiftState::RolledBack(_)), "{:?}", machine.state);
}

#[test]
fn few_calls_are_no_verdict() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    let few = Calls { rate: 1.0, new_fails: 0.3, ..WELL };
    run(&mut machine, &few, &mut now, 600, ShiftState::is_over);
    assert_eq!((machine.state, machine.step()), (ShiftState::Undecided, 0));
}

#[test]
fn a_slower_release_is_held_until_it_is_no_longer_slower() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    let held = |state| state == ShiftState::Held(ShiftReason::Latency);
    let took = run(&mut machine, &Calls { new_slow: 0.3, ..WELL }, &mut now, 3600, held);
    assert!(took < 60 && machine.step() == 0, "{took}");
    run(&mut machine, &WELL, &mut now, 3600, ShiftState::is_over);
    assert_eq!(machine.state, ShiftState::Completed);
}

#[test]
fn the_new_group_takes_no_more_than_its_available_endpoints_can_bear() {
    let mut now = Instant::now();
    let mut machine = Machine::new(vec![0.5], SECOND, now);
    let observe = |available_weight| Observation { available_weight, old_weight: 10.0, ..Observation::default() };
    for (available, share) in [(0.0, 0.001), (1.0, 0.14), (2.0, 0.28), (4.0, 0.5)] {
        now += SECOND;
        machine.on_observation(observe(available), now);
        assert!((machine.share() - share).abs() < 1e-9, "{available}: {}", machine.share());
        let held = machine.state == ShiftState::Held(ShiftReason::Capacity);
        assert_eq!(held, available < 3.0);
    }
    machine.end(ShiftState::Completed);
    machine.on_observation(observe(5.0), now);
    assert!((machine.share() - 0.7).abs() < 1e-9);
    let shrunk = Observation { old_weight: 0.0, ..observe(5.0) };
    machine.on_observation(shrunk, now);
    assert!((machine.share() - 0.7).abs() < 1e-9, "the old group is leaving, its calls are not");
}

#[test]
fn verdicts_from_outside_are_followed() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    machine.hold(true);
    run(&mut machine, &WELL, &mut now, 600, ShiftState::is_over);
    assert_eq!((machine.state, machine.step()), (ShiftState::Held(ShiftReason::Requested), 0));
    machine.hold(false);
    assert_eq!(machine.state, ShiftState::Accepted);
    now += SECOND;
    machine.on_observation(Observation { old_weight: 10.0, available_weight: 10.0, ..Observation::default() }, now);
    assert_eq!(machine.step(), 1);
    machine.end(ShiftState::RolledBack(ShiftReason::Requested));
    assert!(machine.share() <= 0.0);
}

#[test]
fn a_held_release_that_fails_is_rolled_back() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    machine.hold(true);
    run(&mut machine, &Calls { new_fails: 0.5, ..WELL }, &mut now, 600, ShiftState::is_over);
    assert_eq!(machine.state, ShiftState::RolledBack(ShiftReason::Failures));
}

#[test]
fn the_shares_of_groups_give_the_new_one_its_part_of_the_calls() {
    for (share, old, new) in [(0.01, 10.0, 1.0), (0.5, 3.0, 7.0), (0.0, 5.0, 5.0), (1.0, 5.0, 5.0)] {
        let (old_share, new_share) = group_shares(share, old, new);
        let part = new_share * new / (old_share * old + new_share * new);
        assert!((part - share).abs() < 1e-9, "{part}");
        assert!(old_share.max(new_share) >= 1.0 && old_share.max(new_share) <= 1.0);
    }
    assert_eq!(group_shares(0.3, 10.0, 0.0), (1.0, 0.0));
    assert_eq!(group_shares(0.0, 0.0, 1.0), (1.0, 0.0));
}

#[test]
fn about_one_call_in_a_hundred_is_slow() {
    let (mut rng, mut slow_after) = (Rng::with_seed(1), SlowAfter::default());
    slow_after.on_observation(CallCounts::default(), None);
    assert_eq!(slow_after.get(), None);
    slow_after.on_observation(CallCounts::default(), Some(2.0));
    for _ in 0..200 {
        let after = slow_after.get().unwrap().as_secs_f64();
        let slow = (0..300).filter(|_| -(1.0 - rng.f64()).ln() * 0.04 > after).count() as u64;
        slow_after.on_observation(CallCounts { calls: 300, failures: 0, slow }, Some(2.0));
    }
    let after = slow_after.get().unwrap().as_secs_f64();
    assert!((0.13..0.25).contains(&after), "the 99th percentile is 0.184 s: {after}");
}
