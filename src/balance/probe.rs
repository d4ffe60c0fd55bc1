//! The probes of endpoints whose circuit is open: copies of requests to other endpoints, or calls.
//!
//! A failed copy costs no client anything. So a call is a probe only where no copies are sent: while copies fail, the
//! circuit defers calls. A call that is not safe is deferred by one more open duration, because it cannot be repeated
//! at another endpoint if the probe fails after the request was sent.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{Extensions, Request};
use http_body::Body;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::pool::{NEVER, Pool};
use crate::body::{BoxError, TrackedUpload, WrapBody};
use crate::exchange::SendService;
use crate::forward::ClientInfo;

impl<S> Pool<S> {
    /// Whether there are endpoints whose circuit is open.
    #[inline]
    pub(super) fn has_ejected(&self) -> bool {
        self.state.has_ejected.load(Relaxed)
    }

    /// Offers a copy of a request as a probe to an endpoint whose circuit is open, unless the call itself is sent to
    /// that endpoint; `chosen` is the endpoint of the call.
    #[cold]
    pub(super) fn offer_probe<B, X, E>(&self, now: Instant, chosen: Option<&Endpoint<S>>, request: &Request<B>)
    where
        S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E> + SendService<TrackedUpload<B>>,
        B: Body + 'static,
        X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        let Some(source) = &self.state.settings.probe else { return };
        let ejected = self.ejected.load();
        let Some(turn) = self.turn.fetch_add(1, Relaxed).checked_rem(ejected.len()) else { return };
        let endpoint = &ejected[turn];
        let Some(circuit) = &endpoint.state.circuit else { return };
        if chosen.is_some_and(|chosen| chosen.state.id == endpoint.state.id && chosen.state.sends(now)) {
            return;
        }
        let head = if circuit.wants_probe() { source.head(request, carry_client) } else { None };
        circuit.offer_probe(head.and_then(|head| endpoint.exchange.probe(head)), None);
    }

    /// Returns an endpoint whose circuit may admit a call as its probe.
    #[cold]
    pub(super) fn probe(&self, now: Instant, is_safe: bool) -> Option<Arc<Endpoint<S>>> {
        let observed = self.state.probe_at.load(Relaxed);
        // without another endpoint, the call has no better one
        let waits = !is_safe && self.has_others(0);
        let ejected = self.ejected.load();
        let mut next = NEVER;
        let mut due: Option<(Instant, Instant, &Arc<Endpoint<S>>)> = None;
        for endpoint in ejected.iter() {
            let Some((at, open_for)) = endpoint.state.next_probe(now) else { continue };
            let call_at = if waits { at + open_for } else { at };
            let later = match due {
                Some((earliest, ..)) if call_at >= earliest => at,
                _ if call_at > now => at,
                _ => match due.replace((call_at, at, endpoint)) {
                    Some((_, at, _)) => at,
                    None => continue,
                },
            };
            next = next.min(self.state.at(later));
        }
        // of concurrent calls, one is the probe
        let is_first = self.state.probe_at.compare_exchange(observed, next, Relaxed, Relaxed).is_ok();
        due.filter(|_| is_first).map(|(.., endpoint)| endpoint.clone())
    }
}

/// Copies the address of the client, which a proxy adds to its requests.
fn carry_client(from: &Extensions, to: &mut Extensions) {
    if let Some(client) = from.get::<ClientInfo>() {
        to.insert(client.clone());
    }
    #[cfg(feature = "axum")]
    if let Some(client) = from.get::<axum::extract::ConnectInfo<std::net::SocketAddr>>() {
        to.insert(*client);
    }
}
