//! The endpoints of a pool, and what the tests of this binary share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt, service_fn};
use tower_upstream::balance::{Balance, Health, InvalidMembers, Member, MemberState};
use tower_upstream::body::TrackedUpload;
use tower_upstream::cause::{Evidence, Replay};
use tower_upstream::stack::RequestBody;
use tower_upstream::{BadGatewayCause, Failure};

use crate::support::service::{Act, Answer, get, ms};

pub(crate) type Body = TrackedUpload<RequestBody<Full<Bytes>>>;
pub(crate) type Endpoint<B> = BoxCloneSyncService<Request<B>, Answer, Failure>;

/// The servers behind a pool: what each does, and how often it was called.
#[derive(Clone, Default)]
pub(crate) struct Servers(Arc<Mutex<BTreeMap<String, Arc<Server>>>>);

/// One server.
pub(crate) struct Server {
    act: Mutex<Act>,
    takes: AtomicU64,
    calls: AtomicU32,
    made: AtomicU32,
}

impl Servers {
    /// The server of this key; made, with 200 for every call, when it is first named.
    pub(crate) fn server(&self, key: &str) -> Arc<Server> {
        let server = || Server {
            act: Mutex::new(Act::Responds(200)),
            takes: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            made: AtomicU32::new(0),
        };
        self.0.lock().unwrap().entry(key.to_owned()).or_insert_with(|| Arc::new(server())).clone()
    }

    pub(crate) fn set(&self, key: &str, act: Act) {
        *self.server(key).act.lock().unwrap() = act;
    }

    /// Calls to the server of this key.
    pub(crate) fn calls(&self, key: &str) -> u32 {
        self.server(key).calls.load(Relaxed)
    }

    /// How often the service of this key was made.
    pub(crate) fn made(&self, key: &str) -> u32 {
        self.server(key).made.load(Relaxed)
    }

    pub(crate) fn takes(&self, key: &str, time: Duration) {
        self.server(key).takes.store(u64::try_from(time.as_millis()).unwrap(), Relaxed);
    }

    /// The factory of a pool.
    pub(crate) fn factory<B: Send + 'static>(&self) -> impl Fn(&Member) -> Endpoint<B> + Send + Sync + use<B> {
        let servers = self.clone();
        move |member| {
            let server = servers.server(&member.key);
            server.made.fetch_add(1, Relaxed);
            BoxCloneSyncService::new(service_fn(move |_| respond(&server)))
        }
    }
}

fn respond(server: &Server) -> impl Future<Output = Result<Answer, Failure>> + Send + use<> {
    server.calls.fetch_add(1, Relaxed);
    let act = *server.act.lock().unwrap();
    let takes = ms(server.takes.load(Relaxed));
    async move {
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        match act {
            Act::Responds(status) => Ok(Response::builder().status(status).body(Full::from("body")).unwrap()),
            Act::Fails(cause @ BadGatewayCause::ConnectionRefused) => {
                Err(Failure::builder(cause).replay(Replay::NotSent, Evidence::NoConnection).build())
            }
            Act::Fails(cause) => Err(Failure::new(cause)),
            Act::Hangs => std::future::pending().await,
        }
    }
}

pub(crate) fn members<'a>(keys: impl IntoIterator<Item = &'a str>) -> Vec<Member> {
    keys.into_iter().map(Member::new).collect()
}

/// One call to a pool alone; its status.
pub(crate) async fn call<S>(pool: &Balance<S>) -> u16
where
    Balance<S>: Service<Request<Full<Bytes>>, Response: Status, Error: std::fmt::Debug>,
{
    pool.clone().oneshot(get()).await.unwrap().status()
}

pub(crate) trait Status {
    fn status(&self) -> u16;
}

