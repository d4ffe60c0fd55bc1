//! The probes of a stack: which requests they are, what they may not do, and that no circuit depends on them.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::UpstreamLayer;
use tower_upstream::breaker::State;
use tower_upstream::stack::{RequestBody, UpstreamBuilder};

use crate::reasons::Lines;
use crate::support::service::{get, ms, post, seen};
use crate::support::{self, PATIENCE, StackGateway, ask, default_proxy, until};

/// An upstream that responds with one status, and the requests that it got.
#[derive(Clone, Default)]
struct Upstream {
    status: Arc<AtomicU16>,
    /// 1: hangs; 2: panics.
    fault: Arc<AtomicU32>,
    got: Arc<Mutex<Vec<Got>>>,
}

/// Method, target, fields and length of a request.
type Got = (Method, String, HeaderMap, usize);

impl Upstream {
    fn failing() -> Self {
        let upstream = Self::default();
        upstream.status.store(502, Relaxed);
        upstream
    }

    async fn respond(self, request: Request<RequestBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let bytes = body.collect().await.map_or(0, |body| body.to_bytes().len());
        self.got.lock().unwrap().push((head.method, head.uri.to_string(), head.headers, bytes));
        match self.fault.load(Relaxed) {
            1 => std::future::pending().await,
            2 => panic!("the service's own"),
            _ => {}
        }
        sleep(ms(2)).await;
        Ok(Response::builder().status(self.status.load(Relaxed)).body(Full::from("hello")).unwrap())
    }

    /// The requests since the last call of this method, as method and path.
    fn take(&self) -> Vec<String> {
        let got = std::mem::take(&mut *self.got.lock().unwrap());
        got.into_iter().map(|(method, path, _, _)| format!("{method} {path}")).collect()
    }
}

/// A stack whose circuit has just opened.
struct Open<S> {
    upstream: Upstream,
    layer: UpstreamLayer,
    service: S,
}

async fn open(
    builder: UpstreamBuilder,
) -> Open<impl Service<Request<Full<Bytes>>, Response = Response<impl Sized>, Error = Infallible> + Clone> {
    let (upstream, layer) = (Upstream::failing(), builder.build().unwrap());
    let inner = upstream.clone();
    let service = layer.layer(service_fn(move |request| inner.clone().respond(request)));
    for _ in 0..20 {
        let _ = service.clone().oneshot(post("order")).await;
    }
    assert_eq!(seen(&layer).circuit.unwrap().state, State::Open);
    upstream.take();
    Open { upstream, layer, service }
}

fn stack() -> UpstreamBuilder {
    UpstreamLayer::builder("shop").without_retry()
}

impl<S, R> Open<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible> + Clone,
{
    async fn ask(&self, request: Request<Full<Bytes>>) -> u16 {
        let Ok(response) = self.service.clone().oneshot(request).await;
        response.status().as_u16()
    }

    fn state(&self) -> State {
        seen(&self.layer).circuit.unwrap().state
    }
}

