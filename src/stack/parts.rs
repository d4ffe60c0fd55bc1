//! What counts in a stack besides the clock: the recorder and the limit around all attempts, the circuit around each.

use std::sync::Arc;

use super::recorder::Recorder;
use super::repeat::Care;
use crate::cause::Failure;
use crate::engine::{Abandon, Call, Outcome, Part, Refusal, Tunnel};

/// The parts of one stack, those around the call and those around an attempt.
#[derive(Clone, Debug)]
pub struct Parts<L, C> {
    pub(super) recorder: Arc<Recorder>,
    pub(super) limiter: L,
    pub(super) circuit: C,
}

/// What a call holds of its stack's parts.
#[derive(Debug)]
pub struct Ticket<L, C> {
    limiter: Option<L>,
    circuit: Option<C>,
}

impl<L: Part, C: Part> Parts<L, C> {
    /// Lets a call in as far as the parts around it say.
    #[inline(always)]
    pub(super) fn enter(&self, call: &Call, care: Care) -> Result<Ticket<L::Ticket, C::Ticket>, Refusal> {
        let limiter = match care {
            Care::Full => Some(self.limiter.admit(call)?),
            Care::Bare | Care::Refusal => None,
        };
        self.recorder.begin();
        Ok(Ticket { limiter, circuit: None })
    }

    /// A call was refused before it was let in.
    #[cold]
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.recorder.begin();
        self.recorder.end(Some(&Outcome::failure(refusal.failure())));
    }

    /// Lets an attempt of it pass.
    #[inline(always)]
    pub(super) fn attempt(&self, ticket: &mut Ticket<L::Ticket, C::Ticket>, call: &Call) -> Result<(), Refusal> {
        ticket.circuit = Some(self.circuit.admit(call)?);
        Ok(())
    }

    /// An attempt is over, the call may go on.
    pub(super) fn attempted(&self, ticket: &mut Ticket<L::Ticket, C::Ticket>, call: &Call, outcome: &Outcome) {
        if let Some(circuit) = ticket.circuit.take() {
            self.circuit.settle(circuit, call, outcome);
        }
    }

    /// Nobody waits for an attempt any more, the call may go on.
    pub(super) fn given_up(&self, ticket: &mut Ticket<L::Ticket, C::Ticket>, call: &Call) {
        if let Some(circuit) = ticket.circuit.take() {
            self.circuit.abandon(circuit, call, Abandon::Left);
        }
    }

    /// The call's head goes to its caller.
    #[inline(always)]
    pub(super) fn head(&self, ticket: &mut Ticket<L::Ticket, C::Ticket>, call: &Call, outcome: &Outcome) {
        if let Some(limiter) = &mut ticket.limiter {
            self.limiter.answered(limiter, call, outcome);
        }
        self.recorder.head(call, outcome);
    }
}

/// As seen by an attempt: its head and its tunnel are told to all, its end settles all.
impl<L: Part, C: Part> Part for Parts<L, C> {
    type Ticket = Ticket<L::Ticket, C::Ticket>;

    fn admit(&self, call: &Call) -> Result<Self::Ticket, Refusal> {
        let mut ticket = self.enter(call, Care::Full).inspect_err(|refusal| self.refused(refusal))?;
        match self.attempt(&mut ticket, call) {
            Ok(()) => Ok(ticket),
            Err(refusal) => {
                self.settle(ticket, call, &refused(refusal.failure()));
                Err(refusal)
            }
        }
    }

    #[inline(always)]
    fn answered(&self, ticket: &mut Self::Ticket, call: &Call, outcome: &Outcome) {
        if let Some(circuit) = &mut ticket.circuit {
            self.circuit.answered(circuit, call, outcome);
        }
    }

    fn tunnelled(&self, ticket: &mut Self::Ticket, tunnel: &Tunnel) {
        if let Some(circuit) = &mut ticket.circuit {
            self.circuit.tunnelled(circuit, tunnel);
        }
        if let Some(limiter) = &mut ticket.limiter {
            self.limiter.tunnelled(limiter, tunnel);
        }
    }

    #[inline(always)]
    fn settle(&self, ticket: Self::Ticket, call: &Call, outcome: &Outcome) {
        if let Some(circuit) = ticket.circuit {
            self.circuit.settle(circuit, call, outcome);
        }
        if let Some(limiter) = ticket.limiter {
            self.limiter.settle(limiter, call, outcome);
        }
        self.recorder.end(Some(outcome));
    }

