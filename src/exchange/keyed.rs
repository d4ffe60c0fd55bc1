//! Settings and components per upstream, for requests that name different upstreams.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Uri, header::HOST};

use super::Ref;
use super::spec::{Config, Spec};
use crate::keyed_map::{Eviction, KeyedMap};

/// The maximum number of upstreams with components of their own.
const CAP: usize = 1024;

/// Returns the name of a request's upstream.
pub(crate) type Key = Arc<dyn for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync>;
type MakeConfig<P> = Box<dyn Fn(Option<&str>) -> Arc<Config<P>> + Send + Sync>;

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

impl<P: Spec> fmt::Debug for PerKey<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKey").finish_non_exhaustive()
    }
}

impl<P: Spec> PerKey<P> {
    pub(crate) fn new(
        make: impl Fn(Option<&str>) -> Arc<Config<P>> + Send + Sync + 'static,
        stays: fn(&Config<P>) -> Eviction,
        key: Option<Key>,
    ) -> Self {
        Self { keyed: KeyedMap::new(CAP, Ref::new(make(None))), key, make: Box::new(make), eviction: stays }
    }

    /// Maps all settings, in the order of their keys.
    pub(crate) fn snapshot<T>(&self, show: impl Fn(&Config<P>) -> T) -> Vec<(Box<str>, T)> {
        self.keyed.snapshot(|config| show(config))
    }

    /// Maps the settings of a key, if there are any.
    pub(crate) fn get<T>(&self, key: &str, show: impl Fn(&Config<P>) -> T) -> Option<T> {
        self.keyed.get(key).map(|config| show(&config))
    }

    /// The settings of requests without a key, or beyond the maximum.
    pub(crate) fn fallback(&self) -> &Config<P> {
        self.keyed.fallback()
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

/// Declares the service of a keyed middleware, whose future and body are those of the middleware itself.
macro_rules! keyed_middleware {
    ($(#[$doc:meta])* $service:ident, $future:ident, $body:ident, $spec:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $service<S> {
            inner: S,
            configs: std::sync::Arc<$crate::exchange::PerKey<$spec>>,
        }

        impl<S> $service<S> {
            /// Returns the inner service.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// Returns the inner service, to be changed.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Returns the inner service alone.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }

        impl<S, B, X, E> tower_service::Service<http::Request<B>> for $service<S>
        where
            S: $crate::body::WrapBody<B, Body = X, ServiceError = E>,
            X: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
            E: 'static,
        {
            type Response = http::Response<$body<X>>;
            type Error = E;
            type Future = $future<S, B>;

            fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), E>> {
                self.inner.poll_ready(cx)
            }

            fn call(&mut self, request: http::Request<B>) -> Self::Future {
                $future::new($crate::exchange::call_keyed(&mut self.inner, &self.configs, request))
            }
        }
    };
}

pub(crate) use keyed_middleware;
