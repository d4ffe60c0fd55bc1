//! tower-http's layers above the stack and below it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{MethodRouter, any, get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::decompression::DecompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::breaker::State;

use crate::axum_apps::serve;
use crate::stack::Stack;
use crate::support::{Message, Upstream, Wire, ask, listener, proxy, soon, until, upstream};

async fn get_from(address: SocketAddr, path: &str) -> Message {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")).await
}

/// A gateway whose upstream refuses connections.
async fn to_nobody(stack: &Stack) -> Router {
    let dead = listener().await.local_addr().unwrap();
    Router::new().fallback_service(stack.around::<_, Body, _>(proxy(dead).build()))
}

async fn unzipped(answer: Message) -> Bytes {
    let body = http::Response::builder().header("content-encoding", "gzip").body(Body::from(answer.body)).unwrap();
    let mut body = Some(body);
    let service =
        tower::service_fn(move |_: Request<()>| std::future::ready(Ok::<_, std::io::Error>(body.take().unwrap())));
    let answer = DecompressionLayer::new().layer(service).oneshot(Request::new(())).await.unwrap();
    answer.into_body().collect().await.unwrap().to_bytes()
}

#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl MakeRequestId for Counted {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = format!("request-{}", self.0.fetch_add(1, Relaxed));
        Some(RequestId::new(HeaderValue::try_from(id).unwrap()))
    }
}

#[tokio::test]
async fn the_request_id_of_an_outer_layer_is_in_the_log_and_on_the_page() {
    let stack = Stack::new("edge");
    let ids = ServiceBuilder::new()
        .layer(SetRequestIdLayer::x_request_id(Counted::default()))
        .layer(PropagateRequestIdLayer::x_request_id());
    let address = serve(to_nobody(&stack).await.layer(ids)).await;
    for n in 0..2 {
        let answer = get_from(address, "/").await;
        assert_eq!((answer.status(), answer.all("x-request-id")), (502, vec![format!("request-{n}").as_str()]));
    }
    assert_eq!(stack.seen().ids(), ["request-0", "request-1"]);
}

#[tokio::test]
async fn a_local_response_is_compressed_by_an_outer_layer() {
    let stack = Stack::new("edge");
    let app = to_nobody(&stack).await.layer(TraceLayer::new_for_http()).layer(CompressionLayer::new());
    let address = serve(app).await;
    let answer = get_from(address, "/").await;
    assert_eq!((answer.status(), answer.get("content-encoding"), answer.whole), (502, Some("gzip"), true));
    assert_eq!(answer.error(), Some("connection_refused"));
    assert!(unzipped(answer).await.starts_with(b"502 Bad Gateway\n\n"));
}

#[tokio::test]
async fn a_truncated_body_stays_truncated_through_compression() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await;
        wire.write("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 99\r\n\r\nhalf a text").await;
    })
    .await;
    let stack = Stack::new("edge");
    let gateway = stack.around::<_, Body, _>(proxy(upstream.address).build());
    let address = serve(Router::new().fallback_service(gateway).layer(CompressionLayer::new())).await;
    let answer = get_from(address, "/").await;
    assert_eq!((answer.status(), answer.get("content-encoding"), answer.whole), (200, Some("gzip"), false));
    assert_eq!(stack.seen().causes(), [Cause::IncompleteBody]);
    assert_eq!((stack.in_flight(), stack.circuit().failures), (0, 1));
}

/// A route that panics as often as the counter says.
fn panicking() -> (MethodRouter, Arc<AtomicUsize>) {
    let left = Arc::<AtomicUsize>::default();
    let counts = left.clone();
    let handler = move || async move {
        assert!(counts.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err(), "as it was told to");
        "sound"
    };
    (any(handler), left)
}

#[tokio::test]
async fn a_panic_that_an_outer_layer_catches_releases_what_the_call_held() {
    let (stack, (route, panics)) = (Stack::new("app"), panicking());
    let app = Router::new().route("/", route).layer(stack.for_routes()).layer(CatchPanicLayer::new());
    let address = serve(app).await;
    panics.store(30, Relaxed);
    for _ in 0..30 {
        assert_eq!(get_from(address, "/").await.status(), 500);
    }
    // more than the initial limit: none of them kept its slot
    assert_eq!((stack.in_flight(), get_from(address, "/").await.status()), (0, 200));
}

#[tokio::test]
async fn a_probe_that_panics_lets_another_call_be_the_probe() {
    let (stack, (route, panics)) = (Stack::new("app").pause(Duration::from_millis(20)), panicking());
    let app = Router::new()
        .route("/", route)
        .route("/fail", any(|| async { StatusCode::BAD_GATEWAY }))
        .layer(stack.for_routes())
        .layer(CatchPanicLayer::new());
    let address = serve(app).await;
    for _ in 0..20 {
        get_from(address, "/fail").await;
    }
    assert_eq!(stack.circuit().state, State::Open);
    panics.store(1, Relaxed);
    for _ in 0..900 {
        match get_from(address, "/").await.status() {
            503 => tokio::time::sleep(Duration::from_millis(10)).await,
            500 => assert_eq!(panics.load(Relaxed), 0),
            status => {
                assert_eq!((status, panics.load(Relaxed), stack.circuit().state), (200, 0, State::Closed));
                return;
            }
        }
    }
    panic!("the place of the probe that panicked was never free");
}

