//! Tells every connection, once, to finish what runs and close.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

#[derive(Clone, Default)]
pub(crate) struct Drain(Arc<Shared>);

#[derive(Default)]
struct Shared {
    begun: AtomicBool,
    open: Mutex<Open>,
    word: Notify,
    empty: Notify,
}

#[derive(Default)]
struct Open {
    last: u64,
    tasks: HashMap<u64, Option<Waker>>,
}

impl Drain {
    /// `tell` is the connection's own way to say so.
    pub(crate) fn watch<C>(&self, connection: C, tell: fn(Pin<&mut C>)) -> Watched<C> {
        let mut open = self.0.open.lock().expect("nobody panics here");
        open.last += 1;
        let id = open.last;
        open.tasks.insert(id, None);
        Watched { connection: Box::pin(connection), tell, id, told: false, known: false, shared: self.0.clone() }
    }

    /// Waits for the beginning, where there is no connection to tell yet.
    pub(crate) async fn begun(&self) {
        let word = self.0.word.notified();
        if !self.0.begun.load(Ordering::SeqCst) {
            word.await;
        }
    }

    /// Begins, and waits until the last connection is gone.
    pub(crate) async fn finish(self) {
        self.0.begun.store(true, Ordering::SeqCst);
        self.0.word.notify_waiters();
        loop {
            let empty = self.0.empty.notified();
            {
                let open = self.0.open.lock().expect("nobody panics here");
                if open.tasks.is_empty() {
                    return;
                }
                open.tasks.values().flatten().for_each(Waker::wake_by_ref);
            }
            empty.await;
        }
    }
}

/// A connection that looks for the word at each poll: one load, where a channel would cost a poll.
pub(crate) struct Watched<C> {
    connection: Pin<Box<C>>,
    tell: fn(Pin<&mut C>),
    id: u64,
    told: bool,
    known: bool,
    shared: Arc<Shared>,
}

impl<C: Future> Future for Watched<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if !this.known {
            this.known = true;
            let mut open = this.shared.open.lock().expect("nobody panics here");
            open.tasks.insert(this.id, Some(cx.waker().clone()));
        }
        if !this.told && this.shared.begun.load(Ordering::SeqCst) {
            this.told = true;
            (this.tell)(this.connection.as_mut());
        }
        this.connection.as_mut().poll(cx)
    }
}

impl<C> Drop for Watched<C> {
    fn drop(&mut self) {
        let mut open = self.shared.open.lock().expect("nobody panics here");
        open.tasks.remove(&self.id);
        if open.tasks.is_empty() {
            self.shared.empty.notify_one();
        }
    }
}
