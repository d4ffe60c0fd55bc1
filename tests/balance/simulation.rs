//! The choice of endpoints, beside that of tower, and beside one that knows the calls in flight of all gateways.
//!
//! 20 servers with 8 workers each and a mean service time of 40 ms (exponential) have 70 % of the load that they can bear;
//! their queues are not limited. The calls are spread over 1 or 100 gateways at random. The table is printed by
//!
//!     cargo test --test balance simulation -- --nocapture

#![allow(clippy::cast_precision_loss)] // small counts

use std::time::Duration;

use http::Request;
use tower::balance::p2c;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower::{Service, ServiceExt};
use tower_upstream::balance::{Balance, Member};

use crate::model::{Behaviour, Body, Gateway, Measured, Scene, World};
use crate::support::repeats;

const SERVERS: usize = 20;
const WORKERS: usize = 8;
const SERVICE: Duration = Duration::from_millis(40);
const LOAD: f64 = 0.7;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    Random,
    /// Two at random, and the one with fewer calls of all gateways.
    Informed,
    Tower,
    Ours,
}

const POLICIES: [Policy; 4] = [Policy::Random, Policy::Informed, Policy::Tower, Policy::Ours];

impl Policy {
    fn gateway(self, world: &World, seed: u64) -> Gateway {
        let servers = world.scene().servers;
        match self {
            Self::Random | Self::Informed => {
                let (world, mut rng) = (world.clone(), fastrand::Rng::with_seed(seed));
                Box::new(move || {
                    let (one, other) = (rng.usize(..servers), rng.usize(..servers - 1));
                    let other = other + usize::from(other >= one);
                    let takes_other = self == Self::Informed && world.in_flight(other) < world.in_flight(one);
                    let reply = world.send(if takes_other { other } else { one });
                    Box::pin(async move { reply.await.unwrap().status() })
                })
            }
            Self::Tower => {
                let of = |server| {
                    let decay = Duration::from_secs(10).as_nanos() as f64;
                    PeakEwma::new(world.server(server), SERVICE, decay, CompleteOnResponse::default())
                };
                let list = ServiceList::new::<Request<Body>>((0..servers).map(of).collect::<Vec<_>>());
                let mut balance = p2c::Balance::new(list);
                Box::new(move || {
                    futures_util::FutureExt::now_or_never(ServiceExt::<Request<Body>>::ready(&mut balance))
                        .unwrap()
                        .unwrap();
                    let reply = balance.call(Request::new(Body::new()));
                    Box::pin(async move { reply.await.unwrap().status() })
                })
            }
            Self::Ours => {
                let world = world.clone();
                let make = move |member: &Member| world.server(member.key.parse().unwrap());
                let members = (0..servers).map(|server| Member::new(server.to_string()));
                // the choice alone
                let balance = Balance::builder("pool", make).members(members).without_circuit().build().unwrap();
                Box::new(move || {
                    let reply = balance.clone().call(Request::new(Body::new()));
                    Box::pin(async move { reply.await.unwrap().status() })
                })
            }
        }
    }
}

/// Simulates a scene with several seeds, and returns the measurement of each.
async fn simulate(scene: fn() -> Scene, policy: Policy, gateways: usize) -> Vec<Measured> {
    let mut measured = Vec::new();
    for seed in 1..=repeats(1, 3) {
        fastrand::seed(seed);
        let world = World::new(scene(), seed);
        let mut gateways: Vec<_> = (0..gateways).map(|gateway| policy.gateway(&world, seed + gateway as u64)).collect();
        measured.push(world.run(&mut gateways).await);
    }
    measured
}

fn mean(measured: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    measured.iter().map(of).sum::<f64>() / measured.len() as f64
}

fn scene(capacity: f64, behaviour: fn(usize, Duration) -> Behaviour) -> Scene {
    let length = Duration::from_secs(repeats(20, 60));
    let rate = LOAD * capacity * WORKERS as f64 / SERVICE.as_secs_f64();
    Scene { servers: SERVERS, workers: WORKERS, rate, length, warm_up: Duration::from_secs(5), behaviour }
}

