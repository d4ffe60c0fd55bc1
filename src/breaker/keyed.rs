//! One circuit per upstream, keyed by the request.

use std::sync::Arc;

use http::{HeaderMap, Uri};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{BreakerPolicy, BreakerSpec, CircuitBreaker, CircuitBreakerLayer, CircuitHandle, CircuitSnapshot, State};
use crate::exchange::{Config, Key, PerKey};
use crate::keyed_map::Eviction;

/// One circuit per upstream; made by [`CircuitBreakerLayer::keyed`].
#[derive(Clone, Debug)]
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

    /// Sets the key of a request's upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// It starts with new circuits: clones made before keep the old ones.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { configs: Arc::new(configs(&self.name, self.policy, Some(Arc::new(key)))), ..self }
    }

    /// Snapshots of all circuits, in the order of their keys.
    pub fn snapshots(&self, now: Instant) -> Vec<(Box<str>, CircuitSnapshot)> {
        self.configs.snapshot(|config| config.per_attempt.core.circuit.snapshot(now))
    }

    /// Returns the handle of an upstream's circuit, or `None` for an unknown key.
    ///
    /// A closed circuit without calls in flight may be evicted; a handle to it then refers to a circuit that is no longer used.
    pub fn handle(&self, key: &str) -> Option<CircuitHandle> {
        self.configs.get(key, |config| CircuitHandle { core: config.per_attempt.core.clone() })
    }

    /// The handle of the fallback circuit: for upstreams beyond the 1,024 and for requests without a key.
    pub fn fallback(&self) -> CircuitHandle {
        CircuitHandle { core: self.configs.fallback().per_attempt.core.clone() }
    }
}

fn configs(name: &Arc<str>, policy: BreakerPolicy, key: Option<Key>) -> PerKey<BreakerSpec> {
    let name = name.clone();
    let make = move |key: Option<&str>| {
        let name = key.map_or_else(|| name.clone(), Arc::from);
        // counters per core and per upstream would use much memory for little traffic
        CircuitBreakerLayer::striped(policy.with_others(false), name, 1, None).config
    };
    // evict closed circuits first: the state of an open one matters more than the counts of a closed one
    let stays = |config: &Config<BreakerSpec>| match config.per_attempt.core.circuit.state() {
        State::Closed => Eviction::Evictable,
        _ => Eviction::Late,
    };
    PerKey::new(make, stays, key)
}

impl<S> Layer<S> for KeyedCircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> CircuitBreaker<S> {
        CircuitBreaker::new(inner, self.configs.clone())
    }
}
