//! A stream of changes as a source.

use std::fmt;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::task::JoinHandle;
use tower::discover::Change;

use super::stream::Pending;
use crate::balance::membership::{Changes, InvalidMembers, MAX_MEMBERS, SnapshotOutcome};
use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;

impl BalanceHandle {
    /// Follows a stream of changes, as tower's `Discover` is one, until it ends or the pool is dropped.
    ///
    /// `member` makes the member of an insertion from the key, as text, and the value. An insertion adds the member or
    /// replaces the one with its key, a removal removes it, and other members of the pool stay.
    ///
    /// | the stream | what the pool does |
    /// |---|---|
    /// | yields changes | applies all that are ready together, at most once in 50 ms |
    /// | removes more than half of the members | waits for 5 s, and applies the removals unless members were added meanwhile |
    /// | removes all members | keeps its members until another one is inserted |
    /// | yields an error | reports it, and polls again after 50 ms to 1 s |
    /// | ends | reports it, and keeps its members |
    /// | yields 65,536 changes that are refused | reports and drops them |
    ///
    /// The stream is polled by a task, whether there are calls or not. The task ends when the pool is dropped, or when
    /// the returned handle aborts it.
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
        mut member: impl FnMut(Arc<str>, V) -> Member + Send + 'static,
    ) -> JoinHandle<()>
    where
        D: Stream<Item = Result<Change<K, V>, E>> + Send + 'static,
        K: fmt::Display + 'static,
        V: 'static,
        E: Into<BoxError> + 'static,
    {
        let changes = changes.map(move |change| {
            change.map(|change| match change {
                Change::Remove(key) => (key.to_string().into(), None),
                Change::Insert(key, value) => {
                    let key: Arc<str> = key.to_string().into();
                    let mut member = member(key.clone(), value);
                    // a removal refers to this key
                    member.key = key.clone();
                    (key, Some(Arc::new(member)))
                }
            })
        });
        self.follow_stream::<_, Changes, _>(changes)
    }
}

impl Pending for Changes {
    type Item = (Arc<str>, Option<Arc<Member>>);

    fn push(&mut self, (key, member): Self::Item) {
        self.insert(key, member);
    }

    fn is_full(&self) -> bool {
        self.len() >= MAX_MEMBERS
    }

    fn apply(&self, pool: &BalanceHandle) -> Result<SnapshotOutcome, InvalidMembers> {
        pool.merge(self)
    }
}
