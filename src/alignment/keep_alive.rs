//! Estimates how long an upstream keeps an idle connection.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// Learns how long idle connections may be kept; lock-free.
///
/// It starts with the configured limit and never exceeds it.
///
/// | evidence | the limit is at most |
/// |---|---|
/// | `Keep-Alive: timeout=N` (the expired draft-thomson-hybi-http-timeout, RFC 2068 section 19.7.1.1) | N s - 1 s: both ends count whole seconds from their own clock |
/// | a connection found closed at this age before a request was written | 80 % of the age, at least half of the limit |
/// | any | not lowered below 250 ms, or below the configured limit if that is less |
///
/// A request that was written and lost is no evidence: a client chooses how long a connection was idle, and which path crashes.
///
/// A dead connection proves little: a restart ends connections of every age at once. So one dead connection lowers the limit by
/// at most half, those within one second count as one, and a limit is back after a minute unless a second connection was
/// found dead at the same age, within a fifth. After five minutes without lowering, a limit that two ages or a field support
/// rises by an eighth, and so on: a changed setting of the upstream is found slowly, and the limit approaches the real one
/// from below, where finding a connection closed costs nothing. A field in a response that announces less lowers it again
/// immediately.
#[derive(Debug)]
pub(crate) struct KeepAliveEstimator {
    configured: u64,
    /// In nanoseconds, like the other fields.
    limit: AtomicU64,
    /// The limit without the ages that no second connection has confirmed.
    confirmed: AtomicU64,
    /// The latest age of a dead connection; 0 before the first.
    dead_age: AtomicU64,
    start: Instant,
    /// When the limit was last lowered by a dead connection or raised, since `start`.
    changed_at: AtomicU64,
    /// Dead connections are ignored until this time, since `start`.
    ignore_until: AtomicU64,
}

impl KeepAliveEstimator {
    /// The lowest limit.
    pub(crate) const FLOOR: Duration = Duration::from_millis(250);
    /// The time after the last lowering until the limit rises.
    pub(crate) const QUIET: Duration = Duration::from_secs(300);
    /// The time after which a limit is forgotten that no second connection has confirmed.
    const UNCONFIRMED: Duration = Duration::from_secs(60);
    /// Dead connections within this time count as one.
    pub(crate) const ONE_EVENT: Duration = Duration::from_secs(1);

    const HEADER_MARGIN: Duration = Duration::from_secs(1);

    /// Starts with the configured limit.
    pub(crate) fn new(configured: Duration, now: Instant) -> Self {
        let configured = nanos(configured);
        let [limit, confirmed] = [(); 2].map(|()| AtomicU64::new(configured));
        let [dead_age, changed_at, ignore_until] = [(); 3].map(|()| AtomicU64::new(0));
        Self { configured, limit, confirmed, dead_age, start: now, changed_at, ignore_until }
    }

    /// The current limit for idle connections.
    pub(crate) fn idle_limit(&self) -> Duration {
        Duration::from_nanos(self.limit.load(Relaxed))
    }

    /// Whether the limit is below the configured one.
    pub(crate) fn has_learnt(&self) -> bool {
        self.limit.load(Relaxed) < self.configured
    }

    /// Records a `Keep-Alive` field; anything but its `timeout=N` is ignored.
    pub(crate) fn observe_header(&self, field: &str) {
        if let Some(timeout) = timeout_of(field) {
            self.lower(nanos(timeout.saturating_sub(Self::HEADER_MARGIN)), true);
        }
    }

    /// Whether the upstream's keep-alive explains that a connection was lost after it had been idle for this long: the age is
    /// near the limit, or near the age at which another one was found dead.
    #[cfg(feature = "client")]
    pub(crate) fn explains(&self, age: Duration) -> bool {
        let age = nanos(age);
        age >= self.limit.load(Relaxed) / 2 || is_near(age, self.dead_age.load(Relaxed))
    }

    /// Records the idle age at which a connection turned out to be dead, before a request was written to it.
    pub(crate) fn observe_stale(&self, age: Duration, now: Instant) {
        let now = self.since_start(now);
        let deaf_until = self.ignore_until.load(Relaxed);
        if now < deaf_until {
            return;
        }
        let (age, limit) = (nanos(age), self.limit.load(Relaxed));
        let confirms = is_near(age, self.dead_age.swap(age, Relaxed));
        let learnt = (age / 5).saturating_mul(4).max(limit / 2).max(self.floor());
        if learnt >= limit {
            return;
        }
        let next = now.saturating_add(nanos(Self::ONE_EVENT));
        // the thread that wins the exchange acts for all dead connections of this moment
        if self.ignore_until.compare_exchange(deaf_until, next, Relaxed, Relaxed).is_err() {
            return;
        }
        self.lower(learnt, confirms);
        self.changed_at.fetch_max(now, Relaxed);
    }

