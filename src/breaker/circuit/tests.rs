//! Tests of the circuit, by example and by proptest, with time as an argument.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A circuit and the current time of its test.
struct Fixture {
    circuit: Circuit,
    now: Instant,
}

impl Fixture {
    fn new(policy: BreakerPolicy) -> Self {
        let now = Instant::now();
        Self { circuit: Circuit::new(policy, "test".into(), 1, now), now }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn begin(&self) -> Result<Permit, Rejected<Failure>> {
        self.circuit.try_acquire().map_or_else(|| self.circuit.try_acquire_slow(self.now, || u64::MAX).0, Ok)
    }

    fn end(&self, permit: &Permit, verdict: Blame) -> Option<State> {
        self.end_after(permit, verdict, Duration::ZERO)
    }

    fn end_after(&self, permit: &Permit, verdict: Blame, took: Duration) -> Option<State> {
        let end = self.ending(verdict, took);
        let record = || Failure::new(BadGatewayCause::ConnectionRefused);
        self.circuit.record(permit, end, || u64::MAX, record).map(|turn| turn.state)
    }

    /// The end of a call that failed before its request was sent, if it failed.
    fn ending(&self, blame: Blame, took: Duration) -> CallEnd {
        let slow = self.circuit.is_slow(took);
        CallEnd { blame, now: self.now, before_request: true, slow, vote: Vote::default() }
    }

    fn call(&self, verdict: Blame) -> bool {
        let Ok(permit) = self.begin() else { return false };
        if verdict == Blame::Success && !permit.is_probe() && !self.circuit.needs_duration() {
            self.circuit.count_success(&permit, self.now);
        } else {
            self.end(&permit, verdict);
        }
        true
    }

    /// Makes this many calls, and returns how many were admitted.
    fn calls(&self, calls: usize, verdict: Blame) -> usize {
        (0..calls).filter(|_| self.call(verdict)).count()
    }

    fn state(&self) -> State {
        self.circuit.snapshot(self.now).state
    }

    /// Opens it, and waits until a probe may pass.
    fn half_open(&mut self) {
        self.calls(5, Blame::Failure);
        assert_eq!(self.state(), State::Open);
        self.wait(SECOND * 10);
    }

    fn probe(&self) -> Permit {
        let probe = self.begin().unwrap();
        assert!(probe.is_probe());
        probe
    }
}

fn usual() -> Fixture {
    Fixture::new(BreakerPolicy::new())
}

/// A policy that opens by the failure ratio only.
fn by_share() -> BreakerPolicy {
    BreakerPolicy::new().consecutive_failures(u32::MAX)
}

#[test]
fn a_dead_upstream_is_noticed_after_five_calls_whatever_it_did_before() {
    let scene = usual();
    assert_eq!(scene.calls(20_000, Blame::Success), 20_000);
    assert_eq!(scene.calls(100, Blame::Failure), 5);
    let told = scene.circuit.snapshot(scene.now);
    assert_eq!((told.opened, told.refused, told.cause.unwrap().cause()), (1, 95, BadGatewayCause::ConnectionRefused));
}

#[test]
fn a_success_resets_the_count_and_a_neutral_result_does_not() {
    let scene = usual();
    scene.calls(4, Blame::Failure);
    scene.call(Blame::Success);
    scene.calls(4, Blame::Failure);
    scene.calls(9, Blame::Nothing);
    scene.calls(9, Blame::Overload);
    let told = scene.circuit.snapshot(scene.now);
    assert_eq!((told.state, told.consecutive_failures, told.calls, told.failures), (State::Closed, 4, 9, 8));
    assert_eq!(scene.calls(9, Blame::Failure), 1);
}

#[test]
fn half_of_the_windows_calls_may_not_fail() {
    let scene = Fixture::new(by_share());
    scene.calls(11, Blame::Success);
    assert_eq!(scene.calls(99, Blame::Failure), 11, "no sooner than at 50 %");
    let few = Fixture::new(by_share());
    assert_eq!(few.calls(99, Blame::Failure), 20, "nor before there are twenty");
    let spread = usual();
    let pairs = (0..50).filter(|_| spread.call(Blame::Failure) && spread.call(Blame::Success)).count();
    assert_eq!((pairs, spread.state()), (10, State::Open), "never two in a row");
}

#[test]
fn a_window_forgets_old_successes() {
    let mut scene = Fixture::new(by_share());
    scene.calls(10_000, Blame::Success);
    scene.wait(SECOND * 10);
    assert_eq!(scene.calls(9000, Blame::Failure), 20);
}

#[test]
fn slow_calls_open_the_circuit_if_configured() {
    let slow = |scene: &Fixture| {
        (0..50)
            .filter(|_| {
                scene.begin().is_ok_and(|permit| {
                    scene.end_after(&permit, Blame::Success, SECOND * 2);
                    true
                })
            })
            .count()
    };
    assert_eq!(slow(&usual()), 50);
    let mut scene = Fixture::new(BreakerPolicy::new().slow_calls(SECOND, Ratio::per_mille(800)));
    assert_eq!(scene.calls(4, Blame::Success), 4);
    assert_eq!((slow(&scene), scene.state()), (16, State::Open));
    scene.wait(SECOND);
    let probe = scene.probe();
    assert_eq!(scene.end_after(&probe, Blame::Success, SECOND * 2), Some(State::Open), "a slow probe has failed");
    scene.wait(SECOND * 2);
    assert!(scene.call(Blame::Success), "a quick one has not");
    let told = scene.circuit.snapshot(scene.now);
    assert_eq!((told.state, told.slow, told.calls), (State::Closed, 0, 0));
    for _ in 0..50 {
        let permit = scene.begin().unwrap();
        scene.end_after(&permit, Blame::Success, SECOND);
    }
    assert_eq!(scene.circuit.snapshot(scene.now).slow, 0, "exactly in time is in time");
}

#[test]
fn an_opening_reports_its_open_duration() {
    let mut scene = usual();
    scene.wait(SECOND * 77);
    scene.calls(4, Blame::Failure);
    let end = scene.ending(Blame::Failure, Duration::ZERO);
    let record = || Failure::new(BadGatewayCause::ConnectionRefused);
    let turn = scene.circuit.record(&scene.begin().unwrap(), end, || u64::MAX, record).unwrap();
    assert_eq!((turn.state, Duration::from_nanos(turn.open_for + 1)), (State::Open, SECOND));
    assert_eq!(scene.circuit.at(turn.at), scene.now);
}

#[test]
fn the_open_duration_doubles_while_probes_fail() {
    let mut scene = usual();
    scene.calls(5, Blame::Failure);
    for seconds in [1, 2, 4, 8, 10, 10] {
        let shut = scene.begin().unwrap_err();
        assert_eq!(Duration::from_nanos(shut.remaining + 1), SECOND * seconds);
        let told = scene.circuit.snapshot(scene.now);
        assert_eq!(told.next_probe, Some(scene.now + SECOND * seconds - Duration::from_nanos(1)));
        scene.wait(MS * (1000 * seconds - 1));
        assert!(scene.begin().is_err());
        scene.wait(MS);
        assert!(scene.call(Blame::Failure));
    }
    assert_eq!(scene.circuit.snapshot(scene.now).opened, 7);
}

#[test]
fn health_takes_the_pauses_back_step_by_step() {
    let mut scene = usual();
    scene.half_open();
    scene.call(Blame::Failure);
    scene.wait(SECOND * 10);
    assert!(scene.call(Blame::Success));
    // two consecutive openings, and one healthy window
    scene.wait(SECOND * 10);
    scene.calls(5, Blame::Failure);
    assert_eq!(scene.begin().unwrap_err().remaining + 1, 2_000_000_000);
    scene.circuit.reset(scene.now);
    scene.calls(5, Blame::Failure);
    assert_eq!(scene.begin().unwrap_err().remaining + 1, 1_000_000_000, "a reset forgets them all");
}

#[test]
fn one_of_a_thousand_passes_as_a_probe() {
    let mut scene = usual();
    scene.half_open();
    let passed: Vec<_> = (0..1000).filter_map(|_| scene.begin().ok()).collect();
    assert_eq!(passed.len(), 1);
    let shut = scene.begin().unwrap_err();
    assert_eq!((shut.remaining, scene.state()), (1_000_000_000, State::HalfOpen));
    assert_eq!(scene.end(&passed[0], Blame::Success), Some(State::Closed));
    assert_eq!(scene.calls(1000, Blame::Success), 1000);
}

#[test]
fn a_cancelled_probe_lets_the_next_call_be_one() {
    let mut scene = usual();
    scene.half_open();
    let probe = scene.probe();
    assert!(scene.begin().is_err());
    assert_eq!(scene.end(&probe, Blame::Nothing), None);
    assert_eq!(scene.state(), State::HalfOpen, "it proved nothing");
    assert_eq!(scene.end(&scene.probe(), Blame::Success), Some(State::Closed));
}

#[test]
fn a_probe_that_hangs_has_failed_after_its_limit() {
    let mut scene = usual();
    scene.half_open();
    let hung = scene.probe();
    let counts = |scene: &Fixture| {
        let told = scene.circuit.snapshot(scene.now);
        (told.opened, told.probes, told.probes_timed_out)
    };
    assert_eq!(counts(&scene), (1, 1, 0));
    scene.wait(MS * 999);
    assert!(scene.begin().is_err());
    assert_eq!((scene.state(), counts(&scene)), (State::HalfOpen, (1, 1, 0)));
    scene.wait(MS);
    assert_eq!(scene.begin().unwrap_err().remaining + 1, 2_000_000_000, "the next open duration, from its limit on");
    assert_eq!((scene.state(), counts(&scene)), (State::Open, (2, 1, 1)));
    assert_eq!(scene.end(&hung, Blame::Failure), None, "that was counted before");
    assert!(scene.begin().is_err(), "and it frees no place");
    scene.wait(SECOND * 2);
    assert_eq!(scene.end(&scene.probe(), Blame::Success), Some(State::Closed));
    assert_eq!(counts(&scene), (2, 2, 1));
}

#[test]
fn the_pause_after_a_probe_that_hung_runs_from_its_limit_also_if_nobody_comes() {
    let mut scene = usual();
    scene.half_open();
    let _hung = scene.probe();
    // 1 s of the limit, 2 s of the pause
    scene.wait(SECOND * 3);
    let _next = scene.probe();
    assert_eq!(scene.circuit.snapshot(scene.now).opened, 2);
}

/// The calls that reach an upstream in nine minutes of ten calls a second, when each fails after this time.
fn reach(fails_after: Duration) -> (usize, u64) {
    let mut scene = usual();
    let mut under_way = std::collections::VecDeque::new();
    let mut reached = 0;
    for _ in 0..5400 {
        while under_way.front().is_some_and(|(ends, _)| *ends <= scene.now) {
            let (_, permit) = under_way.pop_front().unwrap();
            scene.end(&permit, Blame::Failure);
        }
        if let Ok(permit) = scene.begin() {
            reached += 1;
            under_way.push_back((scene.now + fails_after, permit));
        }
        scene.wait(MS * 100);
    }
    (reached, scene.circuit.snapshot(scene.now).opened)
}

#[test]
fn an_upstream_that_hangs_is_left_alone_as_one_that_is_dead() {
    let (dead, opened) = reach(Duration::ZERO);
    let (hung, opened_hung) = reach(SECOND * 9);
    // calls made before the first failure ended
    let before = 90;
    assert!(hung <= dead + before, "{hung} and {dead}");
    assert!(opened_hung + 10 >= opened, "{opened_hung} and {opened}: the backoff goes on");
}

#[test]
fn an_upstream_that_is_slower_than_the_limit_of_a_probe_is_let_back_in() {
    let mut scene = usual();
    scene.half_open();
    let mut probes = Vec::new();
    for seconds in [3, 5, 9] {
        probes.push(scene.probe());
        scene.wait(SECOND * seconds);
    }
    assert!(scene.begin().is_ok_and(|permit| permit.is_probe()));
    assert_eq!(scene.end(&probes[0], Blame::Success), Some(State::Closed));
    assert_eq!(scene.end(&probes[1], Blame::Failure), None);
    assert_eq!(scene.end(&probes[2], Blame::Failure), None);
    assert_eq!(scene.circuit.snapshot(scene.now).consecutive_failures, 0);
    let mut scene = usual();
    scene.half_open();
    let slow = scene.probe();
    scene.wait(SECOND * 2);
    assert!(scene.begin().is_err());
    assert_eq!(scene.end(&slow, Blame::Success), Some(State::Closed), "in the pause after its limit");
}

#[test]
fn a_probe_from_before_the_last_opening_does_not_close() {
    let mut scene = usual();
    scene.half_open();
    let hung = scene.probe();
    scene.wait(SECOND * 3);
    assert!(scene.call(Blame::Failure), "the next probe opens it again");
    assert_eq!(scene.end(&hung, Blame::Success), None, "in the pause");
    scene.wait(SECOND * 10);
    let hung = scene.begin().unwrap();
    scene.wait(SECOND * 11);
    assert!(scene.call(Blame::Failure));
    scene.wait(SECOND * 10);
    let probe = scene.probe();
    assert_eq!(scene.end(&hung, Blame::Success), None, "nor beside a later probe");
    assert_eq!(scene.end(&probe, Blame::Success), Some(State::Closed));
}

#[test]
fn a_probe_with_a_long_body_closes_at_its_limit() {
    let mut scene = usual();
    scene.half_open();
    let download = scene.probe();
    scene.circuit.on_probe_head(&download);
    assert!(scene.begin().is_err(), "its body may break yet");
    scene.wait(SECOND);
    assert!(!scene.begin().unwrap().is_probe());
    assert_eq!(scene.state(), State::Closed);
    assert_eq!(scene.end(&download, Blame::Failure), None);
}

#[test]
fn probes_that_come_seldom_do_not_stick() {
    let mut scene = usual();
    scene.half_open();
    // each an hour after the previous one, and half of them without a result
    for verdict in [Blame::Nothing, Blame::Failure, Blame::Nothing, Blame::Nothing, Blame::Success] {
        scene.wait(SECOND * 3600);
        assert!(scene.call(verdict));
    }
    assert_eq!((scene.calls(40, Blame::Success), scene.state()), (40, State::Closed));
}

#[test]
fn a_result_from_before_the_opening_neither_closes_nor_opens() {
    let mut scene = usual();
    let late: Vec<_> = (0..12).map(|_| scene.begin().unwrap()).collect();
    scene.half_open();
    scene.circuit.count_success(&late[0], scene.now);
    let probe = scene.probe();
    assert_eq!(scene.end(&late[1], Blame::Success), None);
    assert_eq!(scene.end(&late[2], Blame::Failure), None);
    assert_eq!(scene.state(), State::HalfOpen, "only the probe decides");
    assert_eq!(scene.end(&probe, Blame::Success), Some(State::Closed));
    for permit in &late[3..] {
        assert_eq!(scene.end(permit, Blame::Failure), None);
    }
    let told = scene.circuit.snapshot(scene.now);
    assert_eq!((told.state, told.consecutive_failures, told.calls), (State::Closed, 0, 0));
}

#[test]
fn overload_is_proof_of_life() {
    let mut scene = usual();
    assert_eq!(scene.calls(100, Blame::Overload), 100);
    scene.half_open();
    assert_eq!(scene.end(&scene.probe(), Blame::Overload), Some(State::Closed));
}

#[test]
fn all_refusals_of_an_opening_share_one_record() {
    let mut scene = usual();
    scene.calls(5, Blame::Failure);
    let [one, other] = [(); 2].map(|()| scene.begin().unwrap_err().cause.unwrap());
    assert!(std::ptr::eq(one.opened_by().unwrap(), other.opened_by().unwrap()));
    assert_eq!((one.cause(), one.phase()), (BadGatewayCause::CircuitOpen, Phase::Gateway));
    assert_eq!((one.replay(), one.evidence()), (crate::cause::Replay::NotSent, crate::cause::Evidence::LocalRefusal));
    assert_eq!((one.upstream(), one.detail()), (Some("test"), Some(Detail::Text(CONSECUTIVE))));
    scene.wait(SECOND);
    let probe = scene.probe();
    let meanwhile = scene.begin().unwrap_err().cause.unwrap();
    assert!(std::ptr::eq(meanwhile.opened_by().unwrap(), one.opened_by().unwrap()));
    scene.end(&probe, Blame::Failure);
    assert_eq!(scene.begin().unwrap_err().cause.unwrap().detail(), Some(Detail::Text(PROBE)));
}

#[test]
fn who_knocks_when_it_has_just_closed_passes_as_all_others() {
    let scene = usual();
    let (permit, turn) = scene.circuit.try_acquire_slow(scene.now, || 0);
    assert!(permit.is_ok_and(|permit| !permit.is_probe()) && turn.is_none());
}

#[test]
fn an_active_probe_from_before_the_opening_does_not_close() {
    let mut scene = usual();
    let before = scene.now;
    scene.wait(SECOND);
    scene.calls(5, Blame::Failure);
    let opened = scene.now;
    assert!(scene.circuit.record_recovery(before, scene.now).is_none());
    assert_eq!(scene.state(), State::Open);
    scene.wait(SECOND);
    assert_eq!(scene.circuit.record_recovery(opened, scene.now).map(|turn| turn.state), Some(State::Closed));
    assert!(scene.circuit.record_recovery(opened, scene.now).is_none(), "there is nothing to recover from");
}

#[test]
fn a_call_that_hangs_as_a_probe_does_not_void_the_success_of_another_probe() {
    let mut scene = usual();
    scene.half_open();
    let _hung = scene.probe();
    scene.wait(MS * 990);
    let begun = scene.now;
    scene.wait(MS * 20);
    assert!(scene.begin().is_err());
    assert_eq!(scene.state(), State::Open, "its limit has passed");
    assert_eq!(scene.circuit.record_recovery(begun, scene.now).map(|turn| turn.state), Some(State::Closed));
}

#[test]
fn calls_are_no_probes_while_an_active_probe_is_due() {
    let mut scene = usual();
    scene.calls(5, Blame::Failure);
    scene.circuit.record_still_down(scene.now + SECOND * 5);
    scene.circuit.record_still_down(scene.now + SECOND * 3);
    scene.wait(Duration::from_millis(4999));
    assert!(!scene.call(Blame::Success));
    scene.wait(Duration::from_millis(1));
    assert!(scene.call(Blame::Success));
    scene.circuit.record_still_down(scene.now + SECOND * 5);
    assert!(scene.call(Blame::Success), "it says nothing of a closed circuit");
}

#[test]
fn a_call_rejected_without_an_attempt_to_acquire_is_counted() {
    let scene = usual();
    scene.calls(5, Blame::Failure);
    assert!(scene.circuit.rejection(scene.now).0.is_some());
    assert_eq!(scene.circuit.refused(), 0, "it was only asked");
    scene.circuit.count_refused();
    assert_eq!((scene.calls(2, Blame::Success), scene.circuit.refused()), (0, 3));
}

#[test]
fn a_held_circuit_waits_for_its_release() {
    let mut scene = usual();
    let under_way = scene.begin().unwrap();
    assert_eq!(scene.circuit.hold(scene.now).unwrap().state, State::HeldOpen);
    assert!(scene.circuit.hold(scene.now).is_none());
    scene.wait(SECOND * 3600);
    let shut = scene.begin().unwrap_err();
    assert_eq!(shut.remaining, 10_000_000_000);
    assert!(shut.cause.unwrap().opened_by().is_none());
    scene.circuit.count_success(&under_way, scene.now);
    assert_eq!(scene.circuit.release(scene.now).unwrap().state, State::HalfOpen);
    assert!(scene.circuit.release(scene.now).is_none(), "once");
    let probe = scene.probe();
    assert!(scene.begin().is_err());
    assert_eq!(scene.end(&probe, Blame::Success), Some(State::Closed));
    scene.circuit.hold(scene.now);
    scene.circuit.reset(scene.now);
    assert_eq!(scene.calls(9, Blame::Success), 9);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin,
    End(usize, Blame),
    Head(usize),
    Wait(u64),
    Hold,
    Release,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        4 => Just(Blame::Failure),
        2 => Just(Blame::Success),
        1 => Just(Blame::Nothing),
        1 => Just(Blame::Overload),
    ];
    let step = prop_oneof![
        30 => Just(Step::Begin),
        25 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::End(which, verdict)),
        2 => any::<usize>().prop_map(Step::Head),
        12 => (0_u64..1500).prop_map(Step::Wait),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 0..250)
}