impl<B> Status for Response<B> {
    fn status(&self) -> u16 {
        Response::status(self).as_u16()
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_responds_at_once_with_the_cause() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).build().unwrap();
    let response = pool.clone().oneshot(get()).await.unwrap();
    let failure = Failure::of(&response).unwrap();
    assert_eq!((response.status().as_u16(), failure.cause()), (503, BadGatewayCause::NoHealthyUpstream));
    assert_eq!(failure.upstream(), Some("shop"));
    let _ = pool.handle().upsert(Member::new("a")).unwrap();
    assert_eq!(call(&pool).await, 200, "the first member takes calls");
}

#[tokio::test(start_paused = true)]
async fn calls_are_spread_over_all_endpoints() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b", "c", "d", "e"])).build().unwrap();
    for _ in 0..500 {
        assert_eq!(call(&pool).await, 200);
        tokio::time::advance(ms(1)).await;
    }
    for key in ["a", "b", "c", "d", "e"] {
        assert!((80..=120).contains(&servers.calls(key)), "{key}: {}", servers.calls(key));
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_is_ejected_and_returns_after_a_probe() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b", "c"]));
    let pool = pool.circuit(|policy| policy.consecutive_failures(2)).without_probe().build().unwrap();
    for key in ["a", "b", "c"] {
        servers.takes(key, ms(10));
    }
    servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
    for _ in 0..40 {
        call(&pool).await;
    }
    assert_eq!(servers.calls("a"), 2, "the second failure to connect opens the circuit");
    let snapshot = pool.handle().snapshot(Instant::now());
    assert_eq!((snapshot.unavailable, snapshot.panicking), (1, 0));
    assert!(!snapshot.endpoints[0].is_available && snapshot.endpoints[1].is_available);
    servers.set("a", Act::Responds(200));
    tokio::time::advance(ms(1500)).await;
    for _ in 0..100 {
        assert_eq!(call(&pool).await, 200);
    }
    assert!(servers.calls("a") > 4, "{}", servers.calls("a"));
    assert_eq!(pool.handle().snapshot(Instant::now()).unavailable, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_of_which_most_endpoints_fail_uses_all_of_them_and_recovers_at_once() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b", "c"])).build().unwrap();
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Fails(BadGatewayCause::ConnectionRefused));
    }
    for _ in 0..100 {
        assert_eq!(call(&pool).await, 502);
    }
    assert_eq!(pool.handle().snapshot(Instant::now()).panicking, 1);
    assert!(["a", "b", "c"].iter().all(|key| servers.calls(key) > 5));
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Responds(200));
    }
    for _ in 0..20 {
        assert_eq!(call(&pool).await, 200);
        tokio::time::advance(ms(100)).await;
    }
    assert_eq!(pool.handle().snapshot(Instant::now()).unavailable, 0, "successes close the circuits");
}

#[tokio::test(start_paused = true)]
async fn the_circuit_of_a_single_endpoint_rejects_calls_as_without_a_pool() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a"])).build().unwrap();
    servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
    for _ in 0..100 {
        call(&pool).await;
    }
    assert_eq!(servers.calls("a"), 5);
    let response = pool.clone().oneshot(get()).await.unwrap();
    let failure = Failure::of(&response).unwrap();
    assert_eq!((response.status().as_u16(), failure.cause()), (503, BadGatewayCause::CircuitOpen));
    assert_eq!(failure.opened_by().unwrap().cause(), BadGatewayCause::ConnectionRefused);
    servers.set("a", Act::Responds(200));
    tokio::time::advance(ms(1500)).await;
    assert_eq!(call(&pool).await, 200);
}