    /// Raises the limit if enough time has passed; call it periodically.
    pub(crate) fn relax(&self, now: Instant) {
        if !self.has_learnt() {
            return;
        }
        let now = self.since_start(now);
        let moved = self.changed_at.load(Relaxed);
        let quiet = now.saturating_sub(moved);
        let is_confirmed = self.limit.load(Relaxed) >= self.confirmed.load(Relaxed);
        let wait = if is_confirmed { Self::QUIET } else { Self::UNCONFIRMED };
        // only one of several concurrent callers raises it
        if quiet < nanos(wait) || self.changed_at.compare_exchange(moved, now, Relaxed, Relaxed).is_err() {
            return;
        }
        if is_confirmed {
            let raised = |limit: u64| Some((limit + (limit / 8).max(1)).min(self.configured));
            let _ = self.confirmed.fetch_update(Relaxed, Relaxed, raised);
        }
        self.limit.store(self.confirmed.load(Relaxed), Relaxed);
    }

    /// Parses the timeout of a `Keep-Alive` field.
    pub(crate) fn parse(field: &str) -> Option<Duration> {
        timeout_of(field)
    }

    fn lower(&self, limit: u64, confirms: bool) {
        let limit = limit.max(self.floor());
        // called for every response: write only if the limit changes
        if confirms && limit < self.confirmed.load(Relaxed) {
            self.confirmed.fetch_min(limit, Relaxed);
        }
        if limit < self.limit.load(Relaxed) {
            self.limit.fetch_min(limit, Relaxed);
        }
    }

