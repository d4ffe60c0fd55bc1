//! Responses and retries in their simplest form.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::retry::Attempts;
use tower_upstream::{BadGatewayCause, Failure, UpstreamLayer};

fn get() -> Request<Full<Bytes>> {
    Request::get("/cart").body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_success_passes() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service = layer.layer(service_fn(|_| async { Ok::<_, Failure>(Response::new(Full::<Bytes>::from("hello"))) }));
    let answer = service.oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    let snapshot = layer.handle().snapshot(tokio::time::Instant::now());
    assert_eq!((snapshot.calls, snapshot.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_repeated() {
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    let inner = service_fn(move |_| {
        let call = seen.fetch_add(1, Ordering::Relaxed);
        async move {
            match call {
                0 => Err(Failure::new(BadGatewayCause::ResetBeforeResponse)),
                1 => Ok(Response::builder().status(503).body(Full::<Bytes>::from("later")).unwrap()),
                _ => Ok(Response::new(Full::<Bytes>::from("hello"))),
            }
        }
    });
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let answer = layer.layer(inner).oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(Attempts::of(&answer).unwrap().count(), 3);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
    let snapshot = layer.handle().snapshot(tokio::time::Instant::now());
    assert_eq!((snapshot.calls, snapshot.in_flight), (1, 0));
    assert_eq!(snapshot.circuit.unwrap().failures, 0, "one request is one vote, that of its last attempt");
}
