//! Ends response bodies that their client does not read, also while they are not polled.
//!
//! hyper's servers do not poll a body while their write buffer or the client's window is full, so a timeout inside
//! `poll_frame` never runs. The call of a body (its connection, a limiter's slot, an admission place) is therefore kept in an
//! entry that the body shares with the [`Sweep`] of its layer or stack; the first of the consumer and the sweep that locks the
//! entry takes the call, so that it ends exactly once.
//!
//! A body that has ended with its head is never registered. A single layer does not register a short body either, unless its
//! client can hold it back by flow control. For all others a frame costs one uncontended lock and one relaxed store: no clock
//! is read, because the sweep compares each entry with its previous pass. A body counts as unread from the first pass after
//! its last frame, so it ends between `client_idle` and 9/8 of that. While the consumer waits for the upstream, `body_idle`
//! applies instead.
//!
//! One task per layer or stack walks over all entries, every eighth of the shortest limit but at most 20 times a second. It
//! runs only while a body is registered. It is spawned by the registration that finds none, which a drop guard makes possible
//! again when the task's runtime has ended; without a runtime nothing is swept.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::detachable::{Detach, query};
use super::entry::{Activity, Entry, Registry};
use super::{BodyTimeouts, CancelReason, drop_with_reason};
use crate::cause::{BadGatewayCause, Failure};

/// The default of `client_idle`, as of nginx's `send_timeout`.
pub(crate) const CLIENT_IDLE: Duration = Duration::from_secs(60);

/// The shortest time between two passes, which bounds their cost.
const SPACING: Duration = Duration::from_millis(50);
/// How often activity is sampled at most, however short the limit.
const SHORTEST_TICK: Duration = Duration::from_millis(250);
/// An absolute limit is exceeded, not reached: a frame that comes at its very end still counts.
const AFTER: Duration = Duration::from_millis(1);

/// A value that a body keeps until its end, and that may end early.
pub(crate) trait Sweepable {
    /// A timeout has passed: releases everything that the value holds, and returns the error for the consumer.
    fn expire(self, expired: Expired) -> Failure;
}

/// The timeout that has passed while the body was not polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// The client has read nothing for this long.
    ClientIdle(Duration),
    /// The whole call has taken too long; `waiting`: the upstream has not sent the next frame.
    Absolute { waiting: bool },
}

impl Expired {
    /// The name of the setting.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClientIdle(_) => "client_idle",
            Self::Absolute { .. } => "absolute",
        }
    }

    /// The reason for dropping the body: a client that does not read says nothing about a shared connection.
    pub(crate) fn drop_reason(self) -> CancelReason {
        match self {
            Self::Absolute { waiting: true } => CancelReason::TimedOut(BadGatewayCause::DeadlineExceeded),
            _ => CancelReason::Dropped,
        }
    }

    /// The reason, for a log event.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ClientIdle(_) => "the client does not read it",
            Self::Absolute { waiting: false } => "the client reads it too slowly",
            Self::Absolute { waiting: true } => "the upstream sends it too slowly",
        }
    }
}

/// Sweeps the open response bodies of one layer or stack; see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    schedule: Mutex<Schedule>,
    earlier: Notify,
}

/// The open bodies, and the time of the next pass.
#[derive(Debug, Default)]
struct Schedule {
    bodies: Registry<Open>,
    /// When the task makes its next pass; `None` while there is no task.
    next: Option<Instant>,
    last: Option<Instant>,
}

struct Open {
    body: Arc<dyn Expires>,
    limits: BodyTimeouts,
    /// The first pass that found it unread.
    unread_since: Instant,
}

/// An entry of any value.
trait Expires: Send + Sync {
    fn sample(&self) -> Activity;

    fn is_unread(&self) -> bool;

    /// Returns whether the body has ended: not if its consumer is polling it, or has read in the meantime.
    fn try_expire(&self, expired: Expired) -> bool;
}

