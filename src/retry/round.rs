//! What one request's attempts share.

use http::{Method, Request, Response};
use tokio::time::Instant;

use super::decision::{is_idempotent, is_safe};
use super::kept_head::KeptHead;
use super::settings::Settings;
use super::{Attempts, Decision, Protocol, Pushback, RetryOverride, Shown, Situation, Spare, Withdrawal, decide};
use crate::body::{ReplayBody, ReplayHandle};
use crate::cause::{self, BadGatewayCause, Detail, Failure, RetryStop};
use crate::deadline::Deadline;
use crate::event::excerpt;

/// A request and what became of it so far.
///
/// It is small, as it is moved with the future: what only a copy needs lies in the copy's head.
pub(crate) struct Round<B> {
    /// What another attempt would send; without it this one is the last.
    kept: Option<Kept<B>>,
    facts: Facts,
}

/// What counts of a request whose head has gone.
#[derive(Clone, Copy)]
struct Facts {
    exception: Option<RetryOverride>,
    protocol: Protocol,
    idempotent: bool,
    safe: bool,
    /// Whether the budget has heard of it.
    counted: bool,
}

/// A copy of a request.
struct Kept<B> {
    head: Box<KeptHead>,
    body: ReplayHandle<B>,
}

/// What became of it so far, made by the first failure that is followed by another attempt; it lies in the copy's head.
#[derive(Debug, Default)]
pub(super) struct Past {
    attempts: Attempts,
    token: Option<Withdrawal>,
}

/// What follows an attempt.
pub(crate) enum Next {
    /// Nothing: this is the answer.
    Answer,
    /// Another attempt, not before this time.
    Again(Option<Instant>),
}

/// A request that begins: the copy of its head, where another attempt is possible as seen from here.
pub(crate) struct Begun {
    head: Option<Box<KeptHead>>,
    facts: Facts,
}

impl Begun {
    /// Takes the body as well, of which `body_cap` bytes are kept at most.
    ///
    /// The request itself is no argument and no result: moving it is most of what a layer costs.
    #[inline(always)]
    pub(crate) fn with<B: http_body::Body<Data = bytes::Bytes>>(
        self,
        body_cap: usize,
        body: B,
    ) -> (Round<B>, ReplayBody<B>) {
        let facts = self.facts;
        match self.head {
            None => (Round { kept: None, facts }, ReplayBody::non_replayable(body)),
            Some(head) => {
                let (first, body) = ReplayBody::new(body, body_cap);
                (Round { kept: Some(Kept { head, body }), facts }, first)
            }
        }
    }
}

/// Reads what counts of a request, and copies its head if that may be of use.
#[inline(always)]
pub(crate) fn begin_at<B>(
    settings: &Settings,
    request: &Request<B>,
    now: Instant,
    deadline: Option<Deadline>,
) -> Begun {
    let facts = Facts::of(request);
    if !settings.policy.allows_more(facts.exception) {
        return Begun { head: None, facts };
    }
    let total = settings.total.map(|total| Deadline::after(now, total));
    Begun::counted(settings, request, facts, now, Deadline::min(deadline, total))
}

impl Facts {
    #[inline(always)]
    fn of<B>(request: &Request<B>) -> Self {
        let extensions = request.extensions();
        let exception = if extensions.is_empty() { None } else { extensions.get::<RetryOverride>().copied() };
        let (safe, idempotent) = (is_safe(request.method()), is_idempotent(request.method()));
        Self { exception, protocol: Protocol::Http, idempotent, safe, counted: false }
    }

    /// One that stands for all that count the same.
    fn method(self) -> &'static Method {
        match (self.safe, self.idempotent) {
            (true, _) => &Method::GET,
            (false, true) => &Method::PUT,
            (false, false) => &Method::POST,
        }
    }

    /// Whether two attempts may run at a time.
    ///
    /// Idempotent is not enough: the one that comes late would undo what was written after the other.
    #[inline]
    fn hedges(self) -> bool {
        self.safe || self.exception.is_some_and(|exception| exception.idempotent)
    }
}

impl Begun {
    /// A request that is sent once, whatever becomes of it.
    #[cold]
    pub(crate) fn once<B>(request: &Request<B>) -> Self {
        Self { head: None, facts: Facts { exception: Some(RetryOverride::none()), ..Facts::of(request) } }
    }

