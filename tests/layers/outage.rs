//! A total outage of ten seconds, in virtual time: how many calls are lost after it, with a circuit breaker and
//! without.
//!
//! 700 calls arrive per second throughout; the upstream responds in 40 ms, and refuses connections from second 2 to 12.
//! A circuit that waits out its open duration loses calls for seconds after the outage; one with an active probe loses
//! the calls of one probe interval, here 20 ms. The table is printed by
//!
//!     cargo test --test layers outage -- --nocapture

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Empty, Full};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::ReplayBody;
use tower_upstream::breaker::CircuitBreakerLayer;
use tower_upstream::cause::{Evidence, Replay};
use tower_upstream::retry::RetryLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure};

const RATE: u32 = 700;
const DOWN: Duration = Duration::from_secs(2);
const BACK: Duration = Duration::from_secs(12);
const END: Duration = Duration::from_secs(20);

type Body = ReplayBody<Empty<Bytes>>;

/// The upstream, and the number of connections that it refused.
#[derive(Clone)]
struct Upstream {
    begun: Instant,
    in_vain: Arc<AtomicUsize>,
}

impl Upstream {
    fn is_down(&self) -> bool {
        let now = self.begun.elapsed();
        let down = now >= DOWN && now < BACK;
        self.in_vain.fetch_add(usize::from(down), Relaxed);
        down
    }

    fn service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response<Full<Bytes>>, Error = Failure, Future: Send> + Clone + Send + 'static
    {
        let upstream = self.clone();
        service_fn(move |_: Request<Body>| {
            let down = upstream.is_down();
            async move {
                if down {
                    let refused = Failure::builder(Cause::ConnectionRefused);
                    return Err(refused.replay(Replay::NotSent, Evidence::NoConnection).build());
                }
                sleep(Duration::from_millis(40)).await;
                Ok(Response::new(Full::from("answer")))
            }
        })
    }
}

/// The number of failed calls.
#[derive(Debug, Default)]
struct Told {
    before: usize,
    during: usize,
    after: usize,
    /// Connections and probes that were refused.
    in_vain: usize,
}

/// Which circuit breaker is around the upstream.
enum Stack {
    Without,
    Alone,
    LookedAfter,
}

async fn loses(stack: Stack) -> Told {
    let upstream = Upstream { begun: Instant::now(), in_vain: Arc::default() };
    let limits = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(1))).without_upload_tracking();
    let (classify, retry) = (ClassifyLayer::new(), RetryLayer::new());
    let breaker = CircuitBreakerLayer::new("upstream");
    if let Stack::LookedAfter = stack {
        let probed = upstream.clone();
        tokio::spawn(breaker.handle().active_probe(move || {
            let up = !probed.is_down();
            async move { up }
        }));
    }
    if let Stack::Without = stack {
        return told(&upstream, classify.layer(retry.layer(limits.layer(upstream.service())))).await;
    }
    told(&upstream, classify.layer(retry.layer(breaker.layer(limits.layer(upstream.service()))))).await
}

/// Makes calls in an open loop, and counts those that fail by the time of their arrival.
async fn told<S, B>(upstream: &Upstream, stack: S) -> Told
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Send + 'static,
{
    let mut calls = tokio::task::JoinSet::new();
    let mut at = upstream.begun;
    while at < upstream.begun + END {
        sleep_until(at).await;
        let stack = stack.clone();
        let came = upstream.begun.elapsed();
        calls.spawn(async move {
            let answer = stack.oneshot(Request::get("/").body(Empty::new()).unwrap()).await.unwrap();
            (came, answer.status().is_success())
        });
        at += Duration::from_secs(1) / RATE;
    }
    let mut told = Told::default();
    for (came, answered) in calls.join_all().await {
        let lost = usize::from(!answered);
        match came {
            _ if came < DOWN => told.before += lost,
            _ if came < BACK => told.during += lost,
            _ => told.after += lost,
        }
    }
    told.in_vain = upstream.in_vain.load(Relaxed);
    told
}

#[tokio::test(start_paused = true)]
async fn a_circuit_with_an_active_probe_does_not_prolong_an_outage() {
    let without = loses(Stack::Without).await;
    let alone = loses(Stack::Alone).await;
    let looked_after = loses(Stack::LookedAfter).await;
    println!("without a circuit: {without:?}\na circuit alone: {alone:?}\nlooked after: {looked_after:?}");
    let all = 10 * RATE as usize;
    for (what, told) in [("without", &without), ("alone", &alone), ("looked after", &looked_after)] {
        assert_eq!(told.before, 0, "{what}");
        assert!(told.during <= all, "{what}");
    }
    assert_eq!(without.after, 0);
    // one probe interval: a 500th of the outage
    assert!(looked_after.after <= without.after + RATE as usize / 50, "{looked_after:?}");
    assert!(alone.after > looked_after.after, "the open duration of a circuit alone is longer than that: {alone:?}");
    // and the upstream gets fewer connections
    assert!(looked_after.in_vain * 5 < without.in_vain, "{} against {}", looked_after.in_vain, without.in_vain);
}
