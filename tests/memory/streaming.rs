//! Bodies stream: a long one takes no memory, and a peer that does not read is not written to without end.
//!
//! Gateway, upstream and client share this process, and none of them keeps what passes. The tests take
//! turns, so that each measures itself alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use axum::routing::get;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::Layer;
use tower_upstream::client::HttpVersion;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::RequestBody;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, UpstreamLayer};

use crate::ALONE;
use crate::support::{self, Gateway, PATIENCE, Upstream, Wire, proxy, repeats, short};

const PIECE: usize = 256 << 10;
/// Far more than sockets and hyper hold, and a quarter of what is sent.
const BOUND: u64 = 64 << 20;

/// Length of a long body, in bytes.
fn long() -> u64 {
    repeats(4 * BOUND, 1 << 30)
}

/// This process' memory, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Reads this number of bytes; returns how many came, and by how much the memory grew at most.
async fn drain(stream: &mut TcpStream, length: u64, before: u64) -> (u64, u64) {
    let (mut buffer, mut read, mut grown, mut look) = (vec![0; PIECE], 0, 0, 0);
    while read < length {
        let got = stream.read(&mut buffer).await.unwrap() as u64;
        if got == 0 {
            break;
        }
        read += got;
        if read >= look {
            grown = resident().saturating_sub(before).max(grown);
            look = read + (8 << 20);
        }
    }
    (read, grown)
}

async fn pour(stream: &mut TcpStream, length: u64) {
    let piece = vec![b'x'; PIECE];
    for _ in 0..length / PIECE as u64 {
        stream.write_all(&piece).await.unwrap();
    }
}

fn patient() -> Timeouts {
    Timeouts::new().response_head(PATIENCE).body_idle(PATIENCE)
}

#[tokio::test]
async fn a_long_download_takes_no_memory() {
    let _alone = ALONE.lock().await;
    let length = long();
    let upstream = Upstream::scripted(move |mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
        pour(&mut wire.into_inner(), length).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient()).await;
    let before = resident();
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let (read, grown) = drain(&mut stream, u64::MAX, before).await;
    assert!((length..length + 1000).contains(&read), "{read}");
    assert!(grown < BOUND, "{grown} bytes more");
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_long_upload_takes_no_memory() {
    let _alone = ALONE.lock().await;
    let length = long();
    let before = resident();
    let upstream = Upstream::scripted(move |mut wire, _| async move {
        wire.request_head().await.unwrap();
        let begun = wire.buffered() as u64;
        let mut stream = wire.into_inner();
        let (read, grown) = drain(&mut stream, length - begun, before).await;
        let told = format!("{} {grown}", read + begun);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", told.len());
        stream.write_all(format!("{head}{told}").as_bytes()).await.unwrap();
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient().total(None)).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream
        .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    pour(&mut stream, length).await;
    let answer = Wire::new(stream).answer().await.text();
    let (read, grown) = answer.split_once(' ').unwrap();
    assert_eq!(read, length.to_string());
    assert!(grown.parse::<u64>().unwrap() < BOUND, "{grown} bytes more");
    assert_eq!(gateway.seen.causes(), []);
}

/// Waits until the count no longer changes, and returns it.
async fn at_rest(count: &AtomicU64) -> u64 {
    let (mut last, mut still) = (0, 0);
    for _ in 0..900 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = count.load(SeqCst);
        still = if now == last && now > 0 { still + 1 } else { 0 };
        if still == 50 {
            return now;
        }
        last = now;
    }
    panic!("it never stood still");
}

#[tokio::test]
async fn an_upstream_whose_response_is_not_read_has_to_wait() {
    const LENGTH: u64 = 4 * BOUND;
    let _alone = ALONE.lock().await;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let count = count.clone();
        async move {
            wire.request().await.unwrap();
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
            let mut stream = wire.into_inner();
            while count.load(SeqCst) < LENGTH {
                pour(&mut stream, PIECE as u64).await;
                count.fetch_add(PIECE as u64, SeqCst);
            }
        }
    })
    .await;
    // the timeouts of the upstream are paused while the client does not read: the wait is longer than they are
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let waited_at = at_rest(&written).await;
    assert!(waited_at < BOUND, "{waited_at} bytes were taken though nobody read them");
    let (read, _) = drain(&mut stream, u64::MAX, 0).await;
    assert!((LENGTH..LENGTH + 1000).contains(&read), "{read}");
    assert_eq!(gateway.seen.causes(), []);
}

/// Sends a request and does not read its response, but for what the kernel buffers.
async fn ask_and_leave_unread(gateway: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    stream
}

const ENDLESS: u64 = 4 * BOUND;

