//! Sources that are streams.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Source, text};
use crate::balance::BalanceHandle;
use crate::balance::membership::{InvalidMembers, SnapshotOutcome};
use crate::body::BoxError;

/// The shortest time between two changes of the pool.
const INTERVAL: Duration = Duration::from_millis(50);
/// The time that a change to less than half of the members has to last before it is applied.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// The pause after an error, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The largest number of items that are read in one poll.
const BATCH: usize = 1024;

/// Items of a stream that are not applied to the pool yet.
pub(super) trait Pending: Clone + Default + PartialEq + Send + 'static {
    type Item;

    fn push(&mut self, item: Self::Item);

    /// Whether the items have to be applied before another one is read.
    fn is_full(&self) -> bool;

    fn apply(&self, pool: &BalanceHandle) -> Result<SnapshotOutcome, InvalidMembers>;
}

impl BalanceHandle {
    /// Runs a source that is a stream.
    pub(super) fn follow_stream<D, W, E>(&self, stream: D) -> JoinHandle<()>
    where
        D: Stream<Item = Result<W::Item, E>> + Send + 'static,
        W: Pending,
        E: Into<BoxError> + 'static,
    {
        let follower = Follower {
            stream: Box::pin(stream),
            pending: W::default(),
            refused: None,
            problem: None,
            next: Instant::now(),
        };
        self.spawn_source(move |source| follower.run(source))
    }
}

struct Follower<D, W> {
    stream: Pin<Box<D>>,
    pending: W,
    /// Items that would leave less than half of the members, and when they are applied.
    refused: Option<(W, Instant)>,
    /// The error that the stream has yielded last.
    problem: Option<String>,
    /// The earliest time of the next change of the pool.
    next: Instant,
}

enum Step {
    /// Items were read; there may be more.
    Read,
    /// The pending items have to be applied before another one is read.
    Full,
    /// It is time to apply the pending items.
    Due,
    Failed(String),
    Ended,
}

impl<D, W, E> Follower<D, W>
where
    D: Stream<Item = Result<W::Item, E>>,
    W: Pending,
    E: Into<BoxError>,
{
    async fn run(mut self, mut source: Source) {
        // when the pending items are applied, since when they wait, and the pause after an error
        let (mut due, mut since, mut pause) = (None, None, FIRST_PAUSE);
        loop {
            let step = poll_fn(|cx| self.poll_step(cx));
            let step = match due {
                None => step.await,
                Some(due) => timeout_at(due, step).await.unwrap_or(Step::Due),
            };
            let now = Instant::now();
            let applies = match &step {
                Step::Read => {
                    (due, pause) = (Some(self.next), FIRST_PAUSE);
                    now >= *since.get_or_insert(now) + INTERVAL
                }
                // before the report of the error, which an applied change would end
                Step::Failed(_) => since.is_some(),
                Step::Due | Step::Full | Step::Ended => true,
            };
            if applies {
                (due, since) = (self.apply(&mut source, now), None);
            }
            match step {
                // the stream may be pending because tokio's budget of the task is used up, with more items ready
                Step::Read => yield_now().await,
                Step::Full if self.pending.is_full() => {
                    self.pending = W::default();
                    source.report("more than 65,536 changes wait for members that the pool refuses: they are dropped");
                }
                Step::Failed(problem) => {
                    source.report(&problem);
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Step::Ended => {
                    return source.report("the stream of the source has ended: the members stay as they are");
                }
                Step::Due | Step::Full => {}
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if let Some(problem) = self.problem.take() {
            return Poll::Ready(Step::Failed(problem));
        }
        for read in 0..BATCH {
            if self.pending.is_full() {
                return Poll::Ready(Step::Full);
            }
            let polled = self.stream.as_mut().poll_next(cx);
            if polled.is_pending() && read > 0 {
                return Poll::Ready(Step::Read);
            }
            match ready!(polled) {
                Some(Ok(item)) => self.pending.push(item),
                Some(Err(error)) => {
                    self.problem = Some(text(&error.into()));
                    // the items before the error come first
                    return if read > 0 { Poll::Ready(Step::Read) } else { self.poll_step(cx) };
                }
                None => return Poll::Ready(Step::Ended),
            }
        }
        Poll::Ready(Step::Read)
    }

    /// Applies the pending items, and returns the time to do so again.
    fn apply(&mut self, source: &mut Source, now: Instant) -> Option<Instant> {
        if let Some((refused, at)) = &self.refused {
            if *refused == self.pending && now < *at {
                return Some(*at);
            }
        }
        self.next = now + INTERVAL;
        self.refused = None;
        match source.change(|pool| self.pending.apply(pool)) {
            Ok(SnapshotOutcome::AwaitsConfirmation) => {
                let at = now + CONFIRMATION;
                self.refused = Some((self.pending.clone(), at));
                Some(at)
            }
            Ok(_) => {
                self.pending = W::default();
                None
            }
            // a later item may make it acceptable
            Err(_) => None,
        }
    }
}
