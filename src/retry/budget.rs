//! The retry budget: successes pay for retries.
//!
//! A token bucket like those of Finagle (`RetryBudget`) and of Marc Brooker ("Fixing retries with token buckets and
//! circuit breakers", 2022). Those add a fixed number of retries per second and process, which in a fleet of small
//! processes exceeds the traffic itself. Here the floor and the cap are shares of the observed rate.

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use super::Ratio;
use super::rate_sampler::{Minimum, RateSampler};
use super::token_bucket::{StripedTokenBucket, TOKEN};
use crate::stats::{TickGuard, default_stripes, stripe};

/// A budget for the retries and hedges of all calls to one upstream.
///
/// | | default | |
/// |---|---|---|
/// | [`ratio`](Self::ratio) | 20 % | of a token per success, of first attempts and retries |
/// | price | 1 token | per retry; refunded if it was never sent |
/// | floor | 2 % of the rate, at most 10 per second | tokens added over time; next to nothing where traffic is low |
/// | cap | the ratio times the calls of a second, at least 3 | maximum number of tokens; a new budget has 3 |
/// | rate | over 2 s | exponentially weighted average of the calls started |
///
/// In any period of time:
///
/// > retries <= tokens at its start + length x floor + ratio x successes
///
/// with the highest floor of the period, and with the tokens never above the cap at the highest rate so far. A refunded
/// retry does not count; if its token was withdrawn before the period, it counts as a token of the period. The bound is exact to a
/// thousandth of a token, the unit of counting, and to a microsecond. Successes are counted in the stripe of their
/// thread and settled atomically with each withdrawal. Only the tokens added over time may be late under concurrency,
/// by the length of an atomic operation or two,
/// or as long as a thread is suspended between them.
///
/// These values suit a process of a fleet. [`single_process`](Self::single_process) is for an application that runs alone.
///
/// Clones share one budget: use one for each upstream, shared by all layers and routes that call it. Recording a call and its
/// success only touches counters of the thread's stripe; there is no lock.
///
/// ```
/// use tokio::time::Instant;
/// use tower_upstream::retry::RetryBudget;
///
/// let budget = RetryBudget::new();
/// let now = Instant::now();
/// for _ in 0..10 {
///     budget.begin(now);
///     budget.succeed();
/// }
/// // the three initial tokens: at the cap, the successes add nothing
/// for _ in 0..3 {
///     budget.try_withdraw(now).expect("a token").sent();
/// }
/// assert!(budget.try_withdraw(now).is_none());
///
/// for _ in 0..5 {
///     budget.succeed();
/// }
/// // a retry that was never sent costs nothing
/// drop(budget.try_withdraw(now).expect("a token"));
/// assert!(budget.try_withdraw(now).is_some());
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBudget {
    inner: Arc<BudgetInner>,
}

/// The state shared by all clones.
#[derive(Debug)]
struct BudgetInner {
    /// The deposit of a success; `None` if unlimited.
    ratio: Option<Ratio>,
    minimum: Minimum,
    /// The first time passed in: the origin of the ticks.
    epoch: OnceLock<Instant>,
    bucket: StripedTokenBucket,
    sampler: RateSampler,
}

/// Snapshot of a budget.
///
/// Each number is exact, but under concurrent calls they may be from slightly different moments.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct BudgetSnapshot {
    /// The available tokens.
    pub tokens: f64,
    /// The maximum number of tokens at the current rate.
    pub cap: f64,
    /// Tokens added per second.
    pub floor: f64,
    /// Calls started per second.
    pub rate: f64,
    /// Successes, each of which deposits the ratio.
    pub deposits: u64,
    /// Withdrawn tokens.
    pub withdrawals: u64,
    /// Retries that were not made for want of a token.
    pub refusals: u64,
    /// Refunded tokens, whose retries were never sent.
    pub refunds: u64,
}

impl RetryBudget {
    /// A budget of 20 %, with three initial tokens.
    pub fn new() -> Self {
        Self::of(Some(Ratio::USUAL), Minimum::FLEET)
    }

    /// A budget of 10 %: half the extra load, but it hides half as many errors.
    pub fn conservative() -> Self {
        Self::of(Some(Ratio::CONSERVATIVE), Minimum::FLEET)
    }

