//! What a client does counts against no endpoint, through a pool as without one.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt};
use tower_upstream::balance::{Balance, BalanceSnapshot};
use tower_upstream::body::TrackedUpload;
use tower_upstream::breaker::State;
use tower_upstream::stack::{RequestBody, Upstream};
use tower_upstream::{BadGatewayCause as Cause, UpstreamLayer};

use crate::pool::members;
use crate::support::service::{Answer, ms};

type ClientBody = BoxBody<Bytes, Infallible>;
type Sent = TrackedUpload<RequestBody<ClientBody>>;
type Endpoint = BoxCloneSyncService<Request<Sent>, Answer, Infallible>;

/// Two endpoints that read the request body and respond.
fn pool() -> (Upstream<Balance<Endpoint>>, Balance<Endpoint>) {
    let make = |_: &_| {
        BoxCloneSyncService::new(tower::service_fn(|request: Request<Sent>| async move {
            let _ = request.into_body().collect().await;
            Ok(Response::new(Full::from("read")))
        }))
    };
    let pool = Balance::builder("shop", make).members(members(["a", "b"])).build().unwrap();
    let stack = UpstreamLayer::for_pool(&pool)
        .without_retry()
        .timeouts(|timeouts| timeouts.response_head(ms(5_000)).attempt(None).total(ms(20_000)));
    (stack.build().unwrap().layer(pool.clone()), pool)
}

/// An upload of this many frames, with a pause before each.
fn upload(frames: u32, pause: Duration) -> Request<ClientBody> {
    let frames = futures_util::stream::unfold(frames, move |left| async move {
        sleep(pause).await;
        left.checked_sub(1).map(|left| (Ok(Frame::data(Bytes::from_static(b"data"))), left))
    });
    Request::post("/").body(BodyExt::boxed(StreamBody::new(frames))).unwrap()
}

fn snapshot(pool: &Balance<Endpoint>) -> BalanceSnapshot {
    pool.handle().snapshot(Instant::now())
}

fn is_unharmed(pool: &Balance<Endpoint>) -> bool {
    snapshot(pool).endpoints.iter().all(|endpoint| {
        let circuit = endpoint.circuit.as_ref().unwrap();
        circuit.state == State::Closed && circuit.failures == 0 && endpoint.in_flight == 0
    })
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_is_not_the_time_of_the_endpoint() {
    let (stack, pool) = pool();
    for _ in 0..10 {
        let response = stack.clone().oneshot(upload(8, ms(1_000))).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    assert!(is_unharmed(&pool));
    for endpoint in snapshot(&pool).endpoints {
        assert!(endpoint.latency.is_none_or(|latency| latency < ms(100)), "{:?}", endpoint.latency);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_its_client_does_not_finish_counts_against_no_endpoint() {
    let (stack, pool) = pool();
    for pause in [ms(250), ms(3_600_000)] {
        for _ in 0..30 {
            let response = stack.clone().oneshot(upload(u32::MAX, pause)).await.unwrap();
            assert_eq!((response.status().as_u16(), Cause::of(&response)), (408, Some(Cause::UploadStalled)));
        }
    }
    assert!(is_unharmed(&pool), "{:?}", snapshot(&pool));
    assert!(snapshot(&pool).endpoints.iter().all(|endpoint| endpoint.latency.is_none_or(|latency| latency < ms(100))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_disconnects_releases_its_endpoint() {
    let (stack, pool) = pool();
    for _ in 0..30 {
        let call = stack.clone().oneshot(upload(u32::MAX, ms(100)));
        assert!(tokio::time::timeout(ms(500), call).await.is_err());
    }
    assert!(is_unharmed(&pool), "{:?}", snapshot(&pool));
}