    fn abandon(&self, ticket: Self::Ticket, call: &Call, why: Abandon) {
        if let Some(circuit) = ticket.circuit {
            self.circuit.abandon(circuit, call, why);
        }
        if let Some(limiter) = ticket.limiter {
            self.limiter.abandon(limiter, call, why);
        }
        self.recorder.end(None);
    }
}

/// How a call ended that one of its parts refused.
pub(super) fn refused(failure: &Failure) -> Outcome {
    Outcome::failure(failure)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;
    use crate::cause::BadGatewayCause;

    /// Writes down what it is told; lets nothing pass if it is to refuse.
    #[derive(Clone)]
    struct Witness(&'static str, Arc<Mutex<Vec<String>>>, Option<BadGatewayCause>);

    impl Witness {
        fn say(&self, what: &str) {
            self.1.lock().unwrap().push(format!("{} {what}", self.0));
        }
    }

    impl Part for Witness {
        type Ticket = ();

        fn admit(&self, _: &Call) -> Result<(), Refusal> {
            self.2.map_or(Ok(()), |cause| Err(Refusal::new(Failure::new(cause))))
        }

        fn settle(&self, (): (), _: &Call, outcome: &Outcome) {
            self.say(&format!("settled {:?}", outcome.cause()));
        }

        fn abandon(&self, (): (), _: &Call, why: Abandon) {
            self.say(&format!("abandoned {why:?}"));
        }
    }

    fn parts(limiter: Option<BadGatewayCause>, circuit: Option<BadGatewayCause>) -> Parts<Witness, Witness> {
        let log = Arc::<Mutex<Vec<String>>>::default();
        let limiter = Witness("limiter", log.clone(), limiter);
        let circuit = Witness("circuit", log, circuit);
        Parts { recorder: Arc::new(Recorder::new()), limiter, circuit }
    }

    fn told(parts: &Parts<Witness, Witness>) -> Vec<String> {
        std::mem::take(&mut parts.limiter.1.lock().unwrap())
    }

    #[test]
    fn the_circuit_hears_of_each_attempt_and_the_limiter_of_the_call() {
        let (parts, call) = (parts(None, None), Call::new(Instant::now()));
        let mut ticket = parts.enter(&call, Care::Full).unwrap();
        parts.attempt(&mut ticket, &call).unwrap();
        parts.attempted(&mut ticket, &call, &Outcome::failure(&Failure::new(BadGatewayCause::NoRoute)));
        assert_eq!(told(&parts), ["circuit settled Some(no_route)"]);
        parts.attempted(&mut ticket, &call, &Outcome::failure(&Failure::new(BadGatewayCause::NoRoute)));
        assert_eq!(told(&parts), [""; 0], "once is enough");
        parts.settle(ticket, &call, &Outcome::answer(http::StatusCode::OK, None));
        assert_eq!(told(&parts), ["limiter settled None"]);
        assert_eq!(parts.recorder.in_flight(), 0);
    }

    #[test]
    fn who_is_refused_by_either_holds_nothing_of_the_other() {
        let call = Call::new(Instant::now());
        let full = parts(Some(BadGatewayCause::ConnectionLimit), None);
        assert!(full.admit(&call).is_err());
        assert_eq!((told(&full).len(), full.recorder.calls(), full.recorder.in_flight()), (0, 1, 0));
        let open = parts(None, Some(BadGatewayCause::CircuitOpen));
        assert!(open.admit(&call).is_err());
        assert_eq!(told(&open), ["limiter settled Some(circuit_open)"]);
        assert_eq!((open.recorder.calls(), open.recorder.in_flight()), (1, 0));
    }

    #[test]
    fn where_all_stand_aside_the_call_is_counted_and_nobody_asked() {
        let never = parts(Some(BadGatewayCause::ConnectionLimit), Some(BadGatewayCause::CircuitOpen));
        let call = Call::new(Instant::now());
        let ticket = never.enter(&call, Care::Bare).unwrap();
        assert_eq!(never.recorder.in_flight(), 1);
        never.abandon(ticket, &call, Abandon::Left);
        assert_eq!((told(&never).len(), never.recorder.in_flight()), (0, 0));
    }
}
