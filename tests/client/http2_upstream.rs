//! HTTP/2 upstreams: shared windows, stream limits, PINGs, age and idle limits, dials that hang.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Barrier, mpsc, watch};
use tokio::time::{Instant, sleep};
use tower::{Service, service_fn};
use tower_upstream::cause::{Detail, Evidence, Replay};
use tower_upstream::client::{Connect, HttpVersion, ReverseProxy, ReverseProxyBuilder};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::{BadGatewayCause, Failure};

use crate::support::{self, Gateway, Socket, Upstream, Wire, ask, proxy, short, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "a").body(Body::empty()).unwrap()
}

/// Begins a call, and returns it while it waits.
fn begin(call: &mut Pin<Box<impl Future + ?Sized>>) {
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// Sends a body as far as the peer's windows allow; returns the number of bytes once nothing more was sent for a while.
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

/// An upstream with HTTP/2 and this limit of streams; a script gets each stream, with the number of its connection.
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

fn respond_ok(mut respond: h2::server::SendResponse<Bytes>) {
    let _ = respond.send_response(Response::new(()), true);
}

/// Streams to which the upstream responds with a head; their bodies end when the test says so.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<h2::SendStream<Bytes>>>>);

impl Events {
    fn begin(&self, mut respond: h2::server::SendResponse<Bytes>) {
        let stream = respond.send_response(Response::new(()), false).unwrap();
        self.0.lock().unwrap().push(stream);
    }

    fn end_all(&self) {
        for mut stream in self.0.lock().unwrap().drain(..) {
            stream.send_data(Bytes::new(), true).unwrap();
        }
    }
}

/// An upstream with this limit of streams: the response to `/events` lasts until it is ended, others are immediate.
async fn limited_upstream(streams: u32) -> (Upstream, Events, Arc<AtomicUsize>) {
    let (events, requests) = (Events::default(), Arc::new(AtomicUsize::new(0)));
    let (begun, count) = (events.clone(), requests.clone());
    let upstream = upstream(Some(streams), move |_, request, respond| {
        let (events, count) = (begun.clone(), count.clone());
        async move {
            count.fetch_add(1, SeqCst);
            match request.uri().path() {
                "/events" => events.begin(respond),
                _ => respond_ok(respond),
            }
        }
    })
    .await;
    (upstream, events, requests)
}

// windows

#[tokio::test]
async fn clients_that_stop_reading_hold_up_no_other_stream() {
    let upstream = upstream(None, |_, request, mut respond| async move {
        let length = if request.uri().path() == "/large" { 64 << 20 } else { 100 << 10 };
        send_up_to(&mut respond, length).await;
    })
    .await;
    let proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
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
    let mut proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
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
        let builder = proxy(upstream.address).http(HttpVersion::H2).max_streams(streams).http2_stream_window(window);
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
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
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

    /// Copies the gateway's frames to the upstream, except for those of one type.
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
/// It responds to `/later` after an hour and a half, to other requests immediately, and counts its connections.
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
    (builder.connector(connector).http(HttpVersion::H2), connections)
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
    ReverseProxy::builder("app.local".parse().unwrap(), ForwardingRules::new("edge").unwrap())
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

#[tokio::test(start_paused = true)]
async fn no_setting_of_a_duration_panics_or_spins() {
    for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        for set in [
            |builder: ReverseProxyBuilder, time| builder.max_age(time),
            |builder: ReverseProxyBuilder, time| builder.idle_timeout(time),
            |builder: ReverseProxyBuilder, time| builder.queue_timeout(time),
            |builder: ReverseProxyBuilder, time| builder.upload_idle_timeout(time),
            |builder: ReverseProxyBuilder, time| builder.http2_keep_alive(time, time),
            |builder: ReverseProxyBuilder, time| builder.http2_keep_alive(HOUR, time),
        ] {
            let frames = Frames::default();
            let (builder, connections) = in_process(set(builder(), time), frames.clone(), None);
            let proxy = builder.build::<Body>();
            let calls: Vec<_> = (0..20).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
            for call in calls {
                assert_eq!(call.await.unwrap().unwrap().status(), 200);
            }
            let later = tokio::spawn(proxy.clone().call(get("/later")));
            sleep(Duration::from_secs(60)).await;
            assert_eq!(proxy.clone().call(get("/")).await.unwrap().status(), 200);
            assert!(connections.load(SeqCst) <= 22, "{}", connections.load(SeqCst));
            assert!(frames.count(PING) <= 62, "{}", frames.count(PING));
            later.abort();
        }
    }
}

// idle and age

#[tokio::test(start_paused = true)]
async fn a_connection_idle_for_longer_than_the_limit_is_not_used() {
    let (builder, connections) = in_process(builder(), Frames::default(), None);
    let mut proxy = builder.build::<Body>();
    for (idle, opened) in [(0, 1), (2900, 1), (2900, 1), (3000, 2), (60_000, 3)] {
        sleep(Duration::from_millis(idle)).await;
        assert_eq!(proxy.call(get("/")).await.unwrap().status(), 200);
        assert_eq!(connections.load(SeqCst), opened, "after {idle} ms");
    }
}

#[tokio::test]
async fn an_idle_connection_is_ended() {
    let (told, mut ended) = mpsc::unbounded_channel();
    let upstream = Upstream::accepting(move |socket, _| {
        let told = told.clone();
        async move {
            let mut server = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((_, respond))) = server.accept().await {
                respond_ok(respond);
            }
            told.send(()).unwrap();
        }
    })
    .await;
    let limited = proxy(upstream.address).http(HttpVersion::H2).idle_timeout(Duration::from_millis(200));
    let mut proxy = limited.build::<Body>();
    assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
    assert_eq!(soon(ended.recv()).await, Some(()));
}

