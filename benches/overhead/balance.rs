//! Pools of endpoints beside tower's, which needs a `Buffer` to be cloned.
//!
//! A pool of one endpoint has nothing to choose: the cost of a choice is the difference to that row.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tower::balance::p2c;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower_service::Service;
use tower_upstream::balance::{Balance, Member};

use crate::job;
use crate::row::Row;
use crate::upstream::{Body, BoxError, Page, Upstream};

type Bare = Upstream<BoxError>;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new("tower 0.5", &job::POOL_2, towers::<2>),
        Row::new("tower 0.5", &job::POOL_20, towers::<20>),
        Row::new("tower 0.5", &job::POOL_10000, towers::<10_000>),
        Row::new("tower-upstream", &job::POOL_1, pool::<1>),
        Row::new("tower-upstream", &job::POOL_2, pool::<2>),
        Row::new("tower-upstream", &job::POOL_20, pool::<20>),
        Row::new("tower-upstream", &job::POOL_10000, pool::<10_000>),
    ]
}

fn pool<const ENDPOINTS: usize>(upstream: Bare) -> impl Service<Request<Body>, Response = Response<impl Read>> {
    let members = (0..ENDPOINTS).map(|number| Member::new(number.to_string()));
    Balance::builder("pool", move |_: &Member| upstream.clone()).members(members).build().expect("members")
}

/// A response body.
trait Read: http_body::Body<Data = bytes::Bytes> {}

impl<B: http_body::Body<Data = bytes::Bytes>> Read for B {}

#[allow(clippy::needless_pass_by_value)] // as all builders of rows
fn towers<const ENDPOINTS: usize>(upstream: Bare) -> impl Service<Request<Body>, Response = Response<Page>> {
    let decay = Duration::from_secs(10).as_secs_f64() * 1e9;
    let endpoint = |_| PeakEwma::new(upstream.clone(), Duration::from_millis(1), decay, CompleteOnResponse::default());
    let list = ServiceList::new::<Request<Body>>((0..ENDPOINTS).map(endpoint).collect::<Vec<_>>());
    let (buffer, worker) = Buffer::pair(p2c::Balance::new(list), 1024);
    Driven { buffer, worker: Box::pin(worker) }
}

/// A buffer whose worker is polled by its calls, on the same thread: that saves it what a change of threads costs.
struct Driven<F> {
    buffer: Buffer<Request<Body>, F>,
    worker: Pin<Box<dyn Future<Output = ()>>>,
}

impl<F> Service<Request<Body>> for Driven<F>
where
    F: Future<Output = Result<Response<Page>, BoxError>> + Send + 'static,
{
    type Response = Response<Page>;
    type Error = BoxError;
    type Future = <Buffer<Request<Body>, F> as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.buffer.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = self.buffer.call(request);
        let _ = self.worker.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        call
    }
}
