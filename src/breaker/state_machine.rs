//! Who may pass: the state and its epoch in one word, and the rare things behind a lock.
//!
//! While the circuit is closed a call loads the word and takes it along as its permit; nothing else is touched. Every
//! change of the word is made under the lock and makes a new epoch, so that a permit is compared with the word as a
//! whole: an answer whose permit is not the word any more is one from before a transition, and changes nothing.
//!
//! What holds, whatever the interleaving (`tests/loom` searches it): at most one probe is out, and a permit that is over
//! neither opens nor closes.
//!
//! One answer counts although its place is another's: a probe that outlived its limit and then succeeds, with no
//! transition since it began. It was sent after the pause, so it proves what a probe is to prove; otherwise an upstream
//! that takes longer than the limit would never be let back in. Its failure proves nothing.
//!
//! Times are nanoseconds since an origin that the owner chose.

use std::fmt;

use super::open_backoff::OpenBackoff;
use super::packed_state::{AWAITING_PROBE, CLOSED, HELD, KIND_BITS, MASK, OPEN, PROBING, Permit, State};
use crate::stats::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// What those are told who come while a probe is out.
const RETRY_AFTER_WHILE_PROBING: u64 = 1_000_000_000;

/// A transition that others are to be told of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transition<T> {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) at: u64,
    /// How long it stays so at least.
    pub(crate) open_for: u64,
    pub(crate) cause: Option<T>,
}

/// A call does not pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejected<T> {
    pub(crate) cause: Option<T>,
    /// When it is worth asking again.
    pub(crate) remaining: u64,
}

/// What has happened so far, and what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateView {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) since: u64,
    /// The end of the pause, while open.
    pub(crate) until: u64,
    pub(crate) opened: u64,
    pub(crate) probes: u64,
    pub(crate) probes_timed_out: u64,
    pub(crate) refused: u64,
}

/// The state of one circuit; `T` is what an opening leaves for those it refuses.
pub(crate) struct CircuitMachine<T> {
    word: AtomicU64,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    backoff: OpenBackoff,
    /// How long a probe keeps its place.
    probe_timeout: u64,
    /// The openings in a row, as far as they were not calmed down.
    open_count: u32,
    since: u64,
    /// The end of the pause, or of the probe's limit.
    until: u64,
    /// The first epoch of the half-open state.
    half_open_epoch: u64,
    /// The probe that is out has a good head already.
    has_good_head: bool,
    cause: Option<T>,
    opened: u64,
    probes: u64,
    probes_timed_out: u64,
    refused: u64,
}

impl<T: Clone> CircuitMachine<T> {
    pub(crate) fn new(pauses: OpenBackoff, limit: u64) -> Self {
        let book = Inner {
            backoff: pauses,
            probe_timeout: limit,
            open_count: 0,
            since: 0,
            until: 0,
            half_open_epoch: 0,
            has_good_head: false,
            cause: None,
            opened: 0,
            probes: 0,
            probes_timed_out: 0,
            refused: 0,
        };
        Self { word: AtomicU64::new(1 << KIND_BITS), inner: Mutex::new(book) }
    }