    fn floor(&self) -> u64 {
        nanos(Self::FLOOR).min(self.configured)
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

/// Whether two ages differ by at most a fifth.
fn is_near(age: u64, other: u64) -> bool {
    age.abs_diff(other) <= age.max(other) / 5 && other > 0
}

/// Saturates at the largest representable duration.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The seconds of `timeout=N` in a list of parameters; the first that can be read counts.
fn timeout_of(field: &str) -> Option<Duration> {
    field.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        if !name.trim().eq_ignore_ascii_case("timeout") {
            return None;
        }
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let digits = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
        // a number that overflows is longer than any wait
        digits.then(|| Duration::from_secs(value.parse().unwrap_or(u64::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn only_a_timeout_in_whole_seconds_is_heard() {
        let heard = ["timeout=5", "timeout=5, max=100", "max=5,Timeout = 5", " timeout=\"5\"", "timeout=x, timeout=5"];
        for field in heard {
            assert_eq!(timeout_of(field), Some(secs(5)), "{field}");
        }
        for field in ["", "5", "timeout", "timeout=", "timeout=-5", "timeout=+5", "timeout=5.5", "timeout=5s", "max=5"]
        {
            assert_eq!(timeout_of(field), None, "{field}");
        }
        assert_eq!(timeout_of("timeout=99999999999999999999999"), Some(secs(u64::MAX)));
    }

    #[test]
    fn an_announced_timeout_counts_less_a_second_and_down_to_the_floor() {
        let learnt = KeepAliveEstimator::new(secs(90), Instant::now());
        for (field, limit) in [("timeout=600", secs(90)), ("timeout=5", secs(4)), ("timeout=75", secs(4))] {
            learnt.observe_header(field);
            assert_eq!(learnt.idle_limit(), limit, "{field}");
        }
        learnt.observe_header("timeout=1");
        assert_eq!(learnt.idle_limit(), KeepAliveEstimator::FLOOR);
    }

    #[test]
    fn a_few_deaths_at_one_age_find_the_keep_alive() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(90), start);
        let mut deaths = 0;
        while learnt.idle_limit() >= secs(5) {
            deaths += 1;
            learnt.observe_stale(secs(5), start + secs(deaths));
        }
        assert_eq!((deaths, learnt.idle_limit()), (5, secs(4)));
        // the limit is below this age by now, so that it proves nothing new
        learnt.observe_stale(secs(5), start + secs(60));
        assert_eq!(learnt.idle_limit(), secs(4));
    }

    #[test]
    fn a_restart_that_ends_a_hundred_young_connections_halves_the_limit_once() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(4), start);
        for number in 0..100 {
            learnt.observe_stale(ms(number), start + ms(9 * number));
        }
        assert_eq!(learnt.idle_limit(), secs(2));
        for quiet in 1..=6 {
            learnt.relax(start + KeepAliveEstimator::QUIET * quiet + secs(1));
        }
        assert_eq!(learnt.idle_limit(), secs(4), "it is forgotten within half an hour");
    }

    #[test]
    fn the_limit_rises_once_per_quiet_period() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(90), start);
        learnt.observe_header("timeout=49");
        for second in 0..299 {
            learnt.relax(start + secs(second));
        }
        assert_eq!(learnt.idle_limit(), secs(48));
        for second in 300..600 {
            learnt.relax(start + secs(second));
        }
        assert_eq!(learnt.idle_limit(), secs(54));
    }

    #[test]
    fn an_age_that_no_second_connection_confirms_is_forgotten_after_a_minute() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(3), start);
        // a process that crashes again and again, by a client's request
        for crash in 0..9 {
            learnt.observe_stale(ms([1000, 300, 2000][crash % 3]), start + secs(2) * u32::try_from(crash).unwrap());
        }
        assert_eq!(learnt.idle_limit(), KeepAliveEstimator::FLOOR);
        learnt.relax(start + secs(60));
        assert!(learnt.has_learnt());
        learnt.relax(start + secs(16 + 60));
        assert_eq!(learnt.idle_limit(), secs(3));
    }

    #[test]
    fn an_age_that_a_second_connection_confirms_is_kept() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(3), start);
        learnt.observe_stale(ms(2000), start);
        learnt.observe_stale(ms(1950), start + secs(2));
        assert_eq!(learnt.idle_limit(), ms(1560));
        learnt.relax(start + secs(62));
        assert_eq!(learnt.idle_limit(), ms(1560));
        learnt.relax(start + secs(302));
        assert_eq!(learnt.idle_limit(), ms(1755));
    }

    #[cfg(feature = "client")]
    #[test]
    fn a_lost_request_is_explained_by_an_age_near_the_limit_or_near_that_of_a_dead_connection() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(90), start);
        let explained = |age: u64| learnt.explains(ms(age));
        assert_eq!([0, 1000, 44_999, 45_000, 89_000].map(explained), [false, false, false, true, true]);
        learnt.observe_stale(secs(5), start);
        assert_eq!([1000, 3900, 4100, 5000, 6200, 7000].map(explained), [false, false, true, true, true, false]);
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Told(u64),
        Died(u64),
        Ease,
    }

    fn deeds() -> impl Strategy<Value = Vec<(Deed, u64)>> {
        let deed =
            prop_oneof![(0u64..200).prop_map(Deed::Told), (0u64..120_000).prop_map(Deed::Died), Just(Deed::Ease),];
        prop::collection::vec((deed, 0u64..400_000), 0..60)
    }

    fn run(learnt: &KeepAliveEstimator, deed: &Deed, now: Instant) {
        match deed {
            Deed::Told(seconds) => learnt.observe_header(&format!("timeout={seconds}")),
            Deed::Died(age) => learnt.observe_stale(ms(*age), now),
            Deed::Ease => learnt.relax(now),
        }
    }

    proptest! {
        #[test]
        fn it_stays_between_the_floor_and_the_configured_limit(configured in 0u64..120_000, deeds in deeds()) {
            let configured = ms(configured);
            let start = Instant::now();
            let learnt = KeepAliveEstimator::new(configured, start);
            let mut now = start;
            for (deed, pause) in deeds {
                now += ms(pause);
                let before = learnt.idle_limit();
                run(&learnt, &deed, now);
                let after = learnt.idle_limit();
                prop_assert!(after <= configured);
                prop_assert!(after >= KeepAliveEstimator::FLOOR.min(configured));
                match deed {
                    Deed::Told(_) | Deed::Died(_) => prop_assert!(after <= before, "evidence never raises"),
                    Deed::Ease => prop_assert!(after >= before),
                }
                if let Deed::Told(seconds) = deed {
                    let margin = secs(seconds).saturating_sub(secs(1)).max(KeepAliveEstimator::FLOOR.min(configured));
                    prop_assert!(after <= margin, "what was told holds at once");
                }
            }
        }

        #[test]
        fn a_younger_dead_connection_never_leaves_a_longer_limit(
            configured in 0u64..120_000, deeds in deeds(), one in 0u64..120_000, other in 0u64..120_000,
        ) {
            let start = Instant::now();
            let machines = [one.min(other), one.max(other)].map(|age| {
                let learnt = KeepAliveEstimator::new(ms(configured), start);
                let mut now = start;
                for (deed, pause) in &deeds {
                    now += ms(*pause);
                    run(&learnt, deed, now);
                }
                learnt.observe_stale(ms(age), now);
                learnt.idle_limit()
            });
            prop_assert!(machines[0] <= machines[1]);
        }

        #[test]
        fn the_limit_ends_below_the_age_of_dead_connections_and_recovers_when_quiet(
            configured in 500u64..90_000, keep_alive in 500u64..90_000,
        ) {
            let mut now = Instant::now();
            let learnt = KeepAliveEstimator::new(ms(configured), now);
            for _ in 0..20 {
                now += secs(1);
                if learnt.idle_limit() >= ms(keep_alive) {
                    learnt.observe_stale(ms(keep_alive), now);
                }
            }
            prop_assert!(learnt.idle_limit() < ms(keep_alive) || !learnt.has_learnt() && configured < keep_alive);
            for _ in 0..200 {
                now += KeepAliveEstimator::QUIET;
                learnt.relax(now);
            }
            prop_assert_eq!(learnt.idle_limit(), ms(configured));
        }
    }

    #[test]
    fn many_threads_learn_as_one_would() {
        let start = Instant::now();
        let learnt = KeepAliveEstimator::new(secs(90), start);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let learnt = &learnt;
                scope.spawn(move || {
                    for number in 0..500 {
                        learnt.observe_header(&format!("timeout={}", 20 + (number + thread) % 40));
                        learnt.observe_stale(secs(100), start + ms(number));
                        learnt.relax(start + ms(number));
                    }
                });
            }
        });
        assert_eq!(learnt.idle_limit(), secs(19));
    }
}
