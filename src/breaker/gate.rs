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

use super::reopen::Pauses;
use super::word::{CLOSED, HELD, KIND, MASK, OPEN, PROBING, Permit, State, VACANT};
use crate::stats::sync::{AtomicU64, Mutex, MutexGuard, Ordering};

/// What those are told who come while a probe is out.
const WHILE_PROBING: u64 = 1_000_000_000;

/// A transition that others are to be told of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn<T> {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) at: u64,
    /// How long it stays so at least.
    pub(crate) rest: u64,
    pub(crate) why: Option<T>,
}

/// A call does not pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shut<T> {
    pub(crate) why: Option<T>,
    /// When it is worth asking again.
    pub(crate) rest: u64,
}

/// What has happened so far, and what is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) state: State,
    pub(crate) epoch: u64,
    pub(crate) since: u64,
    /// The end of the pause, while open.
    pub(crate) until: u64,
    pub(crate) opened: u64,
    pub(crate) probes: u64,
    pub(crate) given_up: u64,
    pub(crate) refused: u64,
}

/// The state of one circuit; `T` is what an opening leaves for those it refuses.
pub(crate) struct Gate<T> {
    word: AtomicU64,
    book: Mutex<Book<T>>,
}

struct Book<T> {
    pauses: Pauses,
    /// How long a probe keeps its place.
    limit: u64,
    /// The openings in a row, as far as they were not calmed down.
    rung: u32,
    since: u64,
    /// The end of the pause, or of the probe's limit.
    until: u64,
    /// The first epoch of the half-open state.
    half_open: u64,
    /// The probe that is out has a good head already.
    answered: bool,
    why: Option<T>,
    opened: u64,
    probes: u64,
    given_up: u64,
    refused: u64,
}

impl<T: Clone> Gate<T> {
    pub(crate) fn new(pauses: Pauses, limit: u64) -> Self {
        let book = Book {
            pauses,
            limit,
            rung: 0,
            since: 0,
            until: 0,
            half_open: 0,
            answered: false,
            why: None,
            opened: 0,
            probes: 0,
            given_up: 0,
            refused: 0,
        };
        Self { word: AtomicU64::new(1 << KIND), book: Mutex::new(book) }
    }

    /// A permit of the closed circuit.
    #[inline]
    pub(crate) fn pass(&self) -> Option<Permit> {
        let word = self.word();
        if word & MASK == CLOSED { Permit::of(word) } else { None }
    }

    /// Whether nothing has changed since this permit was given.
    #[inline]
    pub(crate) fn is_current(&self, permit: &Permit) -> bool {
        permit.is(self.word())
    }

    /// Lets a call pass that met a circuit that was not closed, or not; `forget` runs before it closes.
    pub(crate) fn knock(&self, now: u64, forget: impl FnOnce()) -> (Result<Permit, Shut<T>>, Option<Turn<T>>) {
        let mut book = self.lock();
        let word = self.word();
        let (word, turn) = match word & MASK {
            CLOSED => (word, None),
            // its head was good and its body is long: that will do
            PROBING if now >= book.until && book.answered => self.close(&mut book, now, forget),
            _ if rest(word, &book, now).is_none() => self.probe(&mut book, word, now),
            _ => (0, None),
        };
        if let Some(permit) = Permit::of(word) {
            return (Ok(permit), turn);
        }
        book.refused += 1;
        let rest = rest(self.word(), &book, now).unwrap_or(0);
        (Err(Shut { why: book.why.clone(), rest }), turn)
    }

    /// What a call would be told now, if it would not pass; nobody counts it.
    pub(crate) fn shut(&self, now: u64) -> Option<Shut<T>> {
        let book = self.lock();
        let word = self.word();
        rest(word, &book, now).map(|rest| Shut { why: book.why.clone(), rest })
    }

    /// Counts one that was told so.
    pub(crate) fn count_refused(&self) {
        self.lock().refused += 1;
    }

    /// Opens the circuit that gave this permit.
    pub(crate) fn trip(&self, permit: &Permit, now: u64, random: u64, why: impl FnOnce() -> T) -> Option<Turn<T>> {
        let mut book = self.lock();
        let word = self.word();
        if !permit.is(word) || word & MASK != CLOSED {
            return None;
        }
        book.rung = book.pauses.calmed(book.rung, now.saturating_sub(book.since));
        Some(self.open(&mut book, now, random, why()))
    }

    /// The head of a probe's answer is good; its body may be long.
    pub(crate) fn probe_answered(&self, permit: &Permit) {
        let mut book = self.lock();
        book.answered |= permit.is(self.word());
    }

    /// The answer of a probe is good.
    pub(crate) fn probe_succeeded(&self, permit: &Permit, now: u64, forget: impl FnOnce()) -> Option<Turn<T>> {
        let mut book = self.lock();
        let word = self.word();
        let half_open = matches!(word & MASK, VACANT | PROBING);
        if half_open && permit.epoch() >= book.half_open { self.close(&mut book, now, forget).1 } else { None }
    }

