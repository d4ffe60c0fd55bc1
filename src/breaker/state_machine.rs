//! The circuit's state machine: state and epoch in one atomic word, everything else behind a lock.
//!
//! While the circuit is closed, a call loads the word and keeps it as its permit; nothing else is touched. Every change
//! of the word happens under the lock and starts a new epoch. A permit is compared with the whole word, so a result
//! whose permit differs from the word belongs to an earlier epoch and changes nothing.
//!
//! Invariants under any interleaving (`tests/loom` checks them): at most one probe is in flight, and a permit of an
//! earlier epoch neither opens nor closes the circuit.
//!
//! A probe that outlives its timeout without a response head counts as failed: the next call becomes a probe only after the
//! next, longer open duration. So an upstream that hangs is called as rarely as one that is down.
//!
//! There is one exception to the epochs: a probe that outlived its timeout and then succeeds closes the circuit unless a
//! later probe failed. It was sent after the open duration, so it proves what a probe has to prove; without this an upstream
//! slower than the timeout would never be used again. Its failure was counted before, and is ignored.
//!
//! Times are nanoseconds since an origin that the owner chooses.
use std::fmt;

use super::open_backoff::OpenBackoff;
use super::packed_state::{AWAITING_PROBE, CLOSED, HELD, KIND_BITS, MASK, OPEN, PROBING, Permit, State};
use crate::stats::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// `Retry-After` of calls refused while a probe is in flight, in nanoseconds.
const RETRY_AFTER_WHILE_PROBING: u64 = 1_000_000_000;

/// A transition to publish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Transition<T> {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) at: u64,
    /// How long the circuit stays open at least; 0 for other states.
    pub(crate) open_for: u64,
    pub(crate) cause: Option<T>,
}

/// A call was not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejected<T> {
    pub(crate) cause: Option<T>,
    /// Nanoseconds until a retry may be admitted.
    pub(crate) remaining: u64,
}

/// The current state and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateView {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) since: u64,
    /// When the open state ends, while open.
    pub(crate) until: u64,
    pub(crate) opened: u64,
    pub(crate) probes: u64,
    pub(crate) probes_timed_out: u64,
    pub(crate) refused: u64,
}

