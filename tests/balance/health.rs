//! Health checks: which endpoints take calls, by what was found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, advance};
use tower_upstream::BadGatewayCause;
use tower_upstream::balance::{
    Balance, BalanceHandle, CheckReport, EndpointSnapshot, Health, HealthCheck, HealthChecks, Member,
};

use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{Act, ms};

/// What checks find, by key, and when they were made.
#[derive(Clone, Default)]
struct Found(Arc<Mutex<BTreeMap<String, Finding>>>);

#[derive(Clone)]
struct Finding {
    report: CheckReport,
    hangs: bool,
    panics: bool,
    checks: Vec<Instant>,
}

impl Found {
    fn with<T>(&self, key: &str, change: impl FnOnce(&mut Finding) -> T) -> T {
        let new = || Finding { report: CheckReport::passed(), hangs: false, panics: false, checks: Vec::new() };
        change(self.0.lock().unwrap().entry(key.to_owned()).or_insert_with(new))
    }

    fn set(&self, key: &str, report: CheckReport) {
        self.with(key, |finding| finding.report = report);
    }

    fn checks(&self, key: &str) -> usize {
        self.with(key, |finding| finding.checks.len())
    }

    fn check(&self) -> HealthCheck {
        let found = self.clone();
        HealthCheck::new(move |member: &Member| {
            let finding = found.with(&member.key, |finding| {
                finding.checks.push(Instant::now());
                finding.clone()
            });
            assert!(!finding.panics, "as the test wants it");
            async move {
                if finding.hangs {
                    std::future::pending::<()>().await;
                }
                Ok::<_, std::io::Error>(finding.report)
            }
        })
    }
}

fn pool(name: &str, servers: &Servers, keys: &[&str]) -> Balance<Endpoint<Plain>> {
    Balance::builder(name, servers.factory()).members(members(keys.iter().copied())).build().unwrap()
}

/// The body of a request to a pool alone.
pub(crate) type Plain = tower_upstream::body::TrackedUpload<http_body_util::Full<bytes::Bytes>>;

fn state(pool: &BalanceHandle, key: &str) -> EndpointSnapshot {
    let mut endpoints = pool.snapshot(Instant::now()).endpoints.into_iter();
    endpoints.find(|endpoint| &*endpoint.member.key == key).unwrap()
}

/// Lets time pass in steps, so that checks run between them.
async fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        advance(ms(10)).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_its_checks_takes_no_calls_until_two_have_passed() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b", "c"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    assert_eq!(state(&pool.handle(), "a").health, Health::Unknown);
    pass(seconds(4)).await;
    assert_eq!(state(&pool.handle(), "a").health, Health::Healthy);
    assert!(state(&pool.handle(), "a").last_check.unwrap().report.is_passed());

    found.set("a", CheckReport::failed("disk full"));
    // the next check, and two more 1 s apart
    pass(seconds(9)).await;
    let ejected = state(&pool.handle(), "a");
    assert_eq!((ejected.health, ejected.is_available), (Health::Unhealthy, false));
    assert_eq!(ejected.last_check.unwrap().report.text(), "disk full");
    let before = servers.calls("a");
    for _ in 0..50 {
        assert_eq!(call(&pool).await, 200);
    }
    assert_eq!(servers.calls("a"), before);

    found.set("a", CheckReport::passed());
    pass(seconds(8)).await;
    assert!(state(&pool.handle(), "a").is_available);
}

