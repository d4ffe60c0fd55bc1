//! Bad configurations: all their errors are reported at once, each with its reason and what to set; similar good ones pass.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::StatusCode;
use proptest::prelude::*;
use tower_upstream::alignment::Topology;
use tower_upstream::alignment::peers;
use tower_upstream::breaker::{BreakerPolicy, Ratio};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Hedging, RetryLayer, RetryPolicy};
use tower_upstream::stack::{ConfigErrors, Preset, UpstreamBuilder, UpstreamConfig};
use tower_upstream::timeout::Timeouts;
use tower_upstream::{ClassifyLayer, UpstreamLayer};

type Build = fn() -> Result<(), ConfigErrors>;
/// The result of a build, and its log.
type Row = ((&'static str, Build), [&'static str; 3]);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn shop() -> UpstreamBuilder {
    UpstreamLayer::builder("shop")
}

/// 2 s for a head, 3 s for an attempt, 10 s for all.
fn limits() -> Timeouts {
    Timeouts::new().response_head(s(2)).attempt(s(3)).total(s(10)).body_idle(s(30))
}

fn aligned(topology: Topology) -> UpstreamBuilder {
    shop().timeouts(move |_| limits()).topology(topology)
}

fn retry(policy: RetryPolicy) -> UpstreamBuilder {
    shop().retry(move |_| RetryLayer::new().policy(policy))
}

fn hedging(hedging: Hedging) -> UpstreamBuilder {
    shop().retry(move |_| RetryLayer::new().hedging(hedging))
}

fn circuit(policy: BreakerPolicy) -> UpstreamBuilder {
    shop().circuit(move |_| policy)
}

fn classify(layer: ClassifyLayer) -> UpstreamBuilder {
    shop().classify(layer)
}

/// Builds a configuration in code.
macro_rules! built {
    ($builder:expr) => {
        (stringify!($builder), (|| $builder.build().map(drop)) as Build)
    };
}

/// Builds the settings in a text, to which the name is added.
fn from_file(text: &str) -> Result<(), ConfigErrors> {
    let config: UpstreamConfig = toml::from_str(&format!("name = \"shop\"\n{text}")).unwrap_or_else(|error| {
        panic!("{text} is not read: {error}");
    });
    config.builder().build().map(drop)
}

/// Asserts that there is one error, with this reason and this advice.
fn is_told(what: &str, built: Result<(), ConfigErrors>, [setting, reason, set]: [&str; 3]) {
    let error = built.expect_err(what);
    let told = error.errors().iter().any(|found| {
        found.setting().starts_with(setting) && found.problem().contains(reason) && found.suggestion().contains(set)
    });
    assert!(told, "{what}: no {setting:?} with {reason:?} and {set:?} in: {error}");
}

/// Configurations in code that are refused, each with setting, reason, and what to set.
fn in_code() -> Vec<Row> {
    [names_and_limits(), inequalities(), retries(), circuits(), the_rest()].concat()
}

