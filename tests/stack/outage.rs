//! Outages of every kind and length behind the default stack, in virtual time: the calls that are refused after the repair, and
//! the requests that the upstream gets while it is down.
//!
//! 200 calls arrive per second throughout. An outage may cost the calls that arrive until a probe finds its end. There is one
//! probe for 32 refused calls, and at least 1/500 of the outage between two. The table is printed by
//!
//!     cargo test --test stack outage -- --nocapture

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::breaker::State;
use tower_upstream::cause::{Evidence, Replay};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::{RequestBody, UpstreamBuilder};
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::ms;

const RATE: u32 = 200;
const SECOND: Duration = Duration::from_secs(1);
/// When an outage begins.
const DOWN: Duration = SECOND;
/// The calls that may be refused after the repair: a few dozen.
const FEW: u32 = 48;

/// How an upstream fails while it is down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    Refused,
    Hung,
    Reset,
    /// The upstream's own 502.
    Erring,
    TenTimesSlow,
    /// One of four calls is for a route that hangs; the other routes work.
    OneRoute,
    /// Refuses connections in every other second.
    Flapping,
}

use Outage::*;

/// The counts of one run.
#[derive(Debug, Default)]
struct Told {
    /// Calls in the outage, those that the upstream got after the circuit had opened, and those that arrived since then.
    came: u32,
    reached: u32,
    since_opened: u32,
    /// Calls lost while the upstream worked: before the outage, in a good second, and on other routes.
    lost_while_well: u32,
    /// Calls lost that arrived after the repair.
    lost_after: u32,
}

#[derive(Clone)]
struct Upstream {
    begun: Instant,
    outage: Outage,
    until: Duration,
    /// Requests that arrived during the outage since the circuit first opened.
    reached: Arc<AtomicU32>,
    opened: Arc<std::sync::OnceLock<Instant>>,
}

impl Upstream {
    fn is_down(&self, path: &str) -> bool {
        let now = self.begun.elapsed();
        let down = now >= DOWN && now < self.until;
        match self.outage {
            OneRoute => down && path == "/partner",
            Flapping => down && now.saturating_sub(DOWN).as_secs() % 2 == 0,
            _ => down,
        }
    }

    async fn respond(self, request: Request<RequestBody<Full<Bytes>>>) -> Result<Response<Full<Bytes>>, Failure> {
        let down = self.is_down(request.uri().path());
        if down && self.opened.get().is_some() {
            self.reached.fetch_add(1, Relaxed);
        }
        let sent = |cause| Failure::builder(cause).replay(Replay::IdempotentOnly, Evidence::Counted).build();
        match self.outage {
            Refused | Flapping if down => {
                let refused = Failure::builder(Cause::ConnectionRefused);
                return Err(refused.replay(Replay::NotSent, Evidence::NoConnection).build());
            }
            Hung | OneRoute if down => pending().await,
            Reset if down => {
                sleep(ms(1)).await;
                return Err(sent(Cause::ResetBeforeResponse));
            }
            Erring if down => {
                sleep(ms(1)).await;
                return Ok(Response::builder().status(StatusCode::BAD_GATEWAY).body(Full::default()).unwrap());
            }
            TenTimesSlow if down => sleep(ms(400)).await,
            _ => sleep(ms(40)).await,
        }
        Ok(Response::new(Full::from("hello")))
    }
}

/// The default stack, with timeouts that pass within an outage, and a limiter that refuses nothing here.
fn stack() -> UpstreamBuilder {
    UpstreamLayer::builder("shop")
        .timeouts(|timeouts| timeouts.response_head(ms(450)).attempt(ms(450)).total(SECOND))
        .limiter(|_| ConcurrencyLimitLayer::fixed(1024))
}

async fn outage(outage: Outage, lasts: Duration, stack: UpstreamBuilder) -> Told {
    let until = DOWN + lasts;
    let layer = stack.build().unwrap();
    let upstream = Upstream { begun: Instant::now(), outage, until, reached: Arc::default(), opened: Arc::default() };
    let inner = upstream.clone();
    let service = layer.layer(service_fn(move |request| inner.clone().respond(request)));
    let (opened, mut changes) = (upstream.opened.clone(), layer.handle().circuit().unwrap().transitions());
    tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            if change.state == State::Open {
                opened.get_or_init(Instant::now);
            }
        }
    });
    let mut calls = JoinSet::new();
    let mut at = upstream.begun;
    for number in 0.. {
        sleep_until(at).await;
        let came = upstream.begun.elapsed();
        if came >= until + SECOND * 3 {
            break;
        }
        let path = if number % 4 == 0 { "/partner" } else { "/" };
        let (service, down) = (service.clone(), upstream.is_down(path));
        let opened = upstream.opened.get().is_some();
        calls.spawn(async move {
            let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
            let Ok(response) = service.oneshot(request).await;
            (came, down, opened, response.status().is_success())
        });
        at += SECOND / RATE;
    }
    let mut told = Told::default();
    for (came, down, opened, served) in calls.join_all().await {
        let lost = u32::from(!served);
        if came >= until {
            told.lost_after += lost;
        } else if down {
            told.came += 1;
            told.since_opened += u32::from(opened);
        } else {
            told.lost_while_well += lost;
        }
    }
    told.reached = upstream.reached.load(Relaxed);
    println!("{outage:?} of {lasts:?}: {told:?}");
    told
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_over_for_the_clients_when_it_is_over() {
    for kind in [Refused, Hung, Reset, Erring] {
        for seconds in [1, 3, 10, 60] {
            let told = outage(kind, SECOND * seconds, stack()).await;
            assert!(told.lost_after <= FEW, "{kind:?} of {seconds} s: {told:?}");
            assert!(told.reached * 20 <= told.since_opened, "{kind:?} of {seconds} s: {told:?}");
            assert!(told.since_opened * 2 > told.came, "{kind:?} of {seconds} s: the circuit opened in time: {told:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_slow_is_not_refused() {
    for seconds in [1, 3, 10, 60] {
        let told = outage(TenTimesSlow, SECOND * seconds, stack()).await;
        assert_eq!((told.lost_while_well, told.lost_after, told.since_opened), (0, 0, 0), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_that_hangs_takes_no_other_with_it() {
    for seconds in [1, 3, 10, 60] {
        let told = outage(OneRoute, SECOND * seconds, stack()).await;
        assert_eq!((told.lost_while_well, told.lost_after), (0, 0), "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_flaps_is_served_in_its_good_seconds() {
    for seconds in [3, 10, 60] {
        let told = outage(Flapping, SECOND * seconds, stack()).await;
        let good = seconds / 2;
        assert!(told.lost_while_well <= good * FEW, "{told:?}");
        assert!(told.lost_after <= FEW, "{told:?}");
        // in each bad second, what comes until five calls in a row have failed is on top, with its retries: calls that began in
        // the good second still succeed meanwhile
        assert!(told.reached <= told.came / 20 + (good + 1) * 25, "{told:?}");
    }
}

/// Shows what the probes are worth: without them the open duration decides.
#[tokio::test(start_paused = true)]
async fn without_probes_recovery_waits_for_the_open_duration() {
    let long = SECOND * 30;
    let patient =
        |stack: UpstreamBuilder| stack.circuit(move |policy| policy.open_duration(long).max_open_duration(long));
    let told = outage(Hung, SECOND * 3, patient(stack()).without_probe()).await;
    assert!(told.lost_after > 2 * FEW, "{told:?}");
    let told = outage(Hung, SECOND * 3, patient(stack())).await;
    assert!(told.lost_after <= FEW, "{told:?}");
}