#[tokio::test(start_paused = true)]
async fn checks_are_5_s_apart_with_jitter_and_1_s_in_transition() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    pass(seconds(120)).await;
    let at = found.with("a", |finding| finding.checks.clone());
    let apart: Vec<_> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!((0.79..1.25).contains(&apart[0]), "{apart:?}");
    assert!(apart[1..].iter().all(|apart| (3.99..6.05).contains(apart)), "{apart:?}");
    assert!(apart[1..].iter().any(|apart| *apart < 4.9) && apart[1..].iter().any(|apart| *apart > 5.1), "{apart:?}");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_two_pools_name_is_checked_once_and_both_learn_of_it() {
    let (servers, found) = (Servers::default(), Found::default());
    let (one, other) = (pool("one", &servers, &["a", "b"]), pool("other", &servers, &["a"]));
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&one.handle());
    checks.watch(&one.handle());
    pass(seconds(10)).await;
    checks.watch(&other.handle());
    pass(ms(20)).await;
    assert_eq!(state(&other.handle(), "a").health, Health::Healthy, "it is known from the first pool");
    found.set("a", CheckReport::failed("down"));
    pass(seconds(50)).await;
    assert!((10..25).contains(&found.checks("a")), "{}", found.checks("a"));
    for pool in [&one, &other] {
        assert_eq!(state(&pool.handle(), "a").health, Health::Unhealthy);
    }
    drop(one);
    let (a, b) = (found.checks("a"), found.checks("b"));
    pass(seconds(10)).await;
    assert!(found.checks("a") > a, "the other pool names it");
    assert!(found.checks("b") <= b + 1, "no pool names it");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_endpoints_that_hang_do_not_delay_the_checks_of_others() {
    let (servers, found) = (Servers::default(), Found::default());
    let keys: Vec<_> = (0..105).map(|index| format!("e{index}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let pool = pool("shop", &servers, &keys);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    pass(seconds(10)).await;
    for key in &keys[5..] {
        found.with(key, |finding| finding.hangs = true);
    }
    pass(seconds(60)).await;
    for key in &keys[..5] {
        let at = found.with(key, |finding| finding.checks.clone());
        let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest < ms(7_000), "{key}: {longest:?}");
        assert_eq!(state(&pool.handle(), key).health, Health::Healthy);
    }
    assert!(keys[5..].iter().all(|key| state(&pool.handle(), key).health == Health::Unhealthy));
    let text = state(&pool.handle(), keys[5]).last_check.unwrap();
    assert!(text.report.text().contains("no result within 1s"), "{text:?}");
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_hang_for_the_whole_interval_take_half_of_the_slots_at_most() {
    let (servers, found) = (Servers::default(), Found::default());
    let keys: Vec<_> = (0..205).map(|index| format!("e{index}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let pool = pool("shop", &servers, &keys);
    for key in &keys[5..] {
        found.with(key, |finding| finding.hangs = true);
    }
    let checks = HealthChecks::new(found.check().timeout(seconds(5))).unwrap();
    checks.watch(&pool.handle());
    // no health is known in the beginning
    pass(seconds(40)).await;
    let begun = keys[..5].iter().map(|key| found.checks(key)).collect::<Vec<_>>();
    pass(seconds(60)).await;
    for (key, begun) in keys.iter().zip(begun) {
        let at = found.with(key, |finding| finding.checks.split_off(begun - 1));
        let longest = at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest < ms(6_100), "{key}: {longest:?}");
    }
}

/// Envoy #32442.
#[tokio::test(start_paused = true)]
async fn a_check_that_passes_never_ends_an_ejection_that_calls_have_caused() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool: Balance<Endpoint<Plain>> = Balance::builder("shop", servers.factory())
        .members(members(["a", "b", "c"]))
        .circuit(|policy| policy.consecutive_failures(1))
        .build()
        .unwrap();
    let checks = HealthChecks::new(found.check().interval(seconds(1))).unwrap();
    checks.watch(&pool.handle());
    pass(seconds(5)).await;
    servers.set("a", Act::Fails(BadGatewayCause::ClosedBeforeResponse));
    for _ in 0..20 {
        call(&pool).await;
    }
    assert!(!state(&pool.handle(), "a").is_available);
    let before = found.checks("a");
    pass(seconds(20)).await;
    assert!(found.checks("a") > before + 10);
    let ejected = state(&pool.handle(), "a");
    assert_eq!((ejected.health, ejected.is_available), (Health::Healthy, false));
    servers.set("a", Act::Responds(200));
    for _ in 0..20 {
        assert_eq!(call(&pool).await, 200);
    }
    assert!(state(&pool.handle(), "a").is_available, "a call has succeeded");
}

/// Envoy #12076.
#[tokio::test(start_paused = true)]
async fn a_failed_check_counts_whatever_number_of_endpoints_is_ejected() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b", "c", "d"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    for key in ["a", "b"] {
        pool.handle().circuit(key).unwrap().hold_open();
    }
    found.set("c", CheckReport::failed("down"));
    pass(seconds(5)).await;
    let down = state(&pool.handle(), "c");
    assert_eq!((down.health, down.is_available), (Health::Unhealthy, false));
    assert_eq!(call(&pool).await, 200);
    assert_eq!(pool.handle().snapshot(Instant::now()).panicking, 1, "one of four is too few: all are used");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_asks_for_no_calls_gets_none_and_one_that_asks_for_half_gets_half() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b", "c"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    found.set("a", CheckReport::from_words(b"drain"));
    found.set("b", CheckReport::from_words(b"up weight:50%"));
    checks.watch(&pool.handle());
    pass(seconds(3)).await;
    assert_eq!(state(&pool.handle(), "a").health, Health::Draining);
    assert_eq!(state(&pool.handle(), "b").weight_percent, 50);
    let before = ["a", "b", "c"].map(|key| servers.calls(key));
    for _ in 0..900 {
        assert_eq!(call(&pool).await, 200);
    }
    assert_eq!(servers.calls("a"), before[0]);
    let share = f64::from(servers.calls("b") - before[1]) / 900.0;
    assert!((0.28..0.39).contains(&share), "{share}");
    found.set("a", CheckReport::from_words(b"ready"));
    found.set("b", CheckReport::passed());
    pass(seconds(7)).await;
    assert_eq!((state(&pool.handle(), "a").health, state(&pool.handle(), "b").weight_percent), (Health::Healthy, 100));
}

