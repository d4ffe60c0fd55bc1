//! axum: per route and per app, nested, as a fallback, over fresh connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, any, get, post};
use http::{HeaderMap, StatusCode};
use tower::Layer;
use tower_upstream::breaker::State;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::stack::Stack;
use crate::support::{Upstream, app, ask, listener, proxy, upstream};

/// Serves as axum does, which makes the layers' services anew for every connection.
pub async fn serve(app: Router) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Asks on a connection of its own, without anything that could be sent again.
async fn post_to(address: SocketAddr, path: &str) -> u16 {
    let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
    ask(address, request).await.status()
}

/// A route that fails, and the number of its calls.
fn failing() -> (MethodRouter, Arc<AtomicUsize>) {
    let reached = Arc::<AtomicUsize>::default();
    let counts = reached.clone();
    let handler = move |_: String| async move {
        counts.fetch_add(1, Relaxed);
        StatusCode::BAD_GATEWAY
    };
    (any(handler), reached)
}

#[tokio::test]
async fn the_circuit_of_a_served_app_opens_over_fresh_connections() {
    let (stack, (route, reached)) = (Stack::new("app"), failing());
    let address = serve(Router::new().route("/a", route.clone()).route("/b", route).layer(stack.for_routes())).await;
    let mut answers = Vec::new();
    for n in 0..30 {
        answers.push(post_to(address, if n % 2 == 0 { "/a" } else { "/b" }).await);
    }
    assert_eq!((reached.load(Relaxed), stack.circuit().state), (20, State::Open));
    assert_eq!((&answers[..20], &answers[20..]), (&[502; 20][..], &[503; 10][..]));
    assert_eq!(stack.in_flight(), 0);
    assert_eq!(stack.seen().causes().last(), Some(&Cause::CircuitOpen));
}

#[tokio::test]
async fn the_circuit_of_a_make_service_opens_as_well() {
    let (stack, (route, reached)) = (Stack::new("app"), failing());
    let app = Router::new().route("/", route).layer(stack.for_routes());
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    for _ in 0..30 {
        post_to(address, "/").await;
    }
    assert_eq!((reached.load(Relaxed), stack.circuit().refused), (20, 10));
}

#[tokio::test]
async fn the_upstream_of_an_axum_app_gets_the_clients_address_with_every_attempt() {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let log = seen.clone();
    let echo = move |headers: HeaderMap| {
        let field = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let mut seen = log.lock().unwrap();
        seen.push((field("x-forwarded-for"), field("x-forwarded-proto")));
        std::future::ready(if seen.len() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK })
    };
    let upstream = app(Router::new().fallback(echo)).await;
    let proxy = proxy(upstream.address).build();
    let stack = UpstreamLayer::for_proxy(&proxy).build().unwrap();
    let app = Router::new().route("/healthz", get(|| async { "ok" })).fallback_service(stack.layer(proxy));
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let answer = ask(address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
    // the server may be behind TLS: the scheme is unknown
    assert_eq!(*seen.lock().unwrap(), vec![(Some("127.0.0.1".to_owned()), None); 2]);
}

#[tokio::test]
async fn a_layer_around_nested_routes_does_not_affect_others() {
    let (stack, (route, reached)) = (Stack::new("app"), failing());
    let inner = Router::new().route("/{item}", route).layer(stack.for_routes());
    let app = Router::new()
        .nest("/shop", Router::new().nest("/cart", inner))
        .route("/healthz", post(|| async { "ok" }))
        .fallback(|| async { StatusCode::IM_A_TEAPOT });
    let address = serve(app).await;
    for _ in 0..30 {
        post_to(address, "/shop/cart/7").await;
    }
    assert_eq!((reached.load(Relaxed), stack.circuit().state), (20, State::Open));
    assert_eq!(post_to(address, "/healthz").await, 200);
    assert_eq!(post_to(address, "/other").await, 418);
    assert_eq!(post_to(address, "/shop/cart/7").await, 503);
}

