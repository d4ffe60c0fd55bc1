//! The circuit's word, its failures and its window: the hot path against transitions.

use std::sync::Arc;

use loom::thread;

use crate::breaker::state_machine::CircuitMachine;
use crate::breaker::open_backoff::OpenBackoff;
use crate::breaker::consecutive_failures::ConsecutiveFailures;
use crate::breaker::window::{RollingWindow, WindowCounts};
use crate::breaker::packed_state::{Permit, State};

const BACKOFF: OpenBackoff = OpenBackoff { first: 100, max: 800, decay_after: 1000 };
const LIMIT: u64 = 50;

/// What a circuit does with these three, without its clock and its records.
struct Circuit {
    machine: CircuitMachine<u8>,
    failures: ConsecutiveFailures,
    window: RollingWindow,
}

impl Circuit {
    fn new() -> Arc<Self> {
        Arc::new(Self { machine: CircuitMachine::new(BACKOFF, LIMIT), failures: ConsecutiveFailures::new(), window: RollingWindow::new(1) })
    }

    fn fail(&self, permit: &Permit, now: u64) {
        if permit.is_probe() {
            self.machine.on_probe_failure(permit, now, 0, || 2);
        } else if self.machine.is_current(permit) && self.failures.record_failure(permit.epoch()) >= 3 {
            self.machine.open(permit, now, 0, || 1);
        }
    }

    fn succeed(&self, permit: &Permit, now: u64) {
        if permit.is_probe() {
            self.machine.on_probe_success(permit, now, || self.window.clear());
        } else if self.machine.is_current(permit) {
            self.failures.record_success(permit.epoch());
            self.window.record(0, 0, false);
        }
    }

    fn begin(&self, now: u64) -> Option<Permit> {
        self.machine.try_acquire().or_else(|| self.machine.try_acquire_slow(now, || 0, || self.window.clear()).0.ok())
    }

    fn state(&self) -> State {
        self.machine.view().0.state
    }

    /// Opened by three calls that began before; a fourth is handed back.
    fn opened(&self) -> Permit {
        let late = self.begin(0).unwrap();
        for _ in 0..3 {
            self.fail(&self.begin(0).unwrap(), 0);
        }
        assert_eq!(self.state(), State::Open);
        late
    }
}

/// Three preemptions at most, as in the other models of three threads.
fn search(model: impl Fn() + Sync + Send + 'static) {
    let mut search = loom::model::Builder::new();
    search.preemption_bound = Some(3);
    search.check(model);
}

#[test]
fn no_trip_is_lost() {
    search(|| {
        let circuit = Circuit::new();
        let threads = [(); 2].map(|()| {
            let (circuit, permit) = (circuit.clone(), circuit.begin(0).unwrap());
            thread::spawn(move || circuit.fail(&permit, 1))
        });
        circuit.fail(&circuit.machine.try_acquire().unwrap(), 1);
        for thread in threads {
            thread.join().unwrap();
        }
        let (told, _) = circuit.machine.view();
        assert_eq!((told.state, told.opened), (State::Open, 1), "once");
    });
}

#[test]
fn a_success_beside_failures_ends_the_row_once() {
    search(|| {
        let circuit = Circuit::new();
        circuit.fail(&circuit.begin(0).unwrap(), 1);
        let (other, permit) = (circuit.clone(), circuit.begin(0).unwrap());
        let failing = thread::spawn(move || other.fail(&permit, 1));
        circuit.succeed(&circuit.begin(0).unwrap(), 1);
        failing.join().unwrap();
        let (epoch, left) = (circuit.machine.view().0.epoch, [0, 1]);
        assert!(left.contains(&circuit.failures.count(epoch)));
        assert_eq!(circuit.state(), State::Closed);
    });
}

