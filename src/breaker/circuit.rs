//! The circuit: what is counted, when that is too much, and who may pass.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::gate::{Gate, Shut, Turn};
use super::handle::Snapshot;
use super::policy::BreakerPolicy;
use super::reopen::Pauses;
use super::streak::Streak;
use super::verdict::Verdict;
use super::window::{CELLS, Window};
use super::word::{Permit, State};
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop};
use crate::stats::{Ratio, stripe};

/// The circuit of one upstream. Every opening has one record, which all that it refuses share.
#[derive(Debug)]
pub(super) struct Circuit {
    policy: BreakerPolicy,
    name: Arc<str>,
    origin: Instant,
    gate: Gate<Failure>,
    streak: Streak,
    window: Window,
    slow: Option<Window>,
    /// The length of a cell of the windows in nanoseconds.
    cell: u64,
}

/// The end of an exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) verdict: Verdict,
    pub(super) now: Instant,
    pub(super) took: Duration,
}

impl Circuit {
    /// A closed circuit; `now` is where its time begins.
    pub(super) fn new(policy: BreakerPolicy, name: Arc<str>, stripes: usize, now: Instant) -> Self {
        let (first, longest) = (nanos(policy.pause), nanos(policy.longest));
        let pauses = Pauses { first, longest, calm: nanos(policy.window) };
        Self {
            policy,
            name,
            origin: now,
            gate: Gate::new(pauses, nanos(policy.probe)),
            streak: Streak::new(),
            window: Window::new(stripes),
            slow: policy.slow.map(|_| Window::new(stripes)),
            cell: nanos(policy.window) / CELLS,
        }
    }

    /// Lets a call pass while the circuit is closed: one load.
    #[inline]
    pub(super) fn pass(&self) -> Option<Permit> {
        self.gate.pass()
    }

    /// Lets a call pass that met it otherwise, or not.
    pub(super) fn knock(&self, now: Instant) -> (Result<Permit, Shut<Failure>>, Option<Turn<Failure>>) {
        self.gate.knock(self.moment(now), || self.forget())
    }

    /// What a call would be told now, if it would not pass.
    pub(super) fn shut(&self, now: Instant) -> Option<Shut<Failure>> {
        self.gate.shut(self.moment(now))
    }

    /// One that was told so got its answer.
    pub(super) fn count_refused(&self) {
        self.gate.count_refused();
    }

    /// The head of a probe's answer has come, and it is good.
    pub(super) fn probe_answered(&self, permit: &Permit) {
        self.gate.probe_answered(permit);
    }

    /// Whether it matters how long a call took.
    #[inline]
    pub(super) fn measures(&self) -> bool {
        self.slow.is_some()
    }

    /// A call that was good and not slow, of a circuit that is closed still: all that a success costs.
    #[inline]
    pub(super) fn count_success(&self, permit: &Permit, now: Instant) {
        if self.gate.is_current(permit) {
            self.streak.succeed(permit.epoch());
            self.window.record(self.tick(now), stripe(), false);
        }
    }

    /// Any other end; `random` is drawn, and `record` made, where the circuit opens.
    pub(super) fn end(
        &self,
        permit: &Permit,
        end: End,
        random: impl FnOnce() -> u64,
        record: impl FnOnce() -> Failure,
    ) -> Option<Turn<Failure>> {
        let now = self.moment(end.now);
        let slow = self.policy.slow.is_some_and(|(limit, _)| end.took > limit);
        if permit.is_probe() {
            return match end.verdict {
                Verdict::Neutral => {
                    self.gate.probe_left(permit);
                    None
                }
                Verdict::Failure => self.gate.probe_failed(permit, now, random(), || self.opened(PROBE, record())),
                Verdict::Success if slow => {
                    self.gate.probe_failed(permit, now, random(), || self.opened(SLOW_PROBE, record()))
                }
                Verdict::Success | Verdict::Overload => self.gate.probe_succeeded(permit, now, || self.forget()),
            };
        }
        if matches!(end.verdict, Verdict::Neutral | Verdict::Overload) || !self.gate.is_current(permit) {
            return None;
        }
        let (tick, stripe, failed) = (self.tick(end.now), stripe(), end.verdict == Verdict::Failure);
        self.window.record(tick, stripe, failed);
        if let Some(window) = &self.slow {
            window.record(tick, stripe, slow);
        }
        let in_a_row = if failed {
            self.streak.fail(permit.epoch())
        } else {
            self.streak.succeed(permit.epoch());
            0
        };
        let why = if in_a_row >= self.policy.consecutive {
            IN_A_ROW
        } else if failed && self.is_too_much(&self.window, tick, self.policy.ratio) {
            SHARE
        } else if slow && self.are_too_slow(tick) {
            SLOW
        } else {
            return None;
        };
        self.gate.trip(permit, now, random(), || self.opened(why, record()))
    }