/// Responds to `/large` with more than all buffers hold, and to other requests with a word.
async fn large() -> Upstream {
    Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            if !request.first.contains("/large") {
                wire.reply("small").await;
                continue;
            }
            wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n")).await;
            let (mut stream, piece) = (wire.into_inner(), vec![b'x'; PIECE]);
            for _ in 0..ENDLESS / PIECE as u64 {
                if stream.write_all(&piece).await.is_err() {
                    break;
                }
            }
            return;
        }
    })
    .await
}

#[tokio::test]
async fn a_response_that_is_not_read_releases_its_connection() {
    let _alone = ALONE.lock().await;
    let upstream = large().await;
    let builder = proxy(upstream.address).max_connections(1).queue_timeout(PATIENCE);
    let limits = Timeouts::new().response_head(PATIENCE).client_idle(Duration::from_millis(300));
    let gateway = Gateway::limited(builder, limits).await;
    let mut unread = ask_and_leave_unread(gateway.address).await;
    while upstream.accepted() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = support::ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(other.text(), "small", "the only connection of the pool is free");
    let (read, _) = drain(&mut unread, u64::MAX, 0).await;
    assert!(read < ENDLESS, "who reads on sees a body that was cut");
    assert_eq!(gateway.seen.causes(), [Cause::ClientClosed]);
}

#[tokio::test]
async fn a_response_that_is_not_read_resets_its_stream_and_no_other() {
    struct Ended(Arc<AtomicU64>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let _alone = ALONE.lock().await;
    let ended = Arc::<AtomicU64>::default();
    let count = ended.clone();
    let endless = move || {
        let ended = Ended(count.clone());
        async move {
            let pieces = std::iter::repeat_n(vec![b'x'; PIECE], 1000).map(move |piece| {
                let _ = &ended;
                Ok::<_, std::io::Error>(piece)
            });
            axum::body::Body::from_stream(futures_util::stream::iter(pieces))
        }
    };
    let router = axum::Router::new().route("/large", get(endless)).fallback(|| async { "small" });
    let upstream = support::app(router).await;
    let limits = short().client_idle(Duration::from_millis(300));
    let gateway = Gateway::limited(proxy(upstream.address).http(HttpVersion::H2), limits).await;
    let unread = ask_and_leave_unread(gateway.address).await;
    support::until("the stream is reset", || ended.load(SeqCst) == 1).await;
    let other = support::ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!((other.text().as_str(), upstream.accepted()), ("small", 1));
    drop(unread);
}

#[tokio::test]
async fn one_client_connection_with_a_window_of_zero_does_not_use_up_the_limiter() {
    let _alone = ALONE.lock().await;
    let upstream = large().await;
    let limits = Timeouts::new().response_head(PATIENCE).client_idle(Duration::from_millis(500));
    let layer = UpstreamLayer::builder("shop")
        .timeouts(move |_| limits)
        .limiter(move |_| ConcurrencyLimitLayer::fixed(20))
        .without_upload_tracking();
    let layer = layer.build().unwrap();
    let (handle, proxy) = (layer.handle(), proxy(upstream.address).build::<RequestBody<Incoming>>());
    let listener = support::listener().await;
    let address = listener.local_addr().unwrap();
    let gateway = tokio::spawn(support::serve(listener, move |_| layer.layer(proxy.clone())));

    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut unread = Vec::new();
    for _ in 0..20 {
        send = send.ready().await.unwrap();
        let request = http::Request::get(format!("http://{address}/large")).body(()).unwrap();
        let (answer, _) = send.send_request(request, true).unwrap();
        unread.push(support::soon(answer).await.unwrap());
    }
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    support::until("the slots are free", || handle.in_flight() == 0).await;
    assert_eq!(support::ask(address, request).await.text(), "small");
    let snapshot = handle.snapshot(tokio::time::Instant::now());
    assert_eq!((snapshot.limit.unwrap().in_flight, snapshot.circuit.unwrap().failures), (0, 0));
    drop(unread);
    connection.abort();
    gateway.abort();
}

#[tokio::test]
async fn a_client_whose_upload_is_not_read_has_to_wait() {
    let _alone = ALONE.lock().await;
    let release = Arc::new(tokio::sync::Notify::new());
    let go_on = release.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let go_on = go_on.clone();
        async move {
            wire.request_head().await.unwrap();
            go_on.notified().await;
            let begun = wire.buffered() as u64;
            let mut stream = wire.into_inner();
            drain(&mut stream, 4 * BOUND - begun, 0).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), patient()).await;
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let upload = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 4 * BOUND);
        write.write_all(head.as_bytes()).await.unwrap();
        let piece = vec![b'x'; PIECE];
        while count.load(SeqCst) < 4 * BOUND {
            write.write_all(&piece).await.unwrap();
            count.fetch_add(PIECE as u64, SeqCst);
        }
        write
    });
    let waited_at = at_rest(&written).await;
    assert!(waited_at < BOUND, "{waited_at} bytes were taken though nobody read them");
    release.notify_one();
    let _write = support::soon(upload).await.unwrap();
    let mut answer = [0; 12];
    support::soon(read.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}