proptest! {
    #[test]
    fn whatever_the_order_a_pause_is_kept_one_probe_is_out_and_nothing_sticks(steps in steps()) {
        let mut scene = Fixture::new(BreakerPolicy::new().consecutive_failures(3).ratio(Ratio::per_mille(400), 6));
        let mut open: Vec<Permit> = Vec::new();
        // the probe that holds the place, and when that ends
        let mut place: Option<(u64, Instant)> = None;
        // probes that began since the last one failed
        let mut probes: Vec<u64> = Vec::new();
        for step in steps {
            let before = scene.circuit.snapshot(scene.now);
            match step {
                Step::Wait(ms) => scene.wait(MS * u32::try_from(ms).unwrap()),
                Step::Begin => match scene.begin() {
                    Ok(permit) if permit.is_probe() => {
                        prop_assert!(matches!(before.state, State::Open | State::HalfOpen));
                        prop_assert!(before.next_probe.is_none_or(|at| at <= scene.now), "in a pause");
                        if let Some((_, until)) = place {
                            // it had no head, and the next open duration has passed as well
                            prop_assert!(until + SECOND <= scene.now + Duration::from_nanos(1), "two probes at once");
                        }
                        place = Some((permit.epoch(), scene.now + SECOND));
                        probes.push(permit.epoch());
                        open.push(permit);
                    }
                    Ok(permit) => {
                        let over = place.is_some_and(|(_, until)| until <= scene.now);
                        prop_assert!(before.state == State::Closed || (before.state == State::HalfOpen && over));
                        open.push(permit);
                    }
                    Err(shut) => {
                        prop_assert!(before.state != State::Closed);
                        prop_assert!(shut.remaining > 0 && shut.remaining <= 10_000_000_000 && shut.cause.is_some());
                        let vacant = before.state == State::HalfOpen && place.is_none();
                        let over = before.next_probe.is_some_and(|at| at <= scene.now);
                        prop_assert!(!vacant && !over, "no probe is due");
                    }
                },
                Step::Head(which) if !open.is_empty() => {
                    let permit = &open[which % open.len()];
                    if permit.is_probe() {
                        scene.circuit.on_probe_head(permit);
                    }
                    prop_assert_eq!(scene.state(), before.state);
                }
                Step::End(which, verdict) if !open.is_empty() => {
                    let permit = open.swap_remove(which % open.len());
                    let holds = place.is_some_and(|(epoch, _)| epoch == permit.epoch());
                    let current = holds || permit.epoch() == scene.circuit.machine.view().0.epoch;
                    let turn = scene.end(&permit, verdict);
                    match (before.state, turn) {
                        (State::Closed, Some(state)) => {
                            prop_assert!(current && verdict == Blame::Failure && state == State::Open);
                        }
                        (State::HalfOpen, Some(State::Open)) => prop_assert!(holds && verdict == Blame::Failure),
                        (State::HalfOpen | State::Open, Some(State::Closed)) => {
                            prop_assert!(probes.contains(&permit.epoch()));
                            prop_assert!(matches!(verdict, Blame::Success | Blame::Overload));
                        }
                        (_, None) => prop_assert_eq!(scene.state(), before.state),
                        (_, Some(state)) => prop_assert!(false, "{} became {state}", before.state),
                    }
                    if holds {
                        place = None;
                    }
                    if turn.is_some() {
                        probes.clear();
                    }
                }
                Step::Hold => { scene.circuit.hold(scene.now); }
                Step::Release if before.state == State::HeldOpen => {
                    scene.circuit.release(scene.now);
                    probes.clear();
                }
                Step::Reset => {
                    scene.circuit.reset(scene.now);
                    probes.clear();
                }
                Step::Head(_) | Step::End(..) | Step::Release => {}
            }
            if scene.state() != State::HalfOpen {
                place = None;
            }
        }
        // a healthy upstream with a call each 30 s: none is refused, whatever happened before
        scene.circuit.release(scene.now);
        for _ in 0..3 {
            scene.wait(SECOND * 30);
            prop_assert!(scene.call(Blame::Success));
            prop_assert_eq!(scene.state(), State::Closed);
        }
        prop_assert_eq!(scene.calls(50, Blame::Success), 50);
    }
}

