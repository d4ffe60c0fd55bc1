//! HTTP/2 upstreams: shared windows and PINGs.

// helpers fail their test
#![allow(clippy::unwrap_used)]

mod support;

use std::future::{Future, poll_fn};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use support::{Gateway, Socket, Upstream, Wire, proxy, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tower::{Service, service_fn};
use tower_upstream::BadGatewayCause;
use tower_upstream::client::{Connect, Http, ReverseProxy, ReverseProxyBuilder};
use tower_upstream::forward::Rules;

const HOUR: Duration = Duration::from_secs(3600);

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a").body(Body::empty()).unwrap()
}

/// Sends a body as the peer's windows let it; returns the number of bytes sent once they let no more pass for a while.
async fn send_up_to(respond: &mut h2::server::SendResponse<Bytes>, length: usize) -> usize {
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    let mut sent = 0;
    while sent < length {
        body.reserve_capacity((length - sent).min(16 << 10));
        let capacity = tokio::time::timeout(Duration::from_millis(500), poll_fn(|cx| body.poll_capacity(cx))).await;
        let Ok(Some(Ok(capacity))) = capacity else { break };
        body.send_data(vec![b'x'; capacity].into(), false).unwrap();
        sent += capacity;
    }
    let _ = body.send_data(Bytes::new(), true);
    sent
}

/// An upstream that speaks HTTP/2, with this limit of streams, and hands each stream, with the number of its connection, to a script.
async fn upstream<F>(
    max_streams: Option<u32>,
    script: impl Fn(usize, Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> F + Clone + Send + 'static,
) -> Upstream
where
    F: Future<Output = ()> + Send + 'static,
{
    Upstream::accepting(move |socket, connection| {
        let script = script.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            if let Some(streams) = max_streams {
                builder.max_concurrent_streams(streams);
            }
            let Ok(mut server) = builder.handshake::<_, Bytes>(socket).await else { return };
            while let Some(Ok((request, respond))) = server.accept().await {
                tokio::spawn(script(connection, request, respond));
            }
        }
    })
    .await
}

// windows

#[tokio::test]
async fn clients_that_stop_reading_hold_up_no_other_stream() {
    let upstream = upstream(None, |_, request, mut respond| async move {
        let length = if request.uri().path() == "/large" { 64 << 20 } else { 100 << 10 };
        send_up_to(&mut respond, length).await;
    })
    .await;
    let proxy = proxy(upstream.address).http(Http::H2).build::<Body>();
    let call = async |path| soon(proxy.clone().call(get(path))).await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..40 {
        unread.push(call("/large").await);
    }
    for _ in 0..8 {
        let body = soon(call("/small").await.into_body().collect()).await.unwrap();
        assert_eq!(body.to_bytes().len(), 100 << 10);
    }
    assert_eq!(upstream.accepted(), 1, "they share a connection");
}

#[tokio::test]
async fn a_response_that_nobody_reads_fills_64_kib_at_most() {
    let (told, mut sent) = mpsc::unbounded_channel();
    let upstream = upstream(None, move |_, _, mut respond| {
        let told = told.clone();
        async move { told.send(send_up_to(&mut respond, 64 << 20).await).unwrap() }
    })
    .await;
    let mut proxy = proxy(upstream.address).http(Http::H2).build::<Body>();
    let unread = soon(proxy.call(get("/"))).await.unwrap();
    assert_eq!(soon(sent.recv()).await, Some(65_535));
    drop(unread);
}

#[tokio::test]
async fn larger_windows_are_a_setting_that_keeps_them_apart() {
    let (told, mut sent) = mpsc::unbounded_channel();
    let upstream = upstream(None, move |_, _, mut respond| {
        let told = told.clone();
        async move { told.send(send_up_to(&mut respond, 64 << 20).await).unwrap() }
    })
    .await;
    for (window, streams, most) in [(1 << 20, 3, 1 << 20), (u32::MAX, 2048, (1 << 20) - 1), (0, 100, 65_535)] {
        let builder = proxy(upstream.address).http(Http::H2).max_streams(streams).http2_stream_window(window);
        let mut proxy = builder.build::<Body>();
        let first = soon(proxy.call(get("/"))).await.unwrap();
        let second = soon(proxy.call(get("/"))).await.unwrap();
        for _ in 0..2 {
            assert_eq!(soon(sent.recv()).await, Some(most));
        }
        drop((first, second));
    }
}

