//! The pool: connections are reused, shared and waited for, and not used past their age.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Barrier, mpsc, oneshot};
use tower::{Layer, Service, service_fn};
use tower_upstream::client::{Connect, HttpVersion, ReverseProxyBuilder};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause, Failure};

use crate::support::{self, Gateway, PATIENCE, Socket, Upstream, Wire, ask, proxy, repeats, skip, soon, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nonce";

/// Reads up to this text; cheaper than [`Wire`], since these tests read often.
async fn read_up_to(stream: &mut TcpStream, end: &[u8]) -> bool {
    let mut read = Vec::with_capacity(1024);
    while !read.ends_with(end) {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return false;
        }
    }
    true
}

/// Sixteen clients, each on a kept-alive connection; at one moment all of them have a request in flight.
async fn sixteen_clients_need_sixteen_connections() {
    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere";
    let all = Arc::new(Barrier::new(16));
    let upstream = Upstream::accepting(move |mut stream, before| {
        let all = all.clone();
        async move {
            let mut first = before < 16;
            while read_up_to(&mut stream, b"\r\n\r\n").await {
                if std::mem::take(&mut first) {
                    all.wait().await;
                }
                stream.write_all(REPLY).await.unwrap();
            }
        }
    })
    .await;
    // on a slow machine some are idle for longer than the default of 4 s, and would be closed
    let kept = proxy(upstream.address).idle_timeout(Duration::from_secs(600));
    let gateway = Gateway::limited(kept, Timeouts::new()).await;
    let address = gateway.address;
    let callers: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                for _ in 0..repeats(300, 2000) {
                    stream.write_all(GET.as_bytes()).await.unwrap();
                    assert!(support::soon(read_up_to(&mut stream, b"there")).await);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(upstream.accepted(), 16);
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn sixteen_clients_on_one_thread_need_sixteen_connections() {
    sixteen_clients_need_sixteen_connections().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_on_two_threads_need_sixteen_connections() {
    sixteen_clients_need_sixteen_connections().await;
}

/// Responds to one request on each connection and closes it; reports each request and each close.
async fn one_answer_a_connection() -> (Upstream, Arc<AtomicUsize>, mpsc::UnboundedReceiver<()>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let (told, closes) = mpsc::unbounded_channel();
    let count = requests.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let (count, told) = (count.clone(), told.clone());
        async move {
            if wire.request().await.is_some() {
                count.fetch_add(1, SeqCst);
                wire.reply("and good-bye").await;
            }
            drop(wire);
            told.send(()).unwrap();
        }
    })
    .await;
    (upstream, requests, closes)
}

#[tokio::test]
async fn an_idle_connection_that_the_upstream_closed_is_not_used() {
    let (upstream, requests, mut closes) = one_answer_a_connection().await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    for round in 1..=20 {
        assert_eq!(wire.ask(GET).await.status(), 200);
        closes.recv().await.unwrap();
        // the end of the connection arrives while other tasks run
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        assert_eq!(requests.load(SeqCst), round);
    }
    assert_eq!(upstream.accepted(), 20);
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_post_that_meets_a_closed_connection_arrives_exactly_once_on_another() {
    let (upstream, requests, mut closes) = one_answer_a_connection().await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    for round in 1..=50 {
        // on one thread the request and the end of the connection come to the gateway together
        let answer = wire.ask(POST).await;
        assert_eq!((answer.status(), requests.load(SeqCst)), (200, round));
        closes.recv().await.unwrap();
    }
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_post_that_was_returned_unsent_is_sent_again_whole() {
    let listener = support::gateway::listener().await;
    let mut proxy = proxy(listener.local_addr().unwrap()).build::<Body>();
    let accept = async || Wire::new(listener.accept().await.unwrap().0);
    let get = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    let first = tokio::spawn(text(proxy.call(get)));
    let mut wire = accept().await;
    wire.request().await.unwrap();
    wire.reply("stay").await;
    assert_eq!(soon(first).await.unwrap(), "stay");

    // both are woken in one turn of the runtime: this task first, then the connection's, whose socket has ended
    let (bell, ear) = UnixStream::pair().unwrap();
    bell.writable().await.unwrap();
    bell.try_write(b"!").unwrap();
    drop(wire);
    ear.readable().await.unwrap();
    let post = Request::post("/").header("host", "a").body(Body::from("once")).unwrap();
    let mut second = Box::pin(text(proxy.call(post)));
    begin(&mut second);
    let second = tokio::spawn(second);
    let mut wire = soon(accept()).await;
    assert_eq!(wire.request().await.unwrap().text(), "once");
    wire.reply("done").await;
    assert_eq!(soon(second).await.unwrap(), "done");
}

#[tokio::test]
async fn a_post_that_was_sent_before_its_connection_ended_is_not_repeated() {
    let posts = Arc::new(AtomicUsize::new(0));
    let count = posts.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let count = count.clone();
        async move {
            wire.request().await.unwrap();
            wire.reply("stay").await;
            if let Some(post) = wire.request().await {
                assert_eq!(post.text(), "once");
                count.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    assert_eq!(wire.ask(GET).await.status(), 200);
    let answer = wire.ask(POST).await;
    assert_eq!((answer.status(), answer.error()), (502, Some("connection_terminated")));
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::ClosedBeforeResponse], "it was not idle");
    assert_eq!((posts.load(SeqCst), upstream.accepted()), (1, 1));
}

/// Responds to a GET, and closes the connection of a POST without a response.
async fn crashes_at_posts() -> Upstream {
    Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some_and(|request| request.first.starts_with("GET")) {
            wire.reply("there").await;
        }
    })
    .await
}

#[tokio::test]
async fn a_path_that_crashes_teaches_no_short_keep_alive() {
    let upstream = crashes_at_posts().await;
    let gateway = Gateway::limited(proxy(upstream.address), Timeouts::new()).await;
    for _ in 0..6 {
        assert_eq!(ask(gateway.address, GET).await.status(), 200);
        skip(10, Duration::from_millis(100)).await;
        assert_eq!(ask(gateway.address, POST).await.status(), 502);
    }
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::ClosedBeforeResponse; 6], "the circuit sees them");
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    let connections = upstream.accepted();
    skip(28, Duration::from_millis(100)).await;
    assert_eq!((ask(gateway.address, GET).await.status(), upstream.accepted()), (200, connections), "kept for 3 s");
}