fn names_and_limits() -> Vec<Row> {
    vec![
        (built!(UpstreamLayer::builder("")), ["name", "empty", "\"payments\""]),
        (built!(UpstreamLayer::builder(" \t")), ["name", "empty", "\"payments\""]),
        (built!(UpstreamLayer::builder("shop ")), ["name", "a space", "\"payments\""]),
        (built!(UpstreamLayer::builder("shop\n2")), ["name", "control characters", "short name"]),
        (built!(UpstreamLayer::builder("s".repeat(129))), ["name", "longer than 128 bytes", "short name"]),
        (built!(shop().proxy_status("")), ["proxy_status", "is not a valid name", "\"shop-edge\""]),
        (built!(shop().proxy_status("käse")), ["proxy_status", "käse", "\"shop-edge\""]),
        (built!(shop().proxy_status("a\r\nb")), ["proxy_status", "is not a valid name", "\"shop-edge\""]),
        (
            built!(shop().timeouts(move |_| limits().response_head(s(0)))),
            ["timeouts.response_head", "fails every call", "`None`"],
        ),
        (built!(shop().timeouts(move |_| limits().attempt(s(0)))), ["timeouts.attempt", "fails every call", "`None`"]),
        (built!(shop().timeouts(move |_| limits().total(s(0)))), ["timeouts.total", "fails every call", "`None`"]),
        (
            built!(shop().timeouts(move |_| limits().body_idle(s(0)))),
            ["timeouts.body_idle", "fails every call", "`None`"],
        ),
        (
            built!(shop().timeouts(move |_| limits().max_duration(s(0)))),
            ["timeouts.max_duration", "fails every call", "`None`"],
        ),
        (
            built!(shop().timeouts(move |_| limits().response_head(Duration::from_micros(300)))),
            ["timeouts.response_head", "300µs is below the timer resolution", "at least 1 ms"],
        ),
        (
            built!(shop().timeouts(move |_| Timeouts::new().response_head(None).total(None))),
            ["timeouts", "no timeout ends a call", "one of `response_head`, `attempt`, `total`"],
        ),
        (
            built!(shop().timeouts(move |_| Timeouts::new().response_head(None).unbounded())),
            ["timeouts", "no timeout ends a call", "one of `response_head`"],
        ),
    ]
}

/// Timeouts that conflict, by the numbers of their inequalities.
fn inequalities() -> Vec<Row> {
    vec![
        (built!(aligned(Topology::new().connect(s(3)))), ["alignment 1 ", "still connects", "the connect limit"]),
        (
            built!(shop().timeouts(move |_| limits().response_head(s(4)))),
            ["alignment 2 ", "fires first", "the head limit to at most 3 s"],
        ),
        (
            built!(shop().timeouts(move |_| limits().attempt(s(11)))),
            ["alignment 2 ", "outlives", "the attempt to at most 10 s"],
        ),
        (
            built!(shop().timeouts(move |_| limits().max_duration(s(1)))),
            ["alignment 2 ", "outlives", "the attempt to at most 1 s"],
        ),
        (built!(aligned(Topology::new().client_timeout(s(10)))), ["alignment 4 ", "leaves first", "the total below"]),
        (
            built!(aligned(Topology::new().load_balancer_idle(s(10)))),
            ["alignment 6 ", "gives up first", "the total below"],
        ),
        (
            built!(aligned(Topology::new().upstream(peers::NODE).pool_idle(s(5)))),
            ["alignment 7 ", "just closing", "the pool's idle limit below 4 s"],
        ),
        (
            built!(shop().topology(Topology::new().upstream(peers::NODE)).pool_idle(s(90))),
            ["alignment 7 ", "just closing", "below 4 s"],
        ),
        (
            built!(shop().pool_idle(s(90)).topology(Topology::new().upstream(peers::NODE))),
            ["alignment 7 ", "just closing", "below 4 s"],
        ),
        (
            built!(aligned(Topology::new().load_balancer_idle(s(60)).server_keep_alive(s(60)))),
            ["alignment 8 ", "closes a connection", "our server's keep-alive"],
        ),
        (built!(aligned(Topology::new().streaming())), ["alignment 10 ", "forgotten", "unbounded()"]),
        (
            built!(hedging(Hedging::after(s(3))).timeouts(move |_| limits())),
            ["alignment 15 ", "before its hedge begins", "the hedge delay below 3 s"],
        ),
        (
            built!(aligned(Topology::new().load_balancer_propagation(s(30)).drain_delay(s(5)))),
            ["alignment 16 ", "still sends to it", "the drain delay to at least 30 s"],
        ),
    ]
}

