//! Clients that behave well, and an upstream that is well.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::WebSocketUpgrade;
use axum::routing::{any, get, post};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Upstream, Wire, app};

/// The body of `/page`, in bytes.
const PAGE: usize = 40 << 10;
/// The bodies of `/big`: more than any buffer on its way holds.
const BIG: usize = 16 << 20;
const UPLOAD: usize = 4 << 10;
/// A request that takes longer is lost.
const TOO_LATE: Duration = Duration::from_secs(5);

/// How many pieces of `/big` the upstream has written.
pub(crate) type Written = Arc<AtomicUsize>;

pub(crate) async fn upstream() -> (Upstream, Written) {
    let written = Written::default();
    let counter = written.clone();
    let big = async move || {
        let piece = Bytes::from(vec![b'x'; 64 << 10]);
        Body::from_stream(futures_util::stream::iter((0..BIG >> 16).map(move |_| {
            counter.fetch_add(1, Relaxed);
            Ok::<_, Infallible>(piece.clone())
        })))
    };
    let slow = || tokio::time::sleep(Duration::from_millis(20));
    let tunnel = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move { while let Some(Ok(_)) = socket.recv().await {} })
    };
    let routes = Router::new()
        .route("/small", get(|| async { "small" }))
        .route("/page", get(|| async { vec![b'x'; PAGE] }))
        .route("/echo", post(|body: Body| async { body }))
        .route("/big", get(big))
        .route("/slow", get(slow).post(slow))
        .route("/tunnel", any(tunnel))
        .route("/hang", get(std::future::pending::<()>))
        .route("/fail", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
        .route("/later", get(|| async { (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "20")]) }));
    (app(routes).await, written)
}

/// Waits until `/big` has filled every buffer on its way to the clients that do not read it.
///
/// The kernel takes some megabytes of each response, which lasts a while: until then its client has read, as far as a gateway
/// can see.
pub(crate) async fn fill_buffers(written: &AtomicUsize) {
    let mut unchanged = 0;
    while unchanged < 4 {
        let before = written.load(Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
        unchanged = if written.load(Relaxed) == before { unchanged + 1 } else { 0 };
    }
}

/// What became of the requests of clients that behave well.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) asked: usize,
    /// Why each lost request was lost.
    pub(crate) lost: Vec<String>,
}

impl AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.asked += other.asked;
        self.lost.extend(other.lost);
    }
}

impl Outcome {
    fn record(&mut self, what: &str, status: u16, length: usize, expected: usize) {
        self.asked += 1;
        if (status, length) != (200, expected) {
            self.lost.push(format!("{what}: {status}, {length} bytes"));
        }
    }
}

/// All clients ask at the same time, `requests` times each (at most 3), every fourth by HTTP/2.
pub(crate) async fn ask_all(gateway: SocketAddr, clients: usize, requests: usize) -> Outcome {
    let mut running = JoinSet::new();
    for client in 0..clients {
        match client % 4 {
            0 => running.spawn(by_http2(gateway, requests)),
            _ => running.spawn(by_http1(gateway, requests)),
        };
    }
    let mut outcome = Outcome::default();
    while let Some(one) = running.join_next().await {
        outcome += one.unwrap();
    }
    outcome
}

async fn by_http1(gateway: SocketAddr, requests: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let upload = vec![b'x'; UPLOAD];
    let post = format!("POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {UPLOAD}\r\n\r\n");
    let all: [(&str, Vec<u8>, usize); 3] = [
        ("GET /small", b"GET /small HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_vec(), 5),
        ("POST /echo", [post.as_bytes(), &upload].concat(), UPLOAD),
        ("GET /page", b"GET /page HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_vec(), PAGE),
    ];
    let mut wire = Wire::connect(gateway).await;
    for (what, request, expected) in all.into_iter().take(requests) {
        let answer = async {
            wire.try_write(request).await.ok()?;
            Some(wire.answer().await)
        };
        let answer = tokio::time::timeout(TOO_LATE, answer).await.ok().flatten();
        if answer.as_ref().is_none_or(|answer| !answer.whole) {
            wire = Wire::connect(gateway).await;
        }
        let answer = answer.unwrap_or_default();
        outcome.record(what, answer.status(), answer.body.len(), expected);
    }
    outcome
}

async fn by_http2(gateway: SocketAddr, requests: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let stream = TcpStream::connect(gateway).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let all = [
        ("h2 GET /small", Request::get("http://shop.example/small"), 0, 5),
        ("h2 POST /echo", Request::post("http://shop.example/echo"), UPLOAD, UPLOAD),
        ("h2 GET /page", Request::get("http://shop.example/page"), 0, PAGE),
    ];
    for (what, request, upload, expected) in all.into_iter().take(requests) {
        let request = request.body(Full::new(Bytes::from(vec![b'x'; upload]))).unwrap();
        let answer = async {
            let answer = sender.send_request(request).await.ok()?;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.ok().map(http_body_util::Collected::to_bytes);
            Some((status, body.unwrap_or_default().len()))
        };
        let (status, length) = tokio::time::timeout(TOO_LATE, answer).await.ok().flatten().unwrap_or_default();
        outcome.record(what, status, length, expected);
    }
    connection.abort();
    outcome
}