#[tokio::test]
async fn a_request_that_was_lost_near_the_idle_limit_met_a_stale_connection() {
    let upstream = crashes_at_posts().await;
    let gateway = Gateway::limited(proxy(upstream.address), Timeouts::new()).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    skip(28, Duration::from_millis(100)).await;
    assert_eq!(ask(gateway.address, POST).await.status(), 502);
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::StaleConnection]);
}

#[tokio::test]
async fn a_request_that_waits_too_long_for_a_connection_is_rejected() {
    let (release, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let upstream = Upstream::scripted(move |mut wire, _| {
        let held = held.lock().unwrap().take();
        async move {
            if let (Some(_), Some(held)) = (wire.request().await, held) {
                let _ = held.await;
                wire.reply("late").await;
            }
            while wire.request().await.is_some() {
                wire.reply("prompt").await;
            }
        }
    })
    .await;
    let limited = proxy(upstream.address).max_connections(1);
    let gateway = Gateway::start(limited.queue_timeout(Duration::from_millis(100))).await;
    let mut first = Wire::connect(gateway.address).await;
    first.write(GET).await;
    until("the first is at the upstream", || upstream.accepted() == 1).await;

    let answer = ask(gateway.address, GET).await;
    assert_eq!((answer.status(), answer.error()), (503, Some("connection_limit_reached")));
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::QueueTimeout]);

    release.send(()).unwrap();
    assert_eq!(first.answer().await.text(), "late");
    assert_eq!(ask(gateway.address, GET).await.text(), "prompt");
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_that_wait_for_two_connections_need_no_third() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.reply("").await;
        }
    })
    .await;
    let limited = proxy(upstream.address).max_connections(2).queue_timeout(PATIENCE);
    let gateway = Gateway::limited(limited, Timeouts::new()).await;
    let address = gateway.address;
    let callers: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                for _ in 0..250 {
                    assert_eq!(wire.ask(GET).await.status(), 200);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(upstream.accepted(), 2);
    assert_eq!(gateway.seen.causes(), []);
}