    /// A budget of 20 % for an application that runs in one process, or in few: it has ten initial tokens, a cap of at least
    /// ten, and a floor of at least one token per second.
    ///
    /// A share of little traffic is next to nothing: with [`new`](Self::new), an application with 10 calls a minute has the
    /// three tokens it began with, and hides few errors after those. Here a process may add a retry per second to an upstream
    /// in an outage, and a fleet of 100 processes 100.
    ///
    /// ```
    /// use tower_upstream::UpstreamLayer;
    /// use tower_upstream::retry::RetryBudget;
    ///
    /// let layer = UpstreamLayer::builder("prices").budget(RetryBudget::single_process()).build().unwrap();
    /// let budget = layer.handle().snapshot(tokio::time::Instant::now()).budget.unwrap();
    /// assert_eq!((budget.tokens, budget.floor), (10.0, 1.0));
    /// ```
    pub fn single_process() -> Self {
        Self::of(Some(Ratio::USUAL), Minimum::SINGLE)
    }

    /// An unlimited budget: for tests only.
    ///
    /// With it a slow upstream receives each call as often as the policy allows. It still counts.
    pub fn unlimited() -> Self {
        Self::of(None, Minimum::FLEET)
    }

    /// Sets the deposit per success (default 20 %).
    ///
    /// A higher one hides more errors but adds more load to a failing upstream: hiding 20 % of random errors needs 25 %.
    /// It starts with a new budget: clones made before keep the old one.
    pub fn ratio(self, ratio: Ratio) -> Self {
        Self::of(Some(ratio), self.inner.minimum)
    }

    #[cfg(feature = "serde")]
    pub(crate) fn ratio_in_use(&self) -> Option<u16> {
        self.inner.ratio.map(Ratio::as_per_mille)
    }

    fn of(ratio: Option<Ratio>, minimum: Minimum) -> Self {
        let per_mille = ratio.map_or(0, Ratio::as_per_mille);
        let tokens = if ratio.is_some() { minimum.cap } else { u32::MAX };
        let stripes = default_stripes();
        let account = BudgetInner {
            ratio,
            minimum,
            epoch: OnceLock::new(),
            bucket: StripedTokenBucket::new(per_mille, tokens, stripes),
            sampler: RateSampler::new(per_mille, minimum, stripes),
        };
        Self { inner: Arc::new(account) }
    }

    /// Counts the start of a call; retries are not counted.
    #[inline]
    pub fn begin(&self, now: Instant) {
        let (account, stripe) = (&self.inner, stripe());
        if account.sampler.is_sample(account.bucket.calls_of_stripe(stripe)) {
            // before counting: this call belongs to the tick that starts now
            account.sample_clock(now);
        }
        account.bucket.record_call(stripe);
    }

    /// Counts a success, of a first attempt or a retry.
    #[inline]
    pub fn succeed(&self) {
        self.inner.bucket.record_success(stripe());
    }

    /// Whether a token was available when tokens were last settled.
    ///
    /// A single load, to decide for each call whether it is worth keeping a copy for a retry. The result is at most 100 ms
    /// old while calls start, or after a sudden end of heavy traffic 16 calls of each thread.
    #[inline]
    pub fn may_retry(&self) -> bool {
        !self.inner.bucket.is_empty()
    }

    /// Withdraws a token for one retry or hedge, if available.
    #[must_use = "the token is given back unless the retry is said to be sent"]
    pub fn try_withdraw(&self, now: Instant) -> Option<Withdrawal> {
        let account = &self.inner;
        if account.ratio.is_none() {
            account.bucket.withdraw_nothing(stripe());
        } else {
            account.accrue(account.tick(now));
            if !account.bucket.withdraw(account.cap(), stripe()) {
                return None;
            }
        }
        Some(Withdrawal { inner: Some(self.inner.clone()) })
    }

    /// Counts a retry for which no token was asked, because there was none when its call began.
    pub(crate) fn record_refusal(&self) {
        self.inner.bucket.record_refusal(stripe());
    }