#[tokio::test]
async fn each_route_may_have_a_stack_of_its_own() {
    let (broken, sound, (route, reached)) = (Stack::new("broken"), Stack::new("sound"), failing());
    let app = Router::new()
        .route("/broken", route.layer(broken.for_routes()))
        .route("/sound", post(|| async { "ok" }).layer(sound.for_routes()));
    let address = serve(app).await;
    for _ in 0..23 {
        post_to(address, "/broken").await;
        assert_eq!(post_to(address, "/sound").await, 200);
    }
    assert_eq!(reached.load(Relaxed), 20);
    assert_eq!((broken.circuit().state, sound.circuit().state), (State::Open, State::Closed));
}

#[tokio::test]
async fn a_gateway_is_the_fallback_of_an_app_and_of_a_nested_one() {
    let upstream =
        upstream::app(Router::new().fallback(|request: axum::extract::Request| async move {
            format!("upstream saw {}", request.uri().path())
        }))
        .await;
    let stack = Stack::new("edge");
    let gateway = stack.around::<_, Body, _>(proxy(upstream.address).build());
    let app = Router::new()
        .route("/own", get(|| async { "my own" }))
        .nest("/nested", Router::new().fallback_service(gateway.clone()))
        .fallback_service(gateway);
    let address = serve(app).await;
    for (path, text) in [("/own", "my own"), ("/other", "upstream saw /other"), ("/nested/deep", "upstream saw /deep")]
    {
        let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, text));
    }
    // connections of clients share the pool, though each has a service of its own
    assert_eq!((upstream.accepted(), stack.in_flight()), (1, 0));
}

#[tokio::test]
async fn a_refused_connection_is_a_502_with_its_cause() {
    let dead = listener().await.local_addr().unwrap();
    let stack = Stack::new("edge");
    let address = serve(Router::new().fallback_service(stack.around::<_, Body, _>(proxy(dead).build()))).await;
    let answer = ask(address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status(), answer.error()), (502, Some("connection_refused")));
    assert_eq!(answer.all("proxy-status"), ["edge; error=connection_refused"]);
    assert_eq!(stack.seen().causes().last(), Some(&Cause::ConnectionRefused));
}

#[tokio::test]
async fn an_upload_that_was_not_sent_is_sent_again() {
    let upstream = Upstream::scripted(|mut wire, before| async move {
        // the first connection is closed before a byte is read
        if before > 0 {
            while let Some(request) = wire.request().await {
                wire.reply(&request.text()).await;
            }
        }
    })
    .await;
    let stack = Stack::new("edge");
    let gateway = stack.around::<_, Body, _>(proxy(upstream.address).build());
    let address = serve(Router::new().fallback_service(gateway)).await;
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\norder";
    let answer = ask(address, put).await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "order"));
    assert_eq!(upstream.accepted(), 2);
}

#[tokio::test]
async fn a_failure_in_a_handlers_response_is_retried_and_the_last_attempt_is_the_vote() {
    let reached = Arc::<AtomicUsize>::default();
    let counts = reached.clone();
    let handler = move || async move {
        if counts.fetch_add(1, Relaxed) == 0 { Err(Failure::new(Cause::ConnectTimeout)) } else { Ok("at last") }
    };
    let stack = Stack::new("app");
    let address = serve(Router::new().route("/", get(handler)).layer(stack.for_routes())).await;
    let answer = ask(address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.text().as_str(), reached.load(Relaxed)), ("at last", 2));
    assert_eq!((stack.circuit().calls, stack.circuit().failures), (1, 0));
}

#[tokio::test]
async fn a_handlers_own_response_passes_unchanged() {
    let stack = Stack::new("app");
    let app = Router::new()
        .route("/404", get(|| async { (StatusCode::NOT_FOUND, "no such cart").into_response() }))
        .route("/500", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "a bug").into_response() }))
        .layer(stack.for_routes());
    let address = serve(app).await;
    for (path, status, text) in [("/404", 404, "no such cart"), ("/500", 500, "a bug")] {
        for _ in 0..6 {
            let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
            assert_eq!((answer.status(), answer.text().as_str()), (status, text));
        }
    }
    assert_eq!((stack.circuit().state, stack.circuit().failures), (State::Closed, 0));
}