#[tokio::test(start_paused = true)]
async fn a_connection_past_its_age_takes_no_further_request() {
    let (builder, connections) = in_process(builder().idle_timeout(DAY), Frames::default(), None);
    let mut proxy = builder.build::<Body>();
    for (pause, opened) in [(0, 1), (530, 1), (140, 2), (530, 2), (140, 3)] {
        sleep(Duration::from_secs(pause)).await;
        assert_eq!(proxy.call(get("/")).await.unwrap().status(), 200);
        assert_eq!(connections.load(SeqCst), opened);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_past_its_age_serves_the_streams_it_has() {
    let (builder, connections) = in_process(builder(), Frames::default(), None);
    let mut proxy = builder.build::<Body>();
    let later = tokio::spawn(proxy.call(get("/later")));
    sleep(Duration::from_secs(700)).await;
    assert_eq!(proxy.call(get("/")).await.unwrap().status(), 200);
    assert_eq!(connections.load(SeqCst), 2);
    assert_eq!(later.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_connection_past_its_age_serves_on_where_there_is_no_room_for_another() {
    let (builder, connections) = in_process(builder().max_connections(1), Frames::default(), None);
    let mut proxy = builder.build::<Body>();
    let later = tokio::spawn(proxy.call(get("/later")));
    sleep(Duration::from_secs(700)).await;
    assert_eq!(proxy.call(get("/")).await.unwrap().status(), 200);
    assert_eq!(connections.load(SeqCst), 1);
    assert_eq!(later.await.unwrap().unwrap().status(), 200);
    assert_eq!(proxy.call(get("/")).await.unwrap().status(), 200);
    assert_eq!(connections.load(SeqCst), 2);
}

// the upstream's limit of streams

#[tokio::test]
async fn a_request_beyond_the_upstreams_stream_limit_goes_to_another_connection() {
    let (upstream, events, requests) = limited_upstream(1).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let mut running = Wire::connect(gateway.address).await;
    running.write("GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(running.head().await.status(), 200);
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nonce";
    for _ in 0..3 {
        assert_eq!(ask(gateway.address, post).await.status(), 200);
    }
    assert_eq!((upstream.accepted(), requests.load(SeqCst)), (2, 4));
    events.end_all();
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_request_without_a_stream_in_time_was_not_sent() {
    let (upstream, events, requests) = limited_upstream(1).await;
    let limited = proxy(upstream.address).http(HttpVersion::H2).max_connections(1);
    let mut proxy = limited.queue_timeout(Duration::from_millis(100)).build::<Body>();
    let running = soon(proxy.call(get("/events"))).await.unwrap();
    let post = Request::post("/").header("host", "a").body(Body::from("once")).unwrap();
    let failure = soon(proxy.call(post)).await.unwrap_err();
    assert_eq!(failure.cause(), BadGatewayCause::QueueTimeout);
    assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
    assert_eq!((upstream.accepted(), requests.load(SeqCst)), (1, 1));

    events.end_all();
    soon(running.into_body().collect()).await.unwrap();
    assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
    assert_eq!((upstream.accepted(), requests.load(SeqCst)), (1, 2));
}

#[tokio::test]
async fn requests_that_wait_for_a_stream_get_it_in_their_order() {
    let (events, order) = (Events::default(), Arc::new(Mutex::new(Vec::new())));
    let (begun, paths) = (events.clone(), order.clone());
    let upstream = upstream(Some(1), move |_, request, respond| {
        let path = request.uri().path().to_owned();
        paths.lock().unwrap().push(path.clone());
        let events = begun.clone();
        async move { if path == "/events" { events.begin(respond) } else { respond_ok(respond) } }
    })
    .await;
    let limited = proxy(upstream.address).http(HttpVersion::H2).max_connections(1).queue_timeout(support::PATIENCE);
    let mut proxy = limited.build::<Body>();
    let running = soon(proxy.call(get("/events"))).await.unwrap();
    let mut calls = Vec::new();
    for number in 0..40 {
        let mut call = proxy.call(get(&format!("/{number}")));
        begin(&mut call);
        if number % 4 == 3 {
            continue; // that client has left
        }
        calls.push((number, tokio::spawn(call)));
    }
    events.end_all();
    drop(running);
    for (_, call) in &mut calls {
        assert_eq!(soon(call).await.unwrap().unwrap().status(), 200);
    }
    let wanted: Vec<_> = calls.iter().map(|(number, _)| format!("/{number}")).collect();
    assert_eq!(order.lock().unwrap()[1..], wanted);
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn a_burst_on_a_cold_pool_is_refused_no_stream() {
    for (streams, requests, most) in [(1, 30, 30), (7, 100, 20), (100, 250, 5)] {
        let all = Arc::new(Barrier::new(requests));
        let upstream = upstream(Some(streams), move |_, _, respond| {
            let all = all.clone();
            async move {
                all.wait().await;
                respond_ok(respond);
            }
        })
        .await;
        let proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
        let calls: Vec<_> = (0..requests).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
        for call in calls {
            assert_eq!(soon(call).await.unwrap().unwrap().status(), 200);
        }
        let accepted = upstream.accepted();
        assert!(accepted <= most, "{accepted} connections for {requests} requests of {streams} a connection");
    }
}

/// Frames of a scripted upstream.
fn settings(max_streams: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3];
    frame.extend(max_streams.to_be_bytes());
    frame
}

/// An upstream that announces a limit on each connection, responds immediately, and announces other limits when told to.
async fn announcing_upstream(first: u32) -> (Upstream, watch::Sender<u32>, Arc<AtomicUsize>) {
    let (announce, limits) = watch::channel(first);
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let upstream = Upstream::accepting(move |mut socket, _| {
        let (mut limits, count) = (limits.clone(), count.clone());
        limits.mark_unchanged();
        async move {
            let mut preface = [0; 24];
            socket.read_exact(&mut preface).await.unwrap();
            socket.write_all(&settings(first)).await.unwrap();
            let (mut read, mut write) = socket.into_split();
            let (answer, mut answers) = mpsc::unbounded_channel::<Vec<u8>>();
            tokio::spawn(async move {
                loop {
                    let frame = tokio::select! {
                        Some(frame) = answers.recv() => frame,
                        Ok(()) = limits.changed() => settings(*limits.borrow_and_update()),
                        else => return,
                    };
                    let _ = write.write_all(&frame).await;
                }
            });
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() {
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                read.read_exact(&mut payload).await.unwrap();
                if head[3] == 1 {
                    count.fetch_add(1, SeqCst);
                    // HEADERS with END_STREAM and END_HEADERS: `:status: 200` is entry 8 of the static table
                    let mut frame = vec![0, 0, 1, 1, 5];
                    frame.extend(&head[5..]);
                    frame.push(0x88);
                    let _ = answer.send(frame);
                }
            }
        }
    })
    .await;
    (upstream, announce, requests)
}

#[tokio::test]
async fn nothing_is_sent_to_an_upstream_that_takes_no_stream() {
    let (upstream, _announce, requests) = announcing_upstream(0).await;
    let proxy = proxy(upstream.address).http(HttpVersion::H2).queue_timeout(Duration::from_millis(300)).build::<Body>();
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
    for call in calls {
        let failure = soon(call).await.unwrap().unwrap_err();
        assert_eq!((failure.cause(), failure.replay()), (BadGatewayCause::QueueTimeout, Replay::NotSent));
    }
    assert_eq!(requests.load(SeqCst), 0);
    assert!(upstream.accepted() <= 2, "{} connections to an upstream that drains", upstream.accepted());
}

#[tokio::test]
async fn a_request_that_waits_is_sent_once_the_upstream_takes_streams_again() {
    let (upstream, announce, requests) = announcing_upstream(0).await;
    let limited = proxy(upstream.address).http(HttpVersion::H2).max_connections(1).queue_timeout(support::PATIENCE);
    let mut proxy = limited.build::<Body>();
    let mut call = proxy.call(get("/"));
    begin(&mut call);
    let call = tokio::spawn(call);
    support::until("the pool has a connection", || upstream.accepted() == 1).await;
    announce.send(3).unwrap();
    assert_eq!(soon(call).await.unwrap().unwrap().status(), 200);
    assert_eq!((upstream.accepted(), requests.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_connection_whose_upstream_begins_to_drain_takes_no_further_stream() {
    let (upstream, announce, requests) = announcing_upstream(9).await;
    let mut proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
    assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
    announce.send(0).unwrap();
    // until the frame arrives, responses still come from the first connection
    for _ in 0..200 {
        assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
        if upstream.accepted() == 2 {
            break;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(upstream.accepted(), 2);
    assert!(requests.load(SeqCst) >= 2);
}

/// A body that lasts until its sender is dropped.
fn endless_body() -> (mpsc::Sender<Result<Bytes, Infallible>>, Body) {
    let (sender, body) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let pieces = futures_util::stream::unfold(body, async |mut body| body.recv().await.map(|piece| (piece, body)));
    (sender, Body::from_stream(pieces))
}

#[tokio::test]
async fn a_stream_limit_that_is_lowered_before_a_request_is_sent_sends_it_elsewhere_or_nowhere() {
    for (connections, is_answered) in [(2, true), (1, false)] {
        let (upstream, announce, requests) = announcing_upstream(1).await;
        let limited = proxy(upstream.address).http(HttpVersion::H2).max_connections(connections);
        let mut proxy = limited.queue_timeout(Duration::from_millis(300)).build::<Body>();
        // two open uploads use both streams
        let mut uploads = Vec::new();
        for _ in 0..connections {
            let (upload, body) = endless_body();
            upload.send(Ok("begin".into())).await.unwrap();
            let post = Request::post("/").header("host", "a").body(body).unwrap();
            assert_eq!(soon(proxy.call(post)).await.unwrap().status(), 200);
            uploads.push(upload);
        }
        let mut call = proxy.call(get("/"));
        begin(&mut call);
        // the call is given a stream, and is not polled before the limit has come down
        uploads.pop();
        sleep(Duration::from_millis(100)).await;
        announce.send(0).unwrap();
        sleep(Duration::from_millis(100)).await;
        let sent = requests.load(SeqCst);
        if is_answered {
            announce.send(1).unwrap();
        }
        let response = soon(call).await;
        if is_answered {
            assert_eq!(response.unwrap().status(), 200);
        } else {
            let failure = response.unwrap_err();
            assert_eq!((failure.cause(), failure.replay()), (BadGatewayCause::QueueTimeout, Replay::NotSent));
            assert_eq!(requests.load(SeqCst), sent);
        }
    }
}

#[tokio::test]
async fn a_response_before_the_end_of_its_upload_keeps_the_streams_slot() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let upstream = upstream(Some(1), move |_, request, respond| {
        count.fetch_add(1, SeqCst);
        async move {
            respond_ok(respond);
            let mut upload = request.into_body();
            while let Some(Ok(piece)) = upload.data().await {
                upload.flow_control().release_capacity(piece.len()).unwrap();
            }
        }
    })
    .await;
    let limited =
        proxy(upstream.address).http(HttpVersion::H2).max_connections(1).upload_idle_timeout(support::PATIENCE);
    let mut proxy = limited.queue_timeout(Duration::from_millis(200)).build::<Body>();
    let (client, body) = endless_body();
    let post = Request::post("/").header("host", "a").body(body).unwrap();
    client.send(Ok("begin".into())).await.unwrap();
    let early = soon(proxy.call(post)).await.unwrap();
    assert_eq!(early.status(), 200);
    soon(early.into_body().collect()).await.unwrap();
    let failure = soon(proxy.call(get("/"))).await.unwrap_err();
    assert_eq!((failure.cause(), failure.replay()), (BadGatewayCause::QueueTimeout, Replay::NotSent));
    assert_eq!(requests.load(SeqCst), 1);
    drop(client);
    // the slot is released a moment after the end of the upload
    let mut answered = None;
    for _ in 0..20 {
        answered = answered.or(soon(proxy.call(get("/"))).await.ok());
    }
    assert_eq!(answered.unwrap().status(), 200);
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn an_upload_that_stands_still_after_its_response_ends_with_its_connection() {
    let upstream = upstream(Some(1), |_, request, respond| async move {
        respond_ok(respond);
        let _unread = request;
        pending::<()>().await;
    })
    .await;
    // the limit on such an upload is 300 ms
    let limited = proxy(upstream.address).http(HttpVersion::H2).max_connections(1).queue_timeout(support::PATIENCE);
    let mut proxy = limited.build::<Body>();
    let pieces = (0..64).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 16 << 10])));
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let post = Request::post("/").header("host", "a").body(body).unwrap();
    soon(soon(proxy.call(post)).await.unwrap().into_body().collect()).await.unwrap();
    assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
    assert_eq!(upstream.accepted(), 2);
}

// streams that this side resets

/// An upstream that accepts streams while the gate is open, counts them, and responds to all but `/slow` and paths below it.
async fn gated_upstream(gate: watch::Receiver<bool>) -> (Upstream, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let upstream = Upstream::accepting(move |socket, _| {
        let (mut gate, count) = (gate.clone(), count.clone());
        async move {
            let mut server = h2::server::handshake(socket).await.unwrap();
            let mut slow = Vec::new();
            while gate.wait_for(|is_open| *is_open).await.is_ok() {
                let Some(Ok((request, respond))) = server.accept().await else { return };
                count.fetch_add(1, SeqCst);
                match request.uri().path() {
                    "/slow" => slow.push(respond),
                    _ => respond_ok(respond),
                }
            }
        }
    })
    .await;
    (upstream, requests)
}

#[tokio::test]
async fn clients_that_cancel_all_at_once_do_not_make_the_upstream_end_the_connections_of_others() {
    let (gate, is_open) = watch::channel(true);
    let (upstream, requests) = gated_upstream(is_open).await;
    let proxy = proxy(upstream.address).http(HttpVersion::H2).queue_timeout(support::PATIENCE).build::<Body>();
    let slow = async || {
        let calls: Vec<_> = (0..60).map(|_| tokio::spawn(proxy.clone().call(get("/slow")))).collect();
        calls
    };
    // the upstream accepts these before they are reset
    let accepted = slow().await;
    support::until("the upstream has accepted all", || requests.load(SeqCst) == 60).await;
    accepted.iter().for_each(tokio::task::JoinHandle::abort);
    sleep(Duration::from_millis(100)).await;

    // h2 ends a connection with the 21st stream that was reset before it was accepted
    gate.send(false).unwrap();
    let mut others = Vec::new();
    let mut cancelled = Vec::new();
    for _ in 0..4 {
        cancelled.extend(slow().await);
        let post = Request::post("/").header("host", "a").body(Body::from("once")).unwrap();
        others.push(tokio::spawn(proxy.clone().call(post)));
    }
    sleep(Duration::from_millis(300)).await;
    cancelled.iter().for_each(tokio::task::JoinHandle::abort);
    sleep(Duration::from_millis(300)).await;
    gate.send(true).unwrap();
    for call in others {
        assert_eq!(soon(call).await.unwrap().unwrap().status(), 200);
    }
}

/// The results of a POST that waits for its response and of a response in progress, on a connection that the upstream ends.
async fn lost_with_their_connection(cancels: bool) -> [Failure; 2] {
    let (end, mut ends) = watch::channel(false);
    let requests = Arc::new(AtomicUsize::new(0));
    let (events, count) = (Events::default(), requests.clone());
    let begun = events.clone();
    ends.mark_unchanged();
    let upstream = Upstream::accepting(move |socket, _| {
        let (mut ends, count, events) = (ends.clone(), count.clone(), begun.clone());
        async move {
            let mut server = h2::server::handshake(socket).await.unwrap();
            let mut waiting = Vec::new();
            loop {
                tokio::select! {
                    accepted = server.accept() => {
                        let Some(Ok((request, respond))) = accepted else { return };
                        count.fetch_add(1, SeqCst);
                        match request.uri().path() {
                            "/events" => events.begin(respond),
                            _ => waiting.push(respond),
                        }
                    }
                    _ = ends.changed() => server.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM),
                }
            }
        }
    })
    .await;
    let mut proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
    let events = soon(proxy.call(get("/events"))).await.unwrap();
    let post = Request::post("/").header("host", "a").body(Body::from("once")).unwrap();
    let post = tokio::spawn(proxy.call(post));
    support::until("the upstream has the POST", || requests.load(SeqCst) == 2).await;
    if cancels {
        let cancelled = tokio::spawn(proxy.call(get("/")));
        support::until("the upstream has the GET", || requests.load(SeqCst) == 3).await;
        cancelled.abort();
        assert!(cancelled.await.is_err());
    }
    end.send(true).unwrap();
    let lost = [soon(post).await.unwrap().unwrap_err(), soon(events.into_body().collect()).await.unwrap_err()];
    assert_eq!(upstream.accepted(), 1);
    lost
}

#[tokio::test]
async fn an_upstream_that_ends_a_connection_for_what_clients_did_on_it_has_not_failed() {
    let [post, events] = lost_with_their_connection(true).await;
    for failure in [&post, &events] {
        assert_eq!(failure.cause(), BadGatewayCause::StreamRefused);
        assert!(!failure.cause().is_upstream_failure());
        assert_eq!(failure.detail(), Some(Detail::H2(11)));
        assert!(!failure.advice(&http::Method::POST).text().contains("was not processed"), "{failure:?}");
    }
    assert_eq!((post.replay(), events.replay()), (Replay::IdempotentOnly, Replay::Never));

    let [post, events] = lost_with_their_connection(false).await;
    assert_eq!(
        (post.cause(), events.cause()),
        (BadGatewayCause::ClosedBeforeResponse, BadGatewayCause::IncompleteBody)
    );
}

// dials

/// A connector whose first dials are this future, and whose later ones reach an upstream in this process.
fn failing_first<F>(
    dials: usize,
    first: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> (ReverseProxyBuilder<impl Connect<Future: 'static>>, Arc<AtomicUsize>)
where
    F: Future<Output = io::Error> + Send + 'static,
{
    let dialed = Arc::new(AtomicUsize::new(0));
    let count = dialed.clone();
    let connector = service_fn(move |_: Uri| {
        let number = count.fetch_add(1, SeqCst);
        let first = first.clone();
        async move {
            if number < dials {
                return Err(first().await);
            }
            let (ours, theirs) = duplex(1 << 20);
            tokio::spawn(serve_in_process(theirs, Frames::default(), None));
            Ok(Socket::new(ours))
        }
    });
    (builder().connector(connector).http(HttpVersion::H2), dialed)
}

#[tokio::test(start_paused = true)]
async fn callers_dial_beside_a_dial_that_hangs() {
    let (builder, dialed) = failing_first(1, pending);
    let proxy = builder.build::<Body>();
    let begun = Instant::now();
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!((begun.elapsed().as_secs(), dialed.load(SeqCst)), (5, 2));
    sleep(HOUR).await;
    let begun = Instant::now();
    assert_eq!(proxy.clone().call(get("/")).await.unwrap().status(), 200);
    assert_eq!(begun.elapsed().as_secs(), 0, "nobody waits for it any more");
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_gives_up_its_place_where_there_is_no_other() {
    let (builder, dialed) = failing_first(1, pending);
    let proxy = builder.max_connections(1).build::<Body>();
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(dialed.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_panics_is_made_again_and_a_few_such_fail_the_request() {
    let (builder, dialed) = failing_first(2, async || panic!("a connector's own"));
    assert_eq!(builder.build::<Body>().call(get("/")).await.unwrap().status(), 200);
    assert_eq!(dialed.load(SeqCst), 3);

    let (builder, dialed) = failing_first(9, async || panic!("a connector's own"));
    let failure = builder.build::<Body>().call(get("/")).await.unwrap_err();
    assert_eq!((failure.cause(), dialed.load(SeqCst)), (BadGatewayCause::GatewayInternal, 3));
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_is_reported_to_all_who_wait_for_it() {
    let refused = async || io::Error::from(io::ErrorKind::ConnectionRefused);
    let (builder, dialed) = failing_first(usize::MAX, refused);
    let proxy = builder.build::<Body>();
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(proxy.clone().call(get("/")))).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().cause(), BadGatewayCause::ConnectionRefused);
    }
    assert_eq!(dialed.load(SeqCst), 1);
}

/// The end of the runtime on which a dial began.
async fn answers_after(end: impl FnOnce(tokio::runtime::Runtime) + Send + 'static) {
    let (builder, dialed) = failing_first(1, pending);
    let mut proxy = builder.build::<Body>();
    let mut call = proxy.call(get("/"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    {
        let _inside = runtime.enter();
        begin(&mut call);
    }
    // dropped outside of this runtime's context, as by a program that runs several
    tokio::task::spawn_blocking(|| end(runtime)).await.ok();
    assert_eq!(soon(proxy.call(get("/"))).await.unwrap().status(), 200);
    assert_eq!(soon(call).await.unwrap().status(), 200, "so is the call that had begun the dial");
    assert!(dialed.load(SeqCst) <= 2);
}

#[tokio::test]
async fn a_dial_whose_runtime_ends_before_it_was_polled_is_made_again_on_another() {
    answers_after(drop).await;
}

#[tokio::test]
async fn a_dial_whose_runtime_ends_while_it_hangs_is_made_again_on_another() {
    answers_after(|runtime| {
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
    })
    .await;
}

fn status(response: Result<Response<impl Sized>, Failure>) -> StatusCode {
    response.map_or_else(|failure| failure.status(), |response| response.status())
}

#[tokio::test]
async fn idle_connections_are_ended_also_after_the_runtime_of_the_reaper_has_gone() {
    for http in [HttpVersion::Auto, HttpVersion::H2] {
        let (told, mut ended) = mpsc::unbounded_channel();
        let upstream = Upstream::accepting(move |socket, _| {
            let told = told.clone();
            async move {
                let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let service = hyper::service::service_fn(async |_| Ok::<_, Infallible>(Response::new(Body::empty())));
                let _ = server.serve_connection(hyper_util::rt::TokioIo::new(socket), service).await;
                told.send(()).unwrap();
            }
        })
        .await;
        let limited = proxy(upstream.address).http(http).idle_timeout(Duration::from_millis(300));
        let proxy = limited.build::<Body>();
        let mut first = proxy.clone();
        // the first connection and the reaper live on another runtime
        let gone = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(status(runtime.block_on(first.call(get("/")))), 200);
        });
        soon(gone).await.unwrap();
        soon(ended.recv()).await.unwrap();
        assert_eq!(status(soon(proxy.clone().call(get("/"))).await), 200);
        assert_eq!(upstream.accepted(), 2);
        assert!(soon(ended.recv()).await.is_some());
    }
}

#[tokio::test]
async fn an_upstream_that_never_announces_its_settings_gets_the_request() {
    let (told, mut requests) = mpsc::unbounded_channel();
    let upstream = Upstream::accepting(move |mut socket, _| {
        let told = told.clone();
        async move {
            let mut bytes = vec![0; 4096];
            while socket.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                let _ = told.send(());
            }
        }
    })
    .await;
    let builder = proxy(upstream.address).http(HttpVersion::H2);
    let gateway = Gateway::limited(builder, short().response_head(Duration::from_secs(2))).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 504);
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::FirstByteTimeout]);
    assert!(requests.recv().await.is_some());
}
