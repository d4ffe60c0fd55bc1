//! The health of one endpoint by the results of its checks, and the time of the next check. Pure: time and random
//! numbers are arguments.

use std::time::Duration;

use tokio::time::Instant;

use crate::balance::agent_words::CheckResult;
use crate::balance::endpoint::Health;

/// Times between the checks of an endpoint, and the numbers of results that change its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    /// The time from the beginning of a check to the beginning of the next one.
    pub(super) interval: Duration,
    /// The same while results differ from the health, or the health is unknown.
    pub(super) transition: Duration,
    /// Passed checks in a row after which an endpoint is healthy.
    pub(super) rise: u32,
    /// Failed checks in a row after which an endpoint is unhealthy.
    pub(super) fall: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), transition: Duration::from_secs(1), rise: 2, fall: 3 }
    }
}

impl Schedule {
    /// Returns the interval in transition, which is never longer than the usual one.
    fn transition(&self) -> Duration {
        self.transition.min(self.interval)
    }
}

/// The health of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    health: Health,
    /// Results in a row that differ from the health: passed checks if the endpoint takes no calls, failed ones if it
    /// does.
    against: u32,
    /// Passed checks in a row while the health is unknown.
    passed: u32,
}

impl Machine {
    /// Begins with unknown health, in which the endpoint takes calls.
    pub(super) fn new() -> Self {
        Self { health: Health::Unknown, against: 0, passed: 0 }
    }

    pub(super) fn health(&self) -> Health {
        self.health
    }

    /// Records the result of a check. Returns the health if it has changed.
    pub(super) fn on_result(&mut self, verdict: CheckResult, schedule: &Schedule) -> Option<Health> {
        let next = match (self.health, verdict) {
            // a request for no new calls counts at once, and so does its end
            (Health::Draining, CheckResult::Drain)
            | (Health::Healthy, CheckResult::Pass)
            | (Health::Unhealthy, CheckResult::Fail) => {
                self.against = 0;
                self.health
            }
            (_, CheckResult::Drain) => Health::Draining,
            (Health::Draining, CheckResult::Pass) => Health::Healthy,
            (Health::Unknown, CheckResult::Pass) => {
                self.against = 0;
                self.passed += 1;
                if self.passed >= schedule.rise { Health::Healthy } else { self.health }
            }
            (_, CheckResult::Pass) => {
                self.against += 1;
                if self.against >= schedule.rise { Health::Healthy } else { self.health }
            }
            (_, CheckResult::Fail) => {
                self.against += 1;
                self.passed = 0;
                if self.against >= schedule.fall { Health::Unhealthy } else { self.health }
            }
        };
        if next == self.health {
            return None;
        }
        *self = Self { health: next, ..Self::new() };
        Some(next)
    }

    /// Returns the time from the beginning of a check to the beginning of the next one; `random` is uniform over its
    /// range.
    pub(super) fn interval(&self, schedule: &Schedule, random: u32) -> Duration {
        let in_transition = self.against > 0 || self.health == Health::Unknown;
        jittered(if in_transition { schedule.transition() } else { schedule.interval }, random)
    }