/// Polls a call once; it is pending.
fn begin(call: &mut std::pin::Pin<Box<impl Future + ?Sized>>) {
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[tokio::test]
async fn waiting_requests_are_served_in_order_over_one_connection() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let paths = order.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let paths = paths.clone();
        async move {
            while let Some(request) = wire.request().await {
                paths.lock().unwrap().push(request.first.split(' ').nth(1).unwrap().to_owned());
                wire.reply("next, please").await;
            }
        }
    })
    .await;
    let limited = proxy(upstream.address).max_connections(1).queue_timeout(PATIENCE);
    let mut proxy = limited.build::<Body>();
    let mut calls = Vec::new();
    for number in 0..40 {
        let request = Request::get(format!("/{number}")).header("host", "a").body(Body::empty()).unwrap();
        let mut call = Box::pin(proxy.call(request));
        begin(&mut call);
        calls.push(call);
    }
    let tasks: Vec<_> = calls
        .into_iter()
        .map(|call| tokio::spawn(async move { call.await?.into_body().collect().await.map(|_| ()) }))
        .collect();
    for task in tasks {
        soon(task).await.unwrap().unwrap();
    }
    let wanted: Vec<_> = (0..40).map(|number| format!("/{number}")).collect();
    assert_eq!(*order.lock().unwrap(), wanted);
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn a_request_that_was_cancelled_in_the_queue_takes_no_turn() {
    let (release, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let upstream = Upstream::scripted(move |mut wire, _| {
        let held = held.lock().unwrap().take();
        async move {
            wire.request().await.unwrap();
            if let Some(held) = held {
                held.await.unwrap();
            }
            wire.reply("done").await;
            while wire.request().await.is_some() {
                wire.reply("done").await;
            }
        }
    })
    .await;
    let limited = proxy(upstream.address).max_connections(1).queue_timeout(PATIENCE);
    let mut proxy = limited.build::<Body>();
    let request = || Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    let first = tokio::spawn(proxy.call(request()));
    until("the first is at the upstream", || upstream.accepted() == 1).await;
    for _ in 0..5 {
        let mut call = Box::pin(proxy.call(request()));
        begin(&mut call);
        drop(call);
    }
    let mut last = Box::pin(proxy.call(request()));
    begin(&mut last);
    release.send(()).unwrap();
    soon(first).await.unwrap().unwrap().into_body().collect().await.unwrap();
    assert_eq!(soon(last).await.unwrap().status(), 200);
    assert_eq!(upstream.accepted(), 1);
}

/// A connector to an upstream in this process that responds to every request, so that time can be paused.
fn in_process(builder: ReverseProxyBuilder) -> (ReverseProxyBuilder<impl Connect<Future: 'static>>, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let connector = service_fn(move |_: Uri| {
        count.fetch_add(1, SeqCst);
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move {
            let mut read = [0; 4096];
            while theirs.read(&mut read).await.is_ok_and(|read| read > 0) {
                theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
        });
        std::future::ready(Ok::<_, std::io::Error>(Socket::new(ours)))
    });
    (builder.connector(connector), connections)
}

