//! The probes of endpoints whose circuit is open: which requests they are, and when a call is one.

use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::ServiceExt;
use tower_upstream::BadGatewayCause;
use tower_upstream::balance::{Balance, BalanceBuilder};
use tower_upstream::breaker::State;

use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{Act, get, ms, post};

type Plain = Endpoint<tower_upstream::body::TrackedUpload<Full<bytes::Bytes>>>;

/// A pool of three, of which `a` refuses connections, and the servers behind it.
struct Ejected {
    servers: Servers,
    pool: Balance<Plain>,
}

impl Ejected {
    async fn new(change: impl FnOnce(BalanceBuilder<Plain>) -> BalanceBuilder<Plain>) -> Self {
        let servers = Servers::default();
        let pool = change(Balance::builder("shop", servers.factory()).members(members(["a", "b", "c"])));
        let pool = pool.circuit(|policy| policy.consecutive_failures(1));
        let pool = pool.build().unwrap();
        servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
        for _ in 0..10_000 {
            if pool.handle().circuit("a").unwrap().snapshot(Instant::now()).state == State::Open {
                break;
            }
            call(&pool).await;
            sleep(ms(10)).await;
        }
        assert_eq!(servers.calls("a"), 1, "the circuit is open");
        Self { servers, pool }
    }

    fn state(&self) -> State {
        self.pool.handle().circuit("a").unwrap().snapshot(Instant::now()).state
    }