    /// The current state.
    #[allow(clippy::cast_precision_loss)] // no rate is far from what a f64 holds exactly
    pub fn snapshot(&self, now: Instant) -> BudgetSnapshot {
        let account = &self.inner;
        let limited = account.ratio.is_some();
        account.accrue(account.tick(now));
        let tokens = account.bucket.settle(account.cap());
        let counts = account.bucket.counts();
        let in_tokens = |thousandths: u32| f64::from(thousandths) / f64::from(TOKEN);
        BudgetSnapshot {
            tokens: if limited { in_tokens(tokens) } else { f64::INFINITY },
            cap: if limited { in_tokens(account.cap()) } else { f64::INFINITY },
            floor: in_tokens(account.sampler.floor()),
            rate: account.sampler.rate() as f64 / 1e6,
            deposits: counts.succeeded,
            withdrawals: counts.withdrawn,
            refusals: counts.refused,
            refunds: counts.refunded,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new()
    }
}

/// A token withdrawn for one retry; refunded on drop.
///
/// So a call that is cancelled during its backoff, or whose retry is refused, costs nothing.
#[must_use = "the token is given back unless the retry is said to be sent"]
#[derive(Debug)]
pub struct Withdrawal {
    /// `None` once it is spent.
    inner: Option<Arc<BudgetInner>>,
}

impl Withdrawal {
    /// Marks the retry as sent: its token is spent.
    pub fn sent(mut self) {
        self.inner = None;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(account) = self.inner.take() {
            match account.ratio {
                Some(_) => account.bucket.refund(account.cap(), stripe()),
                None => account.bucket.refund_nothing(stripe()),
            }
        }
    }
}

impl BudgetInner {
    #[cold]
    #[inline(never)] // or its registers are saved by those who do not look
    fn sample_clock(&self, now: Instant) {
        self.tick(now);
    }

    /// Updates rate, cap and floor once per tick; returns the time in microseconds.
    #[inline]
    fn tick(&self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_init(|| now);
        let since = now.saturating_duration_since(epoch);
        let micros = since.as_secs().saturating_mul(1_000_000).saturating_add(since.subsec_micros().into());
        if let Some(taken) = self.sampler.try_lock(micros) {
            self.update(&taken, micros);
        }
        micros
    }

    #[cold]
    fn update(&self, taken: &TickGuard<'_>, micros: u64) {
        self.accrue(micros);
        self.sampler.update(taken, self.bucket.calls());
        // so that `may_retry` sees what was deposited since
        self.bucket.settle(self.cap());
    }

    /// Adds the tokens due over time.
    fn accrue(&self, micros: u64) {
        self.bucket.grant(self.sampler.take_due(micros));
    }