    /// A probe from beside that began then has found the upstream well.
    pub(super) fn recovered(&self, begun: Instant, now: Instant) -> Option<Turn<Failure>> {
        self.gate.recovered(self.moment(begun), self.moment(now), || self.forget())
    }

    /// A probe from beside has found it down; another one comes before this time.
    pub(super) fn still_down(&self, until: Instant) {
        self.gate.still_down(self.moment(until));
    }

    pub(super) fn hold(&self, now: Instant) -> Option<Turn<Failure>> {
        self.gate.hold(self.moment(now), self.refusal(HELD).build())
    }

    pub(super) fn release(&self, now: Instant) -> Option<Turn<Failure>> {
        self.gate.release(self.moment(now))
    }

    pub(super) fn reset(&self, now: Instant) -> Option<Turn<Failure>> {
        self.gate.reset(self.moment(now), || self.forget())
    }

    pub(super) fn snapshot(&self, now: Instant) -> Snapshot {
        let (look, why) = self.gate.look();
        let tick = self.tick(now);
        let held = self.window.sum(tick);
        Snapshot {
            state: look.state,
            since: self.at(look.since),
            why: why.and_then(|opening| opening.previous().last().cloned()),
            next_probe: (look.state == State::Open).then(|| self.at(look.until)),
            calls: held.calls,
            failures: held.bad,
            slow: self.slow.as_ref().map_or(0, |window| window.sum(tick).bad),
            streak: self.streak.length(look.epoch),
            opened: look.opened,
            probes: look.probes,
            probes_given_up: look.given_up,
            refused: look.refused,
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    pub(super) fn state(&self) -> super::State {
        self.gate.look().0.state
    }

    /// How many calls it has refused so far.
    pub(super) fn refused(&self) -> u64 {
        self.gate.look().0.refused
    }

    pub(super) fn statuses(&self) -> fn(StatusCode) -> bool {
        self.policy.statuses
    }

    /// A moment of this circuit as an instant.
    pub(super) fn at(&self, moment: u64) -> Instant {
        self.origin.checked_add(Duration::from_nanos(moment)).unwrap_or(self.origin)
    }

    fn is_too_much(&self, window: &Window, tick: u64, share: Ratio) -> bool {
        let held = window.sum(tick);
        held.calls >= self.policy.least.into() && held.bad * 1000 >= held.calls * u64::from(share.as_per_mille())
    }

    fn are_too_slow(&self, tick: u64) -> bool {
        let slow = self.slow.as_ref().zip(self.policy.slow);
        slow.is_some_and(|(window, (_, share))| self.is_too_much(window, tick, share))
    }

    /// What was counted belongs to an epoch that is over.
    fn forget(&self) {
        self.window.clear();
        if let Some(window) = &self.slow {
            window.clear();
        }
    }

    /// The one record of an opening.
    fn opened(&self, why: &'static str, failure: Failure) -> Failure {
        self.refusal(why).previous(failure).build()
    }

    fn refusal(&self, why: &'static str) -> crate::cause::FailureBuilder {
        Failure::builder(BadGatewayCause::CircuitOpen)
            .phase(Phase::Gateway)
            .refusal()
            // retry layers need not make a record of their own to say so
            .retry_stop(RetryStop::LocalRefusal)
            .upstream(self.name.clone())
            .detail(Detail::Text(why))
    }

    #[inline]
    fn tick(&self, now: Instant) -> u64 {
        self.moment(now) / self.cell
    }

    #[inline]
    fn moment(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin);
        // in 64 bits: it goes round after 584 years
        since.as_secs().wrapping_mul(1_000_000_000).wrapping_add(since.subsec_nanos().into())
    }
}

const IN_A_ROW: &str = "failures in a row";
const SHARE: &str = "too large a share of failures";
const SLOW: &str = "too large a share of slow calls";
const PROBE: &str = "its probe failed";
const SLOW_PROBE: &str = "its probe was slow";
const HELD: &str = "held open by hand";

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
