//! A limit of its own for each upstream that requests name.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri};
use tower_layer::Layer;

use super::limiter::LimitSnapshot;
use super::{ConcurrencyLimitLayer, LimitBody, LimitFuture, LimitSpec};
use crate::exchange::{Key, PerKey, keyed_middleware};
use crate::keyed_map::Eviction;

keyed_middleware! {
    /// The service of [`KeyedLimitLayer`].
    ///
    /// The inner service is polled for readiness before a request is seen, so that a rejection waits for that.
    KeyedLimit, LimitFuture, LimitBody, LimitSpec
}

/// Limits the calls in flight to each upstream by itself; made by [`ConcurrencyLimitLayer::keyed`].
#[derive(Clone)]
#[must_use]
pub struct KeyedLimitLayer {
    template: ConcurrencyLimitLayer,
    configs: Arc<PerKey<LimitSpec>>,
}

impl KeyedLimitLayer {
    pub(super) fn new(template: ConcurrencyLimitLayer) -> Self {
        Self { configs: Arc::new(configs(&template, None)), template }
    }

    /// What names an upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// The limits are new ones: clones that were made before go on with the old.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self { configs: Arc::new(configs(&self.template, Some(Arc::new(key)))), ..self }
    }

    /// The limits that there are, in the order of their keys.
    pub fn snapshots(&self) -> Vec<(Box<str>, LimitSnapshot)> {
        self.configs.list(|config| config.per_call.limiter.snapshot())
    }

    /// The limit of an upstream that has one.
    pub fn snapshot(&self, key: &str) -> Option<LimitSnapshot> {
        self.configs.peek(key, |config| config.per_call.limiter.snapshot())
    }

    /// The one limit of all that find no place among the 1,024, and of requests that name no upstream.
    pub fn others(&self) -> LimitSnapshot {
        self.configs.others().per_call.limiter.snapshot()
    }
}

fn configs(template: &ConcurrencyLimitLayer, key: Option<Key>) -> PerKey<LimitSpec> {
    let template = template.clone();
    PerKey::new(move |name| template.with_name(name).config, |_| Eviction::Evictable, key)
}

impl<S> Layer<S> for KeyedLimitLayer {
    type Service = KeyedLimit<S>;

    fn layer(&self, inner: S) -> KeyedLimit<S> {
        KeyedLimit { inner, configs: self.configs.clone() }
    }
}

impl fmt::Debug for KeyedLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshots()).finish()
    }
}
