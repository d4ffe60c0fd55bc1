//! What a layer adds to a call: it admits, and it settles.

use std::cell::OnceCell;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::Call;
use crate::cause::{BadGatewayCause, Failure};

/// One layer's say in a call.
///
/// A call that was admitted is either settled, once, when its response body has ended or failed, or it is
/// abandoned: then it frees what it held and proves nothing. A pair of parts is a part, `()` is none.
pub trait Part: Send + Sync + 'static {
    /// What an admitted call holds until it is over.
    type Ticket: Send + 'static;

    /// Lets a call pass.
    ///
    /// # Errors
    /// A [`Refusal`], if it is to be answered here.
    fn admit(&self, call: &Call) -> Result<Self::Ticket, Refusal>;

    /// The response head has come, its body may still be coming.
    fn answered(&self, ticket: &mut Self::Ticket, call: &Call, outcome: &Outcome) {
        let _ = (ticket, call, outcome);
    }

    /// The exchange is over.
    fn settle(&self, ticket: Self::Ticket, call: &Call, outcome: &Outcome);

    /// Nobody waits for the exchange any more.
    fn abandon(&self, ticket: Self::Ticket, call: &Call, why: Abandon);
}

impl Part for () {
    type Ticket = ();

    fn admit(&self, _: &Call) -> Result<(), Refusal> {
        Ok(())
    }

    fn settle(&self, (): (), _: &Call, _: &Outcome) {}

    fn abandon(&self, (): (), _: &Call, _: Abandon) {}
}

impl<A: Part, B: Part> Part for (A, B) {
    type Ticket = (A::Ticket, B::Ticket);

    fn admit(&self, call: &Call) -> Result<Self::Ticket, Refusal> {
        let outer = self.0.admit(call)?;
        match self.1.admit(call) {
            Ok(inner) => Ok((outer, inner)),
            Err(refusal) => {
                self.0.abandon(outer, call, Abandon::Refused(refusal.failure.cause()));
                Err(refusal)
            }
        }
    }

    fn answered(&self, ticket: &mut Self::Ticket, call: &Call, outcome: &Outcome) {
        self.1.answered(&mut ticket.1, call, outcome);
        self.0.answered(&mut ticket.0, call, outcome);
    }

    fn settle(&self, ticket: Self::Ticket, call: &Call, outcome: &Outcome) {
        self.1.settle(ticket.1, call, outcome);
        self.0.settle(ticket.0, call, outcome);
    }

    fn abandon(&self, ticket: Self::Ticket, call: &Call, why: Abandon) {
        self.1.abandon(ticket.1, call, why);
        self.0.abandon(ticket.0, call, why);
    }
}

/// A call that is answered here instead of being made.
#[derive(Clone, Debug)]
pub struct Refusal {
    failure: Failure,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// Answers with this failure; it may be shared by all calls that are refused for one reason.
    pub fn new(failure: Failure) -> Self {
        Self { failure, retry_after: None }
    }

    /// Says when it is worth asking again (RFC 9110 section 10.2.3); whole seconds, rounded up.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(super) fn into_parts(self) -> (Failure, Option<Duration>) {
        (self.failure, self.retry_after)
    }

    /// What is answered.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }
}

/// Why nobody waits for a call any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abandon {
    /// Whoever called has left: a client that hung up, as a rule.
    Left,
    /// A time limit, this layer's or one around it, passed for this cause.
    TimedOut(BadGatewayCause),
    /// Another part refused the call.
    Refused(BadGatewayCause),
    /// Another attempt at the same request was answered first.
    Outrun,
}

/// How an exchange ended, or what its head says.
#[derive(Debug)]
pub struct Outcome {
    status: Option<StatusCode>,
    cause: Option<BadGatewayCause>,
    now: OnceCell<Instant>,
}

impl Outcome {
    /// An answer, with the cause that stands in its extensions.
    pub(crate) fn answer(status: StatusCode, cause: Option<BadGatewayCause>) -> Self {
        Self { status: Some(status), cause, now: OnceCell::new() }
    }

    /// The inner service's own error, which no layer has named yet.
    pub(super) fn error() -> Self {
        Self { status: None, cause: None, now: OnceCell::new() }
    }

    pub(super) fn at(self, now: Instant) -> Self {
        Self { now: OnceCell::from(now), ..self }
    }

    /// The answer's status; `None` where there is none but an error.
    pub fn status(&self) -> Option<StatusCode> {
        self.status
    }

    /// What failed, if that has a name.
    pub fn cause(&self) -> Option<BadGatewayCause> {
        self.cause
    }

    /// The time; the clock is read when somebody asks, and once.
    pub fn now(&self) -> Instant {
        *self.now.get_or_init(Instant::now)
    }
}
