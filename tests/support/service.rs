//! A service that a test scripts, and what tests of such services share.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_upstream::stack::UpstreamSnapshot;
use tower_upstream::{BadGatewayCause, Failure, UpstreamLayer};

pub(crate) type Answer = Response<Full<Bytes>>;

pub(crate) fn get() -> Request<Full<Bytes>> {
    Request::get("/cart").body(Full::default()).unwrap()
}

pub(crate) fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("/cart").body(Full::from(body)).unwrap()
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) async fn text<B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>>(answer: Response<B>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// One poll of a call.
pub(crate) async fn look<F: Future>(mut call: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await
}

/// Waits until a service says that it is ready.
pub(crate) async fn ready<S: Service<Request<Full<Bytes>>, Error: std::fmt::Debug>>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

pub(crate) fn seen(layer: &UpstreamLayer) -> UpstreamSnapshot {
    layer.handle().snapshot(Instant::now())
}

/// Plays a [`Script`]; fails its test if it is called without having been ready.
pub(crate) struct Scripted {
    script: Arc<Script>,
    is_ready: bool,
}

/// What one call meets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    Responds(u16),
    Fails(BadGatewayCause),
    Hangs,
}

/// What all clones of a [`Scripted`] share: what a test tells them, and what it reads of them.
pub(crate) struct Script {
    /// Polls of readiness that are still pending, though nothing is awaited.
    pub(crate) pending_polls: AtomicU32,
    /// `poll_ready` fails.
    pub(crate) is_broken: AtomicBool,
    /// Duration of a call.
    pub(crate) takes: Mutex<Duration>,
    acts: Mutex<VecDeque<Act>>,
    /// Number of calls after which it is not ready.
    open_for: AtomicU32,
    waiting: Mutex<Vec<Waker>>,
    calls: AtomicU32,
    polls: AtomicU32,
}

impl Script {
    /// Sets the acts of the next calls, one each; later calls are answered with 200.
    pub(crate) fn play(&self, acts: impl IntoIterator<Item = Act>) {
        *self.acts.lock().unwrap() = acts.into_iter().collect();
    }

    /// Makes it ready.
    pub(crate) fn open(&self) {
        self.open_for.store(u32::MAX, Relaxed);
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    /// Makes it not ready until it is opened.
    pub(crate) fn close(&self) {
        self.open_for.store(0, Relaxed);
    }

    /// Makes it not ready after this number of calls, until it is opened.
    pub(crate) fn close_after(&self, calls: u32) {
        self.open_for.store(calls, Relaxed);
    }

    /// Number of calls.
    pub(crate) fn calls(&self) -> u32 {
        self.calls.load(Relaxed)
    }

    /// Number of polls of its readiness.
    pub(crate) fn polls(&self) -> u32 {
        self.polls.load(Relaxed)
    }
}

impl Scripted {
    pub(crate) fn new() -> (Self, Arc<Script>) {
        let script = Arc::new(Script {
            pending_polls: AtomicU32::new(0),
            is_broken: AtomicBool::new(false),
            takes: Mutex::default(),
            acts: Mutex::default(),
            open_for: AtomicU32::new(u32::MAX),
            waiting: Mutex::default(),
            calls: AtomicU32::new(0),
            polls: AtomicU32::new(0),
        });
        (Self { script: script.clone(), is_ready: false }, script)
    }
}

impl Clone for Scripted {
    fn clone(&self) -> Self {
        Self { script: self.script.clone(), is_ready: false }
    }
}

impl<B> Service<Request<B>> for Scripted {
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let script = &*self.script;
        script.polls.fetch_add(1, Relaxed);
        if script.is_broken.load(Relaxed) {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            return Poll::Ready(Err(Failure::from_error(refused)));
        }
        if script.calls() >= script.open_for.load(Relaxed) {
            script.waiting.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        if script.pending_polls.fetch_update(Relaxed, Relaxed, |polls| polls.checked_sub(1)).is_ok() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "it was called without being ready");
        self.script.calls.fetch_add(1, Relaxed);
        let act = self.script.acts.lock().unwrap().pop_front().unwrap_or(Act::Responds(200));
        let takes = *self.script.takes.lock().unwrap();
        Box::pin(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            match act {
                Act::Responds(status) => Ok(Response::builder().status(status).body(Full::from("hello")).unwrap()),
                Act::Fails(cause) => Err(Failure::new(cause)),
                Act::Hangs => std::future::pending().await,
            }
        })
    }
}