/// The state machine of one circuit; `T` is the record of an opening, given to the calls it refuses.
pub(crate) struct CircuitMachine<T> {
    word: AtomicU64,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    backoff: OpenBackoff,
    /// How long a probe blocks further probes.
    probe_timeout: u64,
    /// Consecutive openings, less those that decayed.
    open_count: u32,
    since: u64,
    /// Time of the failure that last opened the circuit; a probe that timed out does not change it.
    failed_at: u64,
    /// When the open state ends, or when the probe times out.
    until: u64,
    /// When the next call becomes a probe, if the probe in flight times out without a response head.
    next_probe: u64,
    /// Probes from this epoch on may close the circuit: no probe has failed since.
    first_valid_epoch: u64,
    /// The probe in flight has received a response head that is not a failure.
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
            failed_at: 0,
            until: 0,
            next_probe: 0,
            first_valid_epoch: 0,
            has_good_head: false,
            cause: None,
            opened: 0,
            probes: 0,
            probes_timed_out: 0,
            refused: 0,
        };
        Self { word: AtomicU64::new(1 << KIND_BITS), inner: Mutex::new(book) }
    }

    /// Replaces the open durations and the time limit of a probe, from the next opening and the next probe on.
    pub(crate) fn set_timing(&self, backoff: OpenBackoff, probe_timeout: u64) {
        let mut book = self.lock();
        (book.backoff, book.probe_timeout) = (backoff, probe_timeout);
    }

    /// Returns a permit if the circuit is closed.
    #[inline]
    pub(crate) fn try_acquire(&self) -> Option<Permit> {
        let word = self.word();
        if word & MASK == CLOSED { Permit::of(word) } else { None }
    }

    /// Whether the state is unchanged since this permit was given.
    #[inline]
    pub(crate) fn is_current(&self, permit: &Permit) -> bool {
        permit.matches(self.word())
    }

    /// Admits or refuses a call while the circuit is not closed; `forget` runs before it closes.
    ///
    /// If it opens and half-opens at once, only the latter is published.
    pub(crate) fn try_acquire_slow(
        &self,
        now: u64,
        random: impl FnOnce() -> u64,
        forget: impl FnOnce(),
    ) -> (Result<Permit, Rejected<T>>, Option<Transition<T>>) {
        let mut book = self.lock();
        let reopened = self.time_out_probe(&mut book, now);
        let word = self.word();
        let (word, turn) = match word & MASK {
            CLOSED => (word, None),
            // a good response head suffices: the body may be long
            PROBING if now >= book.until => self.close_locked(&mut book, now, forget),
            _ if remaining(word, &book, now).is_none() => self.start_probe(&mut book, word, now, random()),
            _ => (0, None),
        };
        let turn = turn.or(reopened);
        if let Some(permit) = Permit::of(word) {
            return (Ok(permit), turn);
        }
        book.refused += 1;
        let rest = remaining(self.word(), &book, now).unwrap_or(0);
        (Err(Rejected { cause: book.cause.clone(), remaining: rest }), turn)
    }

    /// The rejection a call would get now, without counting it; `None` if it would be admitted.
    pub(crate) fn rejection(&self, now: u64) -> (Option<Rejected<T>>, Option<Transition<T>>) {
        let mut book = self.lock();
        let reopened = self.time_out_probe(&mut book, now);
        let rest = remaining(self.word(), &book, now);
        (rest.map(|rest| Rejected { cause: book.cause.clone(), remaining: rest }), reopened)
    }

    /// Counts a call that was refused with the result of [`rejection`](Self::rejection).
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    /// Counts a probe that was no call.
    pub(crate) fn count_probe(&self) {
        self.lock().probes += 1;
    }

    /// Opens the circuit, if it is still in the epoch of this permit.
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

    /// A probe's response head is not a failure; its body may be long.
    pub(crate) fn on_probe_head(&self, permit: &Permit) {
        let mut book = self.lock();
        book.has_good_head |= permit.matches(self.word());
    }

    /// A probe succeeded: closes the circuit.
    pub(crate) fn on_probe_success(&self, permit: &Permit, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        // open: the probe had timed out
        let not_closed = matches!(word & MASK, OPEN | AWAITING_PROBE | PROBING);
        if not_closed && permit.epoch() >= book.first_valid_epoch {
            self.close_locked(&mut book, now, forget).1
        } else {
            None
        }
    }

    /// The probe in flight failed: opens the circuit again.
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

    /// The probe in flight ended without a result: the next call becomes a probe.
    pub(crate) fn on_probe_cancelled(&self, permit: &Permit) {
        let _book = self.lock();
        let word = self.word();
        if permit.matches(word) {
            self.set_kind(word, AWAITING_PROBE);
        }
    }

    /// An active probe that started at `begun` succeeded: closes the circuit without using a call as a probe.
    pub(crate) fn record_recovery(&self, begun: u64, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        match self.word() & MASK {
            // a probe that started earlier may have seen the state before the outage
            OPEN if begun < book.failed_at => None,
            OPEN | AWAITING_PROBE | PROBING => self.close_locked(&mut book, now, forget).1,
            _ => None,
        }
    }

    /// An active probe failed: no call is used as a probe before `until`.
    pub(crate) fn record_still_down(&self, until: u64) {
        let mut book = self.lock();
        if self.word() & MASK == OPEN {
            book.until = book.until.max(until);
        }
    }

    /// Holds the circuit open until it is released.
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

    /// Ends the hold: the next call becomes a probe.
    pub(crate) fn release(&self, now: u64) -> Option<Transition<T>> {
        let mut book = self.lock();
        let word = self.word();
        if word & MASK != HELD {
            return None;
        }
        let word = self.set_kind(word, AWAITING_PROBE);
        (book.since, book.until, book.first_valid_epoch) = (now, now, word >> KIND_BITS);
        Some(transition(word, &book))
    }

    /// Closes the circuit from any state and resets the backoff.
    pub(crate) fn reset(&self, now: u64, forget: impl FnOnce()) -> Option<Transition<T>> {
        let mut book = self.lock();
        book.open_count = 0;
        self.close_locked(&mut book, now, forget).1
    }

    /// The current state and counters, and the record of the opening unless closed.
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
        (book.since, book.failed_at) = (now, now);
        (book.until, book.cause) = (now.saturating_add(pause), Some(why));
        book.opened += 1;
        let word = self.set_kind(self.word(), OPEN);
        book.first_valid_epoch = word >> KIND_BITS;
        transition(word, book)
    }

    /// Opens the circuit again if the probe in flight has timed out without a response head.
    fn time_out_probe(&self, book: &mut Inner<T>, now: u64) -> Option<Transition<T>> {
        if self.word() & MASK != PROBING || now < book.until || book.has_good_head {
            return None;
        }
        book.open_count = book.backoff.escalate(book.open_count);
        (book.since, book.until) = (book.until, book.next_probe);
        book.opened += 1;
        book.probes_timed_out += 1;
        Some(transition(self.set_kind(self.word(), OPEN), book))
    }

    fn close_locked(&self, book: &mut Inner<T>, now: u64, forget: impl FnOnce()) -> (u64, Option<Transition<T>>) {
        forget();
        book.since = now;
        let word = self.set_kind(self.word(), CLOSED);
        (word, Some(transition(word, book)))
    }

    /// Starts a probe; only the first one after an open state is a transition.
    fn start_probe(&self, book: &mut Inner<T>, before: u64, now: u64, random: u64) -> (u64, Option<Transition<T>>) {
        let begins = before & MASK == OPEN;
        let word = self.set_kind(before, PROBING);
        if begins {
            book.since = now;
        }
        book.until = now.saturating_add(book.probe_timeout);
        book.next_probe = book.until.saturating_add(book.backoff.open_duration(book.open_count, random));
        book.has_good_head = false;
        book.probes += 1;
        (word, begins.then(|| transition(word, book)))
    }

    /// Stores a state with the next epoch; only called under the lock.
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
        // a panic while the record is made leaves no partial change
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How long calls are still refused, in nanoseconds; `None` if the next one is admitted.
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
