//! A token bucket in one word, fed by striped monotonic counters.
//!
//! A success increments a counter of its own stripe and touches nothing that other threads write. Deposits since the last
//! settlement are settled by the next withdrawal: the word holds the tokens and the low half of the total deposited at
//! the last settlement. So settling and withdrawing are one compare-exchange, and no other thread can intervene between
//! them.
//!
//! Invariants under any interleaving (`tests/loom` checks them):
//!
//! - Every deposit is settled exactly once: only deposits above the cap are lost.
//! - A withdrawal sees all earlier deposits, and is refused only if they are less than a token.
//! - Tokens are never above the cap passed in last, and never below zero.
//!
//! The low half wraps around: harmless unless two million tokens are deposited between two settlements.

use crate::stats::sync::{AtomicU64, Ordering};

/// One token, in thousandths, the unit of counting.
pub(crate) const TOKEN: u32 = 1000;

/// Tokens added over time are counted in finer units, so that nothing is lost by rounding.
const FINE: u64 = 1_000_000;

const TOKENS: u32 = 32;

/// The counters of the threads that share a stripe, on their own cache lines.
#[derive(Debug)]
#[repr(align(128))] // two lines: prefetchers load them in pairs
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

/// The totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenCounts {
    pub(crate) succeeded: u64,
    pub(crate) withdrawn: u64,
    pub(crate) refunded: u64,
    pub(crate) refused: u64,
}

/// The tokens and the counters that feed them.
#[derive(Debug)]
pub(crate) struct StripedTokenBucket {
    /// High half: the tokens; low half: the total deposited when they were settled; both in thousandths.
    word: AtomicU64,
    /// Tokens added over time, in billionths of a token.
    granted: AtomicU64,
    /// Deposit of a success, in thousandths of a token.
    ratio: u64,
    stripes: Box<[Stripe]>,
    /// One less than the number of stripes, a power of two.
    mask: usize,
}

impl StripedTokenBucket {
    /// A bucket with `tokens` thousandths of a token; the number of stripes is rounded up to a power of two.
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

    /// Counts a call; `stripe` may be any number that is constant for a thread.
    #[inline]
    pub(crate) fn record_call(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.begun);
    }

    /// The calls counted in this stripe.
    #[inline]
    pub(crate) fn calls_of_stripe(&self, stripe: usize) -> u64 {
        self.stripes.get(stripe & self.mask).map_or(0, |stripe| stripe.begun.load(Ordering::Relaxed))
    }

    /// Counts a success, which deposits the ratio.
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

    /// Adds billionths of a token.
    pub(crate) fn grant(&self, billionths: u64) {
        if billionths > 0 {
            self.granted.fetch_add(billionths, Ordering::Relaxed);
        }
    }

    /// Whether less than a token was available at the last settlement.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        tokens(self.word.load(Ordering::Relaxed)) < TOKEN
    }

    /// Settles the deposits and returns the tokens in thousandths.
    pub(crate) fn settle(&self, cap: u32) -> u32 {
        tokens(self.update(cap, Some).unwrap_or_else(|now| now))
    }

    /// Withdraws a token, if available.
    pub(crate) fn withdraw(&self, cap: u32, stripe: usize) -> bool {
        let taken = self.update(cap, |tokens| tokens.checked_sub(TOKEN)).is_ok();
        self.count(stripe, |stripe| if taken { &stripe.withdrawn } else { &stripe.refused });
        taken
    }

    /// Counts a withdrawal that was not tried.
    pub(crate) fn record_refusal(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.refused);
    }

    /// Refunds a token, up to the cap.
    pub(crate) fn refund(&self, cap: u32, stripe: usize) {
        // the closure never declines
        let _ = self.update(cap, |tokens| Some(tokens.saturating_add(TOKEN).min(cap)));
        self.count(stripe, |stripe| &stripe.refunded);
    }

    /// Counts a withdrawal of an unlimited budget.
    pub(crate) fn withdraw_nothing(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.withdrawn);
    }

    /// Counts a refund of an unlimited budget.
    pub(crate) fn refund_nothing(&self, stripe: usize) {
        self.count(stripe, |stripe| &stripe.refunded);
    }

    /// The number of calls started.
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

    /// Settles and changes the tokens atomically; returns the new word, or the current one as an error if `change` declines.
    fn update(&self, cap: u32, change: impl Fn(u32) -> Option<u32>) -> Result<u64, u64> {
        // acquire and release: a thread that sees a word sees counters at least as recent as those it was made from
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

    /// The low half of the total deposited, in thousandths.
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
