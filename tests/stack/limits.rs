//! The concurrency limit of a stack: which calls it must not refuse.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::UpstreamLayer;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::{Preset, RequestBody};

type UpstreamRequest = Request<RequestBody<Body>>;

fn get() -> Request<Body> {
    Request::get("/").body(Body::empty()).unwrap()
}

/// Reads the upload, and responds 10 ms after its end.
async fn answer(request: UpstreamRequest) -> Result<Response<Body>, Infallible> {
    let _ = request.into_body().collect().await;
    sleep(Duration::from_millis(10)).await;
    Ok(Response::new(Body::empty()))
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_a_thousand_calls_to_a_healthy_upstream_is_served_by_every_preset() {
    for preset in [Preset::LatencyCritical, Preset::Standard, Preset::Batch, Preset::Streaming] {
        for adaptive in [false, true] {
            for burst in [60, 1_000] {
                let builder = UpstreamLayer::builder("shop").preset(preset);
                let builder = if adaptive { builder.limiter(|_| ConcurrencyLimitLayer::adaptive()) } else { builder };
                let service = builder.build().unwrap().layer(service_fn(answer));
                for _ in 0..3 {
                    let statuses = join_all((0..burst).map(|_| service.clone().oneshot(get()))).await;
                    let served = statuses.iter().filter(|answer| answer.as_ref().unwrap().status() == 200).count();
                    assert_eq!(served, burst, "{preset:?}, adaptive: {adaptive}");
                }
            }
        }
    }
}

/// An upload of 30 bytes, one each 100 ms.
fn dripping() -> Request<Body> {
    let drips = stream::unfold(0, |sent| async move {
        sleep(Duration::from_millis(100)).await;
        (sent < 30).then(|| (Ok::<_, Infallible>("x"), sent + 1))
    });
    Request::post("/").body(Body::from_stream(drips)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn uploads_of_slow_clients_do_not_make_the_upstream_look_slow() {
    let layer = UpstreamLayer::builder("shop").limiter(|_| ConcurrencyLimitLayer::adaptive()).build().unwrap();
    let service = layer.layer(service_fn(answer));
    let uploads = || async {
        for _ in 0..5 {
            join_all((0..40).map(|_| service.clone().oneshot(dripping()))).await;
        }
    };
    uploads().await;
    let seen = layer.handle().snapshot(Instant::now());
    let limit = seen.limit.unwrap();
    assert!(limit.latency.unwrap() <= Duration::from_millis(11), "{limit:?}");
    assert!(seen.latency.unwrap().p99 <= Duration::from_millis(11), "{:?}", seen.latency);
    let quick = async {
        for _ in 0..200 {
            sleep(Duration::from_millis(50)).await;
            assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 200);
        }
    };
    tokio::join!(uploads(), quick);
    assert_eq!(layer.handle().snapshot(Instant::now()).limit.unwrap().limit, 1024);
}

/// The problem of an upstream with 20 workers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    TooManyRequests,
    Hung,
    Slow,
}

#[tokio::test(start_paused = true)]
async fn a_healthy_upstream_is_refused_nothing_two_seconds_after_an_outage() {
    for outage in [Outage::TooManyRequests, Outage::Hung, Outage::Slow] {
        let (healthy, repaired) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let upstream = {
            let (healthy, repaired) = (healthy.clone(), repaired.clone());
            service_fn(move |_: UpstreamRequest| {
                let (healthy, repaired) = (healthy.clone(), repaired.clone());
                async move {
                    let mut answer = Response::new(Body::empty());
                    match outage {
                        _ if healthy.load(Relaxed) == 1 => {}
                        Outage::TooManyRequests => *answer.status_mut() = 429.try_into().unwrap(),
                        Outage::Hung => repaired.notified().await,
                        Outage::Slow => sleep(Duration::from_millis(500)).await,
                    }
                    sleep(Duration::from_millis(10)).await;
                    Ok::<_, Infallible>(answer)
                }
            })
        };
        let builder = UpstreamLayer::builder("shop").without_circuit().without_retry();
        let layer = builder.limiter(|_| ConcurrencyLimitLayer::adaptive()).build().unwrap();
        let service = layer.layer(upstream);
        asks(&service, 20_000).await;
        healthy.store(1, Relaxed);
        repaired.notify_waiters();
        asks(&service, 2_000).await;
        assert_eq!(asks(&service, 2_000).await, 0, "{outage:?}: {:?}", layer.handle());
    }
}

/// Makes a thousand calls per second; returns the number of refused ones, without waiting for those in flight.
async fn asks<S, B>(service: &S, calls: u32) -> u32
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    let (refused, mut next) = (Arc::new(AtomicU32::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        next += Duration::from_millis(1);
        sleep_until(next).await;
        let (call, refused) = (service.clone().oneshot(get()), refused.clone());
        tasks.spawn(async move {
            let status = call.await.unwrap().status();
            refused.fetch_add(u32::from(status == 503), Relaxed);
        });
        while tasks.try_join_next().is_some() {}
    }
    tasks.detach_all();
    refused.load(Relaxed)
}
