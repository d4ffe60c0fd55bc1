//! Tests an upstream with requests while its circuit is open, so that recovery does not wait for the open duration.
//!
//! A stack offers one request for every [`CALLS_PER_PROBE`] calls that the circuit refuses, usually a copy of the refused one. A
//! task sends it; if the upstream responds, the circuit closes. So an outage of any kind ends when the upstream responds again:
//! a connect probe sees only that it accepts connections.
//!
//! The task runs from an offer to the end of its probe. It is spawned by the offer that finds none, which a drop guard makes
//! possible again when the task panics or its runtime ends; without a runtime nothing is probed. Whatever becomes of it, calls
//! become probes as without it: it changes the circuit only by a success.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::handle::{CircuitHandle, CircuitShared};
use super::packed_state::State;
use super::probe_schedule::{Offer, Outage, limit};
use crate::cause::BadGatewayCause;
use crate::exchange::{Outcome, RequestProbe};

/// The upstream gets one probe for this many refused calls, 3 %, also where the schedule allows for more.
const CALLS_PER_PROBE: u32 = 32;
/// Calls of a pool are probes again this long after the last request that was one.
const CALLS_WAIT: Duration = Duration::from_secs(5);

impl CircuitHandle {
    /// Whether the circuit is closed: one load.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.core.circuit.try_acquire().is_some()
    }

    /// Whether a refused call should offer its request as a probe.
    pub(crate) fn wants_probe(&self) -> bool {
        self.core.probes.left.load(Relaxed) == 0
    }

    /// A call was not sent to the upstream, and may offer its request as a probe; a response usually takes `usual`.
    pub(crate) fn offer_probe(&self, probe: Option<RequestProbe>, usual: Option<Duration>) {
        let core = &self.core;
        let Some(probe) = probe else {
            let _ = core.probes.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
            return;
        };
        let Ok(runtime) = Handle::try_current() else { return };
        core.probes.left.store(CALLS_PER_PROBE - 1, Relaxed);
        let offer = Offer { probe, limit: limit(usual, core.circuit.policy().probe_timeout) };
        let mut slot = core.probes.lock();
        let earlier = slot.next.replace(offer);
        slot.outage.get_or_insert_with(|| Outage::new(Instant::now()));
        let spawns = !std::mem::replace(&mut slot.running, true);
        drop(slot);
        drop(earlier);
        if spawns {
            runtime.spawn(Running { circuit: Arc::downgrade(core), armed: true }.run());
        }
    }
}

/// Held by the task; dropping it allows another task.
struct Running {
    circuit: Weak<CircuitShared>,
    armed: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (true, Some(core)) = (self.armed, self.circuit.upgrade()) {
            core.probes.lock().running = false;
            // also drops the offer: no task is left to send it
            core.probes.end_outage();
        }
    }
}

impl Running {
    async fn run(mut self) {
        while let Some(due) = self.next_at() {
            sleep_until(due).await;
            let Some((probe, limit, name)) = self.take() else { continue };
            let begun = Instant::now();
            if let Some(core) = self.circuit.upgrade() {
                core.put_off_calls(begun + limit + CALLS_WAIT);
            }
            let span = tracing::debug_span!(target: "tower_upstream", "probe", upstream = &*name);
            let outcome = probe(begun + limit).instrument(span).await;
            let Some(core) = self.circuit.upgrade() else { break };
            core.on_probed(begun, &outcome);
        }
    }

    /// When the next probe is due; `None` if there is no offer, so that the task ends.
    fn next_at(&mut self) -> Option<Instant> {
        let core = self.circuit.upgrade()?;
        let mut slot = core.probes.lock();
        let outage = slot.outage.filter(|_| slot.next.is_some());
        (slot.running, self.armed) = (outage.is_some(), outage.is_some());
        outage.map(|outage| outage.next_at(fastrand::u32(..)))
    }

    /// The latest offer, unless the circuit has closed in the meantime.
    fn take(&self) -> Option<(RequestProbe, Duration, Arc<str>)> {
        let core = self.circuit.upgrade()?;
        if !matches!(core.circuit.state(), State::Open | State::HalfOpen) {
            core.probes.end_outage();
            return None;
        }
        let mut slot = core.probes.lock();
        let offer = slot.next.take()?;
        if let Some(outage) = &mut slot.outage {
            outage.last = Instant::now();
        }
        Some((offer.probe, offer.limit, core.circuit.name().clone()))
    }
}

impl CircuitShared {
    /// Reports the outcome of a probe that began at `begun` to the circuit.
    fn on_probed(&self, begun: Instant, outcome: &Outcome) {
        let now = Instant::now();
        let recovered = self.circuit.recovered(outcome, now.saturating_duration_since(begun));
        tracing::debug!(
            target: "tower_upstream",
            upstream = &**self.circuit.name(),
            probe = true,
            error.type = outcome.cause().map(BadGatewayCause::as_str),
            http.response.status_code = outcome.status().map(|status| status.as_u16()),
            "{}",
            match recovered {
                Some(true) => "a probe found the upstream responding",
                Some(false) => "a probe found the upstream failing",
                None => "a probe showed nothing about the upstream",
            }
        );
        self.circuit.count_probe();
        if recovered == Some(true) {
            self.record_recovery(begun, now);
        }
    }
}
