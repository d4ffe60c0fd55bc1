//! What the layer costs on the way that succeeds, and what a failure costs.
//!
//! Numbers of one machine say little; compare two versions on the same one. Instructions are counted by
//! `../shared/overhead` and `../shared/bench/ir.py`.

use std::convert::Infallible;
use std::hint::black_box;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::balance::{Balance, Member};
use tower_upstream::breaker::CircuitBreakerLayer;
use tower_upstream::cause::{ProxyStatus, entries};
use tower_upstream::deadline::DeadlinePropagation;
use tower_upstream::event::{Event, Observer};
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{RetryBudget, Withdrawal};
use tower_upstream::timeout::AdaptiveTimeout;
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};

struct Silent;

impl Observer for Silent {
    fn on_event(&self, _: &Event<'_>) {}
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

#[divan::bench]
fn classify_passes_an_answer_on(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let mut service = ClassifyLayer::new().layer(inner);
    bencher.bench_local(|| runtime.block_on(service.call(Request::new(()))));
}

#[divan::bench]
fn nothing_passes_an_answer_on(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let mut inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    bencher.bench_local(|| runtime.block_on(inner.call(Request::new(()))));
}

/// The members of a pool, of which the first has this weight.
fn members(count: u32, weight: u32) -> impl Iterator<Item = Member> {
    (0..count).map(move |number| Member::new(number.to_string()).weight(if number == 0 { weight } else { 1 }))
}

type Endpoint = tower::util::BoxCloneSyncService<Request<Bodies>, Response<Full<Bytes>>, Infallible>;
type Bodies = tower_upstream::body::TrackedUpload<Full<Bytes>>;

fn pool(count: u32) -> Balance<Endpoint> {
    let make = |_: &Member| {
        let endpoint = service_fn(|_| std::future::ready(Ok(Response::new(Full::<Bytes>::default()))));
        Endpoint::new(endpoint)
    };
    Balance::builder("bench", make).members(members(count, 1)).build().expect("members")
}

#[divan::bench]
fn one_of_ten_thousand_members_changes_its_weight(bencher: Bencher<'_, '_>) {
    let (handle, mut weight) = (pool(10_000).handle(), 1);
    bencher.bench_local(|| {
        weight = 3 - weight;
        handle.upsert(Member::new("0").weight(weight))
    });
}

#[divan::bench]
fn ten_thousand_members_of_which_one_changes_are_replaced(bencher: Bencher<'_, '_>) {
    let (handle, mut weight) = (pool(10_000).handle(), 1);
    bencher.bench_local(|| {
        weight = 3 - weight;
        handle.replace(members(10_000, weight))
    });
}

/// Two threads should do almost as many calls each as one.
#[divan::bench(threads = [1, 2], args = [1, 20])]
fn a_pool_passes_a_call_on(bencher: Bencher<'_, '_>, endpoints: u32) {
    let pool = pool(endpoints);
    let request = || (pool.clone(), Request::new(Full::<Bytes>::default()));
    bencher.with_inputs(request).bench_values(|(mut pool, request)| pool.call(request).now_or_never());
}

#[divan::bench]
fn a_closed_circuit_lets_a_request_pass(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let mut service = CircuitBreakerLayer::new("bench").layer(inner);
    bencher.bench_local(|| runtime.block_on(Service::call(&mut service, Request::new(()))));
}

#[divan::bench]
fn a_limit_lets_a_request_pass(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let mut service = ConcurrencyLimitLayer::adaptive().layer(inner);
    bencher.bench_local(|| runtime.block_on(Service::call(&mut service, Request::new(()))));
}

#[divan::bench]
fn admission_lets_a_request_in(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let mut service = AdmissionLayer::new(100).layer(inner);
    bencher.bench_local(|| runtime.block_on(service.call(Request::new(()))));
}

#[divan::bench]
fn admission_refuses_a_request(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) });
    let deadlines = DeadlinePropagation::new().trust_everyone();
    let mut service = AdmissionLayer::new(100).deadlines(deadlines).layer(inner);
    let late = || {
        let mut request = Request::new(());
        request.headers_mut().insert("x-request-timeout-ms", HeaderValue::from_static("0"));
        request
    };
    bencher.with_inputs(late).bench_local_values(|request| runtime.block_on(service.call(request)));
}

