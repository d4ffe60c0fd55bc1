//! Work under a [`Deadline`]: in the driver, because the layers inside have to learn why it was dropped.

use std::future::{Future, poll_fn};
use std::pin::pin;

use tokio::time::{Instant, timeout_at};

use super::{CancelReason, drop_with_reason};
use crate::cause::BadGatewayCause;
use crate::deadline::{Deadline, Elapsed};

impl Deadline {
    /// Runs a future until this deadline; if the deadline has elapsed, the future is not polled.
    ///
    /// A result that is ready exactly at the deadline counts. Takes `self` by value so that
    /// `tokio::spawn(deadline.bound(work))` works; see the [module](crate::deadline) for an example. A circuit breaker inside
    /// counts a call that is dropped at the deadline as a failure, unless a client has set the deadline.
    ///
    /// # Errors
    /// [`Elapsed`] at the deadline; the future is dropped then.
    ///
    /// # Panics
    /// Outside of a tokio runtime with time enabled, like every timer.
    pub async fn bound<F: Future>(self, future: F) -> Result<F::Output, Elapsed> {
        if self.has_elapsed(Instant::now()) {
            return Err(Elapsed);
        }
        let mut future = pin!(Some(future));
        let work = poll_fn(|cx| future.as_mut().as_pin_mut().expect("it is dropped after its last poll").poll(cx));
        let output = timeout_at(self.instant(), work).await;
        output.map_err(|_| {
            let cause = BadGatewayCause::DeadlineExceeded;
            let reason = if self.is_of_client() { CancelReason::Overdue } else { CancelReason::TimedOut(cause) };
            drop_with_reason(reason, || future.set(None));
            Elapsed
        })
    }
}
