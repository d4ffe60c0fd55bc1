//! Each inequality at a value that breaks it, and at the nearest value that keeps it.

use std::time::Duration;

use super::super::finding::FindingId;
use super::super::peers::{self, Hop};
use super::super::{Finding, Severity};
use crate::alignment::Topology;
use crate::stats::{Quantile, Ratio};
use crate::timeout::Timeouts;

/// The nearest time below.
fn under(limit: Duration) -> Duration {
    limit.saturating_sub(Duration::from_nanos(1))
}

/// The nearest time above.
fn over(limit: Duration) -> Duration {
    limit + Duration::from_nanos(1)
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// No limits but those of the test.
fn bare() -> Timeouts {
    Timeouts::new().response_head(None).body_idle(None).total(None)
}

fn there() -> Topology {
    Topology::new()
}

fn found(timeouts: Timeouts, topology: &Topology, id: FindingId) -> Vec<Finding> {
    let report = timeouts.check(topology);
    let all = report.findings();
    assert!(all.iter().all(|finding| finding.id == id), "another one spoke: {report}");
    let told = |finding: &&Finding| {
        !finding.reason().is_empty() && !finding.client_sees().is_empty() && !finding.suggestion().is_empty()
    };
    assert!(all.iter().all(|finding| told(&finding)));
    all.to_vec()
}

/// The one finding's severity, or none.
fn verdict(timeouts: Timeouts, topology: &Topology, id: FindingId) -> Option<Severity> {
    let found = found(timeouts, topology, id);
    assert!(found.len() < 2, "{found:?}");
    found.first().map(Finding::severity)
}

#[test]
fn no_1_connecting_takes_at_most_half_of_an_attempt() {
    let of = |connect| {
        let limits = bare().attempt(ms(1000)).total(secs(2));
        verdict(limits, &there().connect(connect), FindingId::ConnectAttempt)
    };
    assert_eq!(of(ms(1000)), Some(Severity::Refuse));
    assert_eq!(of(under(ms(1000))), Some(Severity::Warn));
    assert_eq!(of(over(ms(500))), Some(Severity::Warn));
    assert_eq!(of(ms(500)), None);
}

#[test]
fn no_2_a_head_limit_lies_in_its_attempt_and_that_in_the_total() {
    let of = |head, attempt: Option<Duration>, total| {
        let limits = bare().response_head(head).attempt(attempt).total(total);
        found(limits, &there(), FindingId::HeadAttemptTotal).iter().map(Finding::severity).collect::<Vec<_>>()
    };
    assert_eq!(of(secs(2), Some(secs(2)), secs(2)), []);
    assert_eq!(of(over(secs(2)), Some(secs(2)), secs(2)), [Severity::Refuse]);
    assert_eq!(of(secs(2), Some(over(secs(2))), secs(2)), [Severity::Refuse]);
    assert_eq!(of(secs(4), Some(secs(3)), secs(2)), [Severity::Refuse; 2]);
    assert_eq!(of(over(secs(2)), None, secs(2)), [Severity::Refuse]);
    assert_eq!(of(secs(2), None, secs(2)), []);
}

#[test]
fn no_3_every_attempt_and_pause_fits_into_the_total() {
    let topology = there().attempts(3).backoff(ms(25), secs(1));
    let limits = |total| bare().attempt(secs(1)).total(total);
    let report = limits(ms(3075)).check(&topology);
    assert_eq!((report.findings(), report.max_attempts()), ([].as_slice(), Some(3)));
    let report = limits(under(ms(3075))).check(&topology);
    let finding = &report.findings()[0];
    assert_eq!((finding.id, finding.severity()), (FindingId::AttemptsTotal, Severity::Warn));
    assert!(finding.mitigation().is_some());
    assert_eq!(report.max_attempts(), Some(2));
    assert_eq!(limits(under(ms(2025))).check(&topology).max_attempts(), Some(1));
    assert_eq!(limits(ms(2025)).check(&topology).max_attempts(), Some(2));
    // without a limit of its own the first attempt takes it all
    let report = bare().total(secs(60)).check(&topology);
    assert_eq!((report.findings().len(), report.max_attempts()), (1, Some(1)));
    assert_eq!(limits(secs(60)).check(&there().attempts(u32::MAX)).max_attempts(), Some(60));
}

#[test]
fn no_4_the_gateway_gives_up_before_its_client() {
    let of = |total, topology: &Topology| verdict(bare().total(total), topology, FindingId::TotalCaller);
    let declared = there().client_timeout(secs(21));
    assert_eq!(of(secs(20), &declared), Some(Severity::Refuse), "20 s and 1 s are not below 21 s");
    assert_eq!(of(under(secs(20)), &declared), None);
    assert_eq!(of(secs(20), &there().client_deadline(secs(21))), Some(Severity::Clamp));
    assert_eq!(of(under(secs(20)), &there().client_deadline(secs(21))), None);
    // at least 50 ms
    assert_eq!(of(ms(450), &there().client_timeout(ms(500))), Some(Severity::Refuse));
    assert_eq!(of(under(ms(450)), &there().client_timeout(ms(500))), None);
    // a missing total is longer than any client waits; the maximum duration stands in for it
    let verdict = |limits: Timeouts| verdict(limits, &declared, FindingId::TotalCaller);
    assert_eq!(verdict(bare()), Some(Severity::Refuse));
    assert_eq!(verdict(bare().unbounded()), None);
    assert_eq!(verdict(bare().max_duration(under(secs(20)))), None);
}

#[test]
fn no_5_the_upstream_responds_before_the_gateway_gives_up() {
    let of = |limits: Timeouts| verdict(limits, &there().upstream_timeout(secs(2)), FindingId::UpstreamTimeoutAttempt);
    let limits = bare().total(secs(9));
    assert_eq!(of(limits.attempt(ms(2100))), None);
    assert_eq!(of(limits.attempt(under(ms(2100)))), Some(Severity::Warn));
    // the head limit bounds it as well
    assert_eq!(of(limits.attempt(secs(5)).response_head(ms(2100))), None);
    assert_eq!(of(limits.attempt(secs(5)).response_head(under(ms(2100)))), Some(Severity::Warn));
    assert_eq!(of(bare().total(ms(2100))), None);
    assert_eq!(of(bare().total(under(ms(2100)))), Some(Severity::Warn));
}

#[test]
fn no_6_the_gateway_gives_up_before_the_load_balancer() {
    let of = |total, topology: &Topology| {
        verdict(bare().body_idle(secs(1)).total(total), topology, FindingId::TotalLoadBalancer)
    };
    assert_eq!(of(secs(60), &there().load_balancer_idle(secs(63))), Some(Severity::Refuse));
    assert_eq!(of(under(secs(60)), &there().load_balancer_idle(secs(63))), None);
    assert_eq!(of(secs(60), &there().load_balancer(peers::AWS_ALB)), Some(Severity::Refuse));
    assert_eq!(of(secs(57), &there().load_balancer(peers::AWS_ALB)), None);
    assert_eq!(of(secs(60), &there().load_balancer(Hop::preset("unknown"))), None);
}

#[test]
fn no_7_the_pool_lets_go_a_second_before_the_upstream() {
    let of = |topology: Topology| verdict(bare(), &topology, FindingId::PoolIdleUpstreamKeepAlive);
    let node = there().upstream(peers::NODE);
    assert_eq!(of(node.clone().pool_idle(secs(4))), Some(Severity::Refuse));
    assert_eq!(of(node.clone().pool_idle(under(secs(4)))), None);
    assert_eq!(of(node), None, "nothing is known of the pool");
    // 5 % of what is long
    let long = there().upstream_keep_alive(secs(126));
    assert_eq!(of(long.clone().pool_idle(secs(120))), Some(Severity::Refuse));
    assert_eq!(of(long.pool_idle(under(secs(120)))), None);
    assert_eq!(of(there().pool_idle(peers::HYPER_UTIL_POOL_IDLE)), Some(Severity::Warn));
    assert_eq!(of(there().pool_idle(under(secs(90)))), None);
    assert_eq!(of(there().pool_idle(secs(900)).upstream(peers::GO)), None);
}

#[test]
fn a_pool_that_cannot_learn_gets_a_warning() {
    let warned = |idle, learnt| super::pool_idle_finding(idle, learnt).map(|finding| finding.severity());
    assert_eq!(warned(secs(90), Some(secs(5))), Some(Severity::Warn));
    assert_eq!(warned(secs(4), Some(secs(5))), Some(Severity::Warn));
    assert_eq!(warned(under(secs(4)), Some(secs(5))), None);
    assert_eq!(warned(secs(90), None), Some(Severity::Warn));
    assert_eq!(warned(under(secs(90)), None), None);
}

#[test]
fn no_8_our_server_keeps_connections_longer_than_the_load_balancer() {
    let alb = there().load_balancer(peers::AWS_ALB);
    let of = |topology: Topology| {
        verdict(bare().body_idle(secs(1)).total(secs(9)), &topology, FindingId::ServerKeepAliveLoadBalancer)
    };
    assert_eq!(of(alb.clone().server_keep_alive(secs(63))), Some(Severity::Refuse));
    assert_eq!(of(alb.clone().server_keep_alive(over(secs(63)))), None);
    assert_eq!(of(alb.clone().server(peers::HYPER_TIMER)), Some(Severity::Warn));
    assert_eq!(of(alb.clone().server(peers::AXUM_NEXT)), Some(Severity::Warn));
    let declared = peers::AXUM_NEXT.keep_alive(secs(30));
    assert_eq!(of(alb.clone().server(declared)), Some(Severity::Refuse));
    assert_eq!(of(alb.server(peers::AXUM)), None);
}

#[test]
fn no_9_a_quiet_stream_lives_and_is_cut_by_us_first() {
    let of =
        |idle, topology: &Topology| verdict(bare().unbounded().body_idle(idle), topology, FindingId::BodyIdleStream);
    let stream = there().heartbeat(secs(15));
    assert_eq!(of(secs(15), &stream), Some(Severity::Warn));
    assert_eq!(of(over(secs(15)), &stream), None);
    let balanced = there().load_balancer_idle(secs(60));
    assert_eq!(of(secs(60), &balanced), Some(Severity::Warn));
    assert_eq!(of(under(secs(60)), &balanced), None);
    let none = bare().unbounded();
    assert_eq!(verdict(none, &balanced, FindingId::BodyIdleStream), Some(Severity::Warn));
}

#[test]
fn no_10_a_stream_is_unbounded_on_purpose_and_its_silence_is_not() {
    let of = |limits: Timeouts| verdict(limits, &there().streaming(), FindingId::StreamTotal);
    let idle = bare().body_idle(secs(30));
    assert_eq!(of(idle.total(secs(15))), Some(Severity::Refuse));
    assert_eq!(of(idle), Some(Severity::Refuse), "a missing total may be an oversight");
    assert_eq!(of(idle.unbounded()), None);
    assert_eq!(of(idle.unbounded().max_duration(secs(3600))), None);
    assert_eq!(of(bare().unbounded()), Some(Severity::Warn));
    assert_eq!(of(idle.unbounded().total(secs(9))), Some(Severity::Refuse), "what is said last holds");
}

#[test]
fn no_11_the_breakers_times_are_longer_than_an_attempt() {
    let of = |topology: Topology| verdict(bare().attempt(secs(2)).total(secs(9)), &topology, FindingId::BreakerAttempt);
    assert_eq!(of(there().breaker(secs(2), secs(4))), None);
    assert_eq!(of(there().breaker(under(secs(2)), secs(4))), Some(Severity::Warn));
    assert_eq!(of(there().breaker(secs(2), under(secs(4)))), Some(Severity::Warn));
    assert_eq!(of(there().probe_timeout(secs(2))), None);
    assert_eq!(of(there().probe_timeout(over(secs(2)))), Some(Severity::Warn));
}

#[test]
fn no_12_the_breaker_sees_enough_to_trip() {
    let of = |requests| {
        let topology = there().breaker(secs(1), secs(10)).breaker_min_requests(20).rate(requests, secs(60));
        verdict(bare(), &topology, FindingId::BreakerMinRequests)
    };
    assert_eq!(of(120), None);
    assert_eq!(of(119), Some(Severity::Warn));
}

#[test]
fn no_13_the_budget_remembers_a_whole_exchange() {
    let of = |window| verdict(bare().total(secs(10)), &there().budget_window(window), FindingId::BudgetWindowTotal);
    assert_eq!(of(secs(10)), None);
    assert_eq!(of(under(secs(10))), Some(Severity::Warn));
}

#[test]
fn no_14_no_wait_is_longer_than_the_remaining_time() {
    let of = |total: Option<Duration>, pause| {
        verdict(bare().total(total), &there().retry_after(pause), FindingId::RetryAfterTotal)
    };
    assert_eq!(of(Some(secs(10)), secs(10)), None);
    assert_eq!(of(Some(secs(10)), over(secs(10))), Some(Severity::Clamp));
    assert_eq!(of(None, secs(3600)), None);
}

#[test]
fn no_15_a_hedge_begins_within_its_attempt_and_pays_as_a_retry() {
    let of = |topology: Topology| verdict(bare().attempt(secs(2)).total(secs(9)), &topology, FindingId::HedgeAttempt);
    assert_eq!(of(there().hedge_delay(secs(2))), Some(Severity::Refuse));
    assert_eq!(of(there().hedge_delay(under(secs(2)))), None);
    assert_eq!(of(there().separate_hedge_budget()), Some(Severity::Refuse));
    assert_eq!(of(there()), None);
}

#[test]
fn no_16_a_rollout_waits_for_the_load_balancer_and_for_calls_in_flight() {
    let of = |topology: Topology| verdict(bare().total(secs(10)), &topology, FindingId::DrainGrace);
    let spread = there().load_balancer_propagation(secs(10));
    assert_eq!(of(spread.clone().drain_delay(secs(10))), None);
    assert_eq!(of(spread.drain_delay(under(secs(10)))), Some(Severity::Refuse));
    // 20 s and their twentieth
    assert_eq!(of(there().drain_delay(secs(10)).grace(secs(21))), None);
    assert_eq!(of(there().drain_delay(secs(10)).grace(under(secs(21)))), Some(Severity::Warn));
}

#[test]
fn no_17_all_replay_buffers_fit_into_memory() {
    let of = |memory| verdict(bare(), &there().replay(64 << 10, 1000, memory), FindingId::ReplayMemory);
    assert_eq!(of(64_000 << 10), None);
    assert_eq!(of((64_000 << 10) - 1), Some(Severity::Warn));
    let huge = there().replay(u64::MAX, u64::MAX, 1);
    assert_eq!(verdict(bare(), &huge, FindingId::ReplayMemory), Some(Severity::Warn));
}

#[test]
fn no_18_the_quantile_leaves_room_for_calls_that_hang() {
    let of = |hangs| {
        let topology = there().learned_quantile(Quantile::P99_5).hang_share(Ratio::per_mille(hangs));
        verdict(bare(), &topology, FindingId::LearnedQuantile)
    };
    assert_eq!(of(4), None);
    assert_eq!(of(5), Some(Severity::Clamp));
}

#[test]
fn unknown_numbers_are_not_reported() {
    assert_eq!(Timeouts::new().check(&there()).findings(), []);
    assert_eq!(bare().check(&there()).findings(), []);
    let nameless = there().load_balancer(Hop::preset("a")).server(Hop::preset("b"));
    assert_eq!(bare().check(&nameless.upstream(Hop::preset("c"))).findings(), []);
}

#[test]
fn the_longest_limits_there_are_overflow_nothing() {
    let far = Duration::MAX;
    let limits = bare().response_head(far).attempt(far).total(far).max_duration(far).body_idle(far);
    let topology = there()
        .client_timeout(far)
        .load_balancer(Hop::preset("far").idle_timeout(far))
        .server_keep_alive(far)
        .upstream_keep_alive(far)
        .upstream_timeout(far)
        .connect(far)
        .pool_idle(far)
        .attempts(u32::MAX)
        .backoff(far, far)
        .retry_after(far)
        .hedge_delay(far)
        .budget_window(far)
        .breaker(far, far)
        .breaker_min_requests(u64::MAX)
        .rate(u64::MAX, Duration::ZERO)
        .heartbeat(far)
        .drain_delay(far)
        .grace(far)
        .replay(u64::MAX, u64::MAX, u64::MAX);
    assert!(!limits.check(&topology).to_string().is_empty());
    let nothing = bare().response_head(ms(0)).attempt(ms(0)).total(ms(0));
    let topology = there().client_timeout(ms(0)).pool_idle(ms(0)).upstream_keep_alive(ms(0)).attempts(0);
    assert!(!nothing.check(&topology).to_string().is_empty());
}

#[test]
fn an_error_prints_the_refused_findings_only() {
    let limits = bare().attempt(secs(2)).total(secs(3));
    let topology = there().client_timeout(secs(3)).attempts(3);
    let misaligned = limits.checked(&topology).unwrap_err();
    let text = misaligned.to_string();
    assert!(text.contains("total_caller") && text.contains("total (3 s) + 150 ms < client's timeout (3 s)"), "{text}");
    assert!(!text.contains("attempts_total"), "{text}");
    let ids: Vec<_> = misaligned.report().findings().iter().map(Finding::id).collect();
    assert_eq!(ids, ["total_caller", "attempts_total"], "the worst first");
    assert!(limits.checked(&there().attempts(3)).is_ok(), "a warning is no refusal");
}

#[test]
fn a_suggested_value_is_accepted() {
    let topology = there().client_timeout(secs(7)).server_keep_alive(ms(63_001)).load_balancer_idle(secs(60));
    let limits = |total| bare().body_idle(secs(1)).total(total);
    let report = limits(secs(7)).check(&topology);
    assert_eq!(report.findings()[0].suggestion(), "the total below 6.666 s");
    assert_eq!(limits(ms(6666)).check(&topology).findings(), []);
}

#[test]
fn a_report_fits_on_a_hundred_columns_and_its_bars_lie_in_each_other() {
    let topology = there()
        .client_timeout(secs(10))
        .load_balancer(peers::AWS_ALB)
        .connect(ms(500))
        .upstream_timeout(ms(1500))
        .attempts(3)
        .backoff(ms(25), secs(1));
    let text = Timeouts::new().response_head(ms(1800)).attempt(secs(2)).total(secs(8)).check(&topology).to_string();
    let bars: Vec<_> = text.lines().filter(|line| line.ends_with('s') && line.contains("|-")).collect();
    let names: Vec<_> = bars.iter().map(|line| line.split('|').next().unwrap().trim()).collect();
    assert_eq!(names, ["AWS ALB", "caller", "total", "3 attempts", "head", "upstream's own", "connect"]);
    let lengths: Vec<_> = bars.iter().map(|line| line.rfind('|').unwrap()).collect();
    assert!(lengths.windows(2).all(|pair| pair[0] >= pair[1]), "{text}");
    assert!(text.lines().all(|line| line.len() <= 100), "{text}");
}

#[cfg(feature = "serde")]
#[test]
fn a_report_is_json_too() {
    let topology = there().client_timeout(secs(3)).attempts(2).replay(2, 3, 5);
    let json = serde_json::to_value(bare().attempt(secs(1)).total(secs(3)).check(&topology)).unwrap();
    assert_eq!(json["aligned"], false);
    assert_eq!((&json["attempts"], &json["attempts_that_fit"]), (&2.into(), &2.into()));
    let finding = &json["findings"][0];
    assert_eq!(finding["id"], "total_caller");
    assert_eq!((&finding["number"], &finding["severity"]), (&4.into(), &"refuse".into()));
    assert_eq!(finding["left"]["ms"], 3000.0);
    assert_eq!(finding["margin_ms"], 150.0);
    assert_eq!(finding["right"]["text"], "3 s");
    assert_eq!(json["findings"][1]["left"]["bytes"], 6);
    assert_eq!(json["timeline"][0]["name"], "caller");
    assert_eq!(json["timeline"][2]["attempts_end_ms"], serde_json::json!([1000.0, 2000.0]));
}
