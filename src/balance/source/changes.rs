//! A stream of changes as source.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, timeout_at};
use tower::discover::Change;

use super::{Source, text};
use crate::balance::membership::{Changes, MAX_MEMBERS, SnapshotOutcome};
use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;

/// Changes are applied at most once per this time.
const INTERVAL: Duration = Duration::from_millis(50);
/// How long less than half of the members have to remain before the others are removed.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// The pause after an error, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The number of changes that are read in one poll.
const BATCH: usize = 1024;

impl BalanceHandle {
    /// Follows a stream of changes, as tower's `Discover` is one, until it ends or the pool is dropped.
    ///
    /// `member` describes the member with this key by the value of its insertion; its key is the text of the stream's key. An
    /// insertion adds a member or replaces the one with its key, a removal removes it, and other members of the pool stay.
    ///
    /// | the stream | |
    /// |---|---|
    /// | has changes ready | they are applied together, at most once in 50 ms |
    /// | has removed more than half of the members | applied after 5 s, unless members are added in the meantime |
    /// | has removed all members | the pool keeps those it has until another one is inserted |
    /// | errs | reported; polled again after 50 ms to 1 s |
    /// | ends | reported; the members stay |
    /// | has 65,536 changes that the pool refuses | they are dropped and reported |
    ///
    /// It is polled whether there are calls or not. The task ends when the pool is dropped or when the handle that is returned
    /// aborts it.
    ///
    /// ```
    /// use futures_util::Stream;
    /// use tower::discover::Change;
    /// use tower_upstream::balance::{BalanceHandle, Member};
    ///
    /// type Discovered = Result<Change<std::net::SocketAddr, u32>, std::io::Error>;
    ///
    /// fn follow(pool: &BalanceHandle, discovery: impl Stream<Item = Discovered> + Send + 'static) {
    ///     pool.follow_changes(discovery, |address, weight| Member::new(address).weight(weight));
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow_changes<D, K, V, E>(
        &self,
        changes: D,
        member: impl FnMut(Arc<str>, V) -> Member + Send + 'static,
    ) -> JoinHandle<()>
    where
        D: Stream<Item = Result<Change<K, V>, E>> + Send + 'static,
        K: fmt::Display + 'static,
        V: 'static,
        E: Into<BoxError> + 'static,
    {
        let changes = Box::pin(changes);
        let discovery = Discovery { changes, member, waiting: Changes::new(), refused: None, next: Instant::now() };
        self.spawn_source(move |source| discovery.run(source))
    }
}

struct Discovery<D, M> {
    changes: Pin<Box<D>>,
    member: M,
    /// The changes that are not applied yet.
    waiting: Changes,
    /// The changes that leave less than half of the members, and when they are applied.
    refused: Option<(Changes, Instant)>,
    /// The earliest time of the next change of the pool.
    next: Instant,
}

enum Step {
    /// All changes that were ready are read.
    Drained,
    /// There may be more of them.
    More,
    /// No further change can wait.
    Full,
    /// It is time to apply the changes.
    Due,
    Failed(String),
    Ended,
}

impl<D, M, K, V, E> Discovery<D, M>
where
    D: Stream<Item = Result<Change<K, V>, E>>,
    M: FnMut(Arc<str>, V) -> Member,
    K: fmt::Display,
    E: Into<BoxError>,
{
    async fn run(mut self, mut source: Source) {
        let (mut due, mut pause) = (None, FIRST_PAUSE);
        loop {
            let step = poll_fn(|cx| self.poll_step(cx));
            let step = match due {
                None => step.await,
                Some(due) => timeout_at(due, step).await.unwrap_or(Step::Due),
            };
            let now = Instant::now();
            match &step {
                Step::More => due = Some(due.unwrap_or(now + INTERVAL).min(now + INTERVAL)),
                Step::Drained => (due, pause) = (Some(self.next), FIRST_PAUSE),
                Step::Failed(_) if self.waiting.is_empty() => {}
                Step::Failed(_) => due = Some(self.next),
                Step::Due => {}
                Step::Full | Step::Ended => due = Some(now),
            }
            if due.is_some_and(|due| due <= now) {
                due = self.apply(&mut source, now);
            }
            match step {
                Step::More => yield_now().await,
                Step::Full if self.waiting.len() >= MAX_MEMBERS => {
                    self.waiting.clear();
                    source.report("more than 65,536 changes wait for members that the pool refuses: they are dropped");
                }
                Step::Failed(problem) => {
                    source.report(&problem);
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Step::Ended => return source.report("the stream of changes has ended: the members stay as they are"),
                Step::Drained | Step::Due | Step::Full => {}
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        for read in 0..BATCH {
            if self.waiting.len() >= MAX_MEMBERS {
                return Poll::Ready(Step::Full);
            }
            let polled = self.changes.as_mut().poll_next(cx);
            if polled.is_pending() && read > 0 {
                return Poll::Ready(Step::Drained);
            }
            match ready!(polled) {
                Some(Ok(change)) => self.push(change),
                Some(Err(error)) => return Poll::Ready(Step::Failed(text(&error.into()))),
                None => return Poll::Ready(Step::Ended),
            }
        }
        Poll::Ready(Step::More)
    }

    fn push(&mut self, change: Change<K, V>) {
        let (key, member) = match change {
            Change::Remove(key) => (key.to_string().into(), None),
            Change::Insert(key, value) => {
                let key: Arc<str> = key.to_string().into();
                let mut member = (self.member)(key.clone(), value);
                // a removal names this key
                member.key = key.clone();
                (key, Some(Arc::new(member)))
            }
        };
        self.waiting.insert(key, member);
    }

    /// Applies the changes that wait, and returns when to do so again.
    fn apply(&mut self, source: &mut Source, now: Instant) -> Option<Instant> {
        if let Some((changes, at)) = &self.refused {
            if *changes == self.waiting && now < *at {
                return Some(*at);
            }
        }
        self.next = now + INTERVAL;
        self.refused = None;
        match source.change(|pool| pool.merge(&self.waiting)) {
            Ok(SnapshotOutcome::AwaitsConfirmation) => {
                let at = now + CONFIRMATION;
                self.refused = Some((self.waiting.clone(), at));
                Some(at)
            }
            Ok(_) => {
                self.waiting.clear();
                None
            }
            // a later change may make them acceptable
            Err(_) => None,
        }
    }
}
