//! `ForwardLayer`: the rules of forwarding around clients that do not apply them.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::routing::any;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::body::ResponseBody;
use tower_upstream::cause::ProxyStatus;
use tower_upstream::forward::{ClientInfo, ForwardBody, ForwardLayer, ForwardingRules, HostPolicy, Scheme};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure};

use crate::support::{Seen, Upstream, ask, gateway};

fn rules() -> ForwardingRules {
    ForwardingRules::new("edge-1").unwrap()
}

fn layer() -> ForwardLayer {
    ForwardLayer::new(rules())
}

/// A request as it reaches the inner client.
type Forwarded = Request<ForwardBody<Full<Bytes>>>;

async fn text<B: http_body::Body<Error: std::fmt::Debug>>(answer: Response<B>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A head in lines: the request line, then the fields, sorted.
fn lines<B>(request: &Request<B>) -> String {
    let fields = request.headers().iter();
    let mut lines: Vec<_> = fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort_unstable();
    format!("{} {} {:?}\n{}", request.method(), request.uri(), request.version(), lines.join("\n"))
}

/// A client that responds with the head that it got, and with fields of a connection.
fn echo() -> impl Service<Forwarded, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone {
    service_fn(|request: Forwarded| async move {
        let answer = Response::builder().version(Version::HTTP_2).header("connection", "close, x-hop");
        let answer = answer.header("x-hop", "1").header("keep-alive", "timeout=5").header("x-kept", "1");
        Ok(answer.body(Full::from(lines(&request))).unwrap())
    })
}

fn get(uri: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

async fn sent(layer: ForwardLayer, request: Request<Full<Bytes>>) -> String {
    let answer = layer.layer(echo()).oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    text(answer).await
}

#[tokio::test]
async fn connection_fields_are_removed_both_ways() {
    let fields = [("host", "shop.example"), ("connection", "x-mine, keep-alive"), ("x-mine", "1"), ("x-other", "1")];
    let mut request = get("/cart?a", &fields);
    request.extensions_mut().insert(ClientInfo::new(Some([192, 0, 2, 60].into()), Scheme::Https));
    let answer = layer().layer(echo()).oneshot(request).await.unwrap();
    let kept = answer.headers().keys().map(http::HeaderName::as_str).collect::<Vec<_>>();
    assert_eq!((kept, answer.version()), (vec!["x-kept"], Version::HTTP_11));
    let head = "GET /cart?a HTTP/1.1\nhost: shop.example\nvia: 1.1 edge-1\nx-forwarded-for: 192.0.2.60\n\
                x-forwarded-host: shop.example\nx-forwarded-proto: https\nx-other: 1";
    assert_eq!(text(answer).await, head);
}

#[tokio::test]
async fn the_client_is_that_of_the_request_else_of_the_layer_else_unknown() {
    let caller = |last: u8| ClientInfo::new(Some([192, 0, 2, last].into()), Scheme::Http);
    let plain = || get("/", &[("host", "a")]);
    assert!(!sent(layer(), plain()).await.contains("x-forwarded-for"));
    assert!(sent(layer().client_info(caller(1)), plain()).await.contains("x-forwarded-for: 192.0.2.1\n"));
    let mut named = plain();
    named.extensions_mut().insert(caller(2));
    assert!(sent(layer().client_info(caller(1)), named).await.contains("x-forwarded-for: 192.0.2.2\n"));
}

#[tokio::test]
async fn the_uri_is_in_origin_form_or_the_upstreams() {
    let upstream = || layer().upstream(Scheme::Https, "user@10.0.0.7:8443".parse().unwrap());
    for uri in ["/a?b", "http://shop.example/a?b"] {
        let request = || get(uri, &[("host", "shop.example")]);
        assert!(sent(layer(), request()).await.starts_with("GET /a?b HTTP/1.1\nhost: shop.example\n"));
        let head = sent(upstream(), request()).await;
        assert!(head.starts_with("GET https://user@10.0.0.7:8443/a?b HTTP/1.1\nhost: shop.example\n"), "{head}");
    }
    let by_upstream = ForwardLayer::new(rules().host(HostPolicy::Upstream));
    let by_upstream = by_upstream.upstream(Scheme::Http, "user@10.0.0.7:80".parse().unwrap());
    assert!(sent(by_upstream, get("/", &[("host", "shop.example")])).await.contains("\nhost: 10.0.0.7:80\n"));
    let mut options = get("*", &[("host", "shop.example")]);
    *options.method_mut() = http::Method::OPTIONS;
    assert!(sent(layer(), options.clone()).await.starts_with("OPTIONS * HTTP/1.1"));
    let mut old = get("/", &[]);
    *old.version_mut() = Version::HTTP_10;
    assert!(sent(layer(), old).await.contains("\nhost: \n"));
}

#[tokio::test]
async fn a_head_of_http2_is_forwarded_in_the_inner_clients_version() {
    let request = || {
        let fields = [("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2")];
        let mut request = get("http://shop.example/", &fields);
        *request.version_mut() = Version::HTTP_2;
        request
    };
    let head = sent(layer(), request()).await;
    assert!(head.starts_with("GET / HTTP/1.1\nconnection: te\ncookie: a=1; b=2\nhost: shop.example\nte: trailers\n"));
    let head = sent(layer().http2(), request()).await;
    assert!(head.starts_with("GET / HTTP/2.0\ncookie: a=1\ncookie: b=2\nhost: shop.example\nte: trailers\n"), "{head}");
    let asks = get("/", &[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")]);
    let head = sent(layer().http2(), asks).await;
    assert!(!head.contains("upgrade") && !head.contains("connection"), "{head}");
}

#[tokio::test]
async fn a_request_that_the_rules_reject_is_not_forwarded() {
    let never = service_fn(|_: Forwarded| async {
        panic!("it was not to go on");
        #[allow(unreachable_code)]
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = layer().layer(never);
    let answer = service.clone().oneshot(get("/", &[])).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(text(answer).await, "Bad Request: the request has no Host field\n");
    let mut connect = get("a.example:443", &[("host", "a.example:443")]);
    *connect.method_mut() = http::Method::CONNECT;
    assert_eq!(service.clone().oneshot(connect).await.unwrap().status(), 501);
    let mut last = get("/", &[("host", "a"), ("max-forwards", "0")]);
    *last.method_mut() = http::Method::OPTIONS;
    let answer = service.clone().oneshot(last).await.unwrap();
    assert_eq!((answer.status(), &answer.headers()["content-length"]), (StatusCode::OK, &"0".parse().unwrap()));
    let answer = service.oneshot(get("/", &[("host", "a"), ("via", "1.1 edge-1")])).await.unwrap();
    assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (502, Some(Cause::LoopDetected)));
}

#[tokio::test]
async fn classify_around_it_reports_a_loop_and_no_rejection() {
    let seen = Seen::default();
    let classify = ClassifyLayer::new().observer(seen.clone()).proxy_status(ProxyStatus::new("edge").unwrap());
    let client = service_fn(|_: Forwarded| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let service = classify.layer(layer().layer(client));
    let Ok(answer) = service.clone().oneshot(get("/", &[])).await;
    assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (400, None));
    let member = "edge; error=http_request_error; status-code=400; status-phrase=\"Bad Request\"";
    assert_eq!(answer.headers()["proxy-status"], member);
    let Ok(answer) = service.oneshot(get("/", &[("host", "a"), ("via", "1.1 edge-1")])).await;
    assert_eq!(answer.headers()["proxy-status"], "edge; error=proxy_loop_detected");
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(seen.causes(), [Cause::LoopDetected]);
}

/// A client that responds with a 101 to this protocol.
fn switching(
    to: &'static str,
) -> impl Service<Forwarded, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> {
    service_fn(move |_: Forwarded| async move {
        let answer = Response::builder().status(101).header("connection", "upgrade").header("upgrade", to);
        Ok(answer.extension("the tunnel").body(Full::default()).unwrap())
    })
}

#[tokio::test]
async fn a_101_passes_if_it_was_requested() {
    let asks = [("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")];
    let answer = layer().layer(switching("websocket")).oneshot(get("/", &asks)).await.unwrap();
    assert_eq!((answer.status().as_u16(), &answer.headers()["upgrade"]), (101, &"websocket".parse().unwrap()));
    assert_eq!(answer.headers()["connection"], "upgrade");
    assert_eq!(answer.extensions().get::<&str>(), Some(&"the tunnel"));
    for (to, fields) in [("other", &asks[..]), ("websocket", &asks[..1])] {
        let answer = layer().layer(switching(to)).oneshot(get("/", fields)).await.unwrap();
        assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (502, Some(Cause::UpgradeFailed)));
        assert!(!answer.headers().contains_key("upgrade"));
        assert!(Failure::of(&answer).unwrap().to_string().contains("was not requested"));
    }
}

#[tokio::test]
async fn an_error_passes_unchanged() {
    let broken = service_fn(|_: Forwarded| async { Err::<Response<Full<Bytes>>, _>(io::Error::other("broken")) });
    let error = layer().layer(broken).oneshot(get("/", &[("host", "a")])).await.unwrap_err();
    assert_eq!(error.to_string(), "broken");
}

#[tokio::test]
async fn an_axum_handler_is_an_upstream() {
    let handler = |headers: HeaderMap| async move { headers["via"].to_str().unwrap().to_owned() };
    let app = Router::new().route("/", any(handler)).layer(layer());
    let request = |host: &str| Request::get("/").header("host", host).body(Body::empty()).unwrap();
    let answer = app.clone().oneshot(request("a")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "1.1 edge-1");
    assert_eq!(app.oneshot(request("a b")).await.unwrap().status(), 400);
}

#[tokio::test]
async fn hyper_utils_client_is_a_gateway_over_the_wire() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            let fields: Vec<_> = request.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            wire.reply(&format!("{}|{}", request.first, fields.join("|"))).await;
        }
    })
    .await;
    let authority = upstream.address.to_string().parse().unwrap();
    let gateway = ServiceBuilder::new()
        .layer(ClassifyLayer::new())
        .layer(layer().upstream(Scheme::Http, authority))
        .map_response(|answer: Response<_>| answer.map(ResponseBody::<hyper::body::Incoming>::upstream))
        .service(Client::builder(TokioExecutor::new()).build_http::<ForwardBody<Body>>());
    let listener = gateway::listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback_service(gateway)).await });
    let request = "GET /a?b HTTP/1.1\r\nHost: shop.example\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n";
    let answer = ask(address, request).await;
    let head = "GET /a?b HTTP/1.1|host: shop.example|via: 1.1 edge-1|x-forwarded-host: shop.example";
    let mut got: Vec<_> = answer.text().split('|').map(str::to_owned).collect();
    got.sort_unstable();
    assert_eq!(got.join("|"), head);
    assert_eq!(ask(address, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.status(), 400);
}

