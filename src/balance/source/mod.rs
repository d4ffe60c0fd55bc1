//! Sources of members: each has a task of its own, which does not keep the pool alive.

mod changes;
#[cfg(feature = "client")]
mod dns;
mod file;
mod poll;
mod snapshots;
mod stream;

use std::fmt::Write;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Weak};

use futures_util::future::select;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::handle::BalanceHandle;
use super::member::Member;
use super::membership::{InvalidMembers, SnapshotOutcome};
use super::pool::{Follow, PoolState, locked};
use crate::body::BoxError;

/// The longest text of a reported error, in characters.
const MAX_TEXT: usize = 500;

/// Pool of a source, which does not keep it alive.
struct Source {
    state: Weak<PoolState>,
    pool: Weak<dyn Follow>,
    /// The problem that was logged last; a new one is logged again.
    problem: Option<String>,
}

impl BalanceHandle {
    /// Runs a source until it ends or the pool is dropped.
    fn spawn_source<R>(&self, run: impl FnOnce(Source) -> R) -> JoinHandle<()>
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let source = Source { state: Arc::downgrade(&self.state), pool: Arc::downgrade(&self.pool), problem: None };
        let run = run(source);
        // the receiver does not keep the pool alive, and its `changed` errs when the pool is dropped
        let mut members = self.state.members.subscribe();
        tokio::spawn(async move {
            let dropped = async move { while members.changed().await.is_ok() {} };
            select(pin!(dropped), pin!(run)).await;
        })
    }
}

impl Source {
    fn handle(&self) -> Option<BalanceHandle> {
        Some(BalanceHandle { state: self.state.upgrade()?, pool: self.pool.upgrade()? })
    }

    /// Changes the members, and reports a change that is not applied. Does nothing once the pool is dropped.
    fn change(
        &mut self,
        change: impl FnOnce(&BalanceHandle) -> Result<SnapshotOutcome, InvalidMembers>,
    ) -> Result<SnapshotOutcome, InvalidMembers> {
        let Some(handle) = self.handle() else { return Ok(SnapshotOutcome::Unchanged) };
        let changed = change(&handle);
        match &changed {
            Ok(SnapshotOutcome::AwaitsConfirmation) => {
                let status = locked(&handle.state.membership).status(Instant::now());
                self.report(&status.problem.unwrap_or_default());
            }
            Ok(_) if self.problem.take().is_some() => {
                let upstream = handle.name();
                tracing::info!(target: "tower_upstream", upstream, "the source of the members works again");
            }
            Ok(_) => {}
            Err(error) => self.report(&text(&error.clone().into())),
        }
        changed
    }

    fn report(&mut self, problem: &str) {
        let Some(handle) = self.handle() else { return };
        if self.problem.as_deref() == Some(problem) {
            locked(&handle.state.membership).fail(&problem);
        } else {
            handle.source_failed(problem);
            self.problem = Some(problem.to_owned());
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report("the source of the members panicked: it is no longer followed");
        }
    }
}

/// Returns the text of an error and of its sources, unless its own text contains theirs.
fn text(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.to_string();
        if !text.contains(&inner) {
            let _ = write!(text, ": {inner}");
        }
        source = error.source();
    }
    text.chars().take(MAX_TEXT).collect()
}

/// Sorts members by key: DNS rotates addresses, and a list is compared with the one before.
fn sorted(members: impl IntoIterator<Item = Member>) -> Vec<Member> {
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort_by(|one, other| one.key.cmp(&other.key));
    members
}
