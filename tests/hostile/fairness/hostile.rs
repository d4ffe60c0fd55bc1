//! Clients that misbehave, one kind a variant.

use std::any::Any;
use std::fmt::Write;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How a client misbehaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Requests large responses with a small receive buffer and reads nothing.
    NeverReadingHttp1,
    /// Requests large responses on streams whose window is 0.
    NeverReadingHttp2,
    /// Reads a kilobyte now and then.
    SlowReader,
    CancelBeforeHead,
    CancelUpload,
    CancelDownload,
    /// Cancels HTTP/2 streams in every state, its connection stays.
    ResetStreams,
    /// The same, by all hostile clients at once: to an upstream that they share a connection to, a rapid reset attack.
    ResetStreamsAtOnce,
    /// Request heads between what HTTP/2 servers and what HTTP/1.1 servers accept, and beyond.
    HugeHead,
    /// Hosts that some parsers accept and others refuse.
    OddHost,
    /// Trailers with fields of the connection, of framing and of routing.
    BadTrailer,
    /// Upgrades, and then says nothing.
    SilentTunnel,
    /// Uploads a byte now and then, without an end.
    DrippingUpload,
    /// Calls a route that never responds.
    HungRoute,
    /// Calls a route that always responds with an error, again and again.
    FailingRoute,
    /// Calls a route in maintenance, which asks to wait.
    MaintenanceRoute,
}

/// What a hostile client keeps open.
pub(crate) type Held = Vec<Box<dyn Any + Send>>;

/// How long a hostile client waits for a response; one that has none by then keeps waiting while others ask.
const WAIT: Duration = Duration::from_millis(100);

const ODD_HOSTS: &[&str] = &[
    "%41",
    "a%41.example",
    "a%",
    "a%zz",
    "%",
    "a:",
    "a:0",
    "a:99999",
    ":80",
    "[::1]",
    "[::1",
    "[v1.x]",
    "[fe80::1%25eth0]",
    "a!b",
    "a..b",
    ".",
    "-",
    "a_b",
    "a@b",
    "a/b",
    "a?b",
    "a#b",
    "a b",
    "a,b",
    "*",
    "~",
    "(a)",
    "a;b",
    "a'b",
    "\u{e9}.example",
    "xn--a",
    "1.2.3",
    "0x7f.1",
    "",
];

const BAD_TRAILERS: &[&str] = &[
    "Connection: close",
    "Connection: x-a\r\nX-A: 1",
    "Transfer-Encoding: chunked",
    "Keep-Alive: timeout=5",
    "Upgrade: h2c",
    "Proxy-Connection: close",
    "TE: gzip",
    "TE: trailers",
    "Content-Length: 99",
    "Host: b.example",
    "Trailer: x",
    "Expect: 100-continue",
    "Authorization: x",
    ":authority: b.example",
    "X-\u{e9}: 1",
    " folded: 1",
    "No colon",
];

impl Kind {
    /// Its requests end once a response has not been read for `client_idle`.
    pub(crate) fn is_cured_by_client_idle(self) -> bool {
        matches!(self, Self::NeverReadingHttp1 | Self::NeverReadingHttp2)
    }

    /// What its calls meet looks like an outage, unless others are served at the same time.
    pub(crate) fn looks_like_an_outage(self) -> bool {
        matches!(self, Self::DrippingUpload | Self::HungRoute | Self::FailingRoute | Self::MaintenanceRoute)
    }

    /// How many clients act at the same time; what others have opened stays open.
    pub(crate) fn at_once(self) -> usize {
        if matches!(self, Self::ResetStreamsAtOnce) { 100 } else { 2 }
    }

