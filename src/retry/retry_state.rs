//! The state that the attempts of one call share.

use http::{Method, Request, Response};
use tokio::time::Instant;

use super::decision::{Decision, Replayability, RetryContext, decide, is_idempotent, is_safe};
use super::failure_signal::FailureSignal;
use super::pushback::Pushback;
use super::request_template::{AttemptHistory, RequestTemplate, UncopiedHead};
use super::settings::Settings;
use super::{Attempts, RetryOverride};
use crate::body::{ReplayBody, ReplayHandle};
use crate::cause::{self, BadGatewayCause, CountedAttempt, Detail, Failure, Protocol, RetryStop};
use crate::deadline::Deadline;
use crate::event::excerpt;
use crate::exchange::{CallContext, ChosenEndpoint, NextStep};

/// The retry state of a call.
///
/// It is small because it moves with the future: data needed only with a copy is in the template.
pub(crate) struct RetryState<B> {
    /// The source of a replay; without it the attempt in flight is the last.
    source: Option<ReplaySource<B>>,
    request: RequestFacts,
}

/// Facts about a request whose head has been sent.
#[derive(Clone, Copy)]
struct RequestFacts {
    exception: Option<RetryOverride>,
    protocol: Protocol,
    method: MethodClass,
    /// Whether the budget has counted the call.
    counted: bool,
    /// Present if no copy was made because the budget was empty.
    uncopied: Option<UncopiedHead>,
}

/// The safety of a method.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MethodClass {
    Safe,
    /// Idempotent, and not safe.
    Idempotent,
    Other,
}

/// A copy of the request for replays.
struct ReplaySource<B> {
    template: Box<RequestTemplate>,
    body: ReplayHandle<B>,
}

/// The state of a request that begins: a copy of its head, if a retry may be possible.
pub(crate) struct StartedState {
    template: Option<Box<RequestTemplate>>,
    request: RequestFacts,
}

impl StartedState {
    /// Adds the body, of which at most `body_cap` bytes are kept.
    ///
    /// The request is neither an argument nor a result: moving it would be most of the layer's cost.
    #[inline]
    pub(crate) fn with_body<B: http_body::Body<Data = bytes::Bytes>>(
        self,
        body_cap: usize,
        body: B,
    ) -> (RetryState<B>, ReplayBody<B>) {
        let facts = self.request;
        match self.template {
            None => (RetryState { source: None, request: facts }, ReplayBody::non_replayable(body)),
            Some(head) => {
                let (first, body) = ReplayBody::new(body, body_cap);
                (RetryState { source: Some(ReplaySource { template: head, body }), request: facts }, first)
            }
        }
    }
}

/// Collects the facts of a request, and copies its head if a retry may be possible.
#[inline]
pub(crate) fn begin_at<B>(settings: &Settings, request: &Request<B>, call: &CallContext) -> StartedState {
    let facts = RequestFacts::of(request);
    if !settings.policy.allows_more(facts.exception) {
        return StartedState { template: None, request: facts };
    }
    let total = settings.total.map(|total| Deadline::after(call.now, total));
    let deadline = Deadline::min(call.deadline, total);
    StartedState::record_call(settings, request, facts, call.now, call.protocol, deadline)
}

impl RequestFacts {
    #[inline]
    fn of<B>(request: &Request<B>) -> Self {
        let extensions = request.extensions();
        let exception = if extensions.is_empty() { None } else { extensions.get::<RetryOverride>().copied() };
        let method = match request.method() {
            method if is_safe(method) => MethodClass::Safe,
            method if is_idempotent(method) => MethodClass::Idempotent,
            _ => MethodClass::Other,
        };
        Self { exception, protocol: Protocol::Http, method, counted: false, uncopied: None }
    }

