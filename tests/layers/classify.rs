//! `ClassifyLayer` in axum apps: over fresh connections, handlers, fallbacks and event streams.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use tokio::sync::mpsc;
use tower::{Layer, service_fn};
use tower_upstream::cause::ProxyStatus;
use tower_upstream::timeout::TimeoutLayer;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure};

use crate::support::{self, Seen, Upstream, Wire, ask, gateway, proxy};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn layer() -> (ClassifyLayer, Seen) {
    let seen = Seen::default();
    let layer = ClassifyLayer::new().proxy_status(ProxyStatus::new("app").unwrap()).observer(seen.clone());
    (layer, seen)
}

/// Serves as axum does, which makes the layers' services anew for every connection.
async fn serve(app: Router) -> SocketAddr {
    let listener = gateway::listener().await.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

#[tokio::test]
async fn a_handler_can_respond_with_a_failure() {
    let (layer, seen) = layer();
    let handler = || async {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        Err::<(), _>(Failure::from_error(refused))
    };
    let address = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    for _ in 0..3 {
        let answer = ask(address, GET).await;
        assert_eq!((answer.status(), answer.all("proxy-status")), (502, vec!["app; error=connection_refused"]));
        assert_eq!(answer.get("content-type"), Some("text/plain; charset=utf-8"));
        assert!(answer.text().starts_with("Bad Gateway\n\n"));
    }
    assert_eq!(seen.causes(), [Cause::ConnectionRefused; 3]);
}

#[tokio::test]
async fn a_bare_cause_in_a_handlers_response_is_completed() {
    let (layer, seen) = layer();
    let handler = || async {
        let mut answer = (StatusCode::GATEWAY_TIMEOUT, "my own page").into_response();
        answer.extensions_mut().insert(Cause::FirstByteTimeout);
        answer
    };
    let address = serve(Router::new().route("/", get(handler)).layer(layer)).await;
    let answer = ask(address, GET).await;
    assert_eq!((answer.status(), answer.text().as_str()), (504, "my own page"));
    assert_eq!(answer.all("proxy-status"), ["app; error=connection_read_timeout"]);
    assert_eq!(seen.causes(), [Cause::FirstByteTimeout]);
}

#[tokio::test]
async fn make_service_serves_the_same_layer() {
    let (layer, seen) = layer();
    let app = Router::new().route("/", any(|| async { StatusCode::SERVICE_UNAVAILABLE })).layer(layer);
    let listener = gateway::listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.into_make_service()).await });
    for _ in 0..2 {
        let answer = ask(address, GET).await;
        assert_eq!((answer.status(), answer.all("proxy-status")), (503, vec!["app; received-status=503"]));
    }
    assert_eq!(seen.causes(), [Cause::UpstreamStatus; 2]);
}

#[tokio::test]
async fn a_gateway_is_the_fallback_of_an_app() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            wire.reply(&format!("upstream saw {} {}", request.first, request.text())).await;
        }
    })
    .await;
    let (layer, seen) = layer();
    let gateway = layer.layer(proxy(upstream.address).build::<Body>());
    let app = Router::new().route("/own", get(|| async { "my own" })).fallback_service(gateway);
    let address = serve(app).await;
    let mut wire = Wire::connect(address).await;
    assert_eq!(wire.ask("GET /own HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "my own");
    let answer = wire.ask("POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
    assert_eq!(answer.text(), "upstream saw POST /other HTTP/1.1 body");
    // fresh connections of clients share the pool
    assert_eq!(ask(address, "GET /more HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
    assert_eq!((upstream.accepted(), seen.causes()), (1, vec![]));
}

#[tokio::test]
async fn an_event_stream_is_not_held_until_its_first_event() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n").await;
        // the client asks for the first event once it has the head
        assert_eq!(wire.bytes(1).await, b"", "the client left");
    })
    .await;
    let layer = ClassifyLayer::new().first_frame_timeout(support::PATIENCE * 2);
    let limits = support::short().body_idle(None);
    let gateway = layer.layer(TimeoutLayer::new(limits).layer(proxy(upstream.address).build()));
    let address = serve(Router::new().fallback_service(gateway)).await;
    let mut wire = Wire::connect(address).await;
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = wire.head().await;
    assert_eq!((head.status(), head.get("transfer-encoding")), (200, Some("chunked")));
}

#[tokio::test]
async fn an_event_stream_of_a_handler_passes_event_by_event() {
    let (events, receiver) = mpsc::unbounded_channel::<&'static str>();
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let handler = move || {
        let receiver = receiver.clone();
        async move {
            let receiver = receiver.lock().await.take().unwrap();
            let events = stream::unfold(receiver, |mut receiver| async {
                let event = receiver.recv().await?;
                Some((Ok::<_, io::Error>(Bytes::from(event)), receiver))
            });
            ([("content-type", "text/event-stream")], Body::from_stream(events))
        }
    };
    let (layer, seen) = layer();
    let address =
        serve(Router::new().route("/", get(handler)).layer(layer.first_frame_timeout(support::PATIENCE * 2))).await;
    let mut wire = Wire::connect(address).await;
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 200);
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        events.send(event).unwrap();
        assert_eq!(wire.bytes(14).await, format!("9\r\n{event}\r\n").as_bytes());
    }
    drop(events);
    assert_eq!(wire.bytes(5).await, b"0\r\n\r\n");
    assert_eq!(seen.causes(), []);
}