/// The value of an entry, the task that waits for the body, and the body if the sweep can drop it.
struct Shared<T> {
    value: T,
    waker: Option<Waker>,
    detach: Option<Arc<dyn Detach>>,
}

impl Sweep {
    /// Registers a body that stays open, with at least one timeout. `detach` drops the body itself.
    pub(crate) fn register<T>(
        self: &Arc<Self>,
        kept: T,
        limits: BodyTimeouts,
        detach: Option<Arc<dyn Detach>>,
    ) -> Swept<T>
    where
        T: Sweepable + Send + 'static,
    {
        let now = Instant::now();
        let entry = Arc::new(Entry::new(Shared { value: kept, waker: None, detach }));
        let open = Open { body: entry.clone(), limits, unread_since: now };
        let due = open.next_pass(now);
        let mut schedule = lock(&self.schedule);
        let key = schedule.bodies.add(open);
        let due = schedule.last.map_or(due, |last| due.max(last + SPACING));
        let spawns = schedule.next.is_none();
        if schedule.next.is_none_or(|next| due < next) {
            schedule.next = Some(due);
            drop(schedule);
            if spawns { self.spawn() } else { self.earlier.notify_one() }
        }
        Swept { entry, sweep: self.clone(), key }
    }

    fn spawn(self: &Arc<Self>) {
        let running = Running { sweep: self.clone(), done: false };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(running.run());
        }
    }

    /// Makes one pass; the time of the next one, or `None` if no body is left.
    fn pass(&self, now: Instant) -> Option<Instant> {
        let mut expired = Vec::new();
        let mut schedule = lock(&self.schedule);
        schedule.last = Some(now);
        for (key, open) in schedule.bodies.iter_mut() {
            if let Some(limit) = open.check(now) {
                expired.push((key, open.body.clone(), limit));
            }
        }
        drop(schedule);
        // not under the lock: a drop may run any code
        expired.retain(|(_, body, limit)| {
            // a body that panics when it is dropped has ended as well, and must not end the sweep of the others
            catch_unwind(AssertUnwindSafe(|| body.try_expire(*limit))).unwrap_or(true)
        });
        let mut schedule = lock(&self.schedule);
        for (key, body, _) in &expired {
            schedule.bodies.expire(*key, |open| std::ptr::addr_eq(Arc::as_ptr(&open.body), Arc::as_ptr(body)));
        }
        let due = schedule.bodies.iter_mut().map(|(_, open)| open.next_pass(now)).min();
        schedule.next = due.map(|due| due.max(now + SPACING));
        schedule.next
    }

    fn remove(&self, key: usize) {
        let body = lock(&self.schedule).bodies.remove(key);
        // not under the lock
        drop(body);
    }

    /// The number of bodies that may still expire.
    #[cfg(test)]
    fn open(&self) -> usize {
        lock(&self.schedule).bodies.open()
    }
}

impl Open {
    /// Compares with the previous pass; returns the timeout that has passed, if any.
    fn check(&mut self, now: Instant) -> Option<Expired> {
        let activity = self.body.sample();
        let waiting = activity == Activity::Waiting;
        if activity != Activity::Unread {
            self.unread_since = now;
        }
        // a consumer that waits has a timer of its own, which comes first
        let late = if waiting { SHORTEST_TICK } else { Duration::ZERO };
        if self.limits.end.is_some_and(|end| end + late < now) {
            return Some(Expired::Absolute { waiting });
        }
        let idle = self.limits.client_idle.filter(|idle| !waiting && self.unread_since + *idle <= now)?;
        Some(Expired::ClientIdle(idle))
    }

    /// When the next pass should come for this body.
    fn next_pass(&self, now: Instant) -> Instant {
        let sample = self.limits.client_idle.map(|idle| {
            let tick = now + (idle / 8).max(SHORTEST_TICK);
            if self.body.is_unread() { tick.min(self.unread_since + idle) } else { tick }
        });
        let end = self.limits.end.map(|end| if end < now { now + SHORTEST_TICK } else { end + AFTER });
        match (sample, end) {
            (Some(sample), Some(end)) => sample.min(end),
            (sample, end) => sample.or(end).unwrap_or(now + CLIENT_IDLE),
        }
    }
}