    /// A method with the same safety and idempotency.
    fn equivalent_method(self) -> &'static Method {
        match self.method {
            MethodClass::Safe => &Method::GET,
            MethodClass::Idempotent => &Method::PUT,
            MethodClass::Other => &Method::POST,
        }
    }

    /// Whether two attempts may run concurrently.
    ///
    /// Idempotency does not suffice: a late attempt could undo a write made after the other one.
    #[inline]
    fn may_hedge(self) -> bool {
        self.method == MethodClass::Safe || self.exception.is_some_and(|exception| exception.idempotent)
    }
}

impl StartedState {
    /// A request that is never retried.
    #[cold]
    pub(crate) fn without_retry<B>(request: &Request<B>) -> Self {
        Self {
            template: None,
            request: RequestFacts { exception: Some(RetryOverride::never()), ..RequestFacts::of(request) },
        }
    }

    /// A request that is not copied, because the budget could not pay for another attempt.
    #[cold]
    fn without_budget<B>(request: &Request<B>, facts: RequestFacts) -> Self {
        Self { template: None, request: RequestFacts { uncopied: UncopiedHead::of(request), ..facts } }
    }

    #[inline]
    fn record_call<B>(
        settings: &Settings,
        request: &Request<B>,
        mut facts: RequestFacts,
        now: Instant,
        protocol: Option<Protocol>,
        deadline: Option<Deadline>,
    ) -> Self {
        settings.budget.begin(now);
        facts.counted = true;
        facts.protocol = protocol.unwrap_or_else(|| Protocol::of(request.method(), request.headers()));
        if !settings.budget.may_retry() {
            return Self::without_budget(request, facts);
        }
        let mut head = RequestTemplate::of(request, &settings.extension_copiers);
        if let Some(head) = &mut head {
            (head.begun, head.deadline) = (Some(now), deadline);
            head.hedge_start = settings.hedging.as_ref().filter(|_| facts.may_hedge()).map(|_| now);
        }
        Self { template: head, request: facts }
    }
}

impl<B> RetryState<B> {
    fn history(&self) -> Option<&AttemptHistory> {
        self.source.as_ref()?.template.history.as_deref()
    }

    /// The history, created if absent; `None` if no retry is possible.
    fn history_mut(&mut self) -> Option<&mut AttemptHistory> {
        self.source.as_mut().map(|kept| &mut **kept.template.history.get_or_insert_default())
    }

    #[inline]
    fn take_history(&mut self) -> Option<Box<AttemptHistory>> {
        self.source.as_mut()?.template.history.take()
    }

    /// Whether a response is returned without further checks.
    #[inline]
    pub(crate) fn is_final<R>(&self, response: &Response<R>) -> bool {
        FailureSignal::of(response, self.request.protocol).is_none()
    }

    /// Records a successful response.
    #[inline]
    pub(crate) fn on_success<R>(&mut self, settings: &Settings, response: &mut Response<R>) {
        if self.request.counted {
            settings.budget.succeed();
        }
        if let Some(past) = self.take_history() {
            if past.attempts.count() > 1 {
                response.extensions_mut().insert(past.attempts);
            }
        }
    }

    /// Decides on a response that may be a failure.
    pub(crate) fn on_response<R>(&mut self, settings: &Settings, response: &mut Response<R>) -> NextStep {
        let Some(shown) = FailureSignal::of(response, self.request.protocol) else {
            self.on_success(settings, response);
            return NextStep::Respond;
        };
        // an inner layer has made the record complete
        if self.history().is_none() && shown.is_final() {
            return NextStep::Respond;
        }
        let pushback = Pushback::of(response.headers(), self.request.protocol, settings.now_utc());
        let record = record_of(shown);
        match self.decide(settings, shown, pushback) {
            Ok(at) => {
                self.record_failure(settings, record);
                NextStep::Retry(at)
            }
            Err(stop) => {
                let told = matches!(shown, FailureSignal::Failure(_) | FailureSignal::Cause(_));
                if response.status().is_client_error() && !told {
                    self.on_success(settings, response);
                } else if told || self.history().is_some() {
                    cause::attach(response, self.final_record(settings, record, stop));
                }
                NextStep::Respond
            }
        }
    }

