//! `ErrorPageLayer` alone, around the other layers, and in apps over real sockets.

use std::convert::Infallible;
use std::io;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::body::ResponseBody;
use tower_upstream::breaker::CircuitBreakerLayer;
use tower_upstream::cause::{ProxyStatus, attach};
use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
use tower_upstream::retry::RetryLayer;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure};

use crate::raw::Raw;
use crate::support::{Upstream, Wire, ask, gateway, proxy};

const HTML: &str = "text/html; charset=utf-8";

fn layer() -> ErrorPageLayer {
    ErrorPageLayer::new(ErrorPage::new())
}

fn browser() -> Request<Full<Bytes>> {
    Request::get("/").header("accept", "text/html,*/*;q=0.8").body(Full::default()).unwrap()
}

async fn text<B>(answer: Response<B>) -> String
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn kind<B>(answer: &Response<B>) -> &str {
    answer.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap())
}

/// A client whose connections are refused.
fn refused() -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = io::Error, Future: Send>
+ Clone
+ Send
+ Sync {
    service_fn(|_: Request<Full<Bytes>>| std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
}

#[tokio::test]
async fn a_classified_error_becomes_a_page_with_the_fields_of_the_response() {
    let classify = ClassifyLayer::new().proxy_status(ProxyStatus::new("edge").unwrap());
    let service = ServiceBuilder::new().layer(layer()).layer(classify).service(refused());
    let Ok(answer) = service.oneshot(browser()).await;
    assert_eq!((answer.status().as_u16(), kind(&answer)), (502, HTML));
    assert_eq!(answer.headers()["proxy-status"], "edge; error=connection_refused");
    assert_eq!(Cause::of(&answer), Some(Cause::ConnectionRefused));
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert!(text(answer).await.contains(&format!("<dd>{id}</dd>")));
}

#[tokio::test]
async fn the_status_of_the_classification_is_kept() {
    let classify = ClassifyLayer::new().choose_status(|_| StatusCode::IM_A_TEAPOT);
    let service = ServiceBuilder::new().layer(layer()).layer(classify).service(refused());
    let Ok(answer) = service.oneshot(browser()).await;
    assert_eq!(answer.status(), 418);
    assert!(text(answer).await.contains("<title>418 I'm a teapot</title>".replace('\'', "&#39;").as_str()));
}

#[tokio::test]
async fn two_classify_layers_keep_the_response_local() {
    let stack = ServiceBuilder::new().layer(layer()).layer(ClassifyLayer::new()).layer(ClassifyLayer::new());
    let Ok(answer) = stack.service(refused()).oneshot(browser()).await;
    assert_eq!(kind(&answer), HTML);
}

#[tokio::test]
async fn one_layer_alone_has_its_page_with_and_without_classify() {
    let down = service_fn(|_: Request<Full<Bytes>>| async {
        let mut answer = Response::new(ResponseBody::<Full<Bytes>>::from(Bytes::from("the upstream's own page")));
        attach(&mut answer, Failure::new(Cause::ConnectionRefused));
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        Ok::<_, Infallible>(answer)
    });
    let breaker = CircuitBreakerLayer::new("shop");
    let bare = layer().layer(breaker.layer(down));
    let classified = layer().layer(ClassifyLayer::new().layer(breaker.layer(down)));
    for _ in 0..5 {
        let answer = bare.clone().oneshot(browser()).await.unwrap();
        assert_eq!(text(answer).await, "the upstream's own page", "a user's own service wrote it");
    }
    let open = "<h1>The service is temporarily unavailable.</h1>\n<p>It is safe to reload this page.</p>";
    let answer = bare.oneshot(browser()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
    assert!(text(answer).await.contains(open));
    let Ok(answer) = classified.oneshot(browser()).await;
    assert!(answer.headers().contains_key("retry-after"));
    assert!(text(answer).await.contains(open));
}

#[tokio::test]
async fn a_failure_after_retries_has_its_page() {
    let service = ServiceBuilder::new().layer(layer()).layer(RetryLayer::new()).layer(ClassifyLayer::new());
    let client = service_fn(|_: Request<_>| async { Err::<Response<Full<Bytes>>, _>(io::Error::other("no")) });
    let Ok(answer) = service.service(client).oneshot(browser()).await;
    assert_eq!(kind(&answer), HTML);
}

#[tokio::test]
async fn a_relayed_response_is_never_changed() {
    for status in [200, 204, 304, 404, 500, 502, 503, 504] {
        let upstream = service_fn(move |_: Request<Full<Bytes>>| async move {
            let answer = Response::builder().status(status).header("content-type", "text/x-own");
            Ok::<_, io::Error>(answer.body(Full::from("its own words")).unwrap())
        });
        let classify = ClassifyLayer::new().proxy_status(ProxyStatus::new("edge").unwrap());
        let service = ServiceBuilder::new().layer(layer()).layer(classify).service(upstream);
        let Ok(answer) = service.oneshot(browser()).await;
        assert_eq!((answer.status().as_u16(), kind(&answer)), (status, "text/x-own"));
        assert!(!answer.headers().contains_key("vary"), "{status}");
        assert_eq!(text(answer).await, "its own words");
    }
}

#[tokio::test]
async fn an_error_passes_unchanged() {
    let error = layer().layer(refused()).oneshot(browser()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_service_under_hypers_server_gets_the_page_too() {
    let inner = service_fn(|_: Request<Full<Bytes>>| async {
        Err::<Response<Full<Bytes>>, _>(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    let service = layer().layer(ClassifyLayer::new().layer(inner));
    let service = hyper_util::service::TowerToHyperService::new(service);
    for _ in 0..3 {
        let Ok(answer) = hyper::service::Service::call(&service, browser()).await;
        assert!(
            text(answer)
                .await
                .contains("The service stopped before it could respond.</h1>\n<p>It is safe to reload this page.")
        );
    }
}

/// An app with a handler that fails, one whose own page fails, and a gateway whose upstream is down.
async fn app() -> std::net::SocketAddr {
    let failing = || async { Err::<(), _>(Failure::from_error(io::Error::from(io::ErrorKind::TimedOut))) };
    let own = || async {
        let mut answer = (StatusCode::BAD_GATEWAY, "my own page").into_response();
        answer.extensions_mut().insert(Cause::ConnectionRefused);
        answer
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = ClassifyLayer::new().layer(proxy(closed).build::<Body>());
    let app = Router::new()
        .route("/failing", get(failing).layer(layer()))
        .route("/classified", get(failing).layer((layer(), ClassifyLayer::new())))
        .route("/own", get(own).layer((layer(), ClassifyLayer::new())))
        .route("/fine", post(|| async { "fine" }).layer(layer()))
        .fallback_service(layer().layer(gateway));
    let listener = gateway::listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn request(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n")
}

#[tokio::test]
async fn an_axum_app_has_pages_for_handlers_and_for_a_gateway() {
    let address = app().await;
    for path in ["/failing", "/classified", "/elsewhere"] {
        let answer = ask(address, request("GET", path, "Accept: text/html\r\n")).await;
        assert_eq!(answer.get("content-type"), Some(HTML), "{path}");
        assert!(answer.whole && answer.text().ends_with("</html>\n"), "{path}");
        assert_eq!(answer.all("content-length"), [answer.body.len().to_string()]);
        assert_eq!(answer.get("x-request-id").is_some(), path != "/failing", "classify gives the id");
        assert_eq!(
            answer.text().contains("the request ID"),
            path != "/failing",
            "only an id that was given is asked for"
        );
        let answer = ask(address, request("GET", path, "Accept: application/json\r\n")).await;
        let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(problem["status"], answer.status());
        assert_eq!(problem["request_id"].as_str(), answer.get("x-request-id"));
        let answer = ask(address, request("GET", path, "")).await;
        assert_eq!(answer.get("content-type"), Some("text/plain; charset=utf-8"));
    }
    assert_eq!(ask(address, request("GET", "/own", "Accept: text/html\r\n")).await.text(), "my own page");
    assert_eq!(ask(address, request("POST", "/fine", "")).await.text(), "fine");
}

#[tokio::test]
async fn a_response_to_head_has_the_head_of_the_get_and_no_body() {
    let address = app().await;
    let fields = "Accept: text/html\r\nX-Request-Id: f00\r\n";
    let get = ask(address, request("GET", "/elsewhere", fields)).await;
    let mut wire = Wire::connect(address).await;
    wire.write(request("HEAD", "/elsewhere", fields)).await;
    let head = wire.head().await;
    assert!(wire.bytes(1).await.is_empty());
    assert_eq!((head.status(), head.get("x-request-id")), (502, Some("f00")));
    for name in ["content-type", "content-length", "cache-control", "vary", "content-security-policy"] {
        assert_eq!(head.all(name), get.all(name), "{name}");
    }
}

#[tokio::test]
async fn a_relayed_502_over_the_wire_is_the_upstreams() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.write("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nits").await;
        }
    })
    .await;
    let gateway = layer().layer(ClassifyLayer::new().layer(proxy(upstream.address).build::<Body>()));
    let listener = gateway::listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback_service(gateway)).await });
    let answer = ask(address, request("GET", "/", "Accept: text/html\r\n")).await;
    assert_eq!((answer.status(), answer.text().as_str(), answer.get("vary")), (502, "its", None));
}

#[tokio::test]
async fn a_grpc_client_reads_the_status() {
    let address = app().await;
    let channel = tonic::transport::Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let method = http::uri::PathAndQuery::from_static("/shop.Orders/Get");
    let status = client.unary(tonic::Request::new(Bytes::new()), method, Raw).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(
        status.message(),
        "The service could not be reached. Your request was not processed. It is safe to try again."
    );
    assert!(status.metadata().contains_key("x-request-id"));
}