    pub(crate) async fn act(self, gateway: SocketAddr) -> Held {
        match self {
            Self::NeverReadingHttp1 => never_read_http1(gateway).await,
            Self::NeverReadingHttp2 => never_read_http2(gateway).await,
            Self::SlowReader => read_slowly(gateway).await,
            Self::CancelBeforeHead => cancel(gateway, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", 0).await,
            Self::CancelUpload => {
                let partial = "x".repeat(3_000);
                let whole = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{partial}");
                let mut held = cancel(gateway, &whole, 0).await;
                let chunk =
                    format!("POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nbb8\r\n{partial}");
                held.extend(cancel(gateway, &chunk, 0).await);
                held
            }
            Self::CancelDownload => cancel(gateway, "GET /big HTTP/1.1\r\nHost: a\r\n\r\n", 30_000).await,
            Self::ResetStreams | Self::ResetStreamsAtOnce => reset_streams(gateway).await,
            Self::HugeHead => send_huge_heads(gateway).await,
            Self::OddHost => send_odd_hosts(gateway).await,
            Self::BadTrailer => send_bad_trailers(gateway).await,
            Self::SilentTunnel => open_silent_tunnels(gateway).await,
            Self::DrippingUpload => drip(gateway).await,
            Self::HungRoute => vec![send(gateway, b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await],
            Self::FailingRoute => call_often(gateway, "/fail").await,
            Self::MaintenanceRoute => call_often(gateway, "/later").await,
        }
    }
}

async fn in_time<F: Future>(future: F) -> Option<F::Output> {
    tokio::time::timeout(WAIT, future).await.ok()
}

async fn connect(gateway: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(gateway).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn connect_with_small_buffer(gateway: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2 << 10).unwrap();
    socket.connect(gateway).await.unwrap()
}

/// Sends a request on a connection of its own and waits for the first bytes of the response.
async fn send(gateway: SocketAddr, request: &[u8]) -> Box<dyn Any + Send> {
    let mut stream = connect(gateway).await;
    // a server may refuse the rest of a large request
    let _ = in_time(stream.write_all(request)).await;
    let _ = in_time(stream.read(&mut [0; 1024])).await;
    Box::new(stream)
}

async fn never_read_http1(gateway: SocketAddr) -> Held {
    let mut held = Held::new();
    for _ in 0..2 {
        let mut stream = connect_with_small_buffer(gateway).await;
        stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let _ = in_time(stream.readable()).await;
        held.push(Box::new(stream));
    }
    held
}

async fn h2_client(gateway: SocketAddr, window: u32) -> (h2::client::SendRequest<Bytes>, AbortOnDrop) {
    let mut client = h2::client::Builder::new();
    client.initial_window_size(window);
    let (sender, connection) = client.handshake::<_, Bytes>(connect(gateway).await).await.unwrap();
    (sender, AbortOnDrop(tokio::spawn(async { drop(connection.await) })))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://a.example{path}")).body(()).unwrap()
}

async fn never_read_http2(gateway: SocketAddr) -> Held {
    let (mut sender, connection) = h2_client(gateway, 0).await;
    let mut held: Held = vec![Box::new(connection)];
    for path in ["/big", "/page", "/big", "/page", "/big", "/page"] {
        sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(get(path), true).unwrap();
        held.push(Box::new(in_time(response).await));
    }
    held.push(Box::new(sender));
    held
}

async fn read_slowly(gateway: SocketAddr) -> Held {
    let mut stream = connect_with_small_buffer(gateway).await;
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let reader = tokio::spawn(async move {
        while stream.read(&mut [0; 1 << 10]).await.is_ok_and(|read| read > 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    vec![Box::new(AbortOnDrop(reader))]
}

/// Closes connections once they have read so many bytes, with FIN and with RST.
async fn cancel(gateway: SocketAddr, request: &str, after: usize) -> Held {
    for with_reset in [false, true, true] {
        let mut stream = connect(gateway).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        match after {
            0 => tokio::time::sleep(Duration::from_millis(5)).await,
            after => drop(in_time(stream.read_exact(&mut vec![0; after])).await),
        }
        if with_reset {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    Held::new()
}

async fn reset_streams(gateway: SocketAddr) -> Held {
    let (mut sender, connection) = h2_client(gateway, 1 << 16).await;
    for path in ["/slow", "/big", "/page", "/slow"] {
        sender = sender.ready().await.unwrap();
        let (response, _) = sender.send_request(get(path), true).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(5), response).await;
    }
    for path in ["/echo", "/slow"] {
        sender = sender.ready().await.unwrap();
        let request = Request::post(format!("http://a.example{path}")).body(()).unwrap();
        let (response, mut upload) = sender.send_request(request, false).unwrap();
        upload.send_data(Bytes::from_static(&[b'x'; 3_000]), false).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop((response, upload));
    }
    vec![Box::new(connection), Box::new(sender)]
}

async fn send_huge_heads(gateway: SocketAddr) -> Held {
    let mut held = Held::new();
    for size in [15_000, 20_000, 60_000, 70_000, 90_000, 200_000, 350_000] {
        let request = format!("GET /small HTTP/1.1\r\nHost: a\r\nX-A: {}\r\n\r\n", "x".repeat(size));
        held.push(send(gateway, request.as_bytes()).await);
    }
    let mut fields = String::new();
    for n in 0..95 {
        write!(fields, "X-{n}: {}\r\n", "x".repeat(2_000)).unwrap();
    }
    held.push(send(gateway, format!("GET /small HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes()).await);
    let target = "x".repeat(60_000);
    held.push(send(gateway, format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await);
    held
}

async fn send_odd_hosts(gateway: SocketAddr) -> Held {
    let mut held = Held::new();
    for host in ODD_HOSTS {
        held.push(send(gateway, format!("GET /small HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await);
    }
    held.push(send(gateway, format!("GET /small HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(70_000)).as_bytes()).await);
    held.push(send(gateway, b"GET /small HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await);
    held.push(send(gateway, b"GET /small HTTP/1.1\r\nHost: \xff\r\n\r\n").await);
    held.push(send(gateway, b"GET /small HTTP/1.0\r\n\r\n").await);
    let (mut sender, connection) = h2_client(gateway, 1 << 16).await;
    for host in ["%41", "a%41.example", "a@b", "", "a b"] {
        sender = sender.ready().await.unwrap();
        let request = Request::get("/small").header("host", host).body(()).unwrap();
        if let Ok((response, _)) = sender.send_request(request, true) {
            let _ = in_time(response).await;
        }
    }
    held.push(Box::new((sender, connection)));
    held
}

async fn send_bad_trailers(gateway: SocketAddr) -> Held {
    let mut held = Held::new();
    for trailer in BAD_TRAILERS {
        let post = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        held.push(send(gateway, format!("{post}3\r\nabc\r\n0\r\n{trailer}\r\n\r\n").as_bytes()).await);
    }
    let (mut sender, connection) = h2_client(gateway, 1 << 16).await;
    for (name, value) in [("content-length", "99"), ("host", "b"), ("te", "trailers"), ("x-forwarded-for", "::1")] {
        sender = sender.ready().await.unwrap();
        let request = Request::post("http://a.example/echo").body(()).unwrap();
        let (response, mut upload) = sender.send_request(request, false).unwrap();
        let fields = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        if upload.send_data(Bytes::from_static(b"abc"), false).is_ok() && upload.send_trailers(fields).is_ok() {
            let _ = in_time(response).await;
        }
    }
    held.push(Box::new((sender, connection)));
    held
}

async fn drip(gateway: SocketAddr) -> Held {
    let mut stream = connect(gateway).await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
    let upload = tokio::spawn(async move {
        while stream.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    vec![Box::new(AbortOnDrop(upload))]
}

async fn call_often(gateway: SocketAddr, path: &str) -> Held {
    let mut held = Held::new();
    for _ in 0..30 {
        held.push(send(gateway, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await);
    }
    held
}

async fn open_silent_tunnels(gateway: SocketAddr) -> Held {
    let mut held = Held::new();
    for _ in 0..5 {
        let fields = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        let request =
            format!("GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n{fields}\r\n\r\n");
        held.push(send(gateway, request.as_bytes()).await);
    }
    held
}
