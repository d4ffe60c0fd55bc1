//! Probes an upstream in the background while its circuit is open, so that no call has to.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::handle::{CircuitHandle, CircuitShared};
use super::probe_schedule::{MAX_INTERVAL, interval, jittered};
use super::{State, StateChange};
use crate::cause::{Failure, Phase};

/// A probe that takes longer counts as failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

impl CircuitHandle {
    /// Probes the upstream in the background while the circuit is open, and closes the circuit at the first success.
    ///
    /// Spawn the future once, as a task. It ends when the layer, its services and its handles are dropped. `probe` returns
    /// whether the upstream accepts connections or passes a health check, within one second. While it fails, no call is
    /// used as a probe.
    ///
    /// A success counts only if the probe could have seen the failure: the circuit was opened by a failure to connect, or
    /// `probe` itself has failed since. For an upstream that accepts connections but responds with errors, the open duration
    /// and probing by calls apply as usual, and the probes of an [`UpstreamLayer`](crate::stack#probes).
    ///
    /// | probes | |
    /// |---|---|
    /// | interval | 1/500 of the outage so far, 5 ms to 1 s, at least the duration of the last probe; a quarter of it is jitter |
    /// | first | 5 ms after the circuit opened |
    ///
    /// With feature `client`, `ReverseProxy::connect_probe` is such a probe.
    ///
    /// ```
    /// use std::net::SocketAddr;
    /// use tokio::net::TcpStream;
    /// use tower_upstream::breaker::CircuitBreakerLayer;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let upstream = SocketAddr::from(([127, 0, 0, 1], 9000));
    /// let breaker = CircuitBreakerLayer::new("payments");
    /// tokio::spawn(breaker.handle().active_probe(move || async move { TcpStream::connect(upstream).await.is_ok() }));
    /// # }
    /// ```
    pub fn active_probe<P, F>(self, mut probe: P) -> impl Future<Output = ()> + Send + use<P, F>
    where
        P: FnMut() -> F + Send,
        F: Future<Output = bool> + Send,
    {
        let mut changes = self.transitions();
        let circuit = Arc::downgrade(&self.core);
        drop(self);
        async move {
            while let Some(change) = changes.next().await {
                if change.state != State::Open {
                    continue;
                }
                let mut outage = OutageProbe::new(&change);
                loop {
                    match timeout_at(outage.next_at(fastrand::u32(..)), changes.next()).await {
                        Ok(None) => return,
                        Ok(Some(change)) if matches!(change.state, State::Closed | State::HeldOpen) => break,
                        // a call became a probe
                        Ok(Some(_)) => {}
                        Err(_) => {
                            let begun = Instant::now();
                            outage.before_probe(&circuit, begun);
                            let up = timeout(PROBE_TIMEOUT, probe()).await.unwrap_or(false);
                            if !outage.after_probe(&circuit, begun, Instant::now(), up) {
                                return;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The schedule of the probes during one outage.
struct OutageProbe {
    since: Instant,
    /// When the last probe ended, and its duration.
    last_probe: (Instant, Duration),
    /// A failure was seen that a probe would have seen as well.
    seen_down: bool,
}

impl OutageProbe {
    fn new(opened: &StateChange) -> Self {
        let seen_down = opened.cause.as_ref().map(Failure::phase).is_some_and(is_before_the_request);
        Self { since: opened.at, last_probe: (opened.at, Duration::ZERO), seen_down }
    }

    /// The time between the end of the last probe and the next one.
    fn interval(&self) -> Duration {
        let (ended, took) = self.last_probe;
        interval(ended.saturating_duration_since(self.since)).max(took).min(MAX_INTERVAL)
    }

    /// When the next probe is due; `random` is uniform over its range.
    fn next_at(&self, random: u32) -> Instant {
        self.last_probe.0 + jittered(self.interval(), random)
    }

    /// Before a probe: no call is used as one until its result is known.
    fn before_probe(&self, circuit: &Weak<CircuitShared>, now: Instant) {
        if let (true, Some(core)) = (self.seen_down, circuit.upgrade()) {
            core.circuit.record_still_down(now + PROBE_TIMEOUT + MAX_INTERVAL);
        }
    }

    /// Reports a probe's result to the circuit; returns `false` if the circuit was dropped.
    fn after_probe(&mut self, circuit: &Weak<CircuitShared>, begun: Instant, now: Instant, up: bool) -> bool {
        let Some(core) = circuit.upgrade() else { return false };
        self.last_probe = (now, now.saturating_duration_since(begun));
        if !up {
            self.seen_down = true;
            // if the task stops, calls become probes again after this time
            core.circuit.record_still_down(now + 3 * self.interval());
        } else if self.seen_down {
            core.record_recovery(begun, now);
        }
        true
    }
}

/// Whether a failure in this phase is a failure to connect.
fn is_before_the_request(phase: Phase) -> bool {
    matches!(phase, Phase::Resolve | Phase::Connect | Phase::Tls)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

    use super::*;
    use crate::breaker::CircuitBreakerLayer;
    use crate::cause::BadGatewayCause as Cause;
    use crate::exchange::{CallContext, Component, Outcome};

    /// A circuit, and an upstream that a task probes.
    struct ProbedCircuit {
        layer: CircuitBreakerLayer,
        up: Arc<AtomicBool>,
        probes: Arc<AtomicU32>,
        task: tokio::task::JoinHandle<()>,
    }

    impl ProbedCircuit {
        fn new() -> Self {
            let layer = CircuitBreakerLayer::new("payments");
            let (up, probes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
            let (seen, count) = (up.clone(), probes.clone());
            let probe = move || {
                count.fetch_add(1, Relaxed);
                std::future::ready(seen.load(Relaxed))
            };
            let task = tokio::spawn(layer.handle().active_probe(probe));
            Self { layer, up, probes, task }
        }

        /// Opens the circuit with five failures of this cause.
        async fn fails(&self, cause: Cause) {
            let breaker = &self.layer.config.per_attempt;
            for _ in 0..5 {
                let call = CallContext::new(Instant::now());
                if let Ok(permit) = breaker.admit(&call) {
                    breaker.complete(permit, &call, &Outcome::response(cause.status(), Some(cause)));
                }
            }
            assert_eq!(self.state(), State::Open);
            tokio::task::yield_now().await;
        }

        fn state(&self) -> State {
            self.layer.handle().snapshot(Instant::now()).state
        }

        /// The time until the circuit is closed.
        async fn until_closed(&self) -> Duration {
            let begun = Instant::now();
            let mut changes = self.layer.handle().transitions();
            while changes.next().await.unwrap().state != State::Closed {}
            begun.elapsed()
        }

        fn admits(&self) -> bool {
            self.layer.config.per_attempt.admit(&CallContext::new(Instant::now())).is_ok()
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_closes_as_soon_as_its_upstream_is_back_and_no_call_had_to_find_out() {
        for (outage, late) in [(millis(100), millis(7)), (millis(10_000), millis(21)), (millis(120_000), millis(242))] {
            let watched = ProbedCircuit::new();
            watched.fails(Cause::ConnectionRefused).await;
            let end = Instant::now() + outage;
            while Instant::now() < end {
                assert!(!watched.admits(), "no call is spent, whatever pause is over");
                tokio::time::sleep(millis(1).max(outage / 1000)).await;
            }
            watched.up.store(true, Relaxed);
            let took = watched.until_closed().await;
            assert!(took <= late, "{took:?} after {outage:?}");
            assert!(watched.admits());
            watched.task.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_hours_is_probed_once_a_second() {
        let watched = ProbedCircuit::new();
        watched.fails(Cause::ConnectTimeout).await;
        tokio::time::sleep(Duration::from_secs(2 * 60 * 60)).await;
        let before = watched.probes.load(Relaxed);
        tokio::time::sleep(Duration::from_secs(100)).await;
        let probes = watched.probes.load(Relaxed) - before;
        assert!((100..=140).contains(&probes), "{probes}");
        watched.up.store(true, Relaxed);
        assert!(watched.until_closed().await <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_takes_connections_and_fails_is_left_to_its_calls() {
        let watched = ProbedCircuit::new();
        watched.up.store(true, Relaxed);
        watched.fails(Cause::FirstByteTimeout).await;
        tokio::time::sleep(millis(400)).await;
        assert_eq!(watched.state(), State::Open, "that it takes connections was never in doubt");
        tokio::time::sleep(millis(700)).await;
        assert!(watched.admits(), "the pause is over: a call is the probe");
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_circuit_stays_open_and_the_task_ends_with_the_circuit() {
        let watched = ProbedCircuit::new();
        watched.fails(Cause::ConnectionRefused).await;
        tokio::time::sleep(millis(50)).await;
        watched.layer.handle().hold_open();
        watched.up.store(true, Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(watched.state(), State::HeldOpen);
        let ProbedCircuit { layer, task, .. } = watched;
        drop(layer);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_has_failed_after_a_second() {
        let layer = CircuitBreakerLayer::new("payments");
        let task = tokio::spawn(layer.handle().active_probe(std::future::pending));
        let watched = ProbedCircuit { layer, up: Arc::default(), probes: Arc::default(), task };
        watched.fails(Cause::ConnectTimeout).await;
        for _ in 0..100 {
            tokio::time::sleep(millis(100)).await;
            assert!(!watched.admits());
        }
        // without the probing task, calls become probes again
        watched.task.abort();
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(watched.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn the_calls_find_out_by_themselves_whatever_becomes_of_the_task_that_probes() {
        /// The first probe fails, the next one hangs or panics.
        async fn probe(number: u32, panics: bool) -> bool {
            match (number, panics) {
                (0, _) => false,
                (_, false) => std::future::pending().await,
                (_, true) => panic!("a probe's own"),
            }
        }
        for (unpolled, panics) in [(true, false), (false, false), (false, true)] {
            let layer = CircuitBreakerLayer::new("payments");
            let count = AtomicU32::new(0);
            let probe = move || probe(count.fetch_add(1, Relaxed), panics);
            let probing = layer.handle().active_probe(probe);
            let task = if unpolled {
                drop(probing);
                tokio::spawn(async {})
            } else {
                tokio::spawn(probing)
            };
            let watched = ProbedCircuit { layer, up: Arc::default(), probes: Arc::default(), task };
            watched.fails(Cause::ConnectTimeout).await;
            tokio::time::sleep(millis(30)).await;
            watched.task.abort();
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(watched.admits(), "unpolled {unpolled}, panics {panics}");
        }
    }
}