/// The sweeping task; once it is dropped, for any reason, the next registration spawns another.
struct Running {
    sweep: Arc<Sweep>,
    /// It has returned, and the schedule shows it.
    done: bool,
}

impl Running {
    async fn run(mut self) {
        loop {
            let next = lock(&self.sweep.schedule).next;
            let Some(next) = next else { break };
            if timeout_at(next, self.sweep.earlier.notified()).await.is_err()
                && self.sweep.pass(Instant::now()).is_none()
            {
                break;
            }
        }
        self.done = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            lock(&self.sweep.schedule).next = None;
        }
    }
}

/// A body's handle of its entry.
pub(crate) struct Swept<T> {
    entry: Arc<Entry<Shared<T>, Failure>>,
    sweep: Arc<Sweep>,
    key: usize,
}

impl<T: Sweepable> Swept<T> {
    /// Polls with the value.
    ///
    /// # Errors
    ///
    /// The failure, if a timeout has passed; returned once.
    pub(crate) fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut T, &mut Context<'_>) -> Poll<R>,
    ) -> Result<Poll<R>, Failure> {
        let polled = self.entry.poll(|Shared { value: kept, waker, detach }| {
            let polled = if detach.is_some() {
                poll(kept, cx)
            } else {
                let (polled, offered) = query(detach.take(), || poll(kept, cx));
                *detach = offered;
                polled
            };
            if polled.is_pending() && !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            polled
        });
        // without a failure, the body panicked when it expired
        polled.map_err(|failure| failure.unwrap_or_else(|| Failure::new(BadGatewayCause::GatewayInternal)))
    }
}

impl<T> Swept<T> {
    /// Maps the value; `None` once a timeout has passed.
    pub(crate) fn show<R>(&self, show: impl FnOnce(&T) -> R) -> Option<R> {
        self.entry.show(|kept| show(&kept.value))
    }

    /// Takes the value, as the body has ended; `None` if a timeout has passed.
    pub(crate) fn take(&self) -> Option<T> {
        self.entry.take().map(|kept| kept.value)
    }
}

impl<T> Drop for Swept<T> {
    fn drop(&mut self) {
        self.sweep.remove(self.key);
        // drops it now: the sweep may keep the entry a moment longer
        drop(self.take());
    }
}

impl<T: Sweepable + Send> Expires for Entry<Shared<T>, Failure> {
    fn sample(&self) -> Activity {
        self.sample()
    }

    fn is_unread(&self) -> bool {
        self.is_unread()
    }

