//! Services to put inside a stack.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tower_upstream::stack::UpstreamSnapshot;
use tower_upstream::{Failure, UpstreamLayer};

pub type Answer = Response<Full<Bytes>>;

pub fn get() -> Request<Full<Bytes>> {
    Request::get("/cart").body(Full::default()).unwrap()
}

pub fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("/cart").body(Full::from(body)).unwrap()
}

pub const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub async fn text<B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>>(answer: Response<B>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// One poll of a call.
pub async fn look<F: Future>(mut call: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await
}

/// Waits until a service says that it is ready.
pub async fn ready<S: Service<Request<Full<Bytes>>, Error: std::fmt::Debug>>(service: &mut S) -> &mut S {
    service.ready().await.unwrap()
}

pub fn seen(layer: &UpstreamLayer) -> UpstreamSnapshot {
    layer.handle().snapshot(Instant::now())
}

/// A service that counts its calls, and fails its test when it is called without having been asked, or though it said no.
pub struct Strict {
    gate: Arc<Gate>,
    ready: bool,
}

/// What all clones of a [`Strict`] share.
#[derive(Default)]
pub struct Gate {
    /// A clone is ready after so many polls.
    pub polls: AtomicU32,
    /// It never is.
    pub shut: std::sync::atomic::AtomicBool,
    /// It errs when it is asked.
    pub broken: std::sync::atomic::AtomicBool,
    pub calls: AtomicU32,
    waiting: Mutex<Vec<Waker>>,
    /// How long a call takes.
    pub takes: Mutex<Duration>,
    /// The calls answer 503 as long as this is not zero.
    pub failing: AtomicU32,
}

impl Gate {
    pub fn open(&self) {
        self.shut.store(false, Relaxed);
        self.waiting.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    pub fn shut(&self) {
        self.shut.store(true, Relaxed);
    }
}

impl Strict {
    pub fn new() -> (Self, Arc<Gate>) {
        let gate = Arc::<Gate>::default();
        (Self { gate: gate.clone(), ready: false }, gate)
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { gate: self.gate.clone(), ready: false }
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let gate = &*self.gate;
        if gate.broken.load(Relaxed) {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            return Poll::Ready(Err(Failure::from_error(refused)));
        }
        if gate.shut.load(Relaxed) {
            gate.waiting.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        if gate.polls.fetch_update(Relaxed, Relaxed, |polls| polls.checked_sub(1)).is_ok() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "it was called without being ready");
        self.gate.calls.fetch_add(1, Relaxed);
        let fails = self.gate.failing.fetch_update(Relaxed, Relaxed, |failing| failing.checked_sub(1)).is_ok();
        let status = if fails { 503 } else { 200 };
        let takes = *self.gate.takes.lock().unwrap();
        Box::pin(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            Ok(Response::builder().status(status).body(Full::from("hello")).unwrap())
        })
    }
}