    /// Returns the time of the first check of a new endpoint: those of `among` endpoints that come together are spread.
    pub(super) fn first_at(schedule: &Schedule, among: usize, now: Instant, random: u32) -> Instant {
        /// The largest number of endpoints that are checked first within one interval of the transition.
        const FEW: usize = 64;
        let within = if among <= FEW { schedule.transition() } else { schedule.interval };
        now + within.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// Varies an interval by +-20 %, so that checks of many endpoints, and of many gateways, do not coincide.
fn jittered(interval: Duration, random: u32) -> Duration {
    interval.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn run(verdicts: &[CheckResult]) -> Machine {
        let mut machine = Machine::new();
        for verdict in verdicts {
            machine.on_result(*verdict, &Schedule::default());
        }
        machine
    }

    use CheckResult::{Drain, Fail, Pass};

    #[test]
    fn two_passed_checks_in_a_row_make_it_healthy_and_three_failed_ones_unhealthy() {
        assert_eq!(run(&[Pass]).health(), Health::Unknown);
        assert_eq!(run(&[Pass, Pass]).health(), Health::Healthy);
        assert_eq!(run(&[Fail, Fail]).health(), Health::Unknown);
        assert_eq!(run(&[Fail, Fail, Fail]).health(), Health::Unhealthy);
        assert_eq!(run(&[Pass, Pass, Fail, Fail, Pass, Fail, Fail]).health(), Health::Healthy);
        assert_eq!(run(&[Fail, Fail, Fail, Pass, Fail, Pass]).health(), Health::Unhealthy);
        assert_eq!(run(&[Fail, Fail, Fail, Pass, Pass]).health(), Health::Healthy);
    }

    #[test]
    fn an_agent_that_asks_for_no_calls_is_heard_at_once_and_so_is_one_that_no_longer_does() {
        assert_eq!(run(&[Pass, Pass, Drain]).health(), Health::Draining);
        assert_eq!(run(&[Drain, Pass]).health(), Health::Healthy);
        assert_eq!(run(&[Drain, Fail, Fail]).health(), Health::Draining);
        assert_eq!(run(&[Drain, Fail, Fail, Drain, Fail]).health(), Health::Draining);
        assert_eq!(run(&[Drain, Fail, Fail, Fail, Pass]).health(), Health::Unhealthy);
    }

    #[test]
    fn checks_are_5_s_apart_and_1_s_while_in_transition() {
        let schedule = Schedule::default();
        let apart = |verdicts: &[CheckResult]| run(verdicts).interval(&schedule, u32::MAX / 2).as_secs_f64().round();
        for (verdicts, expected) in [
            (&[][..], 1.0),
            (&[Pass], 1.0),
            (&[Pass, Pass], 5.0),
            (&[Pass, Pass, Fail], 1.0),
            (&[Pass, Pass, Fail, Pass], 5.0),
            (&[Fail, Fail, Fail], 5.0),
            (&[Fail, Fail, Fail, Pass], 1.0),
            (&[Drain], 5.0),
        ] {
            assert!((apart(verdicts) - expected).abs() < 0.01, "{verdicts:?}");
        }
        let short = Schedule { interval: SECOND / 10, ..schedule };
        assert!(Machine::new().interval(&short, u32::MAX) < SECOND / 5);
    }

    fn verdict() -> impl Strategy<Value = CheckResult> {
        prop_oneof![4 => Just(Pass), 4 => Just(Fail), 1 => Just(Drain)]
    }

    fn schedule() -> impl Strategy<Value = Schedule> {
        (1_u64..20_000, 1_u64..5_000, 1_u32..6, 1_u32..6).prop_map(|(interval, transition, rise, fall)| Schedule {
            interval: Duration::from_millis(interval),
            transition: Duration::from_millis(transition),
            rise,
            fall,
        })
    }

    proptest! {
        #[test]
        fn a_change_needs_as_many_results_in_a_row_as_are_set_or_an_agents_word(
            verdicts in proptest::collection::vec(verdict(), 0..60), schedule in schedule(),
        ) {
            let mut machine = Machine::new();
            for (index, verdict) in verdicts.iter().enumerate() {
                let before = machine.health();
                let change = machine.on_result(*verdict, &schedule);
                prop_assert_eq!(change.is_some(), machine.health() != before);
                let streak = verdicts[..=index].iter().rev().take_while(|other| *other == verdict).count();
                match change {
                    None => {}
                    Some(Health::Healthy) => {
                        prop_assert_eq!(*verdict, Pass);
                        prop_assert!(before == Health::Draining || streak >= schedule.rise as usize);
                    }
                    Some(Health::Unhealthy) => {
                        prop_assert_eq!(*verdict, Fail);
                        prop_assert!(streak >= schedule.fall as usize);
                    }
                    Some(health) => prop_assert_eq!((health, *verdict), (Health::Draining, Drain)),
                }
            }
        }

        #[test]
        fn whatever_came_before_an_endpoint_that_is_back_is_healthy_after_rise_checks_and_one_that_is_down_is_not(
            verdicts in proptest::collection::vec(verdict(), 0..60), schedule in schedule(),
        ) {
            let mut machine = Machine::new();
            for verdict in verdicts {
                machine.on_result(verdict, &schedule);
            }
            let (mut up, mut down) = (machine, machine);
            let mut slowest = Duration::ZERO;
            for _ in 0..schedule.rise {
                up.on_result(Pass, &schedule);
                if up.health() != Health::Healthy {
                    slowest += up.interval(&schedule, u32::MAX);
                }
            }
            prop_assert_eq!(up.health(), Health::Healthy);
            prop_assert!(slowest <= schedule.transition().mul_f64(1.2) * schedule.rise, "it is checked soon: {:?}", slowest);
            for _ in 0..schedule.fall {
                down.on_result(Fail, &schedule);
            }
            prop_assert_eq!(down.health(), Health::Unhealthy);
        }

        #[test]
        fn the_next_check_is_within_a_fifth_of_the_interval(
            verdicts in proptest::collection::vec(verdict(), 0..9), schedule in schedule(), random in any::<u32>(),
        ) {
            let mut machine = Machine::new();
            for verdict in verdicts {
                machine.on_result(verdict, &schedule);
            }
            let interval = machine.interval(&schedule, random);
            prop_assert!(interval >= schedule.transition().mul_f64(0.79) && interval <= schedule.interval.mul_f64(1.21));
            prop_assert!(interval > Duration::ZERO);
            let now = Instant::now();
            for among in [1, 10_000] {
                let first = Machine::first_at(&schedule, among, now, random);
                prop_assert!(first >= now && first <= now + schedule.interval.mul_f64(1.01));
            }
        }
    }
}