    /// Decides on a failure: returns when the next attempt follows, or the final failure of the call.
    pub(crate) fn on_error(&mut self, settings: &Settings, failure: Failure) -> Result<Option<Instant>, Failure> {
        match self.decide(settings, FailureSignal::Failure(&failure), None) {
            Ok(at) => {
                self.record_failure(settings, failure);
                Ok(at)
            }
            Err(stop) => Err(self.final_record(settings, failure, stop)),
        }
    }

    /// The record of a response that shows a failure.
    pub(crate) fn record_of<R>(&self, response: &Response<R>) -> Option<Failure> {
        FailureSignal::of(response, self.request.protocol).map(record_of)
    }

    /// Records that one of two attempts failed while the other is in flight.
    pub(crate) fn concurrent_failed(&mut self, settings: &Settings, record: Option<Failure>) {
        let Some(past) = self.history_mut() else { return };
        // it was counted as superseded so far
        past.attempts.superseded = past.attempts.superseded.saturating_sub(1);
        if let Some(record) = record {
            self.record_failure(settings, record);
        }
    }

    /// An attempt was sent to this endpoint of a pool.
    pub(crate) fn on_tried(&mut self, endpoint: ChosenEndpoint) {
        let Some(kept) = &mut self.source else { return };
        kept.template.has_others = endpoint.has_others;
        let tried = &mut kept.template.tried.0;
        if !tried.contains(&endpoint.id) {
            tried.push(endpoint.id);
        }
    }

    fn decide(
        &mut self,
        settings: &Settings,
        shown: FailureSignal<'_>,
        pushback: Option<Pushback>,
    ) -> Result<Option<Instant>, RetryStop> {
        let now = Instant::now();
        let spare = match &self.source {
            Some(kept) if kept.body.is_possible() => Replayability::Replayable,
            None if self.request.uncopied.is_some() => Replayability::WithoutBudget,
            _ => Replayability::NotReplayable,
        };
        let head = self.source.as_ref().map(|kept| &kept.template);
        let uncopied = |kind| self.request.uncopied == Some(kind);
        let situation = RetryContext {
            has_idempotency_key: head.map_or(uncopied(UncopiedHead::Keyed), |head| head.has_idempotency_key()),
            conditional: self.request.method != MethodClass::Safe
                && head.map_or(uncopied(UncopiedHead::Conditional), |head| head.is_conditional()),
            replayability: spare,
            attempt: u8::try_from(self.attempt()).unwrap_or(u8::MAX),
            saw_stale_connection: self.history().is_some_and(|past| past.attempts.saw_stale_connection()),
            remaining: head.and_then(|head| head.deadline).map(|deadline| deadline.remaining(now)),
            median: settings.median.as_ref().and_then(|median| median.0(now)),
            pushback,
            exception: self.request.exception,
            has_others: head.is_some_and(|head| head.has_others),
            ..RetryContext::new(shown, self.request.equivalent_method())
        };
        let mut token = None;
        let decision = decide(&settings.policy, &situation, settings.random(), || {
            if spare == Replayability::WithoutBudget {
                settings.budget.record_refusal();
            } else {
                token = settings.budget.try_withdraw(now);
            }
            token.is_some()
        });
        match decision {
            Decision::Stop(stop) => Err(stop),
            Decision::Retry { after, .. } => {
                // a backoff beyond the range of the clock cannot be waited for
                let at = now.checked_add(after).ok_or(RetryStop::Pushback)?;
                if let Some(past) = self.history_mut() {
                    past.withdrawal = token;
                }
                Ok((!after.is_zero()).then_some(at))
            }
        }
    }

    fn record_failure(&mut self, settings: &Settings, record: Failure) {
        let record = settings.named(record);
        let resends = self.history().map_or(0, |past| past.attempts.count());
        // a retry layer alone has no name for its upstream
        let authority = self.source.as_ref().and_then(|kept| kept.template.authority());
        // logged here, because no outer layer sees this failure
        tracing::info!(
            target: "tower_upstream",
            method = self.source.as_ref().map(|kept| excerpt(kept.template.method().as_str())).as_deref(),
            error.type = record.cause().as_str(),
            class = record.cause().proxy_status_error(),
            phase = record.phase().as_str(),
            http.request.resend_count = resends,
            upstream = record.upstream().or(authority).map(excerpt).as_deref(),
            "retrying the request"
        );
        if let Some(past) = self.history_mut() {
            past.attempts.record_failure(record);
        }
    }

