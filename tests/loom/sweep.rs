//! Models of `src/exchange/entry.rs`: a body between its consumer, which polls and drops it, and the sweep.

use std::sync::Arc;
use std::task::Poll;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

use crate::exchange::entry::{Activity, Entry, Registry};

/// Counts how often it was given back.
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}

type Body = Arc<Entry<Permit, &'static str>>;

fn body() -> (Body, Arc<AtomicUsize>) {
    let returned = Arc::new(AtomicUsize::new(0));
    (Arc::new(Entry::new(Permit(returned.clone()))), returned)
}

/// As a pass over one body whose idle limit is over; whether it has expired.
fn sweep(body: &Body) -> bool {
    body.sample() == Activity::Unread
        && body.try_expire(true, |permit| {
            drop(permit);
            "unread"
        })
}

#[test]
fn what_a_body_keeps_is_given_back_once_by_the_sweep_or_by_its_consumer() {
    for is_ready in [false, true] {
        loom::model(move || {
            let (body, returned) = body();
            let sweeps = {
                let body = body.clone();
                thread::spawn(move || {
                    // the first of them marks it as unread
                    sweep(&body);
                    sweep(&body);
                })
            };
            let polled = body.poll(|_| if is_ready { Poll::Ready(()) } else { Poll::Pending });
            let failure = polled.err().map(|failure| failure.expect("the reason is told"));
            let taken = body.take();
            assert!(failure.is_none() || taken.is_none());
            drop(taken);
            sweeps.join().unwrap();
            assert!(body.poll(|_| Poll::Ready(())).is_err());
            assert_eq!(returned.load(Relaxed), 1);
        });
    }
}

#[test]
fn a_body_that_was_read_since_the_last_look_does_not_expire() {
    loom::model(|| {
        let (body, returned) = body();
        assert_eq!(body.sample(), Activity::Read);
        let sweeps = {
            let body = body.clone();
            // one look alone: what it saw may be old by now
            thread::spawn(move || sweep(&body))
        };
        let is_open = body.poll(|_| Poll::Ready(())).is_ok();
        let has_expired = sweeps.join().unwrap();
        assert_eq!(is_open, !has_expired);
        assert_eq!(returned.load(Relaxed), usize::from(has_expired));
    });
}

#[test]
fn a_consumer_that_polls_the_body_at_this_moment_keeps_it() {
    loom::model(|| {
        let (body, returned) = body();
        let expires = {
            let body = body.clone();
            thread::spawn(move || body.try_expire(false, drop_permit))
        };
        let count = returned.clone();
        let polled = body.poll(|_| {
            assert_eq!(count.load(Relaxed), 0, "it is there while it is polled");
            Poll::<()>::Pending
        });
        let has_expired = expires.join().unwrap();
        assert!(polled.is_ok() || has_expired);
        drop(body);
        assert_eq!(returned.load(Relaxed), 1);
    });
}

fn drop_permit(permit: Permit) -> &'static str {
    drop(permit);
    "late"
}

#[test]
fn a_body_that_takes_the_key_of_another_does_not_expire_in_its_place() {
    loom::model(|| {
        let registry = Arc::new(Mutex::new(Registry::default()));
        let (first, returned) = body();
        let key = registry.lock().unwrap().add(first.clone());
        let sweep = {
            // the sweep has found it, and its limit is over
            let (registry, found) = (registry.clone(), first.clone());
            thread::spawn(move || {
                if found.try_expire(false, drop_permit) {
                    registry.lock().unwrap().expire(key, |open: &Body| Arc::ptr_eq(open, &found));
                }
            })
        };
        // as a body that is dropped
        let removed = registry.lock().unwrap().remove(key);
        drop((removed, first.take()));
        let (second, still_open) = body();
        let key = registry.lock().unwrap().add(second);
        sweep.join().unwrap();
        let mut registry = registry.lock().unwrap();
        assert_eq!((returned.load(Relaxed), still_open.load(Relaxed)), (1, 0));
        assert_eq!((registry.open(), registry.remove(key).is_some()), (1, true));
    });
}