    #[inline(always)]
    fn counted<B>(
        settings: &Settings,
        request: &Request<B>,
        mut facts: Facts,
        now: Instant,
        deadline: Option<Deadline>,
    ) -> Self {
        settings.budget.begin(now);
        facts.counted = true;
        facts.protocol = Protocol::of(request.method(), request.headers());
        if !settings.may_repeat(facts.exception) {
            return Self { head: None, facts };
        }
        let mut head = KeptHead::of(request, &settings.carried);
        if let Some(head) = &mut head {
            head.deadline = deadline;
            head.begun = settings.hedging.as_ref().filter(|_| facts.hedges()).map(|_| now);
        }
        Self { head, facts }
    }
}

impl<B> Round<B> {
    fn past(&self) -> Option<&Past> {
        self.kept.as_ref()?.head.past.as_deref()
    }

    /// The past, made now if there is none; where no attempt can follow, none does.
    fn past_mut(&mut self) -> Option<&mut Past> {
        self.kept.as_mut().map(|kept| &mut **kept.head.past.get_or_insert_default())
    }

    #[inline]
    fn take_past(&mut self) -> Option<Box<Past>> {
        self.kept.as_mut()?.head.past.take()
    }

    /// Whether a response is the answer, whatever else there might be.
    #[inline(always)]
    pub(crate) fn passes<R>(&self, response: &Response<R>) -> bool {
        Shown::of(response, self.facts.protocol).is_none()
    }

    /// The answer is a success.
    #[inline(always)]
    pub(crate) fn succeeded<R>(&mut self, settings: &Settings, response: &mut Response<R>) {
        if self.facts.counted {
            settings.budget.succeed();
        }
        if let Some(past) = self.take_past() {
            if past.attempts.count() > 1 {
                response.extensions_mut().insert(past.attempts);
            }
        }
    }

    /// Looks at a response that may be a failure; what it shows decides.
    pub(crate) fn response<R>(&mut self, settings: &Settings, response: &mut Response<R>) -> Next {
        let Some(shown) = Shown::of(response, self.facts.protocol) else {
            self.succeeded(settings, response);
            return Next::Answer;
        };
        // an inner layer has told it all, as who refuses does
        if self.past().is_none() && shown.stops() {
            return Next::Answer;
        }
        let pushback = Pushback::of(response.headers(), self.facts.protocol, settings.wall());
        let record = record_of(shown);
        match self.decided(settings, shown, pushback) {
            Ok(at) => {
                self.failed(record);
                Next::Again(at)
            }
            Err(stop) => {
                let told = matches!(shown, Shown::Failure(_) | Shown::Cause(_));
                if response.status().is_client_error() && !told {
                    self.succeeded(settings, response);
                } else if told || self.past().is_some() {
                    cause::attach(response, self.give_up(record, stop));
                }
                Next::Answer
            }
        }
    }

    /// Looks at a failure: when another attempt follows, or the failure of the call.
    pub(crate) fn error(&mut self, settings: &Settings, failure: Failure) -> Result<Option<Instant>, Failure> {
        match self.decided(settings, Shown::Failure(&failure), None) {
            Ok(at) => {
                self.failed(failure);
                Ok(at)
            }
            Err(stop) => Err(self.give_up(failure, stop)),
        }
    }

    /// The record of a response that shows a failure.
    pub(crate) fn record_of<R>(&self, response: &Response<R>) -> Option<Failure> {
        Shown::of(response, self.facts.protocol).map(record_of)
    }

    /// One of two attempts has failed while the other is under way.
    pub(crate) fn concurrent_failed(&mut self, record: Option<Failure>) {
        let Some(past) = self.past_mut() else { return };
        // it is counted as overtaken until here
        past.attempts.outrun = past.attempts.outrun.saturating_sub(1);
        if let Some(record) = record {
            self.failed(record);
        }
    }

    fn decided(
        &mut self,
        settings: &Settings,
        shown: Shown<'_>,
        pushback: Option<Pushback>,
    ) -> Result<Option<Instant>, RetryStop> {
        let now = Instant::now();
        let spare = match &self.kept {
            Some(kept) if kept.body.is_possible() => Spare::Kept,
            _ => Spare::Gone,
        };
        let head = self.kept.as_ref().map(|kept| &kept.head);
        let situation = Situation {
            keyed: head.is_some_and(|head| head.is_keyed()),
            conditional: !self.facts.safe && head.is_some_and(|head| head.is_conditional()),
            spare,
            attempt: u8::try_from(self.attempt()).unwrap_or(u8::MAX),
            met_stale: self.past().is_some_and(|past| past.attempts.met_stale()),
            remaining: head.and_then(|head| head.deadline).map(|deadline| deadline.remaining(now)),
            median: settings.median.as_ref().and_then(|median| median.0(now)),
            pushback,
            exception: self.facts.exception,
            ..Situation::new(shown, self.facts.method())
        };
        let mut token = None;
        let decision = decide(&settings.policy, &situation, settings.random(), || {
            token = settings.budget.withdraw(now);
            token.is_some()
        });
        match decision {
            Decision::Stop(stop) => Err(stop),
            Decision::Retry { after, .. } => {
                // a pause beyond the clock's end is none that anybody waits for
                let at = now.checked_add(after).ok_or(RetryStop::Pushback)?;
                if let Some(past) = self.past_mut() {
                    past.token = token;
                }
                Ok((!after.is_zero()).then_some(at))
            }
        }
    }