    /// The record of the last attempt, with the earlier ones and the reason why there is no further attempt.
    fn final_record(&mut self, settings: &Settings, record: Failure, stop: RetryStop) -> Failure {
        let record = settings.named(record);
        match self.take_history() {
            // an inner layer has made the record complete
            None if record.retry_stop().is_some() => record,
            None => Attempts::default().into_final_failure(record, stop),
            Some(past) => self.with_total(past.attempts.into_final_failure(record, stop)),
        }
    }

    /// Adds the time of all attempts to the record of the last.
    fn with_total(&self, last: Failure) -> Failure {
        match self.source.as_ref().and_then(|kept| kept.template.begun) {
            Some(begun) => last.into_builder().total_elapsed(begun.elapsed()).build(),
            None => last,
        }
    }

    /// Whether another attempt is possible, as far as it was known at the beginning.
    #[inline]
    pub(crate) fn may_repeat(&self) -> bool {
        self.source.is_some()
    }

    /// Whether an attempt has polled the request's body, as far as that is known here.
    pub(crate) fn body_was_read(&self) -> bool {
        // for a retry, the body was read by the first attempt
        self.history().is_none() && self.source.as_ref().is_some_and(|kept| kept.body.was_polled())
    }

    /// The number of the attempt in flight, from 1.
    fn attempt(&self) -> u32 {
        self.history().map_or(1, |past| past.attempts.count())
    }

    /// The handle of the kept body.
    pub(crate) fn body(&self) -> Option<&ReplayHandle<B>> {
        self.source.as_ref().map(|kept| &kept.body)
    }

    /// Creates the next request, and spends its token.
    pub(crate) fn next_request<T>(&mut self, settings: &Settings, body: T) -> Option<(Request<T>, u32)> {
        let mut request = self.source.as_ref()?.template.request(body);
        let attempt = self.attempt();
        settings.count_attempt(&mut request, attempt);
        if let Some(deadline) = self.source.as_ref().and_then(|kept| kept.template.deadline) {
            // the remaining time, for the timeouts inside
            request.extensions_mut().insert(deadline);
        }
        if self.history().is_some_and(|past| past.attempts.previous().iter().any(Failure::counts_against_upstream)) {
            request.extensions_mut().insert(CountedAttempt);
        }
        if let Some(tried) = self.source.as_ref().map(|kept| &kept.template.tried).filter(|tried| !tried.0.is_empty()) {
            request.extensions_mut().insert(tried.clone());
        }
        if let Some(token) = self.history_mut().and_then(|past| past.withdrawal.take()) {
            token.sent();
        }
        Some((request, attempt - 1))
    }

    /// The time by which the next attempt has to begin.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.source.as_ref()?.template.deadline?.instant())
    }

    /// The final failure if a retry was decided on and is not made.
    pub(crate) fn final_failure(&mut self, stop: RetryStop) -> Failure {
        let attempts = self.take_history().unwrap_or_default().attempts;
        let nothing = || Failure::builder(BadGatewayCause::GatewayInternal).retry_stop(stop).build();
        self.with_total(attempts.end(stop).unwrap_or_else(nothing))
    }
}

/// Hedging: the second of two concurrent attempts.
impl<B> RetryState<B> {
    /// Whether a concurrent attempt may be started: this is the first attempt, and it may be hedged.
    #[inline]
    pub(crate) fn can_hedge(&self) -> bool {
        match &self.source {
            Some(kept) => self.history().is_none() && kept.template.hedge_start.is_some(),
            None => false,
        }
    }