fn with(name: &str, value: &str) -> Request<Full<Bytes>> {
    let request = Request::get("/cart").header(name, value);
    request.body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_refused_request_finds_out_that_the_upstream_is_back() {
    let open = open(stack()).await;
    open.upstream.status.store(200, Relaxed);
    assert_eq!(open.ask(get()).await, 503, "it is refused");
    sleep(ms(9)).await;
    assert_eq!(open.upstream.take(), ["GET /cart"]);
    assert_eq!((open.state(), open.ask(post("order")).await), (State::Closed, 200));
    // 20 calls and these two, of which one was refused: the probe does not count as a call
    let seen = seen(&open.layer);
    assert_eq!((seen.calls, seen.circuit.unwrap().probes), (22, 1));
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_marked_in_the_log() {
    let (lines, _guard) = Lines::record();
    let open = open(stack()).await;
    open.ask(get()).await;
    sleep(ms(9)).await;
    let probes: Vec<_> = lines.all().into_iter().filter(|line| line.contains("probe=true")).collect();
    let [line] = &probes[..] else { panic!("{probes:?}") };
    assert!(line.contains("a probe found the upstream failing"), "{line}");
    assert!(line.contains("upstream=\"shop\"") && line.contains("http.response.status_code=502"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_the_request_as_the_client_sent_it() {
    let open = open(stack()).await;
    open.ask(with("cookie", "a=1")).await;
    sleep(ms(9)).await;
    let got = std::mem::take(&mut *open.upstream.got.lock().unwrap());
    let [(Method::GET, path, headers, 0)] = &got[..] else { panic!("{got:?}") };
    assert_eq!((path.as_str(), headers.len(), &headers["cookie"]), ("/cart", 1, &"a=1".parse().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn requests_that_may_have_an_effect_are_never_probes() {
    let open = open(stack()).await;
    open.upstream.status.store(200, Relaxed);
    let mut long = get();
    long.headers_mut().insert("x", "y".repeat(9000).parse().unwrap());
    let mut with_body = get();
    *with_body.body_mut() = Full::from("body");
    let put = Request::put("/cart").body(Full::default()).unwrap();
    for request in [post(""), put, with_body, long, with("upgrade", "websocket"), with("expect", "100-continue")] {
        assert_eq!(open.ask(request).await, 503);
        sleep(ms(9)).await;
        assert_eq!(open.upstream.take(), <[&str; 0]>::default());
    }
    let head = Request::head("/cart").body(Full::default()).unwrap();
    open.ask(head).await;
    sleep(ms(9)).await;
    assert_eq!(open.upstream.take(), ["HEAD /cart"]);
}

#[tokio::test(start_paused = true)]
async fn one_probe_is_sent_for_32_refused_calls() {
    let open = open(stack()).await;
    for _ in 0..320 {
        open.ask(get()).await;
        sleep(ms(1)).await;
    }
    let probes = open.upstream.take().len();
    assert!((9..=11).contains(&probes), "{probes}");
}

#[tokio::test(start_paused = true)]
async fn a_configured_request_is_the_probe_whatever_was_refused() {
    let health = Request::get("/health").body(()).unwrap();
    let open = open(stack().probe_request(health)).await;
    open.upstream.status.store(404, Relaxed);
    open.ask(post("order")).await;
    sleep(ms(9)).await;
    assert_eq!((open.upstream.take(), open.state()), (vec!["GET /health".to_owned()], State::Closed), "it responds");
}

#[tokio::test(start_paused = true)]
async fn without_probes_the_upstream_is_left_alone_for_the_open_duration() {
    let open = open(stack().without_probe()).await;
    for _ in 0..100 {
        open.ask(get()).await;
        sleep(ms(1)).await;
    }
    assert_eq!(open.upstream.take(), <[&str; 0]>::default());
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_is_held_open_is_not_probed() {
    let open = open(stack()).await;
    open.ask(get()).await;
    open.layer.handle().hold_open();
    open.upstream.status.store(200, Relaxed);
    for _ in 0..100 {
        assert_eq!(open.ask(get()).await, 503);
        sleep(ms(10)).await;
    }
    assert_eq!((open.upstream.take(), open.state()), (vec![], State::HeldOpen));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_given_up_and_followed_by_another() {
    let open = open(stack()).await;
    open.upstream.fault.store(1, Relaxed);
    let begun = Instant::now();
    open.ask(get()).await;
    sleep(ms(9)).await;
    open.upstream.fault.store(0, Relaxed);
    open.upstream.status.store(200, Relaxed);
    while open.state() != State::Closed {
        open.ask(get()).await;
        sleep(ms(1)).await;
    }
    // 502s are no samples of how long a response takes, so that the probe had the limit of a call: a second
    assert!(begun.elapsed() <= ms(1100), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_leaves_the_circuit_to_its_calls_and_to_the_next_probe() {
    let open = open(stack()).await;
    open.upstream.fault.store(2, Relaxed);
    for _ in 0..9 {
        open.ask(get()).await;
        sleep(ms(9)).await;
    }
    assert!(open.upstream.take().len() > 1, "the task is spawned again");
    open.upstream.fault.store(0, Relaxed);
    open.upstream.status.store(200, Relaxed);
    sleep(Duration::from_secs(2)).await;
    assert_eq!((open.ask(post("order")).await, open.state()), (200, State::Closed));
}

#[test]
fn a_circuit_recovers_though_the_runtime_of_its_probe_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let first = runtime();
    let open = first.block_on(async {
        let open = open(stack()).await;
        open.ask(get()).await;
        open
    });
    // the offer is dropped with its task
    drop(first);
    runtime().block_on(async {
        open.upstream.status.store(200, Relaxed);
        while open.state() != State::Closed {
            open.ask(get()).await;
            sleep(ms(1)).await;
        }
    });
}

#[test]
fn a_call_outside_of_a_runtime_is_refused_as_any_other() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let open = runtime.block_on(open(stack()));
    let mut call = Box::pin(open.ask(get()));
    let polled = call.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert_eq!(polled, std::task::Poll::Ready(503));
}

#[tokio::test(start_paused = true)]
async fn the_last_service_takes_the_probes_with_it() {
    let Open { upstream, layer, service } = open(stack()).await;
    let Ok(_) = service.clone().oneshot(get()).await;
    drop((layer, service));
    sleep(Duration::from_secs(1)).await;
    let sent = upstream.take().len();
    assert!(sent <= 1, "{sent}");
    assert_eq!(Arc::strong_count(&upstream.status), 1, "nothing holds the service");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_upstream_with_a_thousand_calls_a_second_is_not_refused_after_two() {
    // after a hang of every length, from a hung probe on
    for outage in [0, 1, 7, 100, 2000] {
        let open = open(stack()).await;
        open.upstream.fault.store(1, Relaxed);
        let repaired = Instant::now() + Duration::from_secs(outage);
        while Instant::now() < repaired {
            // most are refused, and some are probes that hang
            let _ = tokio::time::timeout(ms(1), open.ask(get())).await;
            sleep(ms(outage * 2)).await;
        }
        open.upstream.fault.store(0, Relaxed);
        open.upstream.status.store(200, Relaxed);
        for number in 0..3000 {
            let status = open.ask(get()).await;
            assert!(number < 2000 || status == 200, "{status} for call {number} after {outage} s");
            sleep(ms(1)).await;
        }
    }
}

#[tokio::test]
async fn a_probe_through_a_proxy_is_on_the_wire_what_the_request_would_have_been() {
    let (is_down, got) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let (down, requests) = (is_down.clone(), got.clone());
    let upstream = support::Upstream::scripted(move |mut wire, _| {
        let (down, requests) = (down.clone(), requests.clone());
        async move {
            while let Some(request) = wire.request().await {
                requests.lock().unwrap().push((request.first, request.fields));
                if down.load(Relaxed) {
                    return;
                }
                wire.reply("there").await;
            }
        }
    })
    .await;
    let gateway = StackGateway::start(support::stack(), default_proxy(upstream.address)).await;
    for _ in 0..5 {
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nonce";
        assert_eq!(ask(gateway.address, post).await.status(), 502);
    }
    assert_eq!(gateway.circuit().state, State::Open);
    got.lock().unwrap().clear();
    let get = "GET /cart?id=7 HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nRange: bytes=0-1\r\n\r\n";
    assert_eq!(ask(gateway.address, get).await.status(), 503);
    until("a probe", || !got.lock().unwrap().is_empty()).await;
    is_down.store(false, Relaxed);
    for _ in 0..PATIENCE.as_millis() {
        if ask(gateway.address, get).await.status() == 200 {
            break;
        }
        sleep(ms(1)).await;
    }
    assert_eq!(gateway.circuit().state, State::Closed);
    let got = got.lock().unwrap();
    assert!(got.len() >= 3, "a probe that failed, one that did not, and the client's: {got:?}");
    assert!(got.iter().all(|request| *request == got[0]), "{got:?}");
}