    fn try_expire(&self, expired: Expired) -> bool {
        let mut consumer = None;
        let is_over =
            self.try_expire(matches!(expired, Expired::ClientIdle(_)), |Shared { value: kept, waker, detach }| {
                consumer = waker;
                if let Some(detach) = detach {
                    drop_with_reason(expired.drop_reason(), || detach.detach());
                }
                kept.expire(expired)
            });
        if let Some(waker) = consumer {
            waker.wake();
        }
        is_over
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::time::{advance, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(8);

    /// Counts how often it was given back, in whatever way.
    struct Permit {
        returned: Arc<AtomicUsize>,
        panics: bool,
    }

    impl Drop for Permit {
        fn drop(&mut self) {
            self.returned.fetch_add(1, Relaxed);
            assert!(!self.panics || std::thread::panicking(), "when it is given back");
        }
    }

    impl Sweepable for Permit {
        fn expire(self, expired: Expired) -> Failure {
            let cause = match expired {
                Expired::ClientIdle(_) => BadGatewayCause::ClientClosed,
                Expired::Absolute { .. } => BadGatewayCause::DeadlineExceeded,
            };
            Failure::new(cause)
        }
    }

    fn unread_for(limit: Duration) -> BodyTimeouts {
        BodyTimeouts { client_idle: Some(limit), ..BodyTimeouts::default() }
    }

    fn register(sweep: &Arc<Sweep>, limits: BodyTimeouts) -> (Swept<Permit>, Arc<AtomicUsize>) {
        let returned = Arc::<AtomicUsize>::default();
        (sweep.register(Permit { returned: returned.clone(), panics: false }, limits, None), returned)
    }

    /// Takes a frame, or finds none; the cause, if a limit has passed.
    fn poll(body: &Swept<Permit>, frame: bool) -> Option<BadGatewayCause> {
        let mut cx = Context::from_waker(Waker::noop());
        let polled = body.poll(&mut cx, |_, _| if frame { Poll::Ready(()) } else { Poll::Pending });
        polled.err().map(|failure| failure.cause())
    }

    /// Waits until it was given back, at most a hundred times the limit; how long that took.
    async fn until_returned(returned: &AtomicUsize) -> Duration {
        let begun = Instant::now();
        while returned.load(Relaxed) == 0 && begun.elapsed() < LIMIT * 100 {
            sleep(Duration::from_millis(10)).await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_body_ends_between_its_limit_and_an_eighth_more() {
        let sweep = Arc::<Sweep>::default();
        let (body, returned) = register(&sweep, unread_for(LIMIT));
        for _ in 0..20 {
            sleep(LIMIT * 15 / 16).await;
            assert_eq!(poll(&body, true), None, "a body that is read in time does not expire");
        }
        let took = until_returned(&returned).await;
        assert!(took >= LIMIT && took <= LIMIT * 9 / 8 + Duration::from_millis(100), "{took:?}");
        assert_eq!((returned.load(Relaxed), sweep.open()), (1, 0));
        assert_eq!(poll(&body, true), Some(BadGatewayCause::ClientClosed));
        drop(body);
        assert_eq!(returned.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_waits_for_the_upstream_is_not_idle() {
        let sweep = Arc::<Sweep>::default();
        let (body, returned) = register(&sweep, unread_for(LIMIT));
        assert_eq!(poll(&body, false), None);
        sleep(LIMIT * 20).await;
        assert_eq!((returned.load(Relaxed), poll(&body, true)), (0, None));
        assert!(until_returned(&returned).await <= LIMIT * 9 / 8 + Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn an_absolute_limit_ends_a_body_whatever_its_consumer_does() {
        for waits in [false, true] {
            let sweep = Arc::<Sweep>::default();
            let limits = BodyTimeouts { end: Some(Instant::now() + LIMIT), ..BodyTimeouts::default() };
            let (body, returned) = register(&sweep, limits);
            assert_eq!(poll(&body, !waits), None);
            let took = until_returned(&returned).await;
            assert!(took >= LIMIT && took <= LIMIT + Duration::from_millis(600), "{took:?}");
            assert_eq!(poll(&body, true), Some(BadGatewayCause::DeadlineExceeded));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_is_not_held_up_by_a_longer_one() {
        let sweep = Arc::<Sweep>::default();
        let (_long, _) = register(&sweep, unread_for(Duration::from_secs(3600)));
        sleep(Duration::from_secs(1)).await;
        let (_short, returned) = register(&sweep, unread_for(LIMIT));
        assert!(until_returned(&returned).await <= LIMIT * 9 / 8 + Duration::from_millis(100));
        assert_eq!(sweep.open(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn limits_at_both_ends_of_the_clock_neither_spin_nor_panic() {
        let sweep = Arc::<Sweep>::default();
        let far = crate::stats::reachable(Duration::MAX);
        let now = Instant::now();
        let (_long, _) = register(&sweep, BodyTimeouts { end: Some(now + far), ..unread_for(far) });
        let (_short, returned) = register(&sweep, unread_for(Duration::from_nanos(1)));
        assert!(until_returned(&returned).await < Duration::from_secs(1));
        let (_ended, returned) = register(&sweep, BodyTimeouts { end: Some(now), ..BodyTimeouts::default() });
        assert!(until_returned(&returned).await < Duration::from_secs(1));
        let passes = {
            let before = lock(&sweep.schedule).last;
            advance(Duration::from_secs(1)).await;
            lock(&sweep.schedule).last != before
        };
        assert!(!passes, "a body with a far limit is looked at rarely");
    }

    #[test]
    fn a_sweep_whose_runtime_has_ended_is_started_by_the_next_body() {
        let sweep = Arc::<Sweep>::default();
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // without a runtime nothing is swept, and nothing panics
        let (unswept, _) = register(&sweep, unread_for(LIMIT));
        // dropped unpolled, and polled once
        for polls in [false, true] {
            let first = runtime();
            first.block_on(async {
                let (body, _) = register(&sweep, unread_for(LIMIT));
                if polls {
                    tokio::task::yield_now().await;
                }
                assert!(lock(&sweep.schedule).next.is_some());
                drop(body);
            });
            drop(first);
            assert!(lock(&sweep.schedule).next.is_none());
        }
        runtime().block_on(async {
            let (_body, returned) = register(&sweep, unread_for(LIMIT));
            assert!(until_returned(&returned).await <= LIMIT * 9 / 8 + Duration::from_millis(100));
            assert_eq!(poll(&unswept, true), Some(BadGatewayCause::ClientClosed));
        });
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_last_body_and_leaves_no_memory() {
        let sweep = Arc::<Sweep>::default();
        let bodies: Vec<_> = (0..1000).map(|_| register(&sweep, unread_for(LIMIT)).0).collect();
        assert_eq!(sweep.open(), 1000);
        drop(bodies);
        assert_eq!((sweep.open(), lock(&sweep.schedule).bodies.capacity()), (0, 0));
        sleep(LIMIT).await;
        assert!(lock(&sweep.schedule).next.is_none());
        assert_eq!(Arc::strong_count(&sweep), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_panics_when_it_ends_is_over_and_the_others_end_as_well() {
        let sweep = Arc::<Sweep>::default();
        let permit = Permit { returned: Arc::default(), panics: true };
        let broken = sweep.register(permit, unread_for(LIMIT), None);
        let (_sound, returned) = register(&sweep, unread_for(LIMIT));
        assert!(until_returned(&returned).await <= LIMIT * 9 / 8 + Duration::from_millis(100));
        assert_eq!(poll(&broken, true), Some(BadGatewayCause::GatewayInternal));
        assert_eq!(sweep.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_panics_gives_back_once() {
        let sweep = Arc::<Sweep>::default();
        let (body, returned) = register(&sweep, unread_for(LIMIT));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = body.poll(&mut cx, |_, _| -> Poll<()> { panic!("in the body") });
        }));
        assert!(panicked.is_err());
        drop(body);
        sleep(LIMIT * 2).await;
        assert_eq!((returned.load(Relaxed), sweep.open()), (1, 0));
    }

    #[test]
    fn sweep_poll_and_drop_on_three_threads_give_back_exactly_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let sweep = Arc::<Sweep>::default();
        for retry_state in 0..500_u32 {
            let (body, returned) = register(&sweep, unread_for(Duration::ZERO));
            let body = Mutex::new(Some(body));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        sweep.pass(Instant::now());
                    }
                });
                scope.spawn(|| {
                    for turn in 0..4 {
                        if let Some(body) = &*lock(&body) {
                            let _ = poll(body, (retry_state + turn) % 3 > 0);
                        }
                    }
                });
                scope.spawn(|| {
                    if retry_state % 2 == 0 {
                        drop(lock(&body).take());
                    } else if let Some(body) = &*lock(&body) {
                        drop(body.take());
                    }
                });
            });
            drop(body);
            assert_eq!((returned.load(Relaxed), sweep.open()), (1, 0), "retry_state {retry_state}");
        }
    }
}
