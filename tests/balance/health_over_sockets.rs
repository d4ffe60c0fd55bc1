//! Health checks by HTTP, gRPC and TCP, over real sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;
use tower_upstream::balance::{Balance, CheckRecord, HealthCheck, HealthChecks, Member};
use tower_upstream::client::{TcpConnector, TlsConnector};
use tower_upstream::{BadGatewayCause, Failure};

use crate::health::Plain;
use crate::pool::{Endpoint, Servers};
use crate::support::{PATIENCE, Upstream, app, listener, soon, tls_app, until};

/// What one check of this member finds.
async fn found(check: HealthCheck, member: Member) -> Arc<CheckRecord> {
    let pool: Balance<Endpoint<Plain>> = Balance::builder("shop", Servers::default().factory()).build().unwrap();
    let _ = pool.handle().replace([member]).unwrap();
    let checks = HealthChecks::new(check.transition_interval(std::time::Duration::from_millis(10))).unwrap();
    checks.watch(&pool.handle());
    let last = || pool.handle().snapshot(Instant::now()).endpoints[0].last_check.clone();
    until("the first check", || last().is_some()).await;
    last().unwrap()
}

async fn text_of(check: HealthCheck, member: Member) -> String {
    let record = found(check, member).await;
    assert!(!record.report.is_passed(), "{record:?}");
    record.report.text().to_owned()
}

fn member(upstream: &Upstream) -> Member {
    Member::new(upstream.address.to_string())
}

fn health(response: Response<&'static str>) -> Router {
    Router::new().route("/health", get(move || std::future::ready(response.clone().map(Body::from))))
}

fn response(status: u16, body: &'static str) -> Response<&'static str> {
    Response::builder().status(status).body(body).unwrap()
}

#[tokio::test]
async fn an_http_check_passes_by_status_body_and_words() {
    let check = || HealthCheck::http("/health");
    let up = app(health(response(200, "hello"))).await;
    let record = found(check().expect_body("ell"), member(&up)).await;
    assert!(record.report.is_passed() && record.report.status() == Some(200), "{record:?}");
    for (check, response, text) in [
        (check(), response(503, "hello"), "status 503 instead of 200 to 299"),
        (check().expect_status(204..=204), response(200, ""), "status 200 instead of 204 to 204"),
        (check().expect_body("absent"), response(200, "hello"), "status 200, and the body lacks the expected word"),
        (check(), response(200, "down # disk full"), "down # disk full"),
        (check(), response(200, r#"{"status":"fail"}"#), r#"{"status":"fail"}"#),
        (HealthCheck::http("/absent"), response(200, ""), "status 404 instead of 200 to 299"),
    ] {
        let server = app(health(response)).await;
        assert_eq!(text_of(check, member(&server)).await, text);
    }
    let draining = app(health(response(503, "drain"))).await;
    assert!(found(check(), member(&draining)).await.report.is_draining());
    let mut agent = response(200, "");
    agent.headers_mut().insert("x-agent", "maint".parse().unwrap());
    let agent = app(health(agent)).await;
    assert!(found(check().agent_field("x-agent"), member(&agent)).await.report.is_draining());
    let up = app(health(response(200, "ok"))).await;
    assert!(found(check().http2_prior_knowledge(), member(&up)).await.report.is_passed());
}

#[tokio::test]
async fn a_member_is_named_by_its_key_or_its_addresses_and_the_host_is_as_set() {
    let hosts = Router::new().route(
        "/health",
        get(|request: Request| async move { request.headers()["host"].to_str().unwrap().to_owned() }),
    );
    let server = app(hosts).await;
    let port = server.address.port();
    let check = || HealthCheck::http("/health");
    for (check, member, host) in [
        (check(), Member::new(format!("localhost:{port}")), format!("localhost:{port}")),
        (check(), Member::new(format!("http://127.0.0.1:{port}/base")), format!("127.0.0.1:{port}")),
        (check(), Member::new("pod-7").addresses([server.address]), format!("127.0.0.1:{port}")),
        (check().host("shop.test"), Member::new("pod-7").addresses([server.address]), format!("shop.test:{port}")),
        (check().host("shop.test:80"), Member::new(format!("127.0.0.1:{port}")), "shop.test:80".to_owned()),
    ] {
        let record = found(check.expect_body(host.clone()), member).await;
        assert!(record.report.is_passed(), "{host}: {record:?}");
    }
    let nowhere = listener().await.local_addr().unwrap();
    let both = Member::new("pod-8").addresses([nowhere, server.address].map(|mut address| {
        // the first address does not accept connections on the port of the second
        if address == nowhere {
            address = ([127, 0, 0, 9], port).into();
        }
        address
    }));
    assert!(found(check(), both).await.report.is_passed(), "one endpoint has several addresses");
    let text = text_of(check(), Member::new("ftp://files.test")).await;
    assert_eq!(text, "invalid_target in phase gateway: the scheme is neither http nor https");
}

#[tokio::test]
async fn checks_use_tls_with_the_settings_of_the_connector() {
    let (server, pem) = tls_app(Router::new().route("/health", get(|| async { "ok" })), &[b"h2", b"http/1.1"]).await;
    let tls = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    for check in [HealthCheck::http("/health"), HealthCheck::tcp()] {
        let record = found(check.tls(&tls).host("localhost"), member(&server)).await;
        assert!(record.report.is_passed(), "{record:?}");
    }
    let named = Member::new(format!("https://localhost:{}", server.address.port()));
    let text = text_of(HealthCheck::http("/health"), named).await;
    assert!(text.contains("tls_certificate"), "the platform does not trust it: {text}");
    let text = text_of(HealthCheck::tcp().tls(&tls).host("other.test"), member(&server)).await;
    assert!(text.contains("tls_certificate"), "{text}");
    let plain = app(Router::new()).await;
    assert!(text_of(HealthCheck::tcp().tls(&tls).host("localhost"), member(&plain)).await.contains("tls"));
}

#[tokio::test]
async fn a_tcp_check_passes_while_connections_are_accepted() {
    let server = listener().await;
    let address = server.local_addr().unwrap();
    assert!(found(HealthCheck::tcp(), Member::new(address.to_string())).await.report.is_passed());
    drop(server);
    let text = text_of(HealthCheck::tcp(), Member::new(address.to_string())).await;
    assert!(text.starts_with("connection_refused"), "{text}");
}

fn grpc(service: &'static str, message: &'static [u8], status: &'static str) -> Router {
    Router::new().route(
        "/grpc.health.v1.Health/Check",
        post(move |request: Request| async move {
            assert_eq!(
                (&request.headers()["content-type"], &request.headers()["te"]),
                (&http::HeaderValue::from_static("application/grpc"), &http::HeaderValue::from_static("trailers"),)
            );
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert!(asked.ends_with(service.as_bytes()));
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", status.parse().unwrap());
            let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(message))), Ok(Frame::trailers(trailers))];
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        }),
    )
}