fn slower(slow: bool) -> Behaviour {
    Behaviour { mean: SERVICE * if slow { 4 } else { 1 }, fails: 0.0 }
}

/// The first server is four times slower than the others.
fn one_is_slow() -> Scene {
    scene(19.25, |server, _| slower(server == 0))
}

/// Every five seconds another server is four times slower than the others.
fn slow_one_moves() -> Scene {
    scene(19.25, |server, at| slower(at.as_secs() / 5 % 20 == server as u64))
}

/// The first server fails 40 % of its calls within a millisecond.
fn one_fails() -> Scene {
    scene(20.0, |server, _| Behaviour { mean: SERVICE, fails: if server == 0 { 0.4 } else { 0.0 } })
}

async fn table(name: &str, scene: fn() -> Scene, gateways: usize) -> [Vec<Measured>; 4] {
    let mut rows = Vec::new();
    for policy in POLICIES {
        let rows_of = simulate(scene, policy, gateways).await;
        let (p50, p99) = (mean(&rows_of, |m| m.quantile(0.5)), mean(&rows_of, |m| m.quantile(0.99)));
        let (p999, failed) = (mean(&rows_of, |m| m.quantile(0.999)), mean(&rows_of, Measured::failed_share));
        println!(
            "{name}, {gateways} gateways, {policy:?}: p50 {p50:.0}, p99 {p99:.0}, p99.9 {p999:.0} ms, {:.2} % failed",
            failed * 100.0
        );
        rows.push(rows_of);
    }
    rows.try_into().unwrap()
}

fn p99(measured: &[Measured]) -> f64 {
    mean(measured, |measured| measured.quantile(0.99))
}

#[tokio::test(start_paused = true)]
async fn one_gateway_avoids_a_slow_server_as_if_it_knew_all_calls() {
    let [random, informed, _, ours] = table("one server 4x slower", one_is_slow, 1).await;
    assert!(p99(&ours) <= 1.1 * p99(&informed), "{} ms instead of {}", p99(&ours), p99(&informed));
    assert!(p99(&random) > 10.0 * p99(&ours));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_gateways_follow_a_slow_server_that_moves() {
    let [_, informed, _, ours] = table("slow server moves", slow_one_moves, 100).await;
    assert!(p99(&ours) <= 1.7 * p99(&informed), "{} ms instead of {}", p99(&ours), p99(&informed));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_fast_attracts_no_calls() {
    let blind = 0.4 / SERVERS as f64;
    for gateways in [1, 100] {
        let [.., ours] = table("one server fails 40 % in 1 ms", one_fails, gateways).await;
        let failed = mean(&ours, Measured::failed_share);
        assert!(failed <= 0.4 * blind, "{gateways} gateways: {failed} instead of {blind}");
    }
}

/// Calls to equal servers for ten seconds.
async fn spread<const SERVERS: usize, const RATE: u32>() -> (f64, f64) {
    let scene = || Scene {
        servers: SERVERS,
        workers: usize::MAX,
        rate: f64::from(RATE),
        length: Duration::from_secs(10),
        warm_up: Duration::ZERO,
        behaviour: |_, _| slower(false),
    };
    let measured = simulate(scene, Policy::Ours, 1).await;
    let spread = (mean(&measured, |m| m.spread().0), mean(&measured, |m| m.spread().1));
    println!(
        "{SERVERS} servers, {RATE} calls per second: busiest {:.2} x the mean, least busy {:.2}",
        spread.0, spread.1
    );
    spread
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_are_equally_busy() {
    assert!(spread::<5, 700>().await.0 <= 1.2);
    assert!(spread::<20, 700>().await.0 <= 1.2, "350 calls per server");
    assert!(spread::<100, 3000>().await.0 <= 1.2, "300 calls per server");
    assert!(spread::<100, 700>().await.0 <= 1.3, "70 calls per server");
}