    fn failed(&mut self, record: Failure) {
        let resends = self.past().map_or(0, |past| past.attempts.count());
        // the failure has a line of its own, as nobody further out will see it
        tracing::info!(
            target: "tower_upstream",
            method = self.kept.as_ref().map(|kept| excerpt(kept.head.method().as_str())).as_deref(),
            error.type = record.cause().as_str(),
            class = record.cause().proxy_status_error(),
            phase = record.phase().as_str(),
            http.request.resend_count = resends,
            upstream = record.upstream().map(excerpt).as_deref(),
            "the request is sent again"
        );
        if let Some(past) = self.past_mut() {
            past.attempts.failed(record);
        }
    }

    /// The last record, with those before it and why there is no further attempt.
    fn give_up(&mut self, record: Failure, stop: RetryStop) -> Failure {
        match self.take_past() {
            // an inner layer has told it all
            None if record.retry_stop().is_some() => record,
            past => past.map(|past| past.attempts).unwrap_or_default().give_up(record, stop),
        }
    }

    /// Whether another attempt is possible, as far as it was known at the beginning.
    #[inline(always)]
    pub(crate) fn may_repeat(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether an attempt has asked for the request's body, as far as that is known here.
    pub(crate) fn body_was_read(&self) -> bool {
        // a later attempt finds it read by the first
        self.past().is_none() && self.kept.as_ref().is_some_and(|kept| kept.body.was_polled())
    }

    /// Which attempt is under way, from 1.
    fn attempt(&self) -> u32 {
        self.past().map_or(1, |past| past.attempts.count())
    }

    /// The kept body's right to be sent again.
    pub(crate) fn body(&self) -> Option<&ReplayHandle<B>> {
        self.kept.as_ref().map(|kept| &kept.body)
    }

    /// The request once more; its token is spent.
    pub(crate) fn again<T>(&mut self, settings: &Settings, body: T) -> Option<(Request<T>, u32)> {
        let mut request = self.kept.as_ref()?.head.request(body);
        let attempt = self.attempt();
        settings.count(&mut request, attempt);
        if let Some(deadline) = self.kept.as_ref().and_then(|kept| kept.head.deadline) {
            // what is left for this attempt, for the limits inside
            request.extensions_mut().insert(deadline);
        }
        if let Some(token) = self.past_mut().and_then(|past| past.token.take()) {
            token.sent();
        }
        Some((request, attempt - 1))
    }

    /// Until when the next attempt has to begin.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Some(self.kept.as_ref()?.head.deadline?.instant())
    }

    /// The failure to tell where another attempt was decided and is not made.
    pub(crate) fn ended(&mut self, stop: RetryStop) -> Failure {
        let attempts = self.take_past().unwrap_or_default().attempts;
        let nothing = || Failure::builder(BadGatewayCause::GatewayInternal).retry_stop(stop).build();
        attempts.end(stop).unwrap_or_else(nothing)
    }
}

/// The second attempt of two at a time.
impl<B> Round<B> {
    /// Whether a second attempt may be sent beside this one: it is the first, and may be repeated.
    #[inline]
    pub(crate) fn hedges(&self) -> bool {
        match &self.kept {
            Some(kept) => self.past().is_none() && kept.head.begun.is_some(),
            None => false,
        }
    }

    /// When the second attempt is due, if there is to be one.
    pub(crate) fn due(&self, settings: &Settings) -> Option<Instant> {
        let begun = self.kept.as_ref()?.head.begun?;
        // a delay beyond the clock's end never passes
        begun.checked_add(settings.hedging.as_ref()?.delay(begun)?)
    }

    /// The first attempt is late: the body of the second, if it is at hand and the budget pays for it.
    pub(crate) fn hedge(&mut self, settings: &Settings) -> Option<ReplayBody<B>> {
        let now = Instant::now();
        self.learn(settings, now);
        let kept = self.kept.as_mut()?;
        kept.head.begun = None;
        if kept.head.deadline.is_some_and(|deadline| deadline.has_elapsed(now)) {
            return None;
        }
        let body = kept.body.replay()?;
        let token = settings.budget.withdraw(now)?;
        self.past_mut()?.token = Some(token);
        Some(body)
    }