#[tokio::test]
async fn a_grpc_check_passes_while_the_service_is_serving() {
    let serving = app(grpc("shop.Cart", b"\0\0\0\0\x02\x08\x01", "0")).await;
    let record = found(HealthCheck::grpc("shop.Cart"), member(&serving)).await;
    assert!(record.report.is_passed() && record.report.status() == Some(0), "{record:?}");
    let not = app(grpc("", b"\0\0\0\0\x02\x08\x02", "0")).await;
    assert_eq!(text_of(HealthCheck::grpc(""), member(&not)).await, "gRPC health status NOT_SERVING");
    let none = app(Router::new()).await;
    assert_eq!(text_of(HealthCheck::grpc(""), member(&none)).await, "status 404 instead of 200");
    let (tls, pem) = tls_app(grpc("", b"\0\0\0\0\x02\x08\x01", "0"), &[b"h2"]).await;
    let connector = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    assert!(found(HealthCheck::grpc("").tls(&connector).host("localhost"), member(&tls)).await.report.is_passed());
}

#[tokio::test]
async fn a_check_ends_whatever_the_endpoint_sends() {
    let sent = |bytes: &'static [u8], endless: &'static [u8]| async move {
        Upstream::scripted(move |mut wire, _| async move {
            wire.request().await;
            wire.write(bytes).await;
            while !endless.is_empty() && wire.try_write(endless).await.is_ok() {}
            std::future::pending::<()>().await;
        })
        .await
    };
    let check = || HealthCheck::http("/");
    let endless = sent(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n", &[b'x'; 8192]).await;
    assert!(found(check(), member(&endless)).await.report.is_passed(), "4 KiB are enough");
    let hostile = [
        (&b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"[..], &b""[..]),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        (b"SSH-2.0-OpenSSH\r\n", b""),
        (b"", b""),
    ];
    let found = hostile.map(|(bytes, rest)| async move {
        let hostile = sent(bytes, rest).await;
        let record = found(check(), member(&hostile)).await;
        assert!(!record.report.is_passed(), "{bytes:?}: {record:?}");
    });
    soon(futures_util::future::join_all(found)).await;
}

#[tokio::test]
async fn each_check_opens_a_connection_of_its_own_and_closes_it() {
    let open = Arc::new(AtomicUsize::new(0));
    let count = open.clone();
    let server = Upstream::scripted(move |mut wire, _| {
        let open = count.clone();
        async move {
            open.fetch_add(1, Relaxed);
            wire.request().await;
            wire.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            assert!(wire.ends_within(PATIENCE).await);
            open.fetch_sub(1, Relaxed);
        }
    })
    .await;
    for checks in 1..=3 {
        assert!(found(HealthCheck::http("/"), member(&server)).await.report.is_passed());
        assert!(server.accepted() >= checks);
    }
    until("all are closed", || open.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn an_http2_endpoint_that_hangs_leaves_no_connection_behind() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (open.clone(), most.clone());
    let server = Upstream::scripted(move |mut wire, _| {
        let (now, peak) = (now.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            assert!(wire.ends_within(PATIENCE).await);
            now.fetch_sub(1, Relaxed);
        }
    })
    .await;
    for _ in 0..5 {
        let check = HealthCheck::grpc("").timeout(std::time::Duration::from_millis(200));
        let text = text_of(check, member(&server)).await;
        assert_eq!(text, "no result within 200ms, in phase wait");
    }
    until("all are closed", || open.load(Relaxed) == 0).await;
    assert!(server.accepted() >= 5);
}

#[tokio::test]
async fn a_verification_reports_the_phases_of_each_endpoint() {
    let (server, pem) = tls_app(Router::new().route("/health", get(|| async { "ok" })), &[b"http/1.1"]).await;
    let plain = app(health(response(200, ""))).await;
    let silent = Upstream::scripted(|wire, _| async move {
        let _open = wire;
        std::future::pending::<()>().await;
    })
    .await;
    let closed = listener().await.local_addr().unwrap();
    let tls = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    let up = Member::new(format!("localhost:{}", server.address.port()));
    let members = [Member::new(closed.to_string()), member(&plain), up, member(&silent), Member::new("a b")];
    let pool: Balance<Endpoint<Plain>> =
        Balance::builder("shop", Servers::default().factory()).members(members).build().unwrap();
    let check = HealthCheck::http("/health").tls(&tls).timeout(std::time::Duration::from_millis(1_500));

    let mut early = check.verify(&pool.handle()).unwrap();
    assert!(soon(early.any_passed()).await, "one good endpoint is enough");
    drop(early);
    let reports = soon(check.verify(&pool.handle()).unwrap().all()).await;
    let phases: Vec<Vec<_>> =
        reports.iter().map(|report| report.phases.iter().map(|(phase, _)| phase.as_str()).collect()).collect();
    let keys: Vec<_> = reports.iter().map(|report| report.member.key.clone()).collect();
    let members: Vec<_> = pool.handle().members().borrow().iter().map(|member| member.key.clone()).collect();
    assert_eq!(keys, members, "in the order of the members");
    assert_eq!(phases[0], ["connect"]);
    assert_eq!(phases[1], ["connect", "tls"]);
    assert_eq!(phases[2], ["resolve", "connect", "tls", "wait", "body"]);
    assert_eq!(phases[3], ["connect", "tls"]);
    assert!(phases[4].is_empty());
    let causes: Vec<_> = reports.iter().map(|report| report.failure.as_ref().map(Failure::cause)).collect();
    assert_eq!(
        causes,
        [
            Some(BadGatewayCause::ConnectionRefused),
            Some(BadGatewayCause::TlsFailed),
            None,
            Some(BadGatewayCause::TlsTimeout),
            Some(BadGatewayCause::InvalidTarget),
        ]
    );
    assert!(reports[2].is_passed() && reports[2].to_string().contains(": passed after "), "{}", reports[2]);
    assert!(reports[0].to_string().contains("connection_refused in phase connect"), "{}", reports[0]);
}