#[tokio::test]
async fn a_client_that_pauses_in_a_response_is_not_the_upstreams_failure() {
    let upstream = upstream(None, |_, _, mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        let mut left = 4 << 20;
        while left > 0 {
            body.reserve_capacity(left.min(16 << 10));
            let capacity = poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
            body.send_data(vec![b'x'; capacity].into(), left == capacity).unwrap();
            left -= capacity;
        }
    })
    .await;
    let gateway = Gateway::start(proxy(upstream.address).http(Http::H2)).await;
    let mut wire = Wire::connect(gateway.address).await;
    wire.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let mut read = 0;
    for _ in 0..3 {
        // longer than the limit of 300 ms on a wait in the body
        sleep(Duration::from_millis(700)).await;
        read += wire.bytes(1 << 20).await.len();
    }
    read += wire.bytes(usize::MAX).await.len();
    assert!(read > 4 << 20, "{read}");
    assert_eq!(gateway.seen.causes(), []);
}

// PING

/// The types of the frames that the gateway sends, read on their way to the upstream.
#[derive(Clone, Default)]
struct Frames(Arc<Mutex<Vec<u8>>>);

impl Frames {
    fn count(&self, kind: u8) -> usize {
        self.0.lock().unwrap().iter().fold(0, |count, frame| count + usize::from(*frame == kind))
    }

    /// Copies what the gateway sends to the upstream, but for frames of a type that is held back.
    async fn pass(
        self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        held_back: Option<u8>,
    ) {
        let mut preface = [0; 24];
        if from.read_exact(&mut preface).await.is_err() || to.write_all(&preface).await.is_err() {
            return;
        }
        let mut head = [0; 9];
        while from.read_exact(&mut head).await.is_ok() {
            let mut frame = head.to_vec();
            frame.resize(9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize, 0);
            if from.read_exact(&mut frame[9..]).await.is_err() {
                return;
            }
            self.0.lock().unwrap().push(head[3]);
            if held_back != Some(head[3]) && to.write_all(&frame).await.is_err() {
                return;
            }
        }
    }
}

const PING: u8 = 6;

/// Connects to an upstream in this process, without sockets, so that time may stand still.
///
/// It answers `/later` after an hour and a half, all else at once, and counts its connections.
fn in_process(
    builder: ReverseProxyBuilder,
    frames: Frames,
    held_back: Option<u8>,
) -> (ReverseProxyBuilder<impl Connect<Future: 'static>>, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let connector = service_fn(move |_: Uri| {
        count.fetch_add(1, SeqCst);
        let (ours, theirs) = duplex(1 << 20);
        tokio::spawn(serve_in_process(theirs, frames.clone(), held_back));
        std::future::ready(Ok::<_, io::Error>(Socket::new(ours)))
    });
    (builder.connector(connector).http(Http::H2), connections)
}

async fn serve_in_process(gateway: DuplexStream, frames: Frames, held_back: Option<u8>) {
    let (from_gateway, mut to_gateway) = tokio::io::split(gateway);
    let (near, far) = duplex(1 << 20);
    let (mut from_upstream, to_upstream) = tokio::io::split(near);
    tokio::spawn(frames.pass(from_gateway, to_upstream, held_back));
    tokio::spawn(async move { tokio::io::copy(&mut from_upstream, &mut to_gateway).await });
    let Ok(mut server) = h2::server::handshake(far).await else { return };
    while let Some(Ok((request, mut respond))) = server.accept().await {
        tokio::spawn(async move {
            if request.uri().path() == "/later" {
                sleep(HOUR * 3 / 2).await;
            }
            let _ = respond.send_response(Response::new(()), true);
        });
    }
}

fn builder() -> ReverseProxyBuilder {
    ReverseProxy::builder("app.local".parse().unwrap(), Rules::new("edge").unwrap())
}

#[tokio::test(start_paused = true)]
async fn no_ping_is_sent_in_an_hour_of_silence() {
    let frames = Frames::default();
    let (builder, connections) = in_process(builder(), frames.clone(), None);
    let mut proxy = builder.build::<Body>();
    let call = tokio::spawn(proxy.call(get("/later")));
    sleep(HOUR).await;
    assert!(!call.is_finished());
    assert_eq!(frames.count(PING), 0);
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert_eq!(connections.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_ping_that_is_not_answered_ends_the_connection_where_the_setting_asks_for_it() {
    let frames = Frames::default();
    let pinging = builder().http2_keep_alive(Duration::from_secs(60), Duration::from_secs(5));
    let (pinging, _) = in_process(pinging, frames.clone(), Some(PING));
    let begun = Instant::now();
    let failure = pinging.build::<Body>().call(get("/later")).await.unwrap_err();
    assert_eq!(failure.cause(), BadGatewayCause::PeerUnresponsive);
    assert_eq!((begun.elapsed().as_secs(), frames.count(PING)), (65, 1));
}
