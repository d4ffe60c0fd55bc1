//! Chooses the requests with which a stack tests its upstream while the circuit is open.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Request;
use http_body::Body;
use tokio::time::Instant;

use super::live_config::LiveConfig;
use super::stats::StatsRecorder;
use crate::breaker::CircuitHandle;
use crate::exchange::{ProbeSource, RequestProbe};

/// Chooses the probes of a stack.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    circuit: CircuitHandle,
    source: ProbeSource,
    recorder: Arc<StatsRecorder>,
    /// The usual time of a response, in nanoseconds; 0 if unknown. Kept, because it is forgotten during an outage.
    usual: Arc<AtomicU64>,
}

impl Prober {
    pub(super) fn new(circuit: CircuitHandle, source: ProbeSource, recorder: Arc<StatsRecorder>) -> Self {
        Self { circuit, source, recorder, usual: Arc::default() }
    }

    /// Whether the circuit is closed: one load.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.circuit.is_closed()
    }

    /// The head of the probe that a request may become if it is refused.
    #[inline]
    pub(super) fn head_of<B: Body>(&self, request: &Request<B>, live: &LiveConfig) -> Option<Box<Request<()>>> {
        if self.circuit.wants_probe() { self.copy_head(request, live) } else { None }
    }

    fn copy_head<B: Body>(&self, request: &Request<B>, live: &LiveConfig) -> Option<Box<Request<()>>> {
        let head = self.source.head(request, |from, to| {
            // those that a retry would have
            if let Some(retry) = &live.current().1.requests.settings {
                retry.carry_extensions(from, to);
            }
        });
        head.map(Box::new)
    }

    /// The circuit refused a request.
    pub(super) fn on_refused(&self, probe: Option<RequestProbe>) {
        let usual = probe.is_some().then(|| self.usual()).flatten();
        self.circuit.offer_probe(probe, usual);
    }

    /// The time within which nine of ten responses came, before the outage.
    fn usual(&self) -> Option<Duration> {
        if let Some(latency) = self.recorder.latency(Instant::now()) {
            self.usual.store(u64::try_from(latency.p90.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        }
        Some(self.usual.load(Relaxed)).filter(|usual| *usual > 0).map(Duration::from_nanos)
    }
}