#[tokio::test]
async fn a_get_keeps_its_body_of_unknown_length_through_hyper_utils_client() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            wire.reply(&request.text()).await;
        }
    })
    .await;
    let authority = upstream.address.to_string().parse().unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<ForwardBody<Body>>();
    let forward = layer().upstream(Scheme::Http, authority).layer(
        ServiceBuilder::new()
            .map_response(|answer: Response<_>| answer.map(ResponseBody::<hyper::body::Incoming>::upstream))
            .service(client),
    );
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
        let pieces = futures_util::stream::iter([Ok::<_, Infallible>("que"), Ok("ry")]);
        let request = Request::builder().method(method).uri("/").header("host", "a").body(Body::from_stream(pieces));
        let answer = forward.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(answer.headers()["content-length"], "5", "{method}");
    }
}

/// Data, then trailers.
#[derive(Default)]
struct Trailed(Option<Bytes>, Option<HeaderMap>);

impl Trailed {
    fn new(trailers: &[(&'static str, String)]) -> Self {
        let trailers = trailers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        Self(Some(Bytes::from_static(b"body")), Some(trailers.collect()))
    }
}

impl From<Bytes> for Trailed {
    fn from(bytes: Bytes) -> Self {
        Self(Some(bytes), None)
    }
}

impl http_body::Body for Trailed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.0.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.1.take().map(Frame::trailers)).map(Ok))
    }
}