fn retries() -> Vec<Row> {
    vec![
        (
            built!(retry(RetryPolicy::new().base_backoff(s(2)).max_backoff(s(1)))),
            ["retry.max_backoff", "shorter than `base_backoff`", "`base_backoff` or more"],
        ),
        (
            built!(retry(RetryPolicy::new().base_backoff(s(30)).max_backoff(s(60)))),
            ["retry.base_backoff", "leaves no time", "below the total"],
        ),
        (
            built!(shop().retry(move |_| RetryLayer::new().body_cap(usize::MAX))),
            ["retry.body_cap", "its request body", "at most 64 MiB"],
        ),
        (
            built!(shop().retry(move |_| RetryLayer::new().total(s(5)))),
            ["retry.total", "5s differs from `timeouts.total`, 30s", "remove it"],
        ),
        (
            built!(shop().preset(Preset::Streaming).retry(move |_| RetryLayer::new().total(s(5)))),
            ["retry.total", "differs from `timeouts.total`, none", "remove it"],
        ),
        (built!(hedging(Hedging::after(s(0)))), ["retry.hedging", "sent twice", "95th percentile"]),
        (built!(hedging(Hedging::after(s(30)))), ["alignment 15 ", "before its hedge", "the hedge delay below 9 s"]),
        (built!(hedging(Hedging::new().at_least(s(9)))), ["retry.hedging", "ends after 9s", "`at_least` below"]),
        (
            built!(
                shop().retry(move |_| RetryLayer::new().policy(RetryPolicy::new().attempts(1)).hedging(Hedging::new()))
            ),
            ["retry.hedging", "a hedge is a second attempt", "two attempts"],
        ),
    ]
}

fn circuits() -> Vec<Row> {
    vec![
        (built!(circuit(BreakerPolicy::new().open_duration(s(0)))), ["circuit", "never stay open", "usually to 1 s"]),
        (
            built!(circuit(BreakerPolicy::new().open_duration(s(11)))),
            ["circuit.max_open_duration", "shorter than `open_duration`", "`open_duration` or more"],
        ),
        (
            built!(circuit(BreakerPolicy::new().max_open_duration(Duration::MAX))),
            ["circuit.max_open_duration", "could stay unused", "at most an hour"],
        ),
        (
            built!(circuit(BreakerPolicy::new().probe_timeout(s(0)))),
            ["circuit.probe_timeout", "would become a probe", "the length of an attempt"],
        ),
        (
            built!(circuit(BreakerPolicy::new().probe_timeout(s(86_400)))),
            ["circuit.probe_timeout", "block all others", "at most an hour"],
        ),
        (
            built!(circuit(BreakerPolicy::new().slow_calls(s(0), Ratio::per_mille(500)))),
            ["circuit.slow_calls", "every call counts as slow", "above 0"],
        ),
        (
            built!(
                shop()
                    .preset(Preset::Streaming)
                    .circuit(move |_| BreakerPolicy::new().slow_calls(s(5), Ratio::per_mille(500)))
            ),
            ["circuit.slow_calls", "unbounded calls would count as slow", "remove it"],
        ),
        (
            built!(
                shop()
                    .timeouts(move |_| limits().max_duration(s(20)))
                    .circuit(move |_| BreakerPolicy::new().slow_calls(s(20), Ratio::per_mille(500)))
            ),
            ["circuit.slow_calls", "no call lasts 20s", "below `timeouts.max_duration`"],
        ),
    ]
}

fn the_rest() -> Vec<Row> {
    vec![
        (
            built!(shop().limiter(move |_| ConcurrencyLimitLayer::fixed(0))),
            ["limiter", "refuses every call", "1 or more"],
        ),
        (
            built!(shop().limiter(move |_| ConcurrencyLimitLayer::fixed(1).bounds(0..=10))),
            ["limiter", "refuses every call", "1 or more"],
        ),
        (
            built!(
                shop()
                    .limiter(move |_| ConcurrencyLimitLayer::fixed(1).bounds(RangeInclusive::new(100, 10)).unbounded())
            ),
            ["limiter", "the lower bound, 100, is above", "the lower bound first"],
        ),
        (
            built!(shop().limiter(move |_| ConcurrencyLimitLayer::fixed(u32::MAX).hold_slot_during_upgrade())),
            ["limiter", "never applies", "at most a million"],
        ),
        (
            built!(classify(ClassifyLayer::new().first_frame_timeout(s(2)))),
            ["classify.first_frame_timeout", "held for 2s", "milliseconds"],
        ),
        (
            built!(
                classify(ClassifyLayer::new().first_frame_timeout(ms(500)))
                    .timeouts(move |_| limits().response_head(ms(500)))
            ),
            ["classify.first_frame_timeout", "held for 500ms", "milliseconds"],
        ),
        (
            built!(classify(ClassifyLayer::new().failure_statuses([StatusCode::BAD_GATEWAY, StatusCode::NOT_FOUND]))),
            ["classify.failure_statuses", "404 Not Found is not a failure", "from 500"],
        ),
        (
            built!(classify(ClassifyLayer::new().report_by_outer())),
            ["classify.report_by_outer", "neither log failures", "remove it"],
        ),
    ]
}