    fn cap(&self) -> u32 {
        if self.ratio.is_some() { self.sampler.cap() } else { u32::MAX }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    struct Client {
        budget: RetryBudget,
        now: Instant,
    }

    impl Client {
        fn new(budget: RetryBudget) -> Self {
            Self { budget, now: Instant::now() }
        }

        /// Makes calls at an even pace that all succeed, or all fail and are retried if allowed; returns the number of retries.
        fn runs(&mut self, per_second: u32, seconds: u32, succeed: bool) -> usize {
            let mut retries = 0;
            for _ in 0..per_second * seconds {
                self.now += Duration::from_secs(1) / per_second;
                self.budget.begin(self.now);
                if succeed {
                    self.budget.succeed();
                } else {
                    retries += self.spends();
                }
            }
            retries
        }

        /// Withdraws all tokens, and returns their number.
        fn spends(&self) -> usize {
            let taken = std::iter::from_fn(|| self.budget.try_withdraw(self.now).map(Withdrawal::sent));
            taken.take(100_000).count()
        }
    }

    #[test]
    fn what_was_saved_is_no_more_than_a_second_of_successes_pays_for() {
        let mut client = Client::new(RetryBudget::new());
        client.runs(100, 30, true);
        assert_eq!(client.spends(), 19, "the rate is just below 100");
        let mut client = Client::new(RetryBudget::conservative());
        client.runs(1000, 30, true);
        assert_eq!(client.spends(), 99);
    }

    #[test]
    fn a_small_client_in_an_outage_adds_no_more_than_its_share() {
        let mut client = Client::new(RetryBudget::new());
        assert_eq!(client.runs(7, 10, true), 0);
        // three that were saved, and 0.14 a second
        let retries = client.runs(7, 100, false);
        assert!((15..=17).contains(&retries), "{retries}");
    }

    #[test]
    fn an_application_that_runs_alone_hides_an_error_a_second_at_any_rate() {
        let mut client = Client::new(RetryBudget::single_process());
        // ten to begin with, and one a second
        let retries = client.runs(1, 60, false);
        assert!((69..=70).contains(&retries), "{retries}");
        let mut client = Client::new(RetryBudget::single_process().ratio(Ratio::CONSERVATIVE));
        assert_eq!(client.spends(), 10, "another ratio keeps the rest");
        let retries = client.runs(10, 60, false);
        assert!((59..=61).contains(&retries), "{retries}");
        // a share of the traffic where that is more
        client.runs(1000, 30, true);
        assert_eq!(client.spends(), 99);
        // after a silence, no more than it holds without traffic
        client.now += Duration::from_secs(600);
        assert_eq!(client.spends(), 10);
    }

    #[test]
    fn a_large_client_in_an_outage_adds_ten_a_second() {
        let mut client = Client::new(RetryBudget::new());
        client.runs(2000, 10, true);
        client.spends();
        assert_eq!(client.runs(2000, 10, false), 100);
        assert!((client.budget.snapshot(client.now).floor - 10.0).abs() < f64::EPSILON);
    }

    #[test]
    fn who_has_been_silent_has_three_tokens_at_most() {
        let mut client = Client::new(RetryBudget::new());
        client.runs(1000, 10, true);
        client.now += Duration::from_secs(60);
        assert_eq!(client.spends(), 3);
    }

    #[test]
    fn a_retry_that_is_never_sent_costs_nothing() {
        let budget = RetryBudget::new();
        let now = Instant::now();
        for _ in 0..100 {
            assert!(budget.try_withdraw(now).is_some());
        }
        let balance = budget.snapshot(now);
        assert_eq!((balance.withdrawals, balance.refunds, balance.refusals), (100, 100, 0));
        assert!((balance.tokens - 3.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_look_ahead_sees_what_was_earned_once_the_next_call_begins() {
        let mut client = Client::new(RetryBudget::new());
        client.budget.begin(client.now);
        assert!(client.budget.may_retry());
        client.spends();
        assert!(!client.budget.may_retry());
        (0..5).for_each(|_| client.budget.succeed());
        client.now += Duration::from_millis(100);
        client.budget.begin(client.now);
        assert!(client.budget.may_retry());
    }

    #[test]
    fn clones_spend_from_one_account_and_a_new_ratio_opens_another() {
        let (budget, now) = (RetryBudget::new(), Instant::now());
        let (shared, other) = (budget.clone(), budget.clone().ratio(Ratio::per_mille(1000)));
        assert_eq!(Client { budget, now }.spends(), 3);
        assert!(shared.try_withdraw(now).is_none());
        assert!(other.try_withdraw(now).is_some());
    }

    #[test]
    fn an_unlimited_budget_refuses_nothing_and_counts() {
        let mut client = Client::new(RetryBudget::unlimited());
        client.runs(1, 10, true);
        assert_eq!(client.spends(), 100_000);
        drop(client.budget.try_withdraw(client.now));
        assert!(client.budget.may_retry());
        let balance = client.budget.snapshot(client.now);
        assert_eq!((balance.withdrawals, balance.refunds, balance.deposits), (100_001, 1, 10));
        assert!(balance.tokens.is_infinite());
    }

    #[test]
    fn a_clock_that_lags_earns_nothing() {
        let mut client = Client::new(RetryBudget::new());
        client.runs(1000, 10, true);
        client.spends();
        let late = client.now - Duration::from_secs(5);
        client.budget.begin(late);
        assert!(client.budget.try_withdraw(late).is_none());
    }

    #[test]
    fn a_report_tells_the_rate_in_calls_a_second() {
        let mut client = Client::new(RetryBudget::new());
        client.runs(100, 30, true);
        let balance = client.budget.snapshot(client.now);
        assert!((balance.rate - 100.0).abs() < 2.0, "{balance:?}");
        assert!((balance.floor - 2.0).abs() < 0.1 && (balance.cap - 20.0).abs() < 0.5, "{balance:?}");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin,
        Succeed,
        Withdraw,
        Refund,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Begin),
            4 => Just(Step::Succeed),
            3 => Just(Step::Withdraw),
            1 => Just(Step::Refund),
        ]
    }

    /// Bursts, a steady pace, and sometimes a gap; in microseconds.
    fn pause() -> impl Strategy<Value = u64> {
        prop_oneof![8 => 0..50_u64, 8 => 0..20_000_u64, 4 => 0..400_000_u64, 1 => 0..10_000_000_u64]
    }

    fn history() -> impl Strategy<Value = Vec<(u64, Step, usize)>> {
        // a step may come many times at once
        let times = prop_oneof![6 => Just(1_usize), 2 => 2..40_usize];
        prop::collection::vec((pause(), step(), times), 1..150)
    }

    /// A budget, and the events of its history.
    struct Played {
        budget: RetryBudget,
        now: Instant,
        held: Vec<Withdrawal>,
        succeeded: u64,
        withdrawn: u64,
        refunded: u64,
    }

    impl Played {
        fn new(ratio: u16) -> Self {
            let budget = RetryBudget::new().ratio(Ratio::per_mille(ratio));
            let now = Instant::now();
            budget.begin(now);
            Self { budget, now, held: Vec::new(), succeeded: 0, withdrawn: 0, refunded: 0 }
        }

        /// Whether a withdrawal was refused.
        fn plays(&mut self, step: Step) -> bool {
            match step {
                Step::Begin => self.budget.begin(self.now),
                Step::Succeed => {
                    self.budget.succeed();
                    self.succeeded += 1;
                }
                Step::Withdraw => {
                    let Some(taken) = self.budget.try_withdraw(self.now) else { return true };
                    self.withdrawn += 1;
                    self.held.push(taken);
                }
                Step::Refund => self.refunded += u64::from(self.held.pop().is_some()),
            }
            false
        }
    }

    proptest! {
        #[test]
        fn no_window_has_more_retries_than_its_bound(
            ratio in 1_u16..=1000,
            history in history(),
            start in any::<prop::sample::Index>(),
        ) {
            let start = start.index(history.len());
            let mut played = Played::new(ratio);
            let mut highest_cap = Minimum::FLEET.cap;
            let mut window = None;
            for (place, (pause, step, times)) in history.into_iter().enumerate() {
                // in the window floor and cap are read without settling anything
                if place == start {
                    let balance = played.budget.snapshot(played.now);
                    highest_cap = highest_cap.max(played.budget.inner.cap());
                    let stored = played.budget.inner.bucket.settle(highest_cap);
                    prop_assert!((balance.tokens * 1000.0 - f64::from(stored)).abs() < 1e-6);
                    prop_assert!(stored <= highest_cap, "{stored} of {highest_cap}");
                    window = Some((played.now, u64::from(stored), played.budget.inner.sampler.floor()));
                    (played.succeeded, played.withdrawn, played.refunded) = (0, 0, 0);
                }
                played.now += Duration::from_micros(pause);
                for _ in 0..times {
                    played.plays(step);
                    highest_cap = highest_cap.max(played.budget.inner.cap());
                    let Some((since, stored, floor)) = &mut window else { continue };
                    *floor = (*floor).max(played.budget.inner.sampler.floor());
                    let length = u64::try_from((played.now - *since).as_micros()).unwrap();
                    // in billionths of a token; below a thousandth there may be some besides
                    let bound = (*stored + 1 + played.succeeded * u64::from(ratio)) * 1_000_000
                        + length * u64::from(*floor);
                    let retries = (played.withdrawn - played.refunded.min(played.withdrawn)) * 1_000_000_000;
                    let before = played.refunded.saturating_sub(played.withdrawn) * 1_000_000_000;
                    prop_assert!(retries <= bound + before, "{} > {}", retries, bound);
                }
            }
        }

        #[test]
        fn below_the_cap_a_retry_is_refused_only_where_no_token_is_left(
            ratio in 1_u16..=1000,
            history in history(),
        ) {
            let mut played = Played::new(ratio);
            // a rate whose cap is not reached
            for _ in 0..20 {
                (0..400).for_each(|_| played.budget.begin(played.now));
                played.now += Duration::from_millis(100);
                played.plays(Step::Begin);
            }
            while !played.plays(Step::Withdraw) {}
            played.held.drain(..).for_each(Withdrawal::sent);
            let account = played.budget.inner.clone();
            account.accrue(account.tick(played.now));
            let (mut paid, mut floor) = (played.now, account.sampler.floor());
            let mut billionths = u64::from(account.bucket.settle(account.cap())) * 1_000_000;
            let lost = |billionths: u64| billionths / 1_000_000 > account.cap().into();
            for (pause, step, times) in history {
                played.now += Duration::from_micros(pause);
                // a gap is credited for up to two seconds after the last reading of the clock
                billionths += u64::try_from((played.now - paid).as_micros().min(2_000_000)).unwrap() * u64::from(floor);
                account.accrue(account.tick(played.now));
                (paid, floor) = (played.now, account.sampler.floor());
                for _ in 0..times {
                    let refunded = played.refunded;
                    let refused = played.plays(step);
                    if lost(billionths) {
                        return Ok(());
                    }
                    match step {
                        Step::Succeed => billionths += u64::from(ratio) * 1_000_000,
                        Step::Withdraw if refused => {
                            // what is below a thousandth when the account begins is not seen here
                            prop_assert!(billionths < 1_000_000_000, "{}", billionths);
                        }
                        Step::Withdraw => {
                            prop_assert!(billionths + 1_000_000 >= 1_000_000_000, "{}", billionths);
                            billionths = billionths.saturating_sub(1_000_000_000);
                        }
                        Step::Refund => billionths += (played.refunded - refunded) * 1_000_000_000,
                        Step::Begin => {}
                    }
                }
            }
        }
    }
}