#[divan::bench]
fn classify_answers_a_failure(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let refused = service_fn(|_: Request<()>| async {
        Err::<Response<Full<Bytes>>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
    });
    let status = ProxyStatus::new("edge").expect("a name");
    let mut service = ClassifyLayer::new().proxy_status(status).observer(Silent).layer(refused);
    bencher.bench_local(|| runtime.block_on(service.call(Request::new(()))));
}

#[divan::bench]
fn an_error_is_judged(bencher: Bencher<'_, '_>) {
    bencher.bench(|| Failure::from_error(io::Error::from(io::ErrorKind::ConnectionReset)));
}

#[divan::bench]
fn proxy_status_is_written(bencher: Bencher<'_, '_>) {
    let status = ProxyStatus::new("edge").expect("a name");
    let failure = Failure::new(BadGatewayCause::ConnectionRefused);
    bencher.with_inputs(HeaderMap::new).bench_values(|mut headers| {
        status.append_failure(&mut headers, &failure);
        headers
    });
}

#[divan::bench]
fn proxy_status_is_read(bencher: Bencher<'_, '_>) {
    let mut headers = HeaderMap::new();
    let field = "inner; error=connection_refused; next-hop=\"10.0.0.7:80\", edge; received-status=502";
    headers.insert("proxy-status", HeaderValue::from_static(field));
    bencher.bench(|| entries(black_box(&headers)));
}

#[divan::bench]
fn a_request_head_is_made_the_upstreams(bencher: Bencher<'_, '_>) {
    let rules = ForwardingRules::new("edge").expect("a name");
    let caller = ClientInfo::new(Some([192, 0, 2, 60].into()), Scheme::Http);
    let upstream = HeaderValue::from_static("10.0.0.7:8080");
    let request = || {
        let request = Request::get("/cart?id=1").header("host", "shop.example").header("accept", "*/*");
        request.body(()).expect("a request").into_parts().0
    };
    bencher.with_inputs(request).bench_values(|mut parts| rules.request(&mut parts, &caller, &upstream));
}

/// A limit that has learned, and a time within the second that it has learned in.
fn learned() -> (AdaptiveTimeout, Instant) {
    let limit = AdaptiveTimeout::new(Duration::from_secs(10));
    let start = Instant::now();
    for _ in 0..1000 {
        limit.record(start, Duration::from_millis(40));
    }
    let now = start + Duration::from_secs(1);
    limit.limit(now);
    (limit, now)
}

#[divan::bench(threads = [1, 2])]
fn a_sample_is_recorded(bencher: Bencher<'_, '_>) {
    let (limit, now) = learned();
    let elapsed = Duration::from_micros(41_234);
    bencher.bench(|| limit.record(black_box(now), black_box(elapsed)));
}

#[divan::bench(threads = [1, 2])]
fn a_learned_limit_is_read(bencher: Bencher<'_, '_>) {
    let (limit, now) = learned();
    bencher.bench(|| limit.limit(black_box(now)));
}

#[divan::bench]
fn a_learned_limit_is_estimated(bencher: Bencher<'_, '_>) {
    let (limit, now) = learned();
    bencher.bench(|| limit.snapshot(black_box(now)));
}

/// A budget that has seen 50,000 calls a second for two seconds, and the time at their end.
fn busy() -> (RetryBudget, Instant) {
    let (budget, mut now) = (RetryBudget::new(), Instant::now());
    for _ in 0..100_000 {
        now += Duration::from_micros(20);
        budget.begin(now);
    }
    (budget, now)
}

#[divan::bench(threads = [1, 2])]
fn a_budget_is_fed(bencher: Bencher<'_, '_>) {
    let (budget, now) = busy();
    bencher.bench(|| {
        budget.begin(black_box(now));
        budget.succeed();
    });
}

#[divan::bench(threads = [1, 2])]
fn a_retry_is_paid_for(bencher: Bencher<'_, '_>) {
    let (budget, now) = busy();
    bencher.bench(|| {
        // what five successes earn is spent at once
        (0..5).for_each(|_| budget.succeed());
        budget.try_withdraw(black_box(now)).map(Withdrawal::sent)
    });
}

fn main() {
    divan::main();
}