/// Files that are refused.
const IN_FILES: [(&str, [&str; 3]); 27] = [
    ("preset = \"fast\"", ["preset", "unknown value \"fast\"", "latency_critical, standard, batch, streaming"]),
    ("preset = \"streeming\"", ["preset", "\"streeming\"", "`streaming`"]),
    ("proxy_status = \"\"", ["proxy_status", "is not a valid name", "\"shop-edge\""]),
    ("timeouts.response_head = \"0s\"", ["timeouts.response_head", "fails every call", "at least 1 ms"]),
    (
        "timeouts.response_head = \"10us\"",
        ["timeouts.response_head", "10µs is below the timer resolution", "at least 1 ms"],
    ),
    (
        "timeouts = { response_head = \"none\", attempt = \"none\", total = \"none\" }",
        ["timeouts", "no timeout ends a call", "one of `response_head`"],
    ),
    (
        "timeouts = { total = \"20s\", unbounded = true }",
        ["timeouts.unbounded", "cannot have a total", "one of `unbounded` and `total`"],
    ),
    ("preset = \"streaming\"\ntimeouts.unbounded = false", ["timeouts.unbounded", "are unbounded", "a `total`"]),
    ("timeouts = { attempt = \"8s\", total = \"5s\" }", ["alignment 2 ", "outlives", "the attempt to at most 5 s"]),
    ("topology.client_timeout = \"30s\"", ["alignment 4 ", "leaves first", "the total below"]),
    (
        "topology = { upstream_keep_alive = \"5s\", pool_idle = \"90s\" }",
        ["alignment 7 ", "just closing", "the pool's idle limit below 4 s"],
    ),
    ("topology.heartbeat = \"20s\"", ["alignment 10 ", "forgotten", "unbounded()"]),
    (
        "topology = { client_timeout = \"60s\", client_deadline = \"60s\" }",
        ["topology.client_deadline", "or it does not", "one of"],
    ),
    (
        "topology = { heartbeat = \"20s\", streaming = false }",
        ["topology.streaming", "only streams", "one of `heartbeat` and `streaming`"],
    ),
    ("retry.attempts = 0", ["retry.attempts", "integer `0`", "from 1 to 10"]),
    ("retry.attempts = 99", ["retry.attempts", "integer `99`", "from 1 to 10"]),
    ("retry.base_backoff = \"2s\"", ["retry.max_backoff", "shorter than `base_backoff`", "`base_backoff` or more"]),
    ("retry.budget = 20", ["retry.budget", "integer `20`", "\"0.1%\" to \"100%\""]),
    ("retry.budget = \"-5%\"", ["retry.budget", "-5%", "from 0.001 to 1"]),
    ("retry.budget = nan", ["retry.budget", "NaN", "from 0.001 to 1"]),
    ("retry.body_cap = \"2 GiB\"", ["retry.body_cap", "2147483648 bytes", "at most 64 MiB"]),
    ("retry = { attempts = 1, hedging = \"p95\" }", ["retry.hedging", "a hedge is a second attempt", "two attempts"]),
    ("circuit.ratio = 0", ["circuit.ratio", "integer `0`", "from 0.001 to 1"]),
    ("circuit.window = \"2h\"", ["circuit.window", "out of range", "\"1s\" to \"1h\""]),
    ("circuit.slow_ratio = 0.5", ["circuit.slow_ratio", "which calls are slow", "`slow_calls` as well"]),
    ("limiter = { fixed = 9, max = 9 }", ["limiter.fixed", "no `min` and no `max`", "either `fixed`"]),
    ("limiter = { min = 20, max = 10 }", ["limiter", "the lower bound, 20, is above", "the lower bound first"]),
];

