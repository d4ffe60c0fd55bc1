//! A stream of snapshots as a source.

use futures_util::{Stream, StreamExt};
use tokio::task::JoinHandle;

use super::sorted;
use super::stream::Pending;
use crate::balance::membership::{InvalidMembers, SnapshotOutcome};
use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;

impl BalanceHandle {
    /// Follows a stream of snapshots, each with all members, until it ends or the pool is dropped.
    ///
    /// It suits sources that push the whole list: an xDS control plane, or a watch of Kubernetes' `EndpointSlice`s or
    /// of a prefix in etcd. The order of the members has no meaning.
    ///
    /// | the stream | what the pool does |
    /// |---|---|
    /// | yields snapshots | replaces its members by the latest one that is ready, at most once in 50 ms |
    /// | yields a snapshot of less than half of the members | waits for 5 s, and applies it unless another one came meanwhile |
    /// | yields an empty or invalid snapshot | reports it, and keeps its members |
    /// | yields an error | reports it, and polls again after 50 ms to 1 s |
    /// | ends | reports it, and keeps its members |
    ///
    /// The stream is polled by a task, whether there are calls or not. The task ends when the pool is dropped, or when
    /// the returned handle aborts it.
    ///
    /// ```
    /// use futures_util::Stream;
    /// use tower_upstream::balance::{BalanceHandle, Member};
    ///
    /// fn follow(pool: &BalanceHandle, lists: impl Stream<Item = Result<Vec<Member>, std::io::Error>> + Send + 'static) {
    ///     pool.follow_snapshots(lists);
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow_snapshots<D, I, E>(&self, snapshots: D) -> JoinHandle<()>
    where
        D: Stream<Item = Result<I, E>> + Send + 'static,
        I: IntoIterator<Item = Member> + 'static,
        E: Into<BoxError> + 'static,
    {
        self.follow_stream::<_, Latest, _>(snapshots.map(|snapshot| snapshot.map(sorted)))
    }
}

/// The latest snapshot that is not applied yet.
#[derive(Clone, Debug, Default, PartialEq)]
struct Latest(Option<Vec<Member>>);

impl Pending for Latest {
    type Item = Vec<Member>;

    fn push(&mut self, snapshot: Vec<Member>) {
        self.0 = Some(snapshot);
    }

    fn is_full(&self) -> bool {
        false
    }

    fn apply(&self, pool: &BalanceHandle) -> Result<SnapshotOutcome, InvalidMembers> {
        self.0.clone().map_or(Ok(SnapshotOutcome::Unchanged), |members| pool.update(members))
    }
}