#[tokio::test(start_paused = true)]
async fn calls_are_refused_in_a_panic_if_so_configured() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b", "c"])).refuse_in_panic();
    let pool = pool.build().unwrap();
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Fails(BadGatewayCause::ConnectionRefused));
    }
    for _ in 0..100 {
        call(&pool).await;
    }
    assert_eq!(["a", "b", "c"].map(|key| servers.calls(key)), [5; 3]);
    let response = pool.clone().oneshot(get()).await.unwrap();
    assert_eq!(Failure::of(&response).unwrap().cause(), BadGatewayCause::NoHealthyUpstream);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_a_check_found_unhealthy_takes_no_calls() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    pool.handle().set_health("a", Health::Unhealthy);
    for _ in 0..10 {
        call(&pool).await;
    }
    assert_eq!((servers.calls("a"), servers.calls("b")), (0, 10));
    pool.handle().set_health("a", Health::Healthy);
    for _ in 0..100 {
        tokio::time::advance(ms(200)).await;
        call(&pool).await;
    }
    assert!(servers.calls("a") > 20);
}

#[tokio::test(start_paused = true)]
async fn the_next_tier_takes_over_when_all_of_the_first_is_down() {
    let servers = Servers::default();
    let tiers = members(["a", "b"]).into_iter().chain(members(["c", "d"]).into_iter().map(|member| member.tier(1)));
    let pool = Balance::builder("shop", servers.factory()).members(tiers).build().unwrap();
    for _ in 0..10 {
        call(&pool).await;
    }
    assert_eq!(servers.calls("c") + servers.calls("d"), 0);
    servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
    servers.set("b", Act::Fails(BadGatewayCause::ConnectionRefused));
    let mut failed = 0;
    for _ in 0..200 {
        failed += u32::from(call(&pool).await != 200);
    }
    assert_eq!(failed, 10, "five for each endpoint");
    assert_eq!(pool.handle().snapshot(Instant::now()).panicking, 0);
}

#[tokio::test(start_paused = true)]
async fn a_draining_member_takes_calls_only_when_no_other_is_left() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    let _ = pool.handle().upsert(Member::new("a").state(MemberState::Draining)).unwrap();
    for _ in 0..10 {
        call(&pool).await;
    }
    assert_eq!(servers.calls("a"), 0);
    assert_eq!(servers.made("a"), 1, "a change of its state keeps the endpoint");
    let _ = pool.handle().remove("b");
    assert_eq!(call(&pool).await, 200);
    assert_eq!(servers.calls("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_removed_endpoint_finishes_its_calls_and_gets_no_new_ones() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    servers.takes("a", ms(500));
    servers.takes("b", ms(500));
    let running: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let pool = pool.clone();
                async move { call(&pool).await }
            })
        })
        .collect();
    tokio::time::advance(ms(10)).await;
    let before = servers.calls("a");
    assert!(before > 0);
    let _ = pool.handle().remove("a");
    for call in running {
        assert_eq!(call.await.unwrap(), 200);
    }
    for _ in 0..10 {
        call(&pool).await;
    }
    assert_eq!(servers.calls("a"), before);
}

#[tokio::test(start_paused = true)]
async fn first_members_that_cannot_be_used_are_refused() {
    let servers = Servers::default();
    let pool = Balance::<Endpoint<Body>>::builder("shop", servers.factory()).members(members(["a", "a"])).build();
    assert_eq!(pool.unwrap_err(), InvalidMembers::DuplicateKey("a".into()));
}

#[tokio::test(start_paused = true)]
async fn the_last_member_with_a_weight_drains_when_it_is_removed() {
    let servers = Servers::default();
    let list = [Member::new("a"), Member::new("b").weight(0)];
    let pool = Balance::builder("shop", servers.factory()).members(list).build().unwrap();
    for _ in 0..2 {
        let _ = pool.handle().remove("a");
        assert_eq!(call(&pool).await, 200, "a source that lost everything does not stop all calls");
    }
    let _ = pool.handle().upsert(Member::new("b")).unwrap();
    let _ = pool.handle().remove("a");
    assert_eq!((call(&pool).await, servers.calls("b")), (200, 1));
    let keys: Vec<_> = pool.handle().members().borrow().iter().map(|member| member.key.to_string()).collect();
    assert_eq!(keys, ["b"]);
}
