//! Five upstream processes behind a pool of proxies, each of which is killed, stopped, slow or full in turn.
//!
//! An upstream is this binary again, which runs the test [`an_upstream_process`] until it is killed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tower::ServiceExt;
use tower_upstream::balance::{Balance, Member, reverse_proxies};
use tower_upstream::client::ReverseProxy;
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::stack::BoxUpstream;
use tower_upstream::{Failure, UpstreamLayer};

use crate::support::service::ms;
use crate::support::{repeats, until};

/// The address of an upstream process.
const LISTEN: &str = "TEST_UPSTREAM_LISTENS_AT";
/// The usual response time of an upstream.
const USUAL: u64 = 5;
const RATE: u64 = 1000;

type Stack = BoxUpstream<Full<Bytes>>;

/// What an upstream does at present.
#[derive(Default)]
struct Behaviour {
    takes: AtomicU64,
    /// It accepts no connections, and closes those it has.
    is_full: AtomicBool,
    changed: Notify,
    listener: Option<TcpListener>,
}

impl Behaviour {
    /// A second call of `listen` changes the length of the queue.
    fn set_backlog(&self, backlog: i32) {
        socket2::SockRef::from(self.listener.as_ref().unwrap()).listen(backlog).unwrap();
    }
}

/// Serves until it is killed, if it was started as an upstream.
#[test]
fn an_upstream_process() {
    let Ok(address) = std::env::var(LISTEN) else { return };
    // it ends with the test that has started it
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address.parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let behaviour = Behaviour { takes: AtomicU64::new(USUAL), ..Behaviour::default() };
        let behaviour = Arc::new(Behaviour { listener: Some(listener), ..behaviour });
        let listener = behaviour.listener.as_ref().unwrap();
        loop {
            if behaviour.is_full.load(Relaxed) {
                behaviour.changed.notified().await;
                continue;
            }
            tokio::select! {
                () = behaviour.changed.notified() => {}
                accepted = listener.accept() => {
                    tokio::spawn(serve(accepted.unwrap().0, behaviour.clone()));
                }
            }
        }
    });
}

async fn serve(stream: tokio::net::TcpStream, behaviour: Arc<Behaviour>) {
    let shared = behaviour.clone();
    let service = service_fn(move |request: Request<Incoming>| respond(request, shared.clone()));
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    loop {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = sleep(ms(20)), if behaviour.is_full.load(Relaxed) => serving.as_mut().graceful_shutdown(),
            () = sleep(ms(100)) => {}
        }
    }
}

async fn respond(request: Request<Incoming>, behaviour: Arc<Behaviour>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path().split('/').collect::<Vec<_>>()[..] {
        [_, "takes", time] => behaviour.takes.store(time.parse().unwrap(), Relaxed),
        [_, "full", time] => {
            behaviour.set_backlog(1);
            behaviour.is_full.store(true, Relaxed);
            behaviour.changed.notify_one();
            let time = ms(time.parse().unwrap());
            tokio::spawn(async move {
                sleep(time).await;
                behaviour.set_backlog(1024);
                behaviour.is_full.store(false, Relaxed);
                behaviour.changed.notify_one();
            });
        }
        _ => {
            let _ = request.into_body().collect().await;
            sleep(ms(behaviour.takes.load(Relaxed))).await;
        }
    }
    Ok(Response::new(Full::from("done")))
}

