//! One layer per upstream, for requests that name different upstreams.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri, header::HOST};

use super::spec::{Config, Spec};
use super::{LocalArc, Ref};
use crate::keyed_map::{Eviction, KeyedMap};
use crate::opaque::Opaque;

/// The maximum number of upstreams with components of their own.
const CAP: usize = 1024;

/// Returns the name of a request's upstream.
type Key = Arc<dyn for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync>;
type MakeConfig<P> = Box<dyn Fn(Option<&str>) -> Arc<Config<P>> + Send + Sync>;

/// A layer that a [`KeyedLayer`] can make for each upstream.
pub(crate) trait PerUpstream: Clone + Send + Sync + 'static {
    type Spec: Spec;

    /// Settings like these with state of their own; `None`: for requests without a key.
    fn for_key(&self, key: Option<&str>) -> Arc<Config<Self::Spec>>;

    fn from_config(config: Arc<Config<Self::Spec>>) -> Self;

    /// Whether settings that no call uses may be evicted.
    fn eviction(_: &Config<Self::Spec>) -> Eviction {
        Eviction::Evictable
    }
}

/// One layer per upstream, keyed by the request; made by the method `keyed` of a layer.
///
/// There are at most 1,024 of them, and the least recently used is evicted; one with calls in flight never is. If none can be
/// evicted, further upstreams share the [`fallback`](Self::fallback).
#[derive(Clone, Debug)]
#[must_use]
#[allow(private_bounds)] // layers of this crate alone have it
pub struct KeyedLayer<L: PerUpstream> {
    template: L,
    configs: Arc<PerKey<L::Spec>>,
}

#[allow(private_bounds)]
impl<L: PerUpstream> KeyedLayer<L> {
    pub(crate) fn new(template: L) -> Self {
        Self::with_key(template, None)
    }

    fn with_key(template: L, key: Option<Key>) -> Self {
        let layer = template.clone();
        let configs = PerKey::new(move |key| layer.for_key(key), L::eviction, key);
        Self { template, configs: Arc::new(configs) }
    }

    /// Sets the key of a request's upstream (default: the authority of the target, else `Host`, in lower case).
    ///
    /// It starts with new layers: clones made before keep the old ones.
    pub fn key<K>(self, key: K) -> Self
    where
        K: for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync + 'static,
    {
        Self::with_key(self.template, Some(Arc::new(key)))
    }

    /// All layers, in the order of their keys.
    pub fn all(&self) -> Vec<(Box<str>, L)> {
        self.configs.keyed.snapshot(|config| L::from_config(config.shared()))
    }

    /// The layer of an upstream; `None` for an unknown key.
    ///
    /// A layer without calls in flight may be evicted: this one is then no longer used.
    pub fn get(&self, key: &str) -> Option<L> {
        self.configs.keyed.get(key).map(|config| L::from_config(config.shared()))
    }

    /// The layer of upstreams beyond the 1,024, and of requests without a key.
    pub fn fallback(&self) -> L {
        L::from_config(self.configs.keyed.fallback().shared())
    }

    pub(crate) fn configs(&self) -> Arc<PerKey<L::Spec>> {
        self.configs.clone()
    }
}

/// The settings per upstream, shared by all services of a keyed layer.
pub(crate) struct PerKey<P: Spec> {
    keyed: KeyedMap<Ref<Config<P>>>,
    /// `None`: the authority of the target, else `Host`.
    key: Option<Key>,
    /// Makes the settings of a key, or those of all requests without one.
    make: MakeConfig<P>,
    /// Whether settings that no call uses may be evicted.
    eviction: fn(&Config<P>) -> Eviction,
}

impl<P: Spec> PerKey<P> {
    fn new(
        make: impl Fn(Option<&str>) -> Arc<Config<P>> + Send + Sync + 'static,
        stays: fn(&Config<P>) -> Eviction,
        key: Option<Key>,
    ) -> Self {
        Self { keyed: KeyedMap::new(CAP, Ref::new(make(None))), key, make: Box::new(make), eviction: stays }
    }

    pub(super) fn of(&self, uri: &Uri, headers: &HeaderMap) -> Ref<Config<P>> {
        if let Some(key) = &self.key {
            return self.named(key(uri, headers));
        }
        let host = || headers.get(HOST).and_then(|host| host.to_str().ok());
        match uri.authority().map(http::uri::Authority::as_str).or_else(host) {
            Some(key) if key.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                self.named(Some(&key.to_ascii_lowercase()))
            }
            key => self.named(key),
        }
    }

    fn named(&self, key: Option<&str>) -> Ref<Config<P>> {
        let Some(key) = key else { return self.keyed.fallback().clone() };
        let stays = |config: &Ref<Config<P>>| {
            if config.is_held_elsewhere() { Eviction::Pinned } else { (self.eviction)(config) }
        };
        self.keyed.get_or_insert(key, || Ref::new((self.make)(Some(key))), stays).as_ref().clone()
    }
}

impl<P: Spec> fmt::Debug for PerKey<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.keyed.snapshot(|_| Opaque(()))).finish()
    }
}

/// Where a service finds the settings of a call.
pub(crate) enum ConfigSource<P: Spec> {
    /// All calls have the same.
    Shared(LocalArc<Config<P>>),
    /// The request names its upstream.
    PerKey(Arc<PerKey<P>>),
}

impl<P: Spec> ConfigSource<P> {
    #[inline]
    pub(super) fn acquire_mut(&mut self, uri: &Uri, headers: &HeaderMap) -> Ref<Config<P>> {
        match self {
            Self::Shared(config) => config.acquire_mut(),
            Self::PerKey(configs) => configs.of(uri, headers),
        }
    }

    pub(super) fn acquire(&self, uri: &Uri, headers: &HeaderMap) -> Ref<Config<P>> {
        match self {
            Self::Shared(config) => config.acquire(),
            Self::PerKey(configs) => configs.of(uri, headers),
        }
    }
}

impl<P: Spec> From<Arc<Config<P>>> for ConfigSource<P> {
    fn from(config: Arc<Config<P>>) -> Self {
        Self::Shared(LocalArc::new(config))
    }
}

impl<P: Spec> From<Arc<PerKey<P>>> for ConfigSource<P> {
    fn from(configs: Arc<PerKey<P>>) -> Self {
        Self::PerKey(configs)
    }
}

impl<P: Spec> Clone for ConfigSource<P> {
    fn clone(&self) -> Self {
        match self {
            Self::Shared(config) => Self::Shared(config.clone()),
            Self::PerKey(configs) => Self::PerKey(configs.clone()),
        }
    }
}
