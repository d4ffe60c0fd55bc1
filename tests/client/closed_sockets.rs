//! However a call fails, its upstream socket is closed when its client has the response.
//!
//! "Closed" is what the upstream sees: its read ends within 100 ms of the response, or of the client's cancellation. If
//! the upstream must not read, it is the end of the gateway's own socket.

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Notify, mpsc};
use tower::service_fn;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::client::HttpVersion;

use crate::support::{Gateway, Message, Socket, Upstream, Wire, ask, proxy, soon};

const LIMIT: Duration = Duration::from_millis(100);
/// More than two sockets buffer.
const LARGE: usize = 32 << 20;

/// An upstream that fails as the path says, and then checks that its socket is closed in time.
struct Stage {
    upstream: Upstream,
    gateway: Gateway,
    /// The client has its response, or has cancelled.
    over: Arc<Notify>,
    /// The upstream has finished.
    played: mpsc::UnboundedReceiver<()>,
    closed: mpsc::UnboundedReceiver<bool>,
}

impl Stage {
    async fn new() -> Self {
        let (over, both) = (Arc::new(Notify::new()), Arc::new(Barrier::new(2)));
        let (now_played, played) = mpsc::unbounded_channel();
        let (now_closed, closed) = mpsc::unbounded_channel();
        let end = over.clone();
        let upstream = Upstream::scripted(move |mut wire, _| {
            let (end, both, played, closed) = (end.clone(), both.clone(), now_played.clone(), now_closed.clone());
            async move {
                let Some(head) = wire.request_head().await else { return };
                if head.first.contains("/healthy") {
                    both.wait().await;
                    return wire.reply("fine").await;
                }
                play(&mut wire, head.first.split(' ').nth(1).unwrap()).await;
                played.send(()).unwrap();
                end.notified().await;
                closed.send(wire.ends_within(LIMIT).await).unwrap();
            }
        })
        .await;
        let gateway = Gateway::start(proxy(upstream.address).max_connections(2)).await;
        Self { upstream, gateway, over, played, closed }
    }

    /// The response to a request, and the one failure that was reported.
    async fn fails(&mut self, request: impl AsRef<[u8]>) -> (Message, Cause) {
        let mut wire = Wire::connect(self.gateway.address).await;
        wire.write(request).await;
        let answer = wire.answer().await;
        self.is_closed().await;
        let causes = self.gateway.seen.take();
        assert_eq!(causes.len(), 1, "{causes:?}");
        (answer, causes[0])
    }

    async fn gets(&mut self, path: &str) -> (Message, Cause) {
        self.fails(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await
    }

    async fn is_closed(&mut self) {
        self.over.notify_one();
        assert!(soon(self.closed.recv()).await.unwrap(), "the upstream's socket is still open");
    }

    /// Both places of the pool are free.
    async fn is_healthy(&self) {
        let request = "GET /healthy HTTP/1.1\r\nHost: a\r\n\r\n";
        let (one, other) = tokio::join!(ask(self.gateway.address, request), ask(self.gateway.address, request));
        assert_eq!((one.status(), other.status()), (200, 200));
    }
}

async fn play(wire: &mut Wire, path: &str) {
    match path {
        "/silence" => {}
        "/stalled-body" => wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await,
        "/cut-body" => {
            wire.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
            wire.finish_writing().await;
        }
        "/bad-chunk" => wire.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await,
        "/half-head" => wire.write("HTTP/1.1 200 OK\r\nContent-Ty").await,
        "/cut-head" => {
            wire.write("HTTP/1.1 200 OK\r\nContent-Ty").await;
            wire.finish_writing().await;
        }
        "/empty" => wire.finish_writing().await,
        "/garbage" => wire.write("SSH-2.0-OpenSSH_9.2\r\n").await,
        "/no-http" => wire.write("HTTP/1.1 2x0 OK\r\n\r\n").await,
        "/large-head" => {
            let line = format!("x: {}\r\n", "y".repeat(8000));
            let _ = wire.try_write(format!("HTTP/1.1 200 OK\r\n{}", line.repeat(100))).await;
        }
        "/two-lengths" => {
            wire.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
        }
        "/unrequested" => wire.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: foo\r\n\r\n").await,
        "/flood" => {
            let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(10);
            while wire.try_write(&hints).await.is_ok() {}
        }
        "/endless" => {
            let _ = wire.try_write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegun").await;
        }
        other => panic!("no play is called {other}"),
    }
}

#[tokio::test]
async fn a_timeout_of_the_response_head_closes_the_socket() {
    let (answer, cause) = Stage::new().await.gets("/silence").await;
    assert_eq!((answer.status(), answer.error()), (504, Some("connection_read_timeout")));
    assert_eq!(cause, Cause::FirstByteTimeout);
}

/// Returns the response to an upload, and whether the gateway's end of the connection was closed in time.
///
/// The upstream reads nothing more, so that only the gateway can end a write that is blocked.
async fn uploads_to(upstream: &Upstream, http: HttpVersion) -> (u16, Vec<Cause>) {
    let (open, mut ends) = mpsc::unbounded_channel();
    let address = upstream.address;
    let open = Arc::new(Mutex::new(Some(open)));
    let connector = service_fn(move |_: Uri| {
        let open = open.lock().unwrap().take().unwrap();
        async move { TcpStream::connect(address).await.map(|stream| Socket::watched(stream, open)) }
    });
    let gateway = Gateway::start(proxy(address).http(http).connector(connector)).await;
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let upload = tokio::spawn(async move {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let _ = write.write_all(&vec![b'x'; LARGE]).await;
    });
    let mut answer = [0; 12];
    soon(read.read_exact(&mut answer)).await.unwrap();
    let closed = tokio::time::timeout(LIMIT, ends.recv()).await;
    assert_eq!(closed, Ok(None), "the gateway's end is still open");
    upload.abort();
    (std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap(), gateway.seen.causes())
}

#[tokio::test]
async fn an_upload_that_is_never_read_closes_the_socket() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request_head().await.unwrap();
        pending::<()>().await;
        drop(wire);
    })
    .await;
    assert_eq!(uploads_to(&upstream, HttpVersion::Auto).await, (504, vec![Cause::WriteTimeout]));
}

