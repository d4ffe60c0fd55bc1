//! A timer for request heads that is shared by all heads of a connection.
//!
//! hyper starts a timer for every request head, and registering each with tokio's timer wheel costs more than the rest
//! of the wait. `HeadTimer` registers the first and leaves it in place: when it fires, it is moved to the latest
//! deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

/// The timer of one connection.
#[derive(Clone, Default)]
pub(crate) struct HeadTimer(Arc<Mutex<Armed>>);

#[derive(Default)]
struct Armed {
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    /// The task that the timer wakes.
    waker: Option<Waker>,
}

struct Wait {
    until: Instant,
    armed: Arc<Mutex<Armed>>,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { until: Instant::now() + duration, armed: self.0.clone() })
    }

    #[allow(clippy::disallowed_types)] // the trait requires it
    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { until: deadline.into(), armed: self.0.clone() })
    }
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut armed = self.armed.lock().expect("no panic while the lock is held");
        let Armed { timer, waker } = &mut *armed;
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(self.until)));
        if timer.is_elapsed() || timer.deadline() > self.until {
            if timer.is_elapsed() && timer.deadline() >= self.until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.until);
            *waker = None;
        }
        // set for this deadline or an earlier one, and for this task
        if waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        *waker = Some(cx.waker().clone());
        timer.as_mut().poll(cx)
    }
}