#[test]
fn each_is_refused_with_its_reason_and_what_to_set() {
    let in_code = in_code();
    assert!(in_code.len() >= 30);
    for ((what, build), told) in in_code {
        is_told(what, build(), told);
    }
    for (text, told) in IN_FILES {
        is_told(text, from_file(text), told);
    }
}

#[test]
fn a_bad_thing_alone_is_told_alone() {
    for ((what, build), [setting, ..]) in in_code() {
        let error = build().unwrap_err();
        let others = error.errors().iter().filter(|found| !found.setting().starts_with(setting)).count();
        assert_eq!(others, 0, "{what}: {error}");
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let error = UpstreamLayer::builder("")
        .proxy_status("\u{7f}")
        .timeouts(move |_| limits().response_head(s(4)).body_idle(s(0)))
        .topology(Topology::new().client_timeout(s(1)).connect(s(5)))
        .retry(move |_| {
            RetryLayer::new().policy(RetryPolicy::new().base_backoff(s(2)).max_backoff(s(1))).body_cap(usize::MAX)
        })
        .circuit(move |_| BreakerPolicy::new().open_duration(s(0)).probe_timeout(s(0)))
        .limiter(move |_| ConcurrencyLimitLayer::fixed(0))
        .classify(ClassifyLayer::new().first_frame_timeout(s(9)))
        .build()
        .unwrap_err();
    let settings: Vec<_> =
        error.errors().iter().map(|found| found.setting().split(' ').take(2).collect::<String>()).collect();
    let expected = [
        "proxy_status",
        "name",
        "retry.max_backoff",
        "retry.body_cap",
        "circuit.open_duration",
        "circuit.probe_timeout",
        "limiter",
        "classify.first_frame_timeout",
        "timeouts.body_idle",
        "alignment1",
        "alignment2",
        "alignment4",
    ];
    assert_eq!(settings, expected, "{error}");
    assert_eq!(error.to_string().lines().count(), 1 + expected.len());

    let text = "retry = { attempts = 0, budget = 2 }\ncircuit.ratio = 7\nlimiter.min = 0\n\
                timeouts = { response_head = \"8s\", attempt = \"1s\", total = \"0s\" }";
    let error = from_file(text).unwrap_err();
    for setting in ["retry.attempts", "retry.budget", "circuit.ratio", "limiter", "timeouts.total", "alignment 2"] {
        assert!(error.errors().iter().any(|found| found.setting().starts_with(setting)), "{setting}: {error}");
    }
}

#[test]
fn good_neighbours_pass() {
    let good: Vec<(&str, Build)> = vec![
        built!(UpstreamLayer::builder("s".repeat(128))),
        built!(UpstreamLayer::builder("the shop's käse")),
        built!(shop().proxy_status("shop edge")),
        built!(shop().timeouts(move |_| limits().response_head(ms(6)))),
        built!(shop().timeouts(move |_| limits().response_head(s(3)))),
        built!(shop().timeouts(move |_| limits().attempt(s(10)))),
        built!(shop().timeouts(move |_| limits().max_duration(s(3)))),
        built!(shop().timeouts(move |_| limits().body_idle(None))),
        built!(shop().timeouts(move |_| Timeouts::new().response_head(None).attempt(None).total(s(30)))),
        built!(shop().timeouts(move |_| Timeouts::new().response_head(s(9)).total(None))),
        built!(shop().timeouts(move |_| Timeouts::new().response_head(None).total(None).max_duration(s(60)))),
        built!(shop().timeouts(move |_| limits().total(Duration::MAX))),
        built!(aligned(Topology::new().connect(ms(2999)))),
        built!(aligned(Topology::new().client_timeout(s(11)))),
        built!(aligned(Topology::new().client_deadline(s(1)))),
        built!(aligned(Topology::new().load_balancer_idle(s(11)))),
        built!(aligned(Topology::new().upstream(peers::NODE).pool_idle(ms(3999)))),
        built!(shop().pool_idle(s(3)).topology(Topology::new().upstream(peers::NODE))),
        built!(shop().pool_idle(s(90))),
        built!(aligned(Topology::new().load_balancer_idle(s(60)).server_keep_alive(s(75)))),
        built!(shop().preset(Preset::Streaming).topology(Topology::new().streaming())),
        built!(shop().without_retry().topology(Topology::new().load_balancer_propagation(s(5)).drain_delay(s(5)))),
        built!(hedging(Hedging::after(ms(2999))).timeouts(move |_| limits())),
        built!(hedging(Hedging::new().at_least(ms(8999)))),
        built!(hedging(Hedging::new().at_least(s(0)))),
        built!(retry(RetryPolicy::new().base_backoff(s(1)).max_backoff(s(1)))),
        built!(retry(RetryPolicy::new().base_backoff(s(0)).max_backoff(s(0)))),
        built!(retry(RetryPolicy::new().attempts(1).base_backoff(s(60)).max_backoff(s(60)))),
        built!(shop().retry(move |_| RetryLayer::new().body_cap(64 << 20))),
        built!(shop().retry(move |_| RetryLayer::new().body_cap(0))),
        built!(shop().retry(move |_| RetryLayer::new().total(s(30)))),
        built!(circuit(BreakerPolicy::new().open_duration(s(10)))),
        built!(circuit(BreakerPolicy::new().open_duration(ms(1)).max_open_duration(s(3600)).probe_timeout(s(3600)))),
        built!(circuit(BreakerPolicy::new().consecutive_failures(u32::MAX))),
        // a body may take longer than the attempt's limit, which ends at the head
        built!(circuit(BreakerPolicy::new().slow_calls(s(15), Ratio::per_mille(500)))),
        built!(shop().limiter(move |_| ConcurrencyLimitLayer::fixed(1))),
        built!(shop().limiter(move |_| ConcurrencyLimitLayer::fixed(1).bounds(1..=1_000_000))),
        built!(shop().without_limiter().without_circuit().without_retry()),
        built!(classify(ClassifyLayer::new().first_frame_timeout(s(0)))),
        built!(classify(ClassifyLayer::new().first_frame_timeout(ms(999)))),
        built!(classify(ClassifyLayer::new().failure_statuses([]))),
        built!(classify(ClassifyLayer::new().failure_statuses([StatusCode::INTERNAL_SERVER_ERROR]))),
    ];
    for (what, build) in good {
        assert_eq!(build(), Ok(()), "{what}");
    }
    for text in [
        "",
        "preset = \"latency_critical\"\nretry.hedging = \"off\"",
        "preset = \"streaming\"\ntopology = { heartbeat = \"30s\" }",
        "preset = \"streaming\"\ntimeouts = { total = \"60s\", unbounded = false }",
        "preset = \"streaming\"\ntimeouts = { total = \"none\", unbounded = true }",
        "timeouts.total = \"5s\"",
        "timeouts = { total = \"5s\", attempt = \"5s\", response_head = \"5s\" }",
        "timeouts = { response_head = \"none\", attempt = \"none\" }",
        "topology.client_timeout = \"32s\"",
        "topology = { upstream_keep_alive = \"5s\", pool_idle = \"3.9s\" }",
        "retry = { attempts = 10, budget = 1, body_cap = \"64 MiB\" }",
        "retry = { attempts = 1, base_backoff = \"0s\", max_backoff = \"0s\", budget = \"0.1%\" }",
        "retry.hedging = \"8.9s\"",
        "circuit = { ratio = 1, min_calls = 1, consecutive_failures = 4294967295, window = \"1h\" }",
        "circuit = { slow_calls = \"1s\" }",
        "limiter = { min = 9, max = 9 }",
        "limiter.fixed = 1",
        "[error_page]",
    ] {
        assert_eq!(from_file(text), Ok(()), "{text}");
    }
}

#[test]
fn a_limiter_that_is_none_is_refused_while_it_runs_as_well() {
    let layer = shop().build().unwrap();
    let error = layer.handle().set_limiter(&ConcurrencyLimitLayer::fixed(0)).unwrap_err();
    assert_eq!(error.errors()[0].setting(), "limiter");
    assert!(layer.handle().snapshot(tokio::time::Instant::now()).limit.unwrap().limit > 1);
    layer.handle().set_limiter(&ConcurrencyLimitLayer::fixed(1)).unwrap();
    let error = layer.handle().set_timeouts(Timeouts::new().response_head(None).total(None)).unwrap_err();
    assert!(error.to_string().contains("no timeout ends a call"));
}

/// Durations at the bounds, and between them.
fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        Just(Duration::from_nanos(1)),
        (0_u64..100_000).prop_map(ms),
        any::<u64>().prop_map(s),
        any::<u64>().prop_map(Duration::from_nanos),
    ]
}

