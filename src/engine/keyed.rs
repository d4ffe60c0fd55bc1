//! Parts of its own for each upstream that requests name.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, header::HOST};
use http_body::Body;
use tower_service::Service;

use super::{BoxError, EngineFuture, Held, Limits, Open, Part, Shared, Tracked, Untouched};
use crate::keyed::{Keyed, Stay};

/// No more upstreams than this have parts of their own.
const CAP: usize = 1024;

/// What names an upstream.
pub(crate) type Key = Arc<dyn for<'a> Fn(&'a Uri, &'a HeaderMap) -> Option<&'a str> + Send + Sync>;
type Make<P, L> = Box<dyn Fn(Option<&str>) -> Arc<Shared<P, L>> + Send + Sync>;

/// What all services of a keyed layer share.
pub(crate) struct Shares<P: Part, L> {
    keyed: Keyed<Held<Shared<P, L>>>,
    /// `None`: the authority of the target, else `Host`.
    key: Option<Key>,
    /// Makes those of a key, or of all that have none.
    make: Make<P, L>,
    /// How much they want to stay while no call holds them.
    stays: fn(&P) -> Stay,
}

impl<P: Part, L> Shares<P, L> {
    pub(crate) fn new(
        make: impl Fn(Option<&str>) -> Arc<Shared<P, L>> + Send + Sync + 'static,
        stays: fn(&P) -> Stay,
        key: Option<Key>,
    ) -> Self {
        Self { keyed: Keyed::new(CAP, Held::new(make(None))), key, make: Box::new(make), stays }
    }

    /// Shows all that there are, in the order of their keys.
    pub(crate) fn list<T>(&self, show: impl Fn(&P) -> T) -> Vec<(Box<str>, T)> {
        self.keyed.list(|held| show(&held.parts))
    }

    /// Shows those of a key, if there are any.
    pub(crate) fn peek<T>(&self, key: &str, show: impl Fn(&P) -> T) -> Option<T> {
        self.keyed.peek(key).map(|held| show(&held.parts))
    }

    /// Those of all requests without a key or a place.
    pub(crate) fn others(&self) -> &P {
        &self.keyed.others().parts
    }

    fn of(&self, uri: &Uri, headers: &HeaderMap) -> Held<Shared<P, L>> {
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

    fn named(&self, key: Option<&str>) -> Held<Shared<P, L>> {
        let Some(key) = key else { return self.keyed.others().clone() };
        let stays = |held: &Held<Shared<P, L>>| {
            if held.is_held_elsewhere() { Stay::Always } else { (self.stays)(&held.parts) }
        };
        self.keyed.get(key, || Held::new((self.make)(Some(key))), stays).as_ref().clone()
    }
}

/// A service with parts of its own for each upstream that requests name.
///
/// The service inside is asked whether it is ready before a request is seen, so that a refusal waits for that.
pub struct KeyedEngine<S, P: Part, L> {
    inner: S,
    shares: Arc<Shares<P, L>>,
}

impl<S, P: Part, L> KeyedEngine<S, P, L> {
    pub(crate) fn new(inner: S, shares: Arc<Shares<P, L>>) -> Self {
        Self { inner, shares }
    }
}

impl<S: Clone, P: Part, L> Clone for KeyedEngine<S, P, L> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shares: self.shares.clone() }
    }
}

impl<S: fmt::Debug, P: Part, L> fmt::Debug for KeyedEngine<S, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedEngine").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, P, L, ReqBody, ResBody> Service<Request<ReqBody>> for KeyedEngine<S, P, L>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    P: Part,
    L: Limits,
    S::Error: 'static,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = self.shares.of(request.uri(), request.headers());
        Open::start::<Untouched, _, _>(shared, request, |request| self.inner.call(request))
    }
}

/// The same without `&mut`, where the inner service is hyper's: a server calls it without a clone.
impl<S, P, L, ReqBody, ResBody> hyper::service::Service<Request<ReqBody>> for KeyedEngine<S, P, L>
where
    S: hyper::service::Service<Request<ReqBody>, Response = Response<ResBody>>,
    P: Part,
    L: Limits,
    S::Error: 'static,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    fn call(&self, request: Request<ReqBody>) -> Self::Future {
        let shared = self.shares.of(request.uri(), request.headers());
        Open::start::<Untouched, _, _>(shared, request, |request| self.inner.call(request))
    }
}