/// An error that only its owner understands.
#[derive(Debug)]
struct Quota;

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too much for today")
    }
}

impl Error for Quota {}

#[tokio::test]
async fn a_custom_classifier_and_status_are_used() {
    let (layer, seen) = layer();
    let layer = layer
        .classifier(|attempt| attempt.find_error::<Quota>().map(|_| Cause::GatewayOverload))
        .choose_status(|failure| match failure.cause() {
            Cause::GatewayOverload => StatusCode::TOO_MANY_REQUESTS,
            _ => failure.status(),
        });
    let failing = service_fn(|request: Request| async move {
        let error: tower::BoxError = match request.uri().path() {
            "/quota" => Quota.into(),
            _ => io::Error::from(io::ErrorKind::ConnectionRefused).into(),
        };
        Err::<Response, _>(error)
    });
    let address = serve(Router::new().fallback_service(layer.layer(failing))).await;
    assert_eq!(ask(address, "GET /quota HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 429);
    assert_eq!(ask(address, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 502);
    assert_eq!(seen.causes(), [Cause::GatewayOverload, Cause::ConnectionRefused]);
    assert!(seen.failures()[0].source().unwrap().is::<Quota>());
}

#[tokio::test]
async fn a_classifier_can_count_a_response_as_a_failure() {
    let (layer, seen) = layer();
    let layer = layer.classifier(|attempt| {
        let is_missing_item = attempt.status() == Some(StatusCode::NOT_FOUND) && attempt.request().path() == "/item";
        let is_error = attempt.headers().is_some_and(|headers| headers.contains_key("x-error"));
        (is_missing_item || is_error).then_some(Cause::UpstreamStatus)
    });
    let app = Router::new()
        .route("/item", get(|| async { (StatusCode::NOT_FOUND, "no such item") }))
        .route("/error", get(|| async { ([("x-error", "1")], "failed") }))
        .route("/tea", get(|| async { "tea" }))
        .layer(layer);
    let address = serve(app).await;
    for (path, status, text, causes) in [
        ("/item", 404, "no such item", vec![Cause::UpstreamStatus]),
        ("/error", 502, "Bad Gateway", vec![Cause::UpstreamStatus]),
        ("/tea", 200, "tea", vec![]),
        ("/other", 404, "", vec![]),
    ] {
        let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.text().lines().next().unwrap_or_default()), (status, text), "{path}");
        assert_eq!(seen.take(), causes, "{path}");
    }
}

#[tokio::test]
async fn the_statuses_that_are_failures_can_be_set() {
    let (layer, seen) = layer();
    let layer = layer.failure_statuses([StatusCode::INTERNAL_SERVER_ERROR]);
    let app = Router::new()
        .route("/500", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/502", get(|| async { StatusCode::BAD_GATEWAY }))
        .layer(layer);
    let address = serve(app).await;
    for status in [500, 502, 404] {
        let answer = ask(address, format!("GET /{status} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.error()), (status, None));
        assert_eq!(answer.all("proxy-status"), [format!("app; received-status={status}")]);
    }
    assert_eq!(seen.causes(), [Cause::UpstreamStatus]);
}

#[tokio::test]
async fn each_failure_is_reported_once_in_the_body_too() {
    let (layer, seen) = layer();
    let broken = || async {
        let frames = stream::iter([Ok("begun"), Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
        Body::from_stream(stream::once(tokio::task::yield_now()).filter_map(|()| async { None }).chain(frames))
    };
    let dead = || async {
        let frames = stream::iter([Err::<&str, _>(io::Error::from(io::ErrorKind::ConnectionReset))]);
        Body::from_stream(frames)
    };
    let app = Router::new().route("/broken", get(broken)).route("/dead", get(dead)).layer(layer);
    let address = serve(app).await;

    let answer = ask(address, "GET /broken HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.text().as_str(), answer.whole), (200, "begun", false));
    assert_eq!(seen.take(), [Cause::IncompleteBody]);

    // the head was not sent yet, so that the response can still be the failure's
    let answer = ask(address, "GET /dead HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.whole), (502, true));
    assert_eq!(seen.take(), [Cause::IncompleteBody]);
}

#[tokio::test]
async fn nested_layers_report_and_append_once() {
    let (inner, first) = layer();
    let (outer, second) = layer();
    let failing = || async { Err::<(), _>(Failure::new(Cause::ConnectTimeout)) };
    let broken = || async {
        let frames = stream::iter([Ok("begun"), Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
        Body::from_stream(frames)
    };
    let app = Router::new()
        .route("/failing", get(failing))
        .route("/relayed", get(|| async { StatusCode::BAD_GATEWAY }))
        .route("/broken", get(broken))
        .fallback_service(inner.layer(service_fn(|_: Request| async {
            Err::<Response, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
        })));
    let address = serve(app.layer(inner).layer(outer)).await;
    for (path, status, member, cause) in [
        ("/failing", 504, "app; error=connection_timeout", Cause::ConnectTimeout),
        ("/relayed", 502, "app; received-status=502", Cause::UpstreamStatus),
        ("/none", 502, "app; error=connection_refused", Cause::ConnectionRefused),
    ] {
        let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.all("proxy-status")), (status, vec![member]), "{path}");
        assert_eq!((first.take(), second.take()), (vec![cause], vec![]), "{path}");
    }
    let answer = ask(address, "GET /broken HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!answer.whole);
    assert_eq!((first.take(), second.take()), (vec![Cause::IncompleteBody], vec![]));
}

#[tokio::test]
async fn a_failure_reported_inside_is_still_a_response_if_the_outer_layer_holds_the_head() {
    let (inner, first) = layer();
    let (outer, second) = layer();
    let dead = || async { Body::from_stream(stream::iter([Err::<&str, _>(io::Error::other("gone"))])) };
    let app =
        Router::new().route("/", get(dead)).layer(inner.first_frame_timeout(std::time::Duration::ZERO)).layer(outer);
    let answer = ask(serve(app).await, GET).await;
    assert_eq!((answer.status(), answer.whole), (502, true));
    assert_eq!((first.take().len(), second.take().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_differs_from_a_timeout() {
    use tower::{Layer as _, ServiceExt as _};
    let stuck =
        || service_fn(|_: http::Request<()>| std::future::pending::<Result<http::Response<Body>, std::io::Error>>());
    let seen = Seen::default();
    let classify = ClassifyLayer::new().observer(seen.clone());
    drop(classify.layer(stuck()).oneshot(http::Request::new(())));
    assert_eq!(seen.take(), [], "it was never called");
    let left = tokio::time::timeout(
        std::time::Duration::from_secs(1),
        classify.layer(stuck()).oneshot(http::Request::new(())),
    );
    assert!(left.await.is_err());
    assert_eq!(seen.take(), [Cause::ClientClosed]);
    let limits = tower_upstream::timeout::Timeouts::new().total(std::time::Duration::from_secs(1));
    let limited = TimeoutLayer::new(limits).without_upload_tracking().layer(classify.layer(stuck()));
    assert_eq!(limited.oneshot(http::Request::new(())).await.unwrap().status(), 504);
    assert_eq!(seen.take(), [], "the layer around it tells");
}