#[tokio::test]
async fn an_upload_that_an_http_2_upstream_never_reads_closes_the_socket() {
    let upstream = Upstream::accepting(|stream, _| async move {
        let mut server = h2::server::Builder::new();
        server.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
        let mut server = server.handshake::<_, Bytes>(stream).await.unwrap();
        let stream = server.accept().await.unwrap().unwrap();
        pending::<()>().await;
        drop((server, stream));
    })
    .await;
    assert_eq!(uploads_to(&upstream, HttpVersion::H2).await, (504, vec![Cause::WriteTimeout]));
}

#[tokio::test]
async fn a_body_that_stalls_or_breaks_closes_the_socket() {
    let mut stage = Stage::new().await;
    for (path, wanted) in [
        ("/stalled-body", Cause::BodyReadTimeout),
        ("/cut-body", Cause::IncompleteBody),
        ("/bad-chunk", Cause::TransferCoding),
    ] {
        let (answer, cause) = stage.gets(path).await;
        assert_eq!(cause, wanted, "{path}");
        assert!(!answer.whole || answer.status() == 502, "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn an_incomplete_head_closes_the_socket() {
    let mut stage = Stage::new().await;
    for (path, wanted) in [
        ("/half-head", Cause::FirstByteTimeout),
        ("/cut-head", Cause::IncompleteHead),
        ("/empty", Cause::ClosedBeforeResponse),
        ("/large-head", Cause::HeadTooLarge),
    ] {
        let (answer, cause) = stage.gets(path).await;
        assert_eq!((cause, answer.whole), (wanted, true), "{path}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_response_close_the_socket() {
    let mut stage = Stage::new().await;
    for (path, wanted) in [
        ("/garbage", Cause::WrongProtocol),
        ("/no-http", Cause::InvalidResponse),
        ("/two-lengths", Cause::InvalidResponse),
        ("/unrequested", Cause::UpgradeFailed),
        ("/flood", Cause::InvalidResponse),
    ] {
        let (answer, cause) = stage.gets(path).await;
        assert_eq!((answer.status(), cause), (502, wanted), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_cancels_before_the_head_closes_the_socket() {
    let mut stage = Stage::new().await;
    let mut wire = Wire::connect(stage.gateway.address).await;
    wire.write("GET /silence HTTP/1.1\r\nHost: a\r\n\r\n").await;
    soon(stage.played.recv()).await.unwrap();
    drop(wire);
    stage.is_closed().await;
}

#[tokio::test]
async fn a_client_that_cancels_its_upload_closes_the_socket() {
    let mut stage = Stage::new().await;
    let mut wire = Wire::connect(stage.gateway.address).await;
    wire.write("POST /silence HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nbegun").await;
    soon(stage.played.recv()).await.unwrap();
    drop(wire);
    stage.is_closed().await;
}

#[tokio::test]
async fn a_client_that_cancels_its_download_closes_the_socket() {
    let mut stage = Stage::new().await;
    let mut wire = Wire::connect(stage.gateway.address).await;
    wire.write("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.status(), 200);
    assert_eq!(wire.bytes(5).await, b"begun");
    drop(wire);
    stage.is_closed().await;
}

#[tokio::test]
async fn a_client_that_resets_its_stream_closes_the_socket() {
    let mut stage = Stage::new().await;
    let stream = TcpStream::connect(stage.gateway.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/silence", stage.gateway.address)).header("host", "a");
    let call = tokio::spawn(sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()));
    soon(stage.played.recv()).await.unwrap();
    call.abort();
    stage.is_closed().await;
    assert!(!sender.is_closed());
}

#[tokio::test]
async fn no_failure_keeps_its_place_in_the_pool() {
    let mut stage = Stage::new().await;
    for path in ["/silence", "/stalled-body", "/cut-body", "/bad-chunk", "/half-head", "/cut-head", "/empty"] {
        stage.gets(path).await;
    }
    for path in ["/large-head", "/garbage", "/no-http", "/two-lengths", "/unrequested", "/flood"] {
        stage.gets(path).await;
    }
    for path in ["/silence", "/endless"] {
        let mut wire = Wire::connect(stage.gateway.address).await;
        wire.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbegun")).await;
        while stage.played.try_recv().is_ok() {}
        soon(stage.played.recv()).await.unwrap();
        drop(wire);
        stage.is_closed().await;
    }
    assert_eq!(stage.upstream.accepted(), 15);
    stage.is_healthy().await;
    assert_eq!(stage.upstream.accepted(), 17);
}

#[tokio::test]
async fn an_http_2_upstream_that_sends_nothing_closes_the_socket() {
    let over = Arc::new(Notify::new());
    let (told, mut closed) = mpsc::unbounded_channel();
    let end = over.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let (end, told) = (end.clone(), told.clone());
        async move {
            end.notified().await;
            told.send(wire.ends_within(LIMIT).await).unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    over.notify_one();
    assert_eq!(answer.status(), 504);
    assert!(soon(closed.recv()).await.unwrap());
    assert_eq!(gateway.seen.causes(), [Cause::FirstByteTimeout]);
}

/// An HTTP/2 upstream that takes streams, responds to those to `/healthy` only, and never reads a body.
async fn silent_h2(over: Arc<Notify>) -> (Upstream, mpsc::UnboundedReceiver<bool>) {
    let (told, closed) = mpsc::unbounded_channel();
    let upstream = Upstream::accepting(move |stream, connection| {
        let (over, told) = (over.clone(), told.clone());
        async move {
            let mut server = h2::server::handshake(stream).await.unwrap();
            let mut streams = Vec::new();
            let mut over = pin!(async {
                match connection {
                    0 => over.notified().await,
                    _ => pending().await,
                }
            });
            loop {
                tokio::select! {
                    stream = server.accept() => match stream {
                        Some(Ok((request, mut respond))) if request.uri().path() == "/healthy" => {
                            respond.send_response(Response::new(()), true).unwrap();
                        }
                        Some(Ok(stream)) => streams.push(stream),
                        _ => return told.send(true).unwrap(),
                    },
                    () = &mut over => break,
                }
            }
            let ended = async { while let Some(Ok(_)) = server.accept().await {} };
            told.send(tokio::time::timeout(LIMIT, ended).await.is_ok()).unwrap();
        }
    })
    .await;
    (upstream, closed)
}

#[tokio::test]
async fn an_http_2_stream_without_a_response_closes_the_socket() {
    let over = Arc::new(Notify::new());
    let (upstream, mut closed) = silent_h2(over.clone()).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2).max_connections(1)).await;
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    over.notify_one();
    assert_eq!(answer.status(), 504);
    assert!(soon(closed.recv()).await.unwrap());
    assert_eq!(ask(gateway.address, "GET /healthy HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
}

#[tokio::test]
async fn an_http_2_stream_whose_window_stays_closed_closes_the_socket() {
    let over = Arc::new(Notify::new());
    let (upstream, mut closed) = silent_h2(over.clone()).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2).max_connections(1)).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let pieces = (0..512).map(|_| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(vec![b'x'; 16 << 10]))));
    let body = StreamBody::new(futures_util::stream::iter(pieces)).boxed();
    let request = Request::post(format!("http://{}/", gateway.address)).header("host", "a").body(body).unwrap();
    let answer = soon(sender.send_request(request)).await.unwrap();
    over.notify_one();
    assert_eq!(answer.status(), 504);
    assert!(soon(closed.recv()).await.unwrap());
    assert_eq!(gateway.seen.causes(), [Cause::WriteTimeout]);
    assert_eq!(ask(gateway.address, "GET /healthy HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
}