    /// A permit of the closed circuit.
    #[inline]
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let word = self.word();
        if word & MASK == CLOSED { Permit::of(word) } else { None }
    }

    /// Whether nothing has changed since this permit was given.
    #[inline]
    pub(crate) fn is_current(&self, permit: &Permit) -> bool {
        permit.matches(self.word())
    }

    /// Lets a call pass that met a circuit that was not closed, or not; `forget` runs before it closes.
    pub(crate) fn try_acquire_slow(
        &self,
        now: u64,
        forget: impl FnOnce(),
    ) -> (Result<Permit, Rejected<T>>, Option<Transition<T>>) {
        let mut book = self.lock();
        let word = self.word();
        let (word, turn) = match word & MASK {
            CLOSED => (word, None),
            // its head was good and its body is long: that will do
            PROBING if now >= book.until && book.has_good_head => self.close_locked(&mut book, now, forget),
            _ if remaining(word, &book, now).is_none() => self.start_probe(&mut book, word, now),
            _ => (0, None),
        };
        if let Some(permit) = Permit::of(word) {
            return (Ok(permit), turn);
        }
        book.refused += 1;
        let rest = remaining(self.word(), &book, now).unwrap_or(0);
        (Err(Rejected { cause: book.cause.clone(), remaining: rest }), turn)
    }

    /// What a call would be told now, if it would not pass; nobody counts it.
    pub(crate) fn rejection(&self, now: u64) -> Option<Rejected<T>> {
        let book = self.lock();
        let word = self.word();
        remaining(word, &book, now).map(|rest| Rejected { cause: book.cause.clone(), remaining: rest })
    }

    /// Counts one that was told so.
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    /// Opens the circuit that gave this permit.
    pub(crate) fn open(
        &self,
        permit: &Permit,
        now: u64,
        random: u64,
        why: impl FnOnce() -> T,
    ) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        if !permit.matches(word) || word & MASK != CLOSED {
            return None;
        }
        book.open_count = book.backoff.decay(book.open_count, now.saturating_sub(book.since));
        Some(self.open_locked(&mut book, now, random, why()))
    }

    /// The head of a probe's answer is good; its body may be long.
    pub(crate) fn on_probe_head(&self, permit: &Permit) {
        let mut book = self.lock();
        book.has_good_head |= permit.matches(self.word());
    }

    /// The answer of a probe is good.
    pub(crate) fn on_probe_success(&self, permit: &Permit, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        let half_open = matches!(word & MASK, AWAITING_PROBE | PROBING);
        if half_open && permit.epoch() >= book.half_open_epoch {
            self.close_locked(&mut book, now, forget).1
        } else {
            None
        }
    }

    /// The probe that is out has failed.
    pub(crate) fn on_probe_failure(
        &self,
        permit: &Permit,
        now: u64,
        random: u64,
        why: impl FnOnce() -> T,
    ) -> Option<Transition<T>> {
        let mut book = self.lock();
        (permit.matches(self.word())).then(|| self.open_locked(&mut book, now, random, why()))
    }

    /// The probe that is out proves nothing: its place is free.
    pub(crate) fn on_probe_cancelled(&self, permit: &Permit) {
        let _book = self.lock();
        let word = self.word();
        if permit.matches(word) {
            self.set_kind(word, AWAITING_PROBE);
        }
    }

    /// Whoever looks from beside saw the upstream back, by a probe that began then; calls need not find out.
    pub(crate) fn record_recovery(&self, begun: u64, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        match self.word() & MASK {
            // an older one may have seen what was before the outage
            OPEN if begun < book.since => None,
            OPEN | AWAITING_PROBE | PROBING => self.close_locked(&mut book, now, forget).1,
            _ => None,
        }
    }

    /// Whoever looks from beside saw it down: until then no call is spent as a probe.
    pub(crate) fn record_still_down(&self, until: u64) {
        let mut book = self.lock();
        if self.word() & MASK == OPEN {
            book.until = book.until.max(until);
        }
    }

    /// Holds it open until it is released.
    pub(crate) fn hold(&self, now: u64, why: T) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        if word & MASK == HELD {
            return None;
        }
        (book.since, book.until, book.cause) = (now, u64::MAX, Some(why));
        let word = self.set_kind(word, HELD);
        Some(transition(word, &book))
    }

    /// Ends the hold: the next call is a probe.
    pub(crate) fn release(&self, now: u64) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        if word & MASK != HELD {
            return None;
        }
        let word = self.set_kind(word, AWAITING_PROBE);
        (book.since, book.until, book.half_open_epoch) = (now, now, word >> KIND_BITS);
        Some(transition(word, &book))
    }

    /// Closes it, whatever it was, and forgets how often it opened.
    pub(crate) fn reset(&self, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        book.open_count = 0;
        self.close_locked(&mut book, now, forget).1
    }

    /// What there is to tell, with what it opened for, if it is not closed.
    pub(crate) fn view(&self) -> (StateView, Option<T>) {
        let book = self.lock();
        let word = self.word();
        let look = StateView {
            state: State::of(word),
            epoch: word >> KIND_BITS,
            since: book.since,
            until: book.until,
            opened: book.opened,
            probes: book.probes,
            probes_timed_out: book.probes_timed_out,
            refused: book.refused,
        };
        (look, book.cause.clone().filter(|_| look.state != State::Closed))
    }

    fn open_locked(&self, book: &mut Inner<T>, now: u64, random: u64, why: T) -> Transition<T> {
        let pause = book.backoff.open_duration(book.open_count, random);
        book.open_count = book.backoff.escalate(book.open_count);
        (book.since, book.until, book.cause) = (now, now.saturating_add(pause), Some(why));
        book.opened += 1;
        let word = self.set_kind(self.word(), OPEN);
        transition(word, book)
    }

    fn close_locked(&self, book: &mut Inner<T>, now: u64, forget: impl FnOnce()) -> (u64, Option<Transition<T>>) {
        forget();
        book.since = now;
        let word = self.set_kind(self.word(), CLOSED);
        (word, Some(transition(word, book)))
    }

    /// Gives the place of the probe away; only the first of a pause is a transition.
    fn start_probe(&self, book: &mut Inner<T>, before: u64, now: u64) -> (u64, Option<Transition<T>>) {
        let begins = before & MASK == OPEN;
        book.probes_timed_out += u64::from(before & MASK == PROBING);
        let word = self.set_kind(before, PROBING);
        if begins {
            (book.since, book.half_open_epoch) = (now, word >> KIND_BITS);
        }
        book.until = now.saturating_add(book.probe_timeout);
        book.has_good_head = false;
        book.probes += 1;
        (word, begins.then(|| transition(word, book)))
    }

    /// The word in its next epoch; only under the lock.
    fn set_kind(&self, word: u64, kind: u64) -> u64 {
        let next = ((word >> KIND_BITS) + 1) << KIND_BITS | kind;
        self.word.store(next, Ordering::Release);
        next
    }

    #[inline]
    fn word(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // a panic of whoever made a record leaves nothing half done
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How long calls are still refused.
fn remaining<T>(word: u64, book: &Inner<T>, now: u64) -> Option<u64> {
    match word & MASK {
        OPEN if now < book.until => Some(book.until - now),
        PROBING if now < book.until => Some(RETRY_AFTER_WHILE_PROBING),
        HELD => Some(book.backoff.max),
        _ => None,
    }
}

fn transition<T: Clone>(word: u64, book: &Inner<T>) -> Transition<T> {
    let state = State::of(word);
    let why = if state == State::Closed { None } else { book.cause.clone() };
    let rest = if state == State::Open { book.until - book.since } else { 0 };
    Transition { state, epoch: word >> KIND_BITS, at: book.since, open_for: rest, cause: why }
}

impl<T> fmt::Debug for CircuitMachine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = State::of(self.word.load(Ordering::Relaxed));
        f.debug_struct("CircuitMachine").field("state", &state).finish_non_exhaustive()
    }
}