    /// The second attempt's request, now that its service takes it: as a rule one of the two will be in vain.
    pub(crate) fn beside<T>(&mut self, settings: &Settings, body: T) -> Option<(Request<T>, u32)> {
        let attempts = &mut self.past_mut()?.attempts;
        // where the first has failed meanwhile, none is
        attempts.outrun = u32::from(attempts.count() == 1);
        self.again(settings, body)
    }

    /// The first attempt was answered before its second was due.
    #[inline]
    pub(crate) fn in_time(&mut self, settings: &Settings) {
        if self.hedges() {
            self.learn(settings, Instant::now());
        }
    }

    /// What the first attempt took, as far as that is known.
    #[cold]
    fn learn(&self, settings: &Settings, now: Instant) {
        let begun = self.kept.as_ref().and_then(|kept| kept.head.begun);
        if let (Some(begun), Some(hedging)) = (begun, &settings.hedging) {
            hedging.answered(now, now.saturating_duration_since(begun));
        }
    }
}

impl<B> Drop for Round<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take() {
            kept.head.shelve();
        }
    }
}

/// What is known of a failure that may have no record yet.
fn record_of(shown: Shown<'_>) -> Failure {
    match shown {
        Shown::Failure(failure) => failure.clone(),
        Shown::Cause(cause) => Failure::new(cause),
        Shown::Answer(status) => {
            Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status)).build()
        }
        _ => Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Text("grpc-status")).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::{RetryBudget, RetryPolicy};

    fn begin(settings: &Settings, request: &Request<()>) -> Begun {
        begin_at(settings, request, Instant::now(), None)
    }

    fn copied(settings: &Settings, request: &Request<()>) -> bool {
        begin(settings, request).head.is_some()
    }

    fn get() -> Request<()> {
        Request::new(())
    }

    #[test]
    fn a_request_is_copied_only_where_another_attempt_is_possible() {
        assert!(copied(&Settings::default(), &get()));
        let once = Settings { policy: RetryPolicy::new().attempts(1), ..Settings::default() };
        assert!(!copied(&once, &get()));
        assert!(copied(&once, &Request::builder().extension(RetryOverride::up_to(2)).body(()).unwrap()));
        let never = Request::builder().extension(RetryOverride::none()).body(()).unwrap();
        assert!(!copied(&Settings::default(), &never));
        assert!(!copied(&Settings::default(), &Request::connect("a:1").body(()).unwrap()));
        let upgrade = Request::get("/").header("connection", "upgrade").header("upgrade", "websocket");
        assert!(!copied(&Settings::default(), &upgrade.body(()).unwrap()));
        let spent = Settings { budget: RetryBudget::new(), ..Settings::default() };
        while let Some(token) = spent.budget.withdraw(Instant::now()) {
            token.sent();
        }
        assert!(!copied(&spent, &get()));
    }

    #[test]
    fn a_second_attempt_whose_first_has_failed_before_it_was_sent_is_the_second() {
        let hedging = Some(super::super::Hedging::after(std::time::Duration::ZERO));
        let settings = Settings { hedging, ..Settings::default() };
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let (mut round, _) = begin(&settings, &get()).with(settings.body_cap, body);
        assert!(round.hedge(&settings).is_some());
        round.concurrent_failed(Some(Failure::new(BadGatewayCause::ResetBeforeResponse)));
        let (request, resends) = round.beside(&settings, ()).unwrap();
        assert_eq!((resends, request.headers()["x-envoy-attempt-count"].as_bytes()), (1, b"2".as_slice()));
        let mut answer = Response::new(());
        round.succeeded(&settings, &mut answer);
        let attempts = Attempts::of(&answer).unwrap();
        assert_eq!((attempts.count(), attempts.outrun()), (2, 0));
    }

    #[test]
    fn a_budget_hears_of_the_calls_that_it_could_pay_for() {
        let once = Settings { policy: RetryPolicy::new().attempts(1), ..Settings::default() };
        let answered = |settings: &Settings| {
            let (mut round, _) = begin(settings, &get()).with(settings.body_cap, http_body_util::Empty::new());
            round.succeeded(settings, &mut Response::new(()));
            settings.budget.snapshot(Instant::now()).deposits
        };
        assert_eq!((answered(&once), answered(&Settings::default())), (0, 1));
    }
}
