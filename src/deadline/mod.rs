//! Request deadlines.
//!
//! A [`Deadline`] is read once, at the outermost layer with a [`DeadlinePropagation`]: from the header fields of trusted
//! clients and from the request's extensions. Inside it travels with the call, and it can only become earlier. It is passed
//! on to an upstream as the remaining time less a margin ([`forward`](DeadlinePropagation::forward)), and to handlers as
//! an extension ([`expose`](DeadlinePropagation::expose)), each only if configured.
//!
//! A deadline limits how long a response is useful, not how long work may take. [`Deadline::bound`] bounds work by a
//! deadline, also work that outlives its handler:
//!
//! ```
//! use std::time::Duration;
//! use tokio::time::Instant;
//! use tower_upstream::deadline::{Deadline, Elapsed};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let deadline = Deadline::after(Instant::now(), Duration::from_millis(300));
//! let quick = tokio::spawn(deadline.bound(async { "in time" }));
//! let slow = tokio::spawn(deadline.bound(tokio::time::sleep(Duration::from_secs(9))));
//! assert_eq!(quick.await.unwrap(), Ok("in time"));
//! assert_eq!(slow.await.unwrap(), Err(Elapsed));
//! # }
//! ```

#[cfg(feature = "axum")]
mod extract;
mod header;
mod propagation;

use std::fmt;
use std::time::Duration;

use http::Extensions;
use tokio::time::Instant;

use crate::cause::{BadGatewayCause, Failure};

pub use self::header::DeadlineHeader;
pub use self::propagation::DeadlinePropagation;

/// The time until which a response is useful; it can only become earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    clock: Clock,
    /// A client has set it, not this program.
    of_client: bool,
}

/// The clock a deadline refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Ours: the client sent the remaining time.
    Own,
    /// The client's: it sent a time of day, which is off by the difference of the two clocks.
    Client,
}

impl Deadline {
    /// A deadline at this time.
    pub fn at(at: Instant) -> Self {
        Self { at, clock: Clock::Own, of_client: false }
    }

    /// A deadline after this time; more than a hundred years count as a hundred.
    pub fn after(now: Instant, left: Duration) -> Self {
        const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        Self::at(now + left.min(FAR))
    }

    /// The same time, marked as given by the client's clock.
    pub(crate) fn by_client_clock(self) -> Self {
        Self { clock: Clock::Client, ..self }
    }

    /// The same time, marked as set by a client.
    pub(crate) fn of_client(self) -> Self {
        Self { of_client: true, ..self }
    }

    /// Whether a client has set it: then that it has elapsed says nothing about the upstream.
    pub(crate) fn is_of_client(&self) -> bool {
        self.of_client
    }

    /// The deadline in a request's extensions.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }

    /// The earlier of two deadlines.
    pub fn min(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.at < one.at { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// The time of the deadline.
    pub fn instant(&self) -> Instant {
        self.at
    }

    /// The clock the deadline refers to.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// The remaining time; zero once the deadline has elapsed.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// Whether the deadline has elapsed.
    pub fn has_elapsed(&self, now: Instant) -> bool {
        self.at <= now
    }

    /// This deadline minus the time a response needs to reach the client: 5 % of the remaining time and at least 50 ms, but at
    /// most a quarter of it.
    pub(crate) fn minus_response_margin(self, now: Instant) -> Self {
        let left = self.remaining(now);
        let margin = (left / 20).max(Duration::from_millis(50)).min(left / 4);
        Self { at: self.at - margin, ..self }
    }
}

/// The deadline elapsed before the work was done.
///
/// As a [`Failure`] it is `deadline_exceeded`, 504: returned by `?` in a handler, it becomes that response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request's deadline has elapsed")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for Failure {
    fn from(passed: Elapsed) -> Self {
        Failure::builder(BadGatewayCause::DeadlineExceeded).source(passed).build()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_result_that_is_ready_at_the_deadline_counts() {
        let deadline = Deadline::after(Instant::now(), Duration::from_secs(1));
        let at_the_last = async {
            tokio::time::sleep_until(deadline.instant()).await;
            7
        };
        assert_eq!(deadline.bound(at_the_last).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_begins_nothing() {
        let begun = Cell::new(false);
        let passed = Deadline::at(Instant::now()).bound(async { begun.set(true) }).await;
        assert_eq!((passed, begun.get()), (Err(Elapsed), false));
    }

    #[test]
    fn the_error_is_a_failure_with_status_504() {
        let failure = Failure::from(Elapsed);
        assert_eq!((failure.cause(), failure.status().as_u16()), (BadGatewayCause::DeadlineExceeded, 504));
        assert!(std::error::Error::source(&failure).is_some_and(<dyn std::error::Error>::is::<Elapsed>));
    }

    #[test]
    fn the_longest_time_there_is_still_has_an_end_on_the_clock() {
        let now = Instant::now();
        assert!(Deadline::after(now, Duration::MAX).remaining(now) > Duration::from_secs(1 << 31));
    }

    fn deadlines() -> impl Strategy<Value = Option<u64>> {
        proptest::option::of(0_u64..100)
    }

    proptest! {
        #[test]
        fn of_two_deadlines_neither_is_ever_extended(one in deadlines(), other in deadlines(), at in 0_u64..100) {
            let zero = Instant::now();
            let deadline = |ms: u64| Deadline::after(zero, Duration::from_millis(ms));
            let both = Deadline::min(one.map(deadline), other.map(deadline));
            prop_assert_eq!(both.is_some(), one.is_some() || other.is_some());
            let now = zero + Duration::from_millis(at);
            for single in [one, other].into_iter().flatten().map(deadline) {
                let both = both.unwrap();
                prop_assert!(both.remaining(now) <= single.remaining(now));
                prop_assert_eq!(both.has_elapsed(now), both.remaining(now).is_zero());
            }
        }
    }
}