/// The trailers that pass of these, in a request and in its response.
async fn trailers_after(sent: &[(&'static str, String)]) -> (Vec<String>, Result<Vec<String>, Cause>) {
    let names = |trailers: Option<&HeaderMap>| {
        let mut names: Vec<_> = trailers.into_iter().flat_map(HeaderMap::keys).map(ToString::to_string).collect();
        names.sort_unstable();
        names
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let client = service_fn(|request: Request<ForwardBody<Trailed>>| {
        let (seen, sent) = (seen.clone(), Trailed::new(sent));
        async move {
            let body = request.into_body().collect().await.unwrap();
            *seen.lock().unwrap() = names(body.trailers());
            Ok::<_, Infallible>(Response::new(sent))
        }
    });
    let request = Request::post("/").header("host", "a").body(Trailed::new(sent)).unwrap();
    let answer = layer().layer(client).oneshot(request).await.unwrap();
    let received = answer.into_body().collect().await.map(|body| names(body.trailers()));
    let received = received.map_err(|error| error.downcast_ref::<Failure>().unwrap().cause());
    let seen = seen.lock().unwrap().clone();
    (seen, received)
}

#[tokio::test]
async fn trailers_lose_fields_of_a_head_or_a_connection_both_ways() {
    let names =
        ["connection", "x-named", "te", "content-length", "host", "x-forwarded-for", "x_real_ip", "authorization"];
    let sent: Vec<_> = names.into_iter().chain(["x-sum"]).map(|name| (name, "x-named".to_owned())).collect();
    let kept = vec!["x-sum".to_owned()];
    assert_eq!(trailers_after(&sent).await, (kept.clone(), Ok(kept)));
    assert_eq!(trailers_after(&sent[..1]).await, (vec![], Ok(vec![])));
}

#[tokio::test]
async fn trailers_that_are_too_large_are_discarded_in_a_request_and_an_error_in_a_response() {
    let sent = |length| vec![("x-a", "a".repeat(length)), ("connection", "a".repeat(20_000))];
    let kept = vec!["x-a".to_owned()];
    assert_eq!(trailers_after(&sent(16_000)).await, (kept.clone(), Ok(kept)));
    let (seen, received) = trailers_after(&sent(17_000)).await;
    assert_eq!((seen, received), (vec![], Err(Cause::TrailerTooLarge)));
}