    /// When the hedge is due, if there is to be one.
    pub(crate) fn hedge_at(&self, settings: &Settings) -> Option<Instant> {
        let begun = self.source.as_ref()?.template.hedge_start?;
        // a delay beyond the range of the clock never elapses
        begun.checked_add(settings.hedging.as_ref()?.delay(begun)?)
    }

    /// Begins a hedge, because the first attempt is late: returns its body, if available and if the budget has a token.
    pub(crate) fn hedge(&mut self, settings: &Settings) -> Option<ReplayBody<B>> {
        let now = Instant::now();
        self.learn(settings, now);
        let kept = self.source.as_mut()?;
        kept.template.hedge_start = None;
        if kept.template.deadline.is_some_and(|deadline| deadline.has_elapsed(now)) {
            return None;
        }
        let body = kept.body.replay()?;
        let token = settings.budget.try_withdraw(now)?;
        self.history_mut()?.withdrawal = Some(token);
        Some(body)
    }

    /// Creates the request of the second attempt, once its service is ready; one of the two will be superseded.
    pub(crate) fn concurrent_attempt<T>(&mut self, settings: &Settings, body: T) -> Option<(Request<T>, u32)> {
        let attempts = &mut self.history_mut()?.attempts;
        // not if the first has failed in the meantime
        attempts.superseded = u32::from(attempts.count() == 1);
        self.next_request(settings, body)
    }

    /// Records that the first attempt got its response before the second was due.
    #[inline]
    pub(crate) fn within_deadline(&mut self, settings: &Settings) {
        if self.can_hedge() {
            self.learn(settings, Instant::now());
        }
    }

    /// Records the duration of the first attempt, as far as known.
    #[cold]
    fn learn(&self, settings: &Settings, now: Instant) {
        let begun = self.source.as_ref().and_then(|kept| kept.template.hedge_start);
        if let (Some(begun), Some(hedging)) = (begun, &settings.hedging) {
            hedging.record(now, now.saturating_duration_since(begun));
        }
    }
}

impl<B> Drop for RetryState<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(kept) = self.source.take() {
            kept.template.recycle();
        }
    }
}