#[tokio::test(start_paused = true)]
async fn a_connection_past_its_age_takes_no_further_request() {
    let day = Duration::from_secs(24 * 3600);
    let any = "127.0.0.1:1".parse().unwrap();
    for (queued, max_connections) in [(false, 1024), (true, 1)] {
        let limited = proxy(any).idle_timeout(day).max_connections(max_connections);
        let (builder, connections) = in_process(limited.queue_timeout(day));
        let proxy = builder.build::<Body>();
        // 10 minutes, a tenth more or less
        for (pause, opened) in [(0, 1), (530, 1), (140, 2), (530, 2), (140, 3)] {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let get = || Request::get("/").header("host", "a").body(Body::empty()).unwrap();
            let calls: Vec<_> =
                (0..if queued { 5 } else { 1 }).map(|_| tokio::spawn(proxy.clone().call(get()))).collect();
            for call in calls {
                assert_eq!(call.await.unwrap().unwrap().status(), 200);
            }
            assert_eq!(connections.load(SeqCst), opened, "after {pause} s more");
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_the_keep_alive_that_the_upstream_announces() {
    let (told, mut ended) = mpsc::unbounded_channel();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let told = told.clone();
        async move {
            wire.request().await.unwrap();
            wire.write("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\n").await;
            // without the field it would be the default of 4 s
            told.send(wire.ends_within(Duration::from_secs(3)).await).unwrap();
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    assert!(soon(ended.recv()).await.unwrap(), "the gateway ended it first");
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_the_age_at_which_earlier_ones_were_found_dead() {
    let (told, mut ended) = mpsc::unbounded_channel();
    let upstream = Upstream::scripted(move |mut wire, before| {
        let told = told.clone();
        async move {
            wire.request().await.unwrap();
            wire.reply("there").await;
            // the keep-alive of 3 s is not announced; the second connection is older than the learned limit, but not than 4 s
            let patience = Duration::from_millis(if before == 0 { 3000 } else { 3700 });
            told.send(wire.ends_within(patience).await).unwrap();
        }
    })
    .await;
    // 80 % of 3 s are more than half of this, so that one dead connection teaches enough
    let gateway = Gateway::start(proxy(upstream.address).idle_timeout(Duration::from_secs(4))).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    assert!(!soon(ended.recv()).await.unwrap(), "the upstream ended the first");
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    assert!(soon(ended.recv()).await.unwrap(), "the gateway ended the second");
    assert_eq!((upstream.accepted(), gateway.seen.causes()), (2, vec![]));
}

#[tokio::test]
async fn a_response_before_the_end_of_the_upload_costs_the_connection_and_not_the_upload() {
    let (told, mut uploads) = mpsc::unbounded_channel();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let told = told.clone();
        async move {
            let head = wire.request_head().await.unwrap();
            let length: usize = head.get("content-length").unwrap().parse().unwrap();
            wire.reply("early").await;
            told.send(wire.bytes(length).await.len()).unwrap();
            while wire.request().await.is_some() {
                wire.reply("same connection").await;
            }
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    let piece = vec![b'x'; 1 << 20];
    wire.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4194304\r\n\r\n").await;
    wire.write(&piece).await;
    assert_eq!(wire.answer().await.text(), "early");
    for _ in 0..3 {
        wire.write(&piece).await;
    }
    assert_eq!(soon(uploads.recv()).await, Some(4 << 20));
    for other in 2..5 {
        let answer = ask(gateway.address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        let expected = if other == 2 { "early" } else { "same connection" };
        assert_eq!((answer.status(), answer.text()), (200, expected.to_owned()));
        // the first is not used again; one whose upload has ended is
        assert_eq!(upstream.accepted(), 2);
    }
    assert_eq!(gateway.seen.causes(), []);
}

/// More than sockets buffer, in one frame, so that a part stays in the gateway's buffer.
const LARGE: usize = 8 << 20;

/// Responds to a request of [`LARGE`] before it reads the body, which it reads when it is told to.
async fn early_upstream() -> (Upstream, oneshot::Sender<()>, mpsc::UnboundedReceiver<usize>) {
    let (release, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let (told, uploads) = mpsc::unbounded_channel();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let (held, told) = (held.lock().unwrap().take(), told.clone());
        async move {
            if let Some(held) = held {
                wire.request_head().await.unwrap();
                wire.reply("early").await;
                held.await.unwrap();
                told.send(wire.bytes(LARGE).await.len()).unwrap();
            }
            while wire.request().await.is_some() {
                wire.reply("later").await;
            }
        }
    })
    .await;
    (upstream, release, uploads)
}

async fn text(
    answer: impl Future<Output = Result<Response<impl http_body::Body<Data = Bytes, Error = Failure>>, Failure>>,
) -> String {
    let body = soon(answer).await.unwrap().into_body();
    String::from_utf8(soon(body.collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn no_request_waits_behind_an_upload_whose_response_came_early() {
    let (upstream, release, mut uploads) = early_upstream().await;
    let mut proxy = proxy(upstream.address).build::<Body>();
    let post = Request::post("/").header("host", "a").body(Body::from(vec![b'x'; LARGE])).unwrap();
    assert_eq!(text(proxy.call(post)).await, "early");
    let get = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    assert_eq!(text(proxy.call(get)).await, "later");
    assert_eq!(upstream.accepted(), 2);
    release.send(()).unwrap();
    assert_eq!(soon(uploads.recv()).await, Some(LARGE));
}

#[tokio::test]
async fn a_waiting_request_gets_a_new_connection_after_the_upload_has_ended() {
    let (upstream, release, mut uploads) = early_upstream().await;
    let limited = proxy(upstream.address).max_connections(1).queue_timeout(PATIENCE);
    let mut proxy = limited.build::<Body>();
    let post = Request::post("/").header("host", "a").body(Body::from(vec![b'x'; LARGE])).unwrap();
    let first = proxy.call(post);
    let get = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    let mut second = Box::pin(text(proxy.call(get)));
    let first = tokio::spawn(text(first));
    until("the first is at the upstream", || upstream.accepted() == 1).await;
    begin(&mut second);
    assert_eq!(soon(first).await.unwrap(), "early");
    begin(&mut second);
    release.send(()).unwrap();
    assert_eq!(soon(second).await, "later");
    assert_eq!(soon(uploads.recv()).await, Some(LARGE));
    assert_eq!(upstream.accepted(), 2);
}

type Stream = (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// An h2c upstream that passes each stream to a script, with the numbers of its connection and of the stream.
async fn h2_upstream<F>(script: impl Fn(usize, usize, Stream) -> F + Clone + Send + 'static) -> Upstream
where
    F: Future<Output = After> + Send + 'static,
{
    Upstream::accepting(move |socket, connection| {
        let script = script.clone();
        async move {
            let mut server = h2::server::handshake(socket).await.unwrap();
            let (told, mut afters) = mpsc::unbounded_channel();
            let mut number = 0;
            loop {
                tokio::select! {
                    stream = server.accept() => {
                        let Some(Ok(stream)) = stream else { return };
                        let (script, told) = (script.clone(), told.clone());
                        tokio::spawn(async move { told.send(script(connection, number, stream).await) });
                        number += 1;
                    }
                    Some(After::GoAway) = afters.recv() => server.graceful_shutdown(),
                }
            }
        }
    })
    .await
}

/// The end of the connection after a stream.
enum After {
    Stay,
    GoAway,
}

fn ok((_, mut respond): Stream) -> After {
    respond.send_response(Response::new(()), true).unwrap();
    After::Stay
}

#[tokio::test]
async fn fifty_concurrent_requests_share_one_http_2_connection() {
    let all = Arc::new(Barrier::new(50));
    let upstream = h2_upstream(move |_, _, stream| {
        let all = all.clone();
        async move {
            all.wait().await;
            ok(stream)
        }
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address).http(HttpVersion::H2), Timeouts::new()).await;
    let address = gateway.address;
    let callers: Vec<_> = (0..50).map(|_| tokio::spawn(ask(address, GET))).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().status(), 200);
    }
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn after_a_goaway_requests_go_to_another_connection_and_running_ones_end() {
    let (release, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let upstream = h2_upstream(move |connection, number, stream| {
        let held = held.clone();
        async move {
            match (connection, number) {
                (0, 0) => {
                    let held = held.lock().unwrap().take().unwrap();
                    held.await.unwrap();
                    ok(stream)
                }
                (0, 1) => {
                    ok(stream);
                    After::GoAway
                }
                _ => ok(stream),
            }
        }
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address).http(HttpVersion::H2), Timeouts::new()).await;
    let mut running = Wire::connect(gateway.address).await;
    running.write(GET).await;
    until("the first is at the upstream", || upstream.accepted() == 1).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    // until the GOAWAY arrives, responses still come from the first connection
    for _ in 0..100 {
        assert_eq!(ask(gateway.address, GET).await.status(), 200);
        if upstream.accepted() == 2 {
            break;
        }
    }
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    assert_eq!(upstream.accepted(), 2);
    release.send(()).unwrap();
    assert_eq!(running.answer().await.status(), 200);
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_refused_stream_does_not_cost_the_others_their_connection() {
    let upstream = h2_upstream(|_, number, mut stream| async move {
        if number == 1 {
            stream.1.send_reset(h2::Reason::REFUSED_STREAM);
            return After::Stay;
        }
        ok(stream)
    })
    .await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    let answer = ask(gateway.address, POST).await;
    assert_eq!((answer.status(), answer.error()), (502, Some("connection_terminated")));
    assert_eq!(gateway.seen.causes(), [BadGatewayCause::StreamRefused]);
    assert_eq!(gateway.seen.failures()[0].replay().as_str(), "not_sent");
    assert_eq!(ask(gateway.address, GET).await.status(), 200);
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn a_connection_that_hangs_takes_no_more_streams_while_those_that_run_end() {
    let (release, held) = oneshot::channel::<()>();
    let held = Arc::new(Mutex::new(Some(held)));
    let (ended, mut ends) = mpsc::unbounded_channel();
    let upstream = Upstream::accepting(move |socket, connection| {
        let (held, ended) = (held.clone(), ended.clone());
        async move {
            let mut server = h2::server::handshake(socket).await.unwrap();
            let mut silent = Vec::new();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                match request.uri().path() {
                    "/slow" => {
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        let held = held.lock().unwrap().take().unwrap();
                        tokio::spawn(async move {
                            body.send_data("begin ".into(), false).unwrap();
                            held.await.unwrap();
                            body.send_data("end".into(), true).unwrap();
                        });
                    }
                    "/silent" => silent.push(respond),
                    _ => drop(respond.send_response(Response::new(()), true).unwrap()),
                }
            }
            let _ = ended.send(connection);
        }
    })
    .await;
    let limits = support::short().body_idle(None);
    let proxy = proxy(upstream.address).http(HttpVersion::H2).build::<Body>();
    let mut proxy = TimeoutLayer::new(limits).without_upload_tracking().layer(proxy);
    let mut send = |path| {
        let call = proxy.call(Request::get(path).header("host", "a").body(Body::empty()).unwrap());
        async move { soon(call).await }
    };
    let slow = send("/slow").await.unwrap();
    let silent = send("/silent").await.unwrap();
    assert_eq!(BadGatewayCause::of(&silent), Some(BadGatewayCause::FirstByteTimeout));
    assert_eq!(send("/").await.unwrap().status(), 200);
    assert_eq!(upstream.accepted(), 2);

    release.send(()).unwrap();
    let mut slow = pin!(slow.into_body());
    let body = soon(slow.as_mut().collect()).await.unwrap().to_bytes();
    assert_eq!(body, "begin end");
    assert_eq!(soon(ends.recv()).await, Some(0), "the hung connection goes with its last stream");
}
