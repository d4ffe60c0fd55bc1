//! reqwest 0.12 and 0.13 inside the layers, by the same tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::response::Redirect;
use axum::routing::{any, get};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_upstream::breaker::State;
use tower_upstream::{BadGatewayCause as Cause, Failure};

use crate::axum_apps::serve;
use crate::stack::{Answering, Stack};
use crate::support::{Upstream, ask, listener, soon, upstream};

async fn call(service: impl Answering<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let answer = soon(service.oneshot(request)).await.unwrap();
    let (parts, body) = answer.into_parts();
    let Ok(body) = soon(body.collect()).await else { panic!("the body broke") };
    Response::from_parts(parts, body.to_bytes())
}

fn to(address: SocketAddr, path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://{address}{path}"))
}

/// An upstream that echoes, one that fails at first, and one that redirects.
async fn shop() -> (Upstream, Arc<AtomicUsize>) {
    let reached = Arc::<AtomicUsize>::default();
    let counts = reached.clone();
    let busy = move |body: String| async move {
        let status = if counts.fetch_add(1, Relaxed) == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        (status, body)
    };
    let echo = |request: axum::extract::Request| async move {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 99).await.unwrap();
        format!("{} {} {host} {}", parts.method, parts.uri, String::from_utf8_lossy(&body))
    };
    let app = Router::new()
        .route("/busy", any(busy))
        .route("/moved", get(|| async { Redirect::temporary("/elsewhere") }))
        .fallback(echo);
    (upstream::app(app).await, reached)
}

macro_rules! inside_the_stack {
    ($reqwest:ident, $client:expr) => {
        mod $reqwest {
            use tower::{Layer, ServiceBuilder};
            use tower_upstream::compat::{HttpCompatLayer, OriginLayer};

            use super::*;

            /// What the layers do is not done twice.
            fn client() -> ::$reqwest::Client {
                $client.redirect(::$reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
            }

            fn around(stack: &Stack) -> impl Answering<Full<Bytes>> + use<> {
                stack.around(HttpCompatLayer::new(::$reqwest::Body::wrap).layer(client()))
            }

            #[tokio::test]
            async fn what_is_asked_and_answered_passes() {
                let (stack, (upstream, _)) = (Stack::new("shop"), shop().await);
                let request = to(upstream.address, "/a?b=c").method("PUT").body(Full::from("tea")).unwrap();
                let answer = call(around(&stack), request).await;
                let expected = format!("PUT /a?b=c {} tea", upstream.address);
                assert_eq!((answer.status(), answer.body()), (StatusCode::OK, &Bytes::from(expected)));
                assert_eq!((stack.in_flight(), stack.circuit().calls, stack.seen().causes()), (0, 1, vec![]));
            }

            #[tokio::test]
            async fn a_body_goes_out_again_with_its_request() {
                let (stack, (upstream, reached)) = (Stack::new("shop"), shop().await);
                let request = to(upstream.address, "/busy").method("PUT").body(Full::from("tea")).unwrap();
                let answer = call(around(&stack), request).await;
                assert_eq!((answer.status(), answer.body().as_ref()), (StatusCode::OK, &b"tea"[..]));
                assert_eq!(reached.load(Relaxed), 2);
            }

            #[tokio::test]
            async fn a_dead_upstream_is_a_502_and_then_left_alone() {
                let stack = Stack::new("shop");
                let dead = listener().await.local_addr().unwrap();
                let service = around(&stack);
                let ask = || call(service.clone(), to(dead, "/").body(Full::default()).unwrap());
                let answer = ask().await;
                assert_eq!((answer.status(), Cause::of(&answer)), (StatusCode::BAD_GATEWAY, Some(Cause::ConnectionRefused)));
                assert_eq!(Failure::of(&answer).unwrap().attempts(), 3, "what was not sent is tried again");
                for _ in 0..5 {
                    ask().await;
                }
                assert_eq!((stack.circuit().failures, stack.circuit().state), (5, State::Open));
                assert_eq!(Cause::of(&ask().await), Some(Cause::CircuitOpen));
            }

            #[tokio::test]
            async fn an_address_that_is_none_is_told_as_such() {
                let stack = Stack::new("shop");
                for target in ["/no/host", "*", "ftp://files.example/a", "a.example:80"] {
                    let request = Request::builder().uri(target).body(Full::default()).unwrap();
                    let answer = call(around(&stack), request).await;
                    let failure = Failure::of(&answer).unwrap();
                    assert_eq!((failure.cause(), failure.attempts()), (Cause::InvalidTarget, 1), "{target}");
                    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
                }
                assert_eq!(stack.circuit().failures, 0, "the upstream was never asked");
            }

            #[tokio::test]
            async fn a_redirect_is_an_answer() {
                let (stack, (upstream, _)) = (Stack::new("shop"), shop().await);
                let request = to(upstream.address, "/moved").body(Full::default()).unwrap();
                let answer = call(around(&stack), request).await;
                assert_eq!((answer.status(), &answer.headers()["location"]), (StatusCode::TEMPORARY_REDIRECT, &"/elsewhere".parse().unwrap()));
            }

            #[tokio::test]
            async fn a_cut_body_is_a_cut_body() {
                let upstream = Upstream::scripted(|mut wire, _| async move {
                    wire.request().await;
                    wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
                })
                .await;
                let stack = Stack::new("shop");
                let request = to(upstream.address, "/").body(Full::default()).unwrap();
                let answer = soon(around(&stack).oneshot(request)).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                assert!(soon(answer.into_body().collect()).await.is_err());
                assert_eq!(stack.seen().causes(), [Cause::IncompleteBody]);
                assert_eq!((stack.in_flight(), stack.circuit().failures), (0, 1));
            }

            #[tokio::test]
            async fn it_can_be_a_gateways_client() {
                let (stack, (upstream, _)) = (Stack::new("edge"), shop().await);
                let origin: OriginLayer = format!("http://{}", upstream.address).parse().unwrap();
                let client = ServiceBuilder::new()
                    .layer(origin)
                    // axum's body is not `Sync`
                    .layer(HttpCompatLayer::new(::$reqwest::Body::wrap))
                    .service(client());
                let gateway = stack.around::<_, axum::body::Body, _>(client);
                let address = serve(Router::new().fallback_service(gateway)).await;
                let put = "PUT /order?n=1 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea";
                assert_eq!(ask(address, put).await.text(), "PUT /order?n=1 shop.example tea");
                assert_eq!(stack.in_flight(), 0);
            }
        }
    };
}

inside_the_stack!(reqwest12, ::reqwest12::Client::builder());
inside_the_stack!(reqwest13, ::reqwest13::Client::builder().retry(::reqwest13::retry::never()));