#[tokio::test(start_paused = true)]
async fn checks_follow_the_members_and_nothing_is_left_after_a_thousand_changes() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    found.set("b", CheckReport::failed("down"));
    let _ = pool.handle().upsert(Member::new("b")).unwrap();
    pass(seconds(5)).await;
    assert_eq!(state(&pool.handle(), "b").health, Health::Unhealthy);
    let tasks = Handle::current().metrics().num_alive_tasks();
    for _ in 0..1000 {
        let _ = pool.handle().remove("b");
        let _ = pool.handle().upsert(Member::new("b")).unwrap();
        pass(ms(10)).await;
    }
    pass(ms(100)).await;
    assert_eq!(state(&pool.handle(), "b").health, Health::Unhealthy, "it is known from before");
    let before = found.checks("b");
    pass(seconds(50)).await;
    assert!((8..=14).contains(&(found.checks("b") - before)), "{}", found.checks("b") - before);
    assert!(Handle::current().metrics().num_alive_tasks() <= tasks + 1);
    let _ = pool.handle().remove("b");
    pass(ms(100)).await;
    let before = found.checks("b");
    pass(seconds(10)).await;
    assert_eq!(found.checks("b"), before);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_when_pools_and_checks_are_dropped_even_while_a_check_hangs() {
    let (servers, found) = (Servers::default(), Found::default());
    let before = Handle::current().metrics().num_alive_tasks();
    let pool = pool("shop", &servers, &["a", "b"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    found.with("a", |finding| finding.hangs = true);
    checks.watch(&pool.handle());
    pass(ms(1_500)).await;
    assert!(Handle::current().metrics().num_alive_tasks() > before);
    drop(pool);
    drop(checks);
    pass(ms(100)).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_has_failed_and_the_others_go_on() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b", "c"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    found.with("a", |finding| finding.panics = true);
    // a panic under the lock of the findings would fail the other checks
    checks.watch(&pool.handle());
    pass(seconds(5)).await;
    let failed = state(&pool.handle(), "a");
    assert_eq!((failed.health, failed.last_check.unwrap().report.text()), (Health::Unhealthy, "the check panicked"));
    assert_eq!(state(&pool.handle(), "b").health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_pool_has_the_health_that_the_latest_checks_found() {
    let (servers, first, second) = (Servers::default(), Found::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b"]);
    let by_tcp = HealthChecks::new(first.check()).unwrap();
    let by_http = HealthChecks::new(second.check()).unwrap();
    by_tcp.watch(&pool.handle());
    pass(seconds(5)).await;
    by_http.watch(&pool.handle());
    second.set("a", CheckReport::failed("503"));
    pass(seconds(20)).await;
    let checks = first.checks("a");
    pass(seconds(20)).await;
    assert_eq!(first.checks("a"), checks, "the first checks have ended");
    assert_eq!(state(&pool.handle(), "a").health, Health::Unhealthy, "only who saw the failure can heal it");
}

#[tokio::test(start_paused = true)]
async fn members_with_the_same_addresses_are_checked_once_and_a_change_of_them_is_a_new_endpoint() {
    let (servers, found) = (Servers::default(), Found::default());
    let pool: Balance<Endpoint<Plain>> = Balance::builder("shop", servers.factory()).build().unwrap();
    let at = |key: &str, port: u16| Member::new(key).addresses([([127, 0, 0, 1], port).into()]);
    let _ = pool.handle().replace([at("a", 1), at("b", 1), at("c", 2)]).unwrap();
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    pass(seconds(30)).await;
    assert!(found.checks("a") == 0 || found.checks("b") == 0, "both are one address");
    found.set("c", CheckReport::failed("down"));
    pass(seconds(10)).await;
    assert_eq!(state(&pool.handle(), "c").health, Health::Unhealthy);
    let _ = pool.handle().upsert(at("c", 3)).unwrap();
    assert_eq!(state(&pool.handle(), "c").health, Health::Unknown);
    found.set("c", CheckReport::passed());
    pass(seconds(5)).await;
    assert_eq!(state(&pool.handle(), "c").health, Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_verification_is_bounded_and_reports_checks_that_panic_as_failed() {
    let (servers, found) = (Servers::default(), Found::default());
    let keys: Vec<_> = (0..100).map(|index| format!("e{index}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let pool = pool("shop", &servers, &keys);
    for key in &keys[..99] {
        found.with(key, |finding| finding.hangs = true);
    }
    found.with("e0", |finding| finding.panics = true);
    let begun = Instant::now();
    let tasks = Handle::current().metrics().num_alive_tasks();
    let mut verification = found.check().max_concurrent(10).verify(&pool.handle()).unwrap();
    assert_eq!(verification.next().await.unwrap().report.text(), "the check panicked");
    assert!(Handle::current().metrics().num_alive_tasks() <= tasks + 10);
    assert!(verification.any_passed().await);
    assert!((seconds(9)..seconds(12)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(state(&pool.handle(), "e5").health, Health::Unknown, "a verification changes nothing");
    assert_eq!(call(&pool).await, 200);
    drop(verification);
    pass(ms(10)).await;
    assert_eq!(Handle::current().metrics().num_alive_tasks(), tasks);
    assert!(found.check().rise(0).verify(&pool.handle()).is_err());
}

/// Collects the log.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub(crate) fn subscribe(&self) -> tracing::subscriber::DefaultGuard {
        let lines = self.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || lines.clone());
        crate::support::subscribe(log.with_max_level(tracing::Level::DEBUG).finish())
    }

    /// Returns the lines with this text.
    pub(crate) fn with(&self, text: &str) -> Vec<String> {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn each_change_of_health_is_one_log_event() {
    let lines = Lines::default();
    let _log = lines.subscribe();
    let (servers, found) = (Servers::default(), Found::default());
    let pool = pool("shop", &servers, &["a", "b", "c"]);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    pass(seconds(5)).await;
    assert!(lines.with(" INFO ").is_empty() && lines.with(" WARN ").is_empty(), "newcomers are not worth an event");
    found.set("a", CheckReport::failed("disk full"));
    pass(seconds(30)).await;
    found.set("a", CheckReport::from_words(b"maint"));
    pass(seconds(10)).await;
    found.set("a", CheckReport::passed());
    pass(seconds(20)).await;
    let events = lines.with("endpoint=\"a\"");
    let events: Vec<_> = events.iter().filter(|line| !line.contains("DEBUG")).collect();
    assert_eq!(events.len(), 3, "{events:?}");
    for part in ["WARN tower_upstream: ", "upstream=\"shop\"", "reason=\"disk full\"", "duration_ms=0"] {
        assert!(events[0].contains(part), "{}", events[0]);
    }
    assert!(events[1].contains("WARN") && events[1].contains("asked for no new calls"), "{}", events[1]);
    assert!(events[2].contains("INFO") && events[2].contains("takes calls again"), "{}", events[2]);
}

#[tokio::test(start_paused = true)]
async fn weights_of_many_endpoints_that_change_at_every_check_are_all_applied() {
    let (servers, found) = (Servers::default(), Found::default());
    let keys: Vec<_> = (0..300).map(|index| format!("e{index}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let pool = pool("shop", &servers, &keys);
    let checks = HealthChecks::new(found.check()).unwrap();
    checks.watch(&pool.handle());
    for percent in [50, 70, 0] {
        for key in &keys[1..] {
            found.set(key, CheckReport::passed().weight_percent(percent.max(1)));
        }
        pass(seconds(8)).await;
        assert!(keys[1..].iter().all(|key| state(&pool.handle(), key).weight_percent == percent.max(1)));
    }
    let before = servers.calls("e0");
    for _ in 0..400 {
        assert_eq!(call(&pool).await, 200);
    }
    let share = f64::from(servers.calls("e0") - before) / 400.0;
    assert!(share > 0.1, "its weight is a hundred times that of each other, a quarter of all: {share}");
}
