//! A circuit of its own for each upstream that requests name.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{
    BreakerPolicy, BreakerSpec, CircuitBreakerBody, CircuitBreakerFuture, CircuitBreakerLayer, CircuitHandle,
    CircuitSnapshot, State,
};
use crate::exchange::{Config, Key, PerKey, keyed_middleware};
use crate::keyed_map::Eviction;

keyed_middleware! {
    /// The service of [`KeyedCircuitBreakerLayer`].
    ///
    /// The inner service is polled for readiness before a request is seen, so that a rejection waits for that.
    KeyedCircuitBreaker, CircuitBreakerFuture, CircuitBreakerBody, BreakerSpec
}

/// A circuit for each upstream that requests name; made by [`CircuitBreakerLayer::keyed`].
#[derive(Clone)]
#[must_use]
pub struct KeyedCircuitBreakerLayer {
    name: Arc<str>,
    policy: BreakerPolicy,
    configs: Arc<PerKey<BreakerSpec>>,
}

impl KeyedCircuitBreakerLayer {
    pub(super) fn new(name: Arc<str>, policy: BreakerPolicy) -> Self {
        Self { configs: Arc::new(configs(&name, policy, None)), name, policy }
    }

    /// What names an upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// The circuits are new ones: clones that were made before go on with the old.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { configs: Arc::new(configs(&self.name, self.policy, Some(Arc::new(key)))), ..self }
    }

    /// The circuits that there are and how they stand, in the order of their keys.
    pub fn snapshots(&self, now: Instant) -> Vec<(Box<str>, CircuitSnapshot)> {
        self.configs.list(|config| config.per_attempt.core.circuit.snapshot(now))
    }

    /// Sees into the circuit of an upstream, if it has one.
    ///
    /// A circuit that is closed and not called may have to make room for others; then its handle shows what is no longer used.
    pub fn handle(&self, key: &str) -> Option<CircuitHandle> {
        self.configs.peek(key, |config| CircuitHandle { core: config.per_attempt.core.clone() })
    }

    /// Sees into the one circuit of all that find no place among the 1,024, and of requests that name no upstream.
    pub fn others(&self) -> CircuitHandle {
        CircuitHandle { core: self.configs.others().per_attempt.core.clone() }
    }
}

fn configs(name: &Arc<str>, policy: BreakerPolicy, key: Option<Key>) -> PerKey<BreakerSpec> {
    let name = name.clone();
    let make = move |key: Option<&str>| {
        let name = key.map_or_else(|| name.clone(), Arc::from);
        // a set of counters for each core and each upstream would be much memory for little traffic
        CircuitBreakerLayer::striped(policy, name, 1).config
    };
    // what an open one knows is worth more than what a closed one has counted
    let stays = |config: &Config<BreakerSpec>| match config.per_attempt.core.circuit.state() {
        State::Closed => Eviction::Evictable,
        _ => Eviction::Late,
    };
    PerKey::new(make, stays, key)
}

impl<S> Layer<S> for KeyedCircuitBreakerLayer {
    type Service = KeyedCircuitBreaker<S>;

    fn layer(&self, inner: S) -> KeyedCircuitBreaker<S> {
        KeyedCircuitBreaker { inner, configs: self.configs.clone() }
    }
}

impl fmt::Debug for KeyedCircuitBreakerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.configs.list(|config| config.per_attempt.core.circuit.state())).finish()
    }
}