    async fn send(&self, request: Request<Full<bytes::Bytes>>) -> u16 {
        self.pool.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    /// Sends calls, one a millisecond, and returns how many were not successful.
    async fn run(&self, calls: u32, request: impl Fn() -> Request<Full<bytes::Bytes>>) -> u32 {
        let mut failed = 0;
        for _ in 0..calls {
            failed += u32::from(self.send(request()).await != 200);
            sleep(ms(1)).await;
        }
        failed
    }
}

#[tokio::test(start_paused = true)]
async fn copies_of_requests_to_other_endpoints_are_probes_and_no_call_fails() {
    let ejected = Ejected::new(|pool| pool).await;
    assert_eq!(ejected.run(10_000, get).await, 0, "no call is a probe for as long as copies are");
    let probes = ejected.servers.calls("a") - 1;
    assert!((250..=313).contains(&probes), "one for 32 calls: {probes}");
    ejected.servers.set("a", Act::Responds(200));
    assert_eq!(ejected.run(64, get).await, 0);
    assert_eq!(ejected.state(), State::Closed);
    let before = ejected.servers.calls("a");
    assert_eq!(ejected.run(1000, get).await, 0);
    let share = ejected.servers.calls("a") - before;
    assert!((1..200).contains(&share), "it returns with its slow start: {share}");
}

#[tokio::test(start_paused = true)]
async fn a_hung_endpoint_has_one_probe_at_a_time() {
    let ejected = Ejected::new(|pool| pool).await;
    ejected.servers.set("a", Act::Hangs);
    assert_eq!(ejected.run(10_000, get).await, 0);
    let probes = ejected.servers.calls("a") - 1;
    assert!((5..=12).contains(&probes), "each has a second: {probes}");
}

#[tokio::test(start_paused = true)]
async fn requests_with_an_effect_are_never_copied() {
    let ejected = Ejected::new(|pool| pool).await;
    ejected.servers.set("a", Act::Responds(200));
    assert_eq!(ejected.run(400, || post("order")).await, 0);
    assert_eq!((ejected.servers.calls("a"), ejected.state()), (1, State::Open));
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_safe_requests_recovers_after_twice_the_open_duration() {
    for probes in [true, false] {
        let ejected = Ejected::new(|pool| if probes { pool } else { pool.without_probe() }).await;
        let opened = Instant::now();
        ejected.servers.set("a", Act::Responds(200));
        while ejected.state() != State::Closed {
            assert_eq!(ejected.send(post("order")).await, 200);
            sleep(ms(5)).await;
        }
        let after = opened.elapsed();
        assert!(after >= ms(990) && after <= ms(2010), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_no_probe_while_reads_come() {
    let ejected = Ejected::new(BalanceBuilder::without_probe).await;
    for _ in 0..20_000 {
        assert_eq!(ejected.send(post("order")).await, 200, "no write is lost to a probe");
        ejected.send(get()).await;
        sleep(ms(1)).await;
    }
    let probes = ejected.servers.calls("a") - 1;
    assert!((2..=8).contains(&probes), "{probes}");
}

#[tokio::test(start_paused = true)]
async fn a_configured_request_is_the_probe_whatever_the_calls_are() {
    let health = Request::get("/health").body(()).unwrap();
    let ejected = Ejected::new(|pool| pool.probe_request(health)).await;
    ejected.servers.set("a", Act::Responds(404));
    ejected.run(64, || post("order")).await;
    assert_eq!(ejected.state(), State::Closed, "it responds");
}

#[tokio::test(start_paused = true)]
async fn without_probes_an_endpoint_is_left_alone_for_the_open_duration() {
    let ejected = Ejected::new(BalanceBuilder::without_probe).await;
    assert_eq!(ejected.run(450, get).await, 0);
    assert_eq!(ejected.servers.calls("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_held_open_is_not_probed() {
    let ejected = Ejected::new(|pool| pool).await;
    ejected.pool.handle().circuit("a").unwrap().hold_open();
    ejected.servers.set("a", Act::Responds(200));
    assert_eq!(ejected.run(5_000, get).await, 0);
    assert_eq!((ejected.servers.calls("a"), ejected.state()), (1, State::HeldOpen));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_lost_does_not_keep_an_endpoint_out() {
    // the call that is the probe never ends: after its timeout another one follows
    let ejected = Ejected::new(BalanceBuilder::without_probe).await;
    ejected.servers.set("a", Act::Hangs);
    sleep(ms(1_000)).await;
    let pool = ejected.pool.clone();
    let lost = tokio::spawn(async move { call(&pool).await });
    sleep(ms(1)).await;
    assert_eq!((ejected.servers.calls("a"), ejected.state()), (2, State::HalfOpen));
    ejected.servers.set("a", Act::Responds(200));
    assert_eq!(ejected.run(4_000, get).await, 0);
    assert_eq!(ejected.state(), State::Closed);
    lost.abort();
}

#[tokio::test(start_paused = true)]
async fn probes_whose_clients_leave_do_not_keep_an_endpoint_out() {
    let ejected = Ejected::new(BalanceBuilder::without_probe).await;
    ejected.servers.set("a", Act::Hangs);
    for probes in 2..6 {
        for _ in 0..10_000 {
            if ejected.servers.calls("a") == probes {
                break;
            }
            let _ = timeout(ms(1), call(&ejected.pool)).await;
            sleep(ms(1)).await;
        }
        assert_eq!(ejected.servers.calls("a"), probes);
    }
    ejected.servers.set("a", Act::Responds(200));
    assert_eq!(ejected.run(10_000, get).await, 0);
    assert_eq!(ejected.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_are_copied_too() {
    let ejected = Ejected::new(BalanceBuilder::refuse_in_panic).await;
    for key in ["b", "c"] {
        ejected.servers.set(key, Act::Fails(BadGatewayCause::ConnectionRefused));
    }
    ejected.run(500, get).await;
    for key in ["a", "b", "c"] {
        ejected.servers.set(key, Act::Responds(200));
    }
    ejected.run(150, get).await;
    assert_eq!(ejected.run(100, get).await, 0, "within 32 calls for each endpoint");
    advance(ms(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_one_endpoint_recovers_by_copies_of_the_calls_that_its_circuit_rejects() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).members(members(["a"]));
    let pool = pool.circuit(|policy| policy.consecutive_failures(1)).build().unwrap();
    let ejected = Ejected { servers, pool };
    ejected.servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
    assert_eq!(ejected.run(100, get).await, 100);
    assert_eq!(ejected.state(), State::Open);
    ejected.servers.set("a", Act::Responds(200));
    ejected.run(64, get).await;
    assert_eq!(ejected.state(), State::Closed);
    assert_eq!(ejected.run(100, get).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_returns_has_no_memory_of_its_failures() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    for key in ["a", "b"] {
        servers.takes(key, ms(10));
    }
    servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
    let latency = || pool.handle().snapshot(Instant::now()).endpoints[0].latency.unwrap_or_default();
    for _ in 0..500 {
        call(&pool).await;
        sleep(ms(100)).await;
    }
    assert!(latency() > ms(100), "{:?}", latency());
    pool.handle().circuit("a").unwrap().hold_open();
    call(&pool).await;
    servers.set("a", Act::Responds(200));
    pool.handle().circuit("a").unwrap().reset();
    call(&pool).await;
    assert!(latency() <= ms(10), "{:?}", latency());
}
