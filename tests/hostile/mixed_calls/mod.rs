//! Thousands of mixed calls through one gateway: no response reaches another client, and no POST is processed twice.
//!
//! Each request carries a number; the bodies of the request and of its response are derived from it, and both ends check
//! them. The plan of a call (`plan.rs`) is derived from the number as well: method, framing, interim
//! responses, trailers, what the upstream does (closes, refuses, answers early, cuts) and what the client does (cancels,
//! pipelines). `CALLS` (default 2,000) and `SEED` in the environment make a longer run or another one.

mod clients;
mod plan;
mod record;
mod upstreams;

use std::sync::Arc;

use tokio::task::JoinSet;
use tower_upstream::breaker::{BreakerPolicy, Ratio};
use tower_upstream::client::HttpVersion;

use self::plan::Plans;
use self::record::Record;
use crate::support::{StackGateway, default_proxy, stack};

/// Clients of each protocol before each upstream.
const CLIENTS: u64 = 4;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Runs all calls before an upstream of this protocol.
async fn run(http: HttpVersion, calls: u64) {
    let plans = Plans::new(from_env("SEED", 12));
    let record = Arc::new(Record::default());
    let upstream = match http {
        HttpVersion::H2 => upstreams::http2(plans, record.clone()).await,
        _ => upstreams::http1(plans, record.clone()).await,
    };
    // the upstream fails often: an open circuit would leave little to look at
    let never = BreakerPolicy::new().consecutive_failures(u32::MAX).ratio(Ratio::per_mille(1000), u32::MAX);
    let gateway =
        StackGateway::start(stack().circuit(move |_| never), default_proxy(upstream.address).http(http)).await;

    let mut running = JoinSet::new();
    let share = calls / (2 * CLIENTS);
    for client in 0..CLIENTS {
        let (by_http1, by_http2) = (2 * client * share, (2 * client + 1) * share);
        let (address, record) = (gateway.address, record.clone());
        running.spawn(clients::by_http1(address, plans, by_http1..by_http1 + share, record.clone()));
        running.spawn(clients::by_http2(address, plans, by_http2..by_http2 + share, record));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    println!("{record:?}");
    record.check(plans, share * 2 * CLIENTS);
}

#[tokio::test]
async fn calls_with_an_http1_upstream_never_mix() {
    run(HttpVersion::Auto, from_env("CALLS", 2_000) / 2).await;
}

#[tokio::test]
async fn calls_with_an_http2_upstream_never_mix() {
    run(HttpVersion::H2, from_env("CALLS", 2_000) / 2).await;
}
