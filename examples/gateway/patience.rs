//! One timer a connection for the heads that clients are slow to send.
//!
//! hyper asks for a timer with every head it waits for; arming tokio's wheel each time costs more than
//! the rest of the wait. Here the first is armed and left where it is: it looks again when it fires.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

/// A timer for one connection.
#[derive(Clone, Default)]
pub(crate) struct Patience(Arc<Mutex<Armed>>);

#[derive(Default)]
struct Armed {
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Whom the timer will wake.
    task: Option<Waker>,
}

struct Wait {
    until: Instant,
    armed: Arc<Mutex<Armed>>,
}

impl Timer for Patience {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { until: Instant::now() + duration, armed: self.0.clone() })
    }

    #[allow(clippy::disallowed_types)] // the trait's
    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { until: deadline.into(), armed: self.0.clone() })
    }
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut armed = self.armed.lock().expect("nobody panics here");
        let Armed { timer, task } = &mut *armed;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.until)));
        if timer.is_elapsed() || timer.deadline() > self.until {
            if timer.is_elapsed() && timer.deadline() >= self.until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.until);
            *task = None;
        }
        // armed for this time or an earlier one, and for this task
        if task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        *task = Some(cx.waker().clone());
        timer.as_mut().poll(cx)
    }
}