#[test]
fn a_policy_that_changes_at_run_time_applies_to_the_next_call_and_keeps_the_state() {
    let mut fixture = Fixture::new(BreakerPolicy::new());
    assert_eq!(fixture.calls(2, Blame::Failure), 2);
    fixture.circuit.set_policy(BreakerPolicy::new().consecutive_failures(3).open_duration(10 * SECOND), fixture.now);
    assert_eq!(fixture.calls(5, Blame::Failure), 1, "the failures before the change count");
    fixture.circuit.set_policy(BreakerPolicy::new().open_duration(20 * SECOND), fixture.now);
    assert_eq!(fixture.circuit.state(), State::Open);
    fixture.wait(10 * SECOND);
    assert!(fixture.call(Blame::Success), "it stays open for as long as it was to be");
    assert_eq!(fixture.circuit.state(), State::Closed);
}

#[test]
fn the_counts_begin_again_if_the_window_has_another_length() {
    let fixture = Fixture::new(BreakerPolicy::new());
    fixture.calls(15, Blame::Success);
    fixture.circuit.set_policy(BreakerPolicy::new().ratio(Ratio::per_mille(500), 30), fixture.now);
    assert_eq!(fixture.circuit.snapshot(fixture.now).calls, 15);
    fixture.circuit.set_policy(BreakerPolicy::new().window(60 * SECOND), fixture.now);
    assert_eq!(fixture.circuit.snapshot(fixture.now).calls, 0);
}

#[test]
fn slow_calls_begin_and_cease_to_count_at_run_time() {
    let fixture = Fixture::new(BreakerPolicy::new());
    let policy = BreakerPolicy::new().slow_calls(SECOND, Ratio::per_mille(500));
    fixture.circuit.set_policy(policy, fixture.now);
    let slow = || fixture.begin().map(|permit| fixture.end_after(&permit, Blame::Success, 2 * SECOND)).ok().flatten();
    assert_eq!((0..20).find_map(|_| slow()), Some(State::Open));
    fixture.circuit.reset(fixture.now);
    fixture.circuit.set_policy(BreakerPolicy::new(), fixture.now);
    assert_eq!((0..40).find_map(|_| slow()), None);
}
