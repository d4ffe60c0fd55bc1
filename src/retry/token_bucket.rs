//! Tokens in one word, fed by striped counters that only grow.
//!
//! A success adds one to a counter of its own stripe and touches nothing that others write. What the counters have
//! earned since they were last looked at is settled by whoever needs it: the word holds the tokens and, beside them, the
//! low half of all that was ever earned when they were counted. So settling and taking are one compare-exchange, and
//! between them there is nothing that another thread could come into.
//!
//! What holds, whatever the interleaving (`tests/loom` searches it):
//!
//! - Everything earned is settled once: none is lost but what is above the cap, none counts twice.
//! - A withdrawal sees everything that was earned before it, and is refused only if that is less than a token.
//! - Tokens are never above the cap that was handed in last, and never below zero.
//!
//! The half wraps around: that is no harm unless two million tokens were earned between two looks.

use crate::stats::sync::{AtomicU64, Ordering};

/// One token, in thousandths: the unit of everything here.
pub(crate) const TOKEN: u32 = 1000;

/// What is granted by the clock is counted so much finer, so that nothing is rounded away.
const FINE: u64 = 1_000_000;

const TOKENS: u32 = 32;

/// The counters of the threads that share a stripe, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))] // two lines: they are fetched in pairs
struct Stripe {
    begun: AtomicU64,
    succeeded: AtomicU64,
    withdrawn: AtomicU64,
    refunded: AtomicU64,
    refused: AtomicU64,
}

impl Stripe {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self { begun: zero(), succeeded: zero(), withdrawn: zero(), refunded: zero(), refused: zero() }
    }
}

/// How often each thing has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenCounts {
    pub(crate) succeeded: u64,
    pub(crate) withdrawn: u64,
    pub(crate) refunded: u64,
    pub(crate) refused: u64,
}

/// The tokens and what feeds them.
#[derive(Debug)]
pub(crate) struct StripedTokenBucket {
    /// The tokens above, below what had been earned when they were settled; both in thousandths.
    word: AtomicU64,
    /// By the clock, in billionths of a token.
    granted: AtomicU64,
    /// Thousandths of a token for a success.
    ratio: u64,
    stripes: Box<[Stripe]>,
    /// One less than the number of stripes, a power of two.
    mask: usize,
}

impl StripedTokenBucket {
    /// A ledger with so many thousandths of a token; the stripes are rounded up to a power of two.
    pub(crate) fn new(ratio: u16, tokens: u32, stripes: usize) -> Self {
        let stripes = stripes.next_power_of_two();
        Self {
            word: AtomicU64::new(u64::from(tokens) << TOKENS),
            granted: AtomicU64::new(0),
            ratio: ratio.into(),
            stripes: (0..stripes).map(|_| Stripe::new()).collect(),
            mask: stripes - 1,
        }
    }

    /// Counts a call; `stripe` may be any number, the same for the same thread.
    #[inline]
    pub(crate) fn record_call(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.begun);
    }

    /// How many calls this stripe has counted.
    #[inline]
    pub(crate) fn calls_of_stripe(&self, stripe: usize) -> u64 {
        self.stripes.get(stripe & self.mask).map_or(0, |stripe| stripe.begun.load(Ordering::Relaxed))
    }

    /// Counts a success, which earns its ratio.
    #[inline]
    pub(crate) fn record_success(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.succeeded);
    }

    #[inline]
    fn count(&self, stripe: usize, which: impl Fn(&Stripe) -> &AtomicU64) {
        if let Some(stripe) = self.stripes.get(stripe & self.mask) {
            which(stripe).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Grants billionths of a token that nobody had to earn.
    pub(crate) fn grant(&self, billionths: u64) {
        if billionths > 0 {
            self.granted.fetch_add(billionths, Ordering::Relaxed);
        }
    }

    /// Whether less than a token was there when they were last settled.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        tokens(self.word.load(Ordering::Relaxed)) < TOKEN
    }

    /// Settles what was earned; the thousandths that are there now.
    pub(crate) fn settle(&self, cap: u32) -> u32 {
        tokens(self.update(cap, Some).unwrap_or_else(|now| now))
    }

    /// Takes a token, if there is one.
    pub(crate) fn withdraw(&self, cap: u32, stripe: usize) -> bool {
        let taken = self.update(cap, |tokens| tokens.checked_sub(TOKEN)).is_ok();
        self.count(stripe, |stripe| if taken { &stripe.withdrawn } else { &stripe.refused });
        taken
    }

    /// Gives a token back, as far as there is room for it.
    pub(crate) fn refund(&self, cap: u32, stripe: usize) {
        // the closure never declines
        let _ = self.update(cap, |tokens| Some(tokens.saturating_add(TOKEN).min(cap)));
        self.count(stripe, |stripe| &stripe.refunded);
    }

    /// Counts a withdrawal that took nothing.
    pub(crate) fn withdraw_nothing(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.withdrawn);
    }

    /// Counts a refund that gave nothing back.
    pub(crate) fn refund_nothing(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.refunded);
    }

    /// How many calls have begun.
    pub(crate) fn calls(&self) -> u64 {
        self.sum(|stripe| &stripe.begun)
    }

    pub(crate) fn counts(&self) -> TokenCounts {
        TokenCounts {
            succeeded: self.sum(|stripe| &stripe.succeeded),
            withdrawn: self.sum(|stripe| &stripe.withdrawn),
            refunded: self.sum(|stripe| &stripe.refunded),
            refused: self.sum(|stripe| &stripe.refused),
        }
    }

    fn sum(&self, which: impl Fn(&Stripe) -> &AtomicU64) -> u64 {
        self.stripes.iter().map(|stripe| which(stripe).load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Settles and changes the tokens in one step; what holds then, and as an error where the change declined.
    fn update(&self, cap: u32, change: impl Fn(u32) -> Option<u32>) -> Result<u64, u64> {
        // acquire and release: whoever finds a word finds counters at least as far as those that made it
        let mut seen = self.word.load(Ordering::Acquire);
        loop {
            let earned = self.earned();
            let since = earned.wrapping_sub(low(seen));
            let settled = tokens(seen).saturating_add(since).min(cap);
            let Some(changed) = change(settled) else { return Err(seen) };
            let next = u64::from(changed) << TOKENS | u64::from(earned);
            if next == seen {
                return Ok(seen);
            }
            match self.word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(next),
                Err(now) => seen = now,
            }
        }
    }

    /// The low half of all thousandths that were ever earned or granted.
    fn earned(&self) -> u32 {
        let succeeded = self.sum(|stripe| &stripe.succeeded);
        low(succeeded.wrapping_mul(self.ratio).wrapping_add(self.granted.load(Ordering::Relaxed) / FINE))
    }
}