/// The record of a failure signal; created if absent.
fn record_of(shown: FailureSignal<'_>) -> Failure {
    match shown {
        FailureSignal::Failure(failure) => failure.clone(),
        FailureSignal::Cause(cause) => Failure::new(cause),
        FailureSignal::Status(status) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status)).build()
        }
        FailureSignal::Grpc(_) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Text("grpc-status")).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::{RetryBudget, RetryPolicy};

    fn begin(settings: &Settings, request: &Request<()>) -> StartedState {
        begin_at(settings, request, &CallContext::new(Instant::now()))
    }

    fn copied(settings: &Settings, request: &Request<()>) -> bool {
        begin(settings, request).template.is_some()
    }

    fn get() -> Request<()> {
        Request::new(())
    }

    #[test]
    fn a_request_is_copied_only_where_another_attempt_is_possible() {
        assert!(copied(&Settings::default(), &get()));
        let once = Settings { policy: RetryPolicy::new().attempts(1), ..Settings::default() };
        assert!(!copied(&once, &get()));
        assert!(copied(&once, &Request::builder().extension(RetryOverride::with_attempts(2)).body(()).unwrap()));
        let never = Request::builder().extension(RetryOverride::never()).body(()).unwrap();
        assert!(!copied(&Settings::default(), &never));
        assert!(!copied(&Settings::default(), &Request::connect("a:1").body(()).unwrap()));
        let upgrade = Request::get("/").header("connection", "upgrade").header("upgrade", "websocket");
        assert!(!copied(&Settings::default(), &upgrade.body(()).unwrap()));
        let spent = Settings { budget: RetryBudget::new(), ..Settings::default() };
        while let Some(token) = spent.budget.try_withdraw(Instant::now()) {
            token.sent();
        }
        assert!(!copied(&spent, &get()));
    }

    /// The reason why a call that began without a token is not retried.
    fn stopped_without_budget(request: &Request<()>, failure: Failure) -> (Option<RetryStop>, u64) {
        let settings = Settings { budget: RetryBudget::new(), ..Settings::default() };
        while let Some(token) = settings.budget.try_withdraw(Instant::now()) {
            token.sent();
        }
        let refusals = || settings.budget.snapshot(Instant::now()).refusals;
        let before = refusals();
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let (mut state, _) = begin(&settings, request).with_body(settings.body_cap, body);
        let stop = state.on_error(&settings, failure).unwrap_err().retry_stop();
        (stop, refusals() - before)
    }

    #[test]
    fn a_call_that_began_without_a_token_reports_the_budget_and_counts_as_refused() {
        let lost = || Failure::new(BadGatewayCause::ResetBeforeResponse);
        let unsent = Failure::builder(BadGatewayCause::StreamRefused)
            .replay(crate::cause::Replay::NotSent, crate::cause::Evidence::RefusedStream)
            .build();
        for (request, failure) in [
            (get(), lost()),
            (Request::put("/").body(()).unwrap(), lost()),
            (Request::post("/").body(()).unwrap(), unsent),
            (Request::get("/").header("upgrade", "ignored").body(()).unwrap(), lost()),
        ] {
            assert_eq!(stopped_without_budget(&request, failure), (Some(RetryStop::Budget), 1), "{request:?}");
        }
    }

    #[test]
    fn a_call_that_would_not_be_retried_with_a_token_reports_its_own_reason() {
        let lost = || Failure::new(BadGatewayCause::ResetBeforeResponse);
        let upgrade = Request::get("/").header("connection", "upgrade").header("upgrade", "websocket");
        let once = RetryOverride::with_attempts(1);
        for (request, failure, stop) in [
            (Request::post("/").body(()).unwrap(), lost(), RetryStop::Method),
            (Request::put("/").header("if-match", "\"1\"").body(()).unwrap(), lost(), RetryStop::Method),
            (upgrade.body(()).unwrap(), lost(), RetryStop::NotReplayable),
            (get(), Failure::new(BadGatewayCause::WrongProtocol), RetryStop::NotRetryable),
            (Request::get("/").extension(once).body(()).unwrap(), lost(), RetryStop::Attempts),
            (get(), lost().into_builder().retry_stop(RetryStop::Budget).build(), RetryStop::Budget),
        ] {
            assert_eq!(stopped_without_budget(&request, failure), (Some(stop), 0), "{request:?}");
        }
    }

    #[test]
    fn the_facts_of_a_request_fit_into_a_word() {
        assert!(size_of::<RequestFacts>() <= 8, "{}", size_of::<RequestFacts>());
    }

    #[test]
    fn a_second_attempt_whose_first_has_failed_before_it_was_sent_is_the_second() {
        let hedging = Some(super::super::Hedging::after(std::time::Duration::ZERO));
        let settings = Settings { hedging, ..Settings::default() };
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let (mut round, _) = begin(&settings, &get()).with_body(settings.body_cap, body);
        assert!(round.hedge(&settings).is_some());
        round.concurrent_failed(&settings, Some(Failure::new(BadGatewayCause::ResetBeforeResponse)));
        let (request, resends) = round.concurrent_attempt(&settings, ()).unwrap();
        assert_eq!((resends, request.headers()["x-envoy-attempt-count"].as_bytes()), (1, b"2".as_slice()));
        let mut answer = Response::new(());
        round.on_success(&settings, &mut answer);
        let attempts = Attempts::of(&answer).unwrap();
        assert_eq!((attempts.count(), attempts.superseded()), (2, 0));
    }

    #[test]
    fn a_budget_hears_of_the_calls_that_it_could_pay_for() {
        let once = Settings { policy: RetryPolicy::new().attempts(1), ..Settings::default() };
        let answered = |settings: &Settings| {
            let (mut round, _) = begin(settings, &get()).with_body(settings.body_cap, http_body_util::Empty::new());
            round.on_success(settings, &mut Response::new(()));
            settings.budget.snapshot(Instant::now()).deposits
        };
        assert_eq!((answered(&once), answered(&Settings::default())), (0, 1));
    }
}