/// An upstream process, which is killed at the end.
struct Process {
    address: SocketAddr,
    child: Option<Child>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Process {
    fn new() -> Self {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap();
        Self { address, child: None }
    }

    async fn start(&mut self) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "real_sockets::an_upstream_process", "--nocapture"])
            .env(LISTEN, self.address.to_string());
        self.child = Some(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let address = self.address;
        until("the upstream listens", || TcpStream::connect(address).is_ok()).await;
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Tells it what to do.
    async fn tell(&self, path: &str) {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "upstream").body(Full::<Bytes>::default()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    slow: AtomicU64,
    failures: Mutex<BTreeMap<String, u32>>,
}

impl Seen {
    fn report(&self, what: &str) -> (u64, u32) {
        let failures = std::mem::take(&mut *self.failures.lock().unwrap());
        let calls = self.calls.swap(0, Relaxed);
        let slow = self.slow.swap(0, Relaxed);
        eprintln!("{what}: {calls} calls, {slow} took 500 ms or more, failures {failures:?}");
        (calls, failures.values().sum())
    }
}

/// Makes a thousand calls a second until it is aborted; nine of ten are `GET`.
async fn load(stack: Stack, seen: Arc<Seen>) {
    let mut pace = interval(ms(5));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    let mut number = 0;
    loop {
        pace.tick().await;
        for _ in 0..RATE * 5 / 1000 {
            number += 1;
            running.spawn(call(stack.clone(), seen.clone(), number % 10 == 0));
        }
        while running.try_join_next().is_some() {}
    }
}

async fn call(stack: Stack, seen: Arc<Seen>, is_post: bool) {
    let (request, body) = if is_post {
        (Request::post("/order"), Full::from("an order"))
    } else {
        (Request::get("/cart"), Full::default())
    };
    let client = ClientInfo::new(Some(IpAddr::from([192, 0, 2, 7])), Scheme::Https);
    let request = request.header("host", "shop").extension(client).body(body).unwrap();
    let begun = Instant::now();
    let Ok(response) = stack.oneshot(request).await;
    let status = response.status();
    let failure = Failure::of(&response).cloned();
    let body = response.into_body().collect().await;
    seen.calls.fetch_add(1, Relaxed);
    seen.slow.fetch_add(u64::from(begun.elapsed() >= ms(500)), Relaxed);
    if status != 200 || body.is_err() {
        let failure = failure.or_else(|| body.err());
        let cause = failure.map_or_else(
            || status.to_string(),
            |failure| format!("{} {}", failure.cause().as_str(), failure.phase().as_str()),
        );
        *seen
            .failures
            .lock()
            .unwrap()
            .entry(format!("{} {cause}", if is_post { "POST" } else { "GET" }))
            .or_default() += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_processes_that_fail_one_by_one_fail_one_call_of_a_thousand_at_most() {
    let mut processes: Vec<_> = (0..5).map(|_| Process::new()).collect();
    for process in &mut processes {
        process.start().await;
    }
    let proxy = ReverseProxy::builder("http://shop".parse().unwrap(), ForwardingRules::new("edge").unwrap());
    let members = processes.iter().map(|process| Member::new(process.address.to_string()).addresses([process.address]));
    let pool = Balance::builder("shop", reverse_proxies(proxy)).members(members).build().unwrap();
    let handle = pool.handle();
    let stack = UpstreamLayer::for_pool(&pool).build().unwrap().boxed(pool);
    let seen = Arc::new(Seen::default());
    let clients = tokio::spawn(load(stack, seen.clone()));
    let (fault, rest) = repeats((ms(1000), ms(500)), (ms(8000), ms(5000)));
    let mut reports = Vec::new();

    sleep(rest).await;
    reports.push(seen.report("all are well"));

    processes[0].kill();
    sleep(fault).await;
    reports.push(seen.report("one was killed, its port is closed"));
    processes[0].start().await;
    sleep(rest).await;
    reports.push(seen.report("it was started again"));

    processes[1].signal("-STOP");
    sleep(fault).await;
    reports.push(seen.report("one was stopped"));
    processes[1].signal("-CONT");
    sleep(rest).await;
    reports.push(seen.report("it continued"));

    processes[2].tell(&format!("/full/{}", fault.as_millis())).await;
    sleep(fault).await;
    reports.push(seen.report("one accepted no connections"));
    sleep(rest).await;
    reports.push(seen.report("it accepts them again"));

    processes[3].tell(&format!("/takes/{}", USUAL * 10)).await;
    sleep(fault).await;
    reports.push(seen.report("one was ten times as slow"));
    processes[3].tell(&format!("/takes/{USUAL}")).await;
    sleep(rest).await;
    reports.push(seen.report("it is as fast as before"));

    clients.abort();
    let snapshot = handle.snapshot(Instant::now());
    for endpoint in &snapshot.endpoints {
        let circuit = endpoint.circuit.as_ref().unwrap();
        eprintln!(
            "{}: {:?}, opened {}, probes {}, {:?}",
            endpoint.member.key, circuit.state, circuit.opened, circuit.probes, endpoint.latency
        );
    }
    let (calls, failed) = reports.iter().fold((0, 0), |sum, report| (sum.0 + report.0, sum.1 + report.1));
    assert!(calls > 0 && u64::from(failed) * 1000 <= calls, "{failed} of {calls}");
}