fn tokens(word: u64) -> u32 {
    low(word >> TOKENS)
}

#[allow(clippy::cast_possible_truncation)] // the low half is what is asked for
fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const CAP: u32 = 50 * TOKEN;

    #[test]
    fn a_token_is_there_once_it_is_earned_and_not_before() {
        let ledger = StripedTokenBucket::new(200, 0, 4);
        for stripe in 0..4 {
            ledger.record_success(stripe);
            assert!(!ledger.withdraw(CAP, 0), "{stripe}");
        }
        ledger.record_success(0);
        assert!(ledger.withdraw(CAP, 0));
        assert!(!ledger.withdraw(CAP, 0));
        assert_eq!(ledger.counts(), TokenCounts { succeeded: 5, withdrawn: 1, refunded: 0, refused: 5 });
    }

    #[test]
    fn what_is_above_the_cap_is_gone() {
        let ledger = StripedTokenBucket::new(1000, 0, 1);
        for _ in 0..100 {
            ledger.record_success(0);
        }
        assert_eq!(ledger.settle(CAP), CAP);
        assert_eq!(ledger.settle(3 * TOKEN), 3 * TOKEN);
        assert_eq!(ledger.settle(CAP), 3 * TOKEN);
        ledger.refund(CAP, 0);
        assert_eq!(ledger.settle(CAP), 4 * TOKEN);
        ledger.refund(4 * TOKEN, 0);
        assert_eq!(ledger.settle(CAP), 4 * TOKEN);
    }

    #[test]
    fn billionths_add_up() {
        let ledger = StripedTokenBucket::new(1, 0, 1);
        for _ in 0..999_999 {
            ledger.grant(1000);
        }
        assert_eq!(ledger.settle(CAP), 999);
        ledger.grant(1000);
        assert_eq!(ledger.settle(CAP), TOKEN);
    }

    #[test]
    fn what_was_earned_may_wrap_around() {
        let ledger = StripedTokenBucket::new(1000, 0, 1);
        ledger.stripes[0].succeeded.store(u64::from(u32::MAX) / 1000, Ordering::Relaxed);
        assert_eq!(ledger.settle(0), 0);
        for _ in 0..10 {
            ledger.record_success(0);
        }
        assert_eq!(ledger.settle(CAP), 10 * TOKEN);
    }

    #[test]
    fn threads_lose_and_invent_nothing() {
        let ledger = StripedTokenBucket::new(333, 0, 2);
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let ledger = &ledger;
                scope.spawn(move || {
                    for call in 0..30_000 {
                        ledger.record_success(thread);
                        if ledger.withdraw(u32::MAX, thread) && call % 3 == 0 {
                            ledger.refund(u32::MAX, thread);
                        }
                    }
                });
            }
        });
        let counts = ledger.counts();
        let left = counts.succeeded * 333 + counts.refunded * 1000 - counts.withdrawn * 1000;
        assert_eq!(u64::from(ledger.settle(u32::MAX)), left);
        assert_eq!(counts.withdrawn + counts.refused, 120_000);
    }
}