#[test]
fn one_of_those_who_come_is_the_probe() {
    search(|| {
        let circuit = Circuit::new();
        circuit.opened();
        let threads = [(); 2].map(|()| {
            let circuit = circuit.clone();
            thread::spawn(move || circuit.begin(100).map(|permit| permit.is_probe()))
        });
        let own = circuit.begin(100).map(|permit| permit.is_probe());
        let mut passed: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        passed.extend(own);
        assert_eq!(passed, [true]);
    });
}

#[test]
fn a_probe_that_leaves_beside_one_who_comes_leaves_one_place() {
    search(|| {
        let circuit = Circuit::new();
        circuit.opened();
        let probe = circuit.begin(100).unwrap();
        let threads = [(); 2].map(|()| {
            let circuit = circuit.clone();
            thread::spawn(move || circuit.begin(101))
        });
        circuit.machine.on_probe_cancelled(&probe);
        let next: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        assert!(next.len() <= 1);
        assert_eq!(circuit.state(), State::HalfOpen);
        assert_eq!(circuit.begin(102).is_some(), next.is_empty(), "the place is free, or taken");
    });
}

#[test]
fn an_answer_from_before_the_trip_changes_nothing_beside_a_probe() {
    search(|| {
        let circuit = Circuit::new();
        let late = circuit.opened();
        let probe = circuit.begin(100).unwrap();
        let other = circuit.clone();
        let failing = thread::spawn(move || other.fail(&late, 101));
        circuit.succeed(&probe, 101);
        failing.join().unwrap();
        let (told, _) = circuit.machine.view();
        assert_eq!((told.state, told.opened), (State::Closed, 1));
        assert_eq!(circuit.failures.count(told.epoch), 0);
    });
}

#[test]
fn a_probe_that_times_out_beside_its_answer_opens_once() {
    search(|| {
        let circuit = Circuit::new();
        circuit.opened();
        let hung = circuit.begin(100).unwrap();
        let other = circuit.clone();
        let failing = thread::spawn(move || other.fail(&hung, 150));
        assert!(circuit.begin(150).is_none(), "its limit has passed, and the pause runs");
        failing.join().unwrap();
        let (told, _) = circuit.machine.view();
        assert_eq!((told.state, told.opened), (State::Open, 2));
    });
}

#[test]
fn a_probe_that_timed_out_closes_beside_one_who_comes_late() {
    search(|| {
        let circuit = Circuit::new();
        circuit.opened();
        let slow = circuit.begin(100).unwrap();
        assert!(circuit.begin(150).is_none());
        let other = circuit.clone();
        let coming = thread::spawn(move || other.begin(250).is_some());
        circuit.succeed(&slow, 250);
        assert!(coming.join().unwrap(), "as a probe, or as any other");
        assert_eq!(circuit.state(), State::Closed);
    });
}

#[test]
fn a_hand_beside_a_trip_and_a_probe_has_the_last_word() {
    search(|| {
        let circuit = Circuit::new();
        circuit.opened();
        let (probing, holding) = (circuit.clone(), circuit.clone());
        let probing = thread::spawn(move || {
            if let Some(probe) = probing.begin(100) {
                probing.succeed(&probe, 101);
            }
        });
        let holding = thread::spawn(move || holding.machine.hold(100, 3).is_some());
        probing.join().unwrap();
        assert!(holding.join().unwrap());
        assert_eq!(circuit.state(), State::HeldOpen);
        circuit.machine.release(200);
        let probe = circuit.begin(200).unwrap();
        circuit.succeed(&probe, 201);
        assert_eq!(circuit.state(), State::Closed);
    });
}

#[test]
fn records_of_one_stripe_all_count_and_a_tick_that_ends_takes_none_along() {
    search(|| {
        let window = Arc::new(RollingWindow::new(1));
        window.record(3, 0, true);
        let threads = [(13, true), (13, false)].map(|(tick, bad)| {
            let window = window.clone();
            thread::spawn(move || window.record(tick, 0, bad))
        });
        window.record(13, 0, true);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(window.sum(13), WindowCounts { calls: 3, failures: 2 });
    });
}