    /// The probe that is out has failed.
    pub(crate) fn probe_failed(
        &self,
        permit: &Permit,
        now: u64,
        random: u64,
        why: impl FnOnce() -> T,
    ) -> Option<Turn<T>> {
        let mut book = self.lock();
        (permit.is(self.word())).then(|| self.open(&mut book, now, random, why()))
    }

    /// The probe that is out proves nothing: its place is free.
    pub(crate) fn probe_left(&self, permit: &Permit) {
        let _book = self.lock();
        let word = self.word();
        if permit.is(word) {
            self.set(word, VACANT);
        }
    }

    /// Whoever looks from beside saw the upstream back, by a probe that began then; calls need not find out.
    pub(crate) fn recovered(&self, begun: u64, now: u64, forget: impl FnOnce()) -> Option<Turn<T>> {
        let mut book = self.lock();
        match self.word() & MASK {
            // an older one may have seen what was before the outage
            OPEN if begun < book.since => None,
            OPEN | VACANT | PROBING => self.close(&mut book, now, forget).1,
            _ => None,
        }
    }

    /// Whoever looks from beside saw it down: until then no call is spent as a probe.
    pub(crate) fn still_down(&self, until: u64) {
        let mut book = self.lock();
        if self.word() & MASK == OPEN {
            book.until = book.until.max(until);
        }
    }

    /// Holds it open until it is released.
    pub(crate) fn hold(&self, now: u64, why: T) -> Option<Turn<T>> {
        let mut book = self.lock();
        let word = self.word();
        if word & MASK == HELD {
            return None;
        }
        (book.since, book.until, book.why) = (now, u64::MAX, Some(why));
        let word = self.set(word, HELD);
        Some(turn(word, &book))
    }

    /// Ends the hold: the next call is a probe.
    pub(crate) fn release(&self, now: u64) -> Option<Turn<T>> {
        let mut book = self.lock();
        let word = self.word();
        if word & MASK != HELD {
            return None;
        }
        let word = self.set(word, VACANT);
        (book.since, book.until, book.half_open) = (now, now, word >> KIND);
        Some(turn(word, &book))
    }

    /// Closes it, whatever it was, and forgets how often it opened.
    pub(crate) fn reset(&self, now: u64, forget: impl FnOnce()) -> Option<Turn<T>> {
        let mut book = self.lock();
        book.rung = 0;
        self.close(&mut book, now, forget).1
    }

    /// What there is to tell, with what it opened for, if it is not closed.
    pub(crate) fn look(&self) -> (Look, Option<T>) {
        let book = self.lock();
        let word = self.word();
        let look = Look {
            state: State::of(word),
            epoch: word >> KIND,
            since: book.since,
            until: book.until,
            opened: book.opened,
            probes: book.probes,
            given_up: book.given_up,
            refused: book.refused,
        };
        (look, book.why.clone().filter(|_| look.state != State::Closed))
    }

    fn open(&self, book: &mut Book<T>, now: u64, random: u64, why: T) -> Turn<T> {
        let pause = book.pauses.pause(book.rung, random);
        book.rung = book.pauses.harder(book.rung);
        (book.since, book.until, book.why) = (now, now.saturating_add(pause), Some(why));
        book.opened += 1;
        let word = self.set(self.word(), OPEN);
        turn(word, book)
    }

    fn close(&self, book: &mut Book<T>, now: u64, forget: impl FnOnce()) -> (u64, Option<Turn<T>>) {
        forget();
        book.since = now;
        let word = self.set(self.word(), CLOSED);
        (word, Some(turn(word, book)))
    }

    /// Gives the place of the probe away; only the first of a pause is a transition.
    fn probe(&self, book: &mut Book<T>, before: u64, now: u64) -> (u64, Option<Turn<T>>) {
        let begins = before & MASK == OPEN;
        book.given_up += u64::from(before & MASK == PROBING);
        let word = self.set(before, PROBING);
        if begins {
            (book.since, book.half_open) = (now, word >> KIND);
        }
        book.until = now.saturating_add(book.limit);
        book.answered = false;
        book.probes += 1;
        (word, begins.then(|| turn(word, book)))
    }

    /// The word in its next epoch; only under the lock.
    fn set(&self, word: u64, kind: u64) -> u64 {
        let next = ((word >> KIND) + 1) << KIND | kind;
        self.word.store(next, Ordering::Release);
        next
    }

    #[inline]
    fn word(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Book<T>> {
        // a panic of whoever made a record leaves nothing half done
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// How long calls are still refused.
fn rest<T>(word: u64, book: &Book<T>, now: u64) -> Option<u64> {
    match word & MASK {
        OPEN if now < book.until => Some(book.until - now),
        PROBING if now < book.until => Some(WHILE_PROBING),
        HELD => Some(book.pauses.longest),
        _ => None,
    }
}

fn turn<T: Clone>(word: u64, book: &Book<T>) -> Turn<T> {
    let state = State::of(word);
    let why = if state == State::Closed { None } else { book.why.clone() };
    let rest = if state == State::Open { book.until - book.since } else { 0 };
    Turn { state, epoch: word >> KIND, at: book.since, rest, why }
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = State::of(self.word.load(Ordering::Relaxed));
        f.debug_struct("Gate").field("state", &state).finish_non_exhaustive()
    }
}
