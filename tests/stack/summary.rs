//! The summary of a call on its response, and the boxed stack.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::client::ReverseProxy;
use tower_upstream::forward::ForwardingRules;
use tower_upstream::stack::{BoxUpstream, CallSummary, UpstreamBuilder};
use tower_upstream::test_util::ScriptedUpstream;
use tower_upstream::{BadGatewayCause, UpstreamLayer};

use crate::support::upstream;

fn get() -> Request<Full<Bytes>> {
    Request::get("/cart").body(Full::default()).unwrap()
}

fn stack() -> UpstreamBuilder {
    UpstreamLayer::builder("shop").call_summary()
}

async fn summary(stack: UpstreamBuilder, upstream: ScriptedUpstream) -> CallSummary {
    let Ok(response) = stack.build().unwrap().layer(upstream).oneshot(get()).await;
    CallSummary::of(&response).unwrap().clone()
}

fn parts(summary: &CallSummary) -> (&str, u32, Option<BadGatewayCause>) {
    (summary.upstream(), summary.attempts(), summary.cause())
}

#[tokio::test(start_paused = true)]
async fn a_success_names_its_upstream_and_its_attempts() {
    let first = summary(stack(), ScriptedUpstream::new().respond(200, "hello")).await;
    assert_eq!(parts(&first), ("shop", 1, None));
    let second = summary(stack(), ScriptedUpstream::new().refuse().respond(200, "hello")).await;
    assert_eq!((parts(&second), second.peer()), (("shop", 2, None), None));
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_its_cause_whoever_made_the_response() {
    let refused = summary(stack(), ScriptedUpstream::new().refuse().refuse().refuse()).await;
    assert_eq!(parts(&refused), ("shop", 3, Some(BadGatewayCause::ConnectionRefused)));
    let page = stack().error_page(tower_upstream::error_page::ErrorPage::new());
    let paged = summary(page, ScriptedUpstream::new().refuse().refuse().refuse()).await;
    assert_eq!(paged.cause(), Some(BadGatewayCause::ConnectionRefused));
    let status = summary(stack().without_retry(), ScriptedUpstream::new().respond(503, "later")).await;
    assert_eq!(parts(&status), ("shop", 1, Some(BadGatewayCause::UpstreamStatus)));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_call_has_a_summary() {
    let layer = stack().build().unwrap();
    layer.handle().hold_open();
    let Ok(response) = layer.layer(ScriptedUpstream::new()).oneshot(get()).await;
    assert_eq!(CallSummary::of(&response).unwrap().cause(), Some(BadGatewayCause::CircuitOpen));
}

#[tokio::test]
async fn there_is_none_unless_it_is_asked_for() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let Ok(response) = layer.layer(ScriptedUpstream::new().respond(200, "hello")).oneshot(get()).await;
    assert!(CallSummary::of(&response).is_none());
}

#[tokio::test]
async fn a_proxy_that_exposes_its_peer_reports_the_address() {
    let upstream = upstream::app(axum::Router::new().fallback(|| async { "hello" })).await;
    let rules = ForwardingRules::new("edge").unwrap();
    let proxy = ReverseProxy::builder(upstream.address.to_string().parse().unwrap(), rules).expose_peer().build();
    let request = Request::get("/cart").header("host", "shop.example").body(Full::default()).unwrap();
    let Ok(response) = stack().build().unwrap().layer(proxy).oneshot(request).await;
    assert_eq!(CallSummary::of(&response).unwrap().peer(), Some(upstream.address));
}

#[tokio::test]
async fn a_boxed_stack_is_one_type_for_all_clients() {
    fn is_shared<T: Clone + Send + Sync>(_: &T) {}
    let layer = stack().build().unwrap();
    let echo = service_fn(|request: Request<_>| async { Ok::<_, std::io::Error>(request.map(drop)) });
    let echo = echo.map_response(|seen: Request<()>| Response::new(Full::<Bytes>::from(seen.uri().path().to_owned())));
    let stacks: [BoxUpstream<Full<Bytes>>; 2] =
        [layer.boxed(echo), layer.boxed(ScriptedUpstream::new().respond(200, "scripted"))];
    is_shared(&stacks);
    let mut texts = Vec::new();
    for stack in stacks.clone() {
        let Ok(response) = stack.oneshot(get()).await;
        texts.push(response.into_body().collect().await.unwrap().to_bytes());
    }
    assert_eq!(texts, ["/cart", "scripted"]);
    assert_eq!(layer.handle().snapshot(tokio::time::Instant::now()).calls, 2, "they share the stack's state");
}
