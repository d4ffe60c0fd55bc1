//! A limit of its own for each upstream that requests name.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, header::HOST};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::limiter::LimitSnapshot;
use super::{Limit, LimitLayer, Limited, Timeless};
use crate::engine::{EngineFuture, Shared, Tracked};
use crate::keyed::{Keyed, Stay};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const CAP: usize = 1024;

/// Limits the calls in flight to each upstream by itself; made by [`LimitLayer::keyed`].
#[derive(Clone)]
#[must_use]
pub struct KeyedLimitLayer {
    state: Arc<State>,
}

struct State {
    keyed: Keyed<Arc<Shared<Limit, Timeless>>>,
    /// What each is made after.
    template: LimitLayer,
}

impl KeyedLimitLayer {
    pub(super) fn new(template: LimitLayer) -> Self {
        let others = template.again(None).shared;
        Self { state: Arc::new(State { keyed: Keyed::new(CAP, others), template }) }
    }

    /// The limits that there are, in the order of their keys.
    pub fn snapshots(&self) -> Vec<(Box<str>, LimitSnapshot)> {
        self.state.keyed.list(|shared| shared.parts.limiter.snapshot())
    }

    /// The limit of an upstream that has one.
    pub fn snapshot(&self, key: &str) -> Option<LimitSnapshot> {
        self.state.keyed.peek(key).map(|shared| shared.parts.limiter.snapshot())
    }

    /// The one limit of all that find no place among the 1,024, and of requests that name no upstream.
    pub fn others(&self) -> LimitSnapshot {
        self.state.keyed.others().parts.limiter.snapshot()
    }
}

impl<S> Layer<S> for KeyedLimitLayer {
    type Service = KeyedLimit<S>;

    fn layer(&self, inner: S) -> KeyedLimit<S> {
        KeyedLimit { inner, state: self.state.clone() }
    }
}

impl fmt::Debug for KeyedLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshots()).finish()
    }
}

/// The service of [`KeyedLimitLayer`].
#[derive(Clone)]
pub struct KeyedLimit<S> {
    inner: S,
    state: Arc<State>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for KeyedLimit<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, Limit, Timeless>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, Limit, Timeless>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = self.state.of(request.uri(), request.headers());
        // the one that was found ready is the one that is called
        let spare = self.inner.clone();
        let ready = mem::replace(&mut self.inner, spare);
        Limited::<S>::new(ready, shared).call(request)
    }
}

impl State {
    /// The limit of the upstream that a request names.
    fn of(&self, uri: &Uri, headers: &HeaderMap) -> Arc<Shared<Limit, Timeless>> {
        let make = |key: &str| self.template.again(Some(key)).shared;
        // a call in flight holds what is shared, and so does a service that is called
        let stays = |shared: &Arc<_>| if Arc::strong_count(shared) > 1 { Stay::Always } else { Stay::Not };
        let host = || headers.get(HOST).and_then(|host| host.to_str().ok());
        match uri.authority().map(http::uri::Authority::as_str).or_else(host) {
            Some(key) if key.bytes().any(|byte| byte.is_ascii_uppercase()) => {
                let key = key.to_ascii_lowercase();
                self.keyed.get(&key, || make(&key), stays).as_ref().clone()
            }
            Some(key) => self.keyed.get(key, || make(key), stays).as_ref().clone(),
            None => self.keyed.others().clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for KeyedLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedLimit").field("inner", &self.inner).finish_non_exhaustive()
    }
}