fn maybe() -> impl Strategy<Value = Option<Duration>> {
    prop::option::of(any_time())
}

proptest! {
    #[test]
    fn any_durations_are_built_or_refused(
        limits in (maybe(), maybe(), maybe(), maybe(), maybe(), any::<bool>()),
        pauses in (any_time(), any_time(), any_time(), any::<u8>(), maybe()),
        breaker in (any_time(), any_time(), any_time(), any_time(), maybe()),
        around in (maybe(), maybe(), maybe(), maybe(), maybe(), any_time(), any_time(), any_time()),
        bounds in (any::<u16>(), any::<u32>()),
    ) {
        let (head, attempt, total, body_idle, absolute, unbounded) = limits;
        let timeouts = Timeouts::new().response_head(head).attempt(attempt).total(total).body_idle(body_idle).max_duration(absolute);
        let timeouts = if unbounded { timeouts.unbounded() } else { timeouts };
        let policy = RetryPolicy::new().base_backoff(pauses.0).max_backoff(pauses.1).max_retry_after(pauses.2).attempts(pauses.3);
        let retry = RetryLayer::new().policy(policy);
        let retry = pauses.4.map_or(retry.clone(), |delay| retry.hedging(Hedging::after(delay)));
        let circuit = BreakerPolicy::new().window(breaker.0).open_duration(breaker.1).max_open_duration(breaker.2);
        let circuit = circuit.probe_timeout(breaker.3);
        let circuit = breaker.4.map_or(circuit, |slow| circuit.slow_calls(slow, Ratio::per_mille(500)));
        let mut topology = Topology::new().drain_delay(around.5).grace(around.6).load_balancer_propagation(around.7);
        topology = around.0.map_or(topology.clone(), |limit| topology.client_timeout(limit));
        topology = around.1.map_or(topology.clone(), |limit| topology.load_balancer_idle(limit));
        topology = around.2.map_or(topology.clone(), |limit| topology.upstream_keep_alive(limit));
        topology = around.3.map_or(topology.clone(), |limit| topology.connect(limit));
        let builder = shop().timeouts(move |_| timeouts).retry(move |_| retry).circuit(move |_| circuit).topology(topology);
        let builder = if let Some(limit) = around.4 { builder.pool_idle(limit) } else { builder };
        let builder = builder.limiter(move |_| ConcurrencyLimitLayer::fixed(1).bounds(u32::from(bounds.0)..=bounds.1));
        match builder.build() {
            Ok(layer) => prop_assert!(layer.handle().name() == "shop"),
            Err(error) => {
                prop_assert!(!error.errors().is_empty());
                prop_assert!(error.errors().iter().all(|found| !found.problem().is_empty() && !found.suggestion().is_empty()));
            }
        }
    }
}
