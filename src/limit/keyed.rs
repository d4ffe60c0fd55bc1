//! One limit per upstream, keyed by the request.

use std::sync::Arc;

use http::{HeaderMap, Uri};
use tower_layer::Layer;

use super::limiter::LimitSnapshot;
use super::{ConcurrencyLimit, ConcurrencyLimitLayer, LimitSpec};
use crate::exchange::{Key, PerKey};
use crate::keyed_map::Eviction;

/// One concurrency limit per upstream; made by [`ConcurrencyLimitLayer::keyed`].
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyedLimitLayer {
    template: ConcurrencyLimitLayer,
    configs: Arc<PerKey<LimitSpec>>,
}

impl KeyedLimitLayer {
    pub(super) fn new(template: ConcurrencyLimitLayer) -> Self {
        Self { configs: Arc::new(configs(&template, None)), template }
    }

    /// Sets the key of a request's upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// It starts with new limits: clones made before keep the old ones.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { configs: Arc::new(configs(&self.template, Some(Arc::new(key)))), ..self }
    }

    /// Snapshots of all limits, in the order of their keys.
    pub fn snapshots(&self) -> Vec<(Box<str>, LimitSnapshot)> {
        self.configs.snapshot(|config| config.per_attempt.limiter.snapshot())
    }

    /// Returns a snapshot of an upstream's limit, or `None` for an unknown key.
    pub fn snapshot(&self, key: &str) -> Option<LimitSnapshot> {
        self.configs.get(key, |config| config.per_attempt.limiter.snapshot())
    }

    /// The fallback limit: for upstreams beyond the 1,024 and for requests without a key.
    pub fn fallback(&self) -> LimitSnapshot {
        self.configs.fallback().per_attempt.limiter.snapshot()
    }
}

fn configs(template: &ConcurrencyLimitLayer, key: Option<Key>) -> PerKey<LimitSpec> {
    let template = template.clone();
    PerKey::new(move |name| template.with_name(name).config, |_| Eviction::Evictable, key)
}

impl<S> Layer<S> for KeyedLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit::new(inner, self.configs.clone())
    }
}