#[tokio::test]
async fn a_panic_that_an_inner_layer_catches_is_a_response() {
    let (stack, (route, panics)) = (Stack::new("app"), panicking());
    let inner = CatchPanicLayer::new().layer(Router::new().route("/", route));
    let app = Router::new().fallback_service(stack.around::<_, Body, _>(inner));
    let address = serve(app).await;
    panics.store(1, Relaxed);
    assert_eq!([get_from(address, "/").await.status(), get_from(address, "/").await.status()], [500, 200]);
    assert_eq!((stack.in_flight(), stack.circuit().failures), (0, 0));
}

/// A gateway inside a body limit, and the number of requests that reach its upstream.
async fn limited(stack: &Stack) -> (Upstream, Arc<AtomicUsize>, SocketAddr) {
    let reached = Arc::<AtomicUsize>::default();
    let counts = reached.clone();
    let upstream = upstream::app(Router::new().fallback(move |body: Bytes| async move {
        counts.fetch_add(1, Relaxed);
        body.len().to_string()
    }))
    .await;
    let gateway = stack.around(proxy(upstream.address).build());
    let limit = RequestBodyLimitLayer::new(10);
    let address = serve(Router::new().fallback_service(limit.layer(gateway))).await;
    (upstream, reached, address)
}

#[tokio::test]
async fn an_upload_over_an_outer_limit_is_no_failure_of_the_upstream() {
    let stack = Stack::new("edge");
    let (_upstream, reached, address) = limited(&stack).await;
    for _ in 0..6 {
        let long =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{}", "x".repeat(11));
        assert_eq!(ask(address, long).await.status(), 413);
    }
    assert_eq!((reached.load(Relaxed), stack.circuit().calls, stack.seen().causes()), (0, 0, vec![]));
    let short = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea";
    assert_eq!(ask(address, short).await.text(), "3");
}

#[tokio::test]
async fn an_upload_that_grows_over_an_outer_limit_is_the_clients_failure() {
    let stack = Stack::new("edge");
    let (_upstream, reached, address) = limited(&stack).await;
    for _ in 0..6 {
        let mut wire = Wire::connect(address).await;
        wire.write(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nxxxxxx\r\n6\r\nxxxxxx\r\n0\r\n\r\n",
        )
        .await;
        assert_eq!(wire.answer().await.status(), 400);
    }
    assert_eq!((reached.load(Relaxed), stack.circuit().failures, stack.in_flight()), (0, 0, 0));
    assert_eq!(stack.seen().causes(), [Cause::RequestBodyFailed; 6], "and never sent again");
}

#[tokio::test]
async fn a_timeout_of_an_outer_layer_releases_what_the_call_held() {
    let stack = Stack::new("app");
    let app = Router::new()
        .route("/", get(std::future::pending::<()>))
        .layer(stack.for_routes())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(20)));
    let address = serve(app).await;
    for _ in 0..6 {
        assert_eq!(get_from(address, "/").await.status(), 504);
    }
    assert_eq!((stack.in_flight(), stack.circuit().state, stack.circuit().failures), (0, State::Closed, 0));
    assert!(stack.seen().causes().iter().all(|cause| *cause == Cause::ClientClosed));
}

#[tokio::test]
async fn a_timeout_of_an_inner_layer_is_a_failure_of_the_upstream() {
    let stack = Stack::new("app");
    let app = Router::new()
        .route("/", post(std::future::pending::<()>))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(20)))
        .layer(stack.for_routes());
    let address = serve(app).await;
    for _ in 0..21 {
        ask(address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    }
    assert_eq!((stack.circuit().failures, stack.circuit().state), (20, State::Open));
    assert_eq!(stack.circuit().cause.unwrap().cause(), Cause::UpstreamStatus);
}

#[tokio::test]
async fn inner_layers_see_requests_and_responses_unchanged() {
    let text = "a text that is long enough to be worth it, ".repeat(9);
    let expected = text.clone();
    let upstream = upstream::app(
        Router::new()
            .fallback(move |body: String| async move { format!("{body}{text}") })
            .layer(CompressionLayer::new()),
    )
    .await;
    let stack = Stack::new("edge");
    let inner = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(DecompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(99))
        .service(proxy(upstream.address).build());
    let address = serve(Router::new().fallback_service(stack.around::<_, Body, _>(inner))).await;
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea";
    let answer = ask(address, put).await;
    assert_eq!((answer.get("content-encoding"), answer.text()), (None, format!("tea{expected}")));
    assert_eq!((stack.in_flight(), stack.circuit().failures), (0, 0));
}

#[tokio::test]
async fn a_stream_passes_every_layer_frame_by_frame() {
    let stack = Stack::new("app");
    let events = || async {
        let first = stream::iter([Ok::<_, std::io::Error>("data: 1\n\n")]);
        ([("content-type", "text/event-stream")], Body::from_stream(first.chain(stream::pending())))
    };
    let app = Router::new().route("/", get(events)).layer(stack.for_routes());
    let mut service = ServiceBuilder::new()
        .layer(CatchPanicLayer::new())
        .layer(TraceLayer::new_for_http())
        .layer(CompressionLayer::new())
        .service(app.into_service::<Body>());
    let request = Request::get("/").header("accept-encoding", "gzip").body(Body::empty()).unwrap();
    let mut answer: Response<_> = soon(service.ready().await.unwrap().call(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let frame = soon(answer.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "data: 1\n\n");
    assert_eq!(stack.in_flight(), 1);
    drop(answer);
    until("the stream's slot is free", || stack.in_flight() == 0).await;
}
