//! Aligned timeouts never fail a call wrongly; over real sockets, and in a simulation.

mod simulation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Barrier;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::alignment::Topology;
use tower_upstream::alignment::{Finding, peers};
use tower_upstream::timeout::Timeouts;

use crate::support::{Gateway, Upstream, Wire, proxy, repeats};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nonce";
/// The upstream's keep-alive: longer than the second that the rule leaves between both ends.
const KEEP_ALIVE: Duration = Duration::from_millis(1250);
/// An idle limit of the pool that the rule accepts for it.
const ALIGNED: Duration = Duration::from_millis(200);
/// One that it does not: hyper-util's default, from which the pool needs seven dead connections to learn a shorter one.
const TOO_LONG: Duration = peers::HYPER_UTIL_POOL_IDLE;

/// Latency between gateway and upstream: long enough for messages to cross.
const UNDER_WAY: Duration = Duration::from_millis(25);

const CALLERS: usize = 250;

/// axum as its next version serves: with hyper's timer, which ends idle connections.
async fn axum_with_a_timer() -> Upstream {
    // so slow that all requests of a round are under way concurrently, each on its own connection
    let slow = || async { tokio::time::sleep(Duration::from_millis(60)).await };
    let router = Router::new().route("/", post(slow));
    Upstream::accepting(move |stream, _| {
        let service = TowerToHyperService::new(router.clone());
        async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).header_read_timeout(KEEP_ALIVE);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

/// Forwards bytes and their end with a delay.
async fn slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut bytes = vec![0; 4096];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        tokio::time::sleep(UNDER_WAY).await;
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// A network with latency between the gateway and this upstream.
async fn far(upstream: SocketAddr) -> Upstream {
    Upstream::accepting(move |near, _| async move {
        let far = TcpStream::connect(upstream).await.unwrap();
        far.set_nodelay(true).unwrap();
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        tokio::join!(slowly(near_read, far_write), slowly(far_read, near_write));
    })
    .await
}

/// Sends requests in rounds, an idle limit of the pool apart, and sometimes so late that a close is under way.
async fn caller(number: u64, gateway: SocketAddr, all: Arc<Barrier>, rounds: u64) -> Vec<u16> {
    let mut statuses = Vec::new();
    let mut wire = Wire::connect(gateway).await;
    all.wait().await;
    for round in 0..rounds {
        statuses.push(wire.ask(POST).await.status());
        // up to 5 ms after, another in each round; far ahead of the keep-alive, as a busy machine is late
        let (around, spread) = if round % 4 == 0 { (KEEP_ALIVE, 200) } else { (ALIGNED, 10) };
        let ahead = Duration::from_millis((number + round * 7) % spread);
        tokio::time::sleep((around + Duration::from_millis(5)).saturating_sub(ahead)).await;
    }
    statuses
}

/// Sends thousands of requests of 250 clients; returns the number of 502s, and the causes.
async fn thousands(pool_idle: Duration, rounds: usize) -> (usize, Vec<Cause>) {
    let upstream = axum_with_a_timer().await;
    let far = far(upstream.address).await;
    let gateway = Gateway::start(proxy(far.address).idle_timeout(pool_idle).max_connections(1000)).await;
    let all = Arc::new(Barrier::new(CALLERS));
    let callers: Vec<_> = (0..CALLERS as u64)
        .map(|number| tokio::spawn(caller(number, gateway.address, all.clone(), rounds as u64)))
        .collect();
    let mut statuses = Vec::new();
    for caller in callers {
        statuses.extend(caller.await.unwrap());
    }
    assert_eq!(statuses.len(), CALLERS * rounds);
    let failed = statuses.iter().filter(|status| **status == 502).count();
    // on a busy machine there may be a 504, which is not tested here
    assert!(statuses.iter().all(|status| matches!(status, 200 | 502 | 504)));
    let mut causes = gateway.seen.causes();
    causes.retain(|cause| cause.status() == 502);
    (failed, causes)
}

/// The rules that refuse this idle limit.
fn refused(pool_idle: Duration) -> Vec<&'static str> {
    let topology = Topology::new().pool_idle(pool_idle).upstream_keep_alive(KEEP_ALIVE);
    Timeouts::new().check(&topology).refused().map(Finding::id).collect()
}

#[tokio::test]
async fn a_pool_idle_limit_above_the_upstreams_keep_alive_causes_502s() {
    assert_eq!(refused(TOO_LONG), ["pool_idle_upstream_keep_alive"]);
    // a busy machine may miss the moment, so that there are several tries
    for _ in 0..5 {
        let (failed, causes) = thousands(TOO_LONG, 20).await;
        println!("unaligned: {failed} answered 502");
        assert_eq!(causes.len(), failed);
        // until an idle connection was found dead, the pool cannot know why others are lost at that age
        let lost = |cause: &Cause| {
            matches!(cause, Cause::StaleConnection | Cause::NotDispatched)
                || matches!(cause, Cause::ClosedBeforeResponse | Cause::ResetBeforeResponse)
        };
        assert!(causes.iter().all(lost), "{causes:?}");
        if failed > 0 {
            return;
        }
    }
    panic!("no request met a connection that was just closing");
}

#[tokio::test]
async fn a_pool_idle_limit_that_the_rules_accept_causes_none() {
    assert!(refused(ALIGNED).is_empty());
    assert_eq!(thousands(ALIGNED, repeats(8, 20)).await, (0, vec![]));
}
