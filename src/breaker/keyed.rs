//! A circuit of its own for each upstream that requests name.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{Breaker, BreakerPolicy, CircuitBreakerLayer, CircuitHandle, Snapshot, State};
use crate::engine::{Key, KeyedEngine, Shares};
use crate::keyed::Stay;

/// The service of [`KeyedCircuitBreakerLayer`].
pub type KeyedCircuitBreaker<S> = KeyedEngine<S, Breaker, ()>;

/// A circuit for each upstream that requests name; made by [`CircuitBreakerLayer::keyed`].
#[derive(Clone)]
#[must_use]
pub struct KeyedCircuitBreakerLayer {
    name: Arc<str>,
    policy: BreakerPolicy,
    shares: Arc<Shares<Breaker, ()>>,
}

impl KeyedCircuitBreakerLayer {
    pub(super) fn new(name: Arc<str>, policy: BreakerPolicy) -> Self {
        Self { shares: Arc::new(shares(&name, policy, None)), name, policy }
    }

    /// What names an upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// The circuits are new ones: clones that were made before go on with the old.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { shares: Arc::new(shares(&self.name, self.policy, Some(Arc::new(key)))), ..self }
    }

    /// The circuits that there are and how they stand, in the order of their keys.
    pub fn snapshots(&self, now: Instant) -> Vec<(Box<str>, Snapshot)> {
        self.shares.list(|breaker| breaker.core.circuit.snapshot(now))
    }

    /// Sees into the circuit of an upstream, if it has one.
    ///
    /// A circuit that is closed and not called may have to make room for others; then its handle shows what is no longer used.
    pub fn handle(&self, key: &str) -> Option<CircuitHandle> {
        self.shares.peek(key, |breaker| CircuitHandle { core: breaker.core.clone() })
    }

    /// Sees into the one circuit of all that find no place among the 1,024, and of requests that name no upstream.
    pub fn others(&self) -> CircuitHandle {
        CircuitHandle { core: self.shares.others().core.clone() }
    }
}

fn shares(name: &Arc<str>, policy: BreakerPolicy, key: Option<Key>) -> Shares<Breaker, ()> {
    let name = name.clone();
    let make = move |key: Option<&str>| {
        let name = key.map_or_else(|| name.clone(), Arc::from);
        // a set of counters for each core and each upstream would be much memory for little traffic
        CircuitBreakerLayer::striped(policy, name, 1).shared
    };
    // what an open one knows is worth more than what a closed one has counted
    let stays = |breaker: &Breaker| match breaker.core.circuit.state() {
        State::Closed => Stay::Not,
        _ => Stay::Long,
    };
    Shares::new(make, stays, key)
}

impl<S> Layer<S> for KeyedCircuitBreakerLayer {
    type Service = KeyedCircuitBreaker<S>;

    fn layer(&self, inner: S) -> KeyedCircuitBreaker<S> {
        KeyedEngine::new(inner, self.shares.clone())
    }
}

impl fmt::Debug for KeyedCircuitBreakerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shares.list(|breaker| breaker.core.circuit.state())).finish()
    }
}
