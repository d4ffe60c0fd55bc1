//! Models of `src/body/loan.rs`: a body between the attempt that has it and the retry that wants it.

#[path = "../../src/body/loan.rs"]
mod loan;

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use loan::{Loan, RecallRequest};

/// What is lent; loom itself watches the cell: two at once, or one who does not see the other's access, fail the model.
struct Thing(UnsafeCell<()>);

impl Thing {
    fn lent() -> Self {
        Self(UnsafeCell::new(()))
    }

    fn read(&self) -> u32 {
        self.0.with_mut(|_| 1)
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn flag() -> (Arc<Flag>, Waker) {
    let flag = Arc::new(Flag(AtomicBool::new(false)));
    (flag.clone(), flag.into())
}

#[test]
fn what_is_given_back_is_taken_once_and_seen_as_it_was_left() {
    loom::model(|| {
        let loan = Arc::new(Loan::new());
        let holder = {
            let loan = loan.clone();
            thread::spawn(move || {
                let thing = Thing::lent();
                thing.read();
                loan.give_back(thing);
            })
        };
        let taken = |loan: &Loan<Thing>| loan.take().map_or(0, |thing| thing.read());
        let early = taken(&loan);
        holder.join().unwrap();
        assert_eq!(early + taken(&loan), 1);
    });
}

#[test]
fn an_owner_that_waits_is_woken_when_the_thing_is_there() {
    loom::model(|| {
        let loan = Arc::new(Loan::new());
        let holder = {
            let loan = loan.clone();
            thread::spawn(move || loan.give_back(Thing::lent()))
        };
        let (woken, waker) = flag();
        let mut cx = Context::from_waker(&waker);
        let waited = loan.poll_take(&mut cx).is_pending();
        holder.join().unwrap();
        if waited {
            assert!(woken.0.load(Ordering::Acquire));
            assert!(loan.poll_take(&mut cx).is_ready());
        }
        assert_eq!(loan.request(), RecallRequest::WhenDone);
    });
}

#[test]
fn a_holder_that_waits_is_told_or_woken_when_the_owner_wants_the_thing() {
    loom::model(|| {
        let loan = Arc::new(Loan::new());
        let (woken, waker) = flag();
        let holder = {
            let loan = loan.clone();
            thread::spawn(move || {
                let thing = Thing::lent();
                thing.read();
                let told = loan.wait(&waker) == RecallRequest::Now;
                if told {
                    loan.give_back(thing);
                    return None;
                }
                Some(thing)
            })
        };
        let (_, owner) = flag();
        let mut cx = Context::from_waker(&owner);
        let early = matches!(loan.poll_take(&mut cx), Poll::Ready(_));
        if let Some(thing) = holder.join().unwrap() {
            assert!(!early && woken.0.load(Ordering::Acquire), "it sleeps with what the owner waits for");
            assert_eq!(loan.request(), RecallRequest::Now);
            loan.give_back(thing);
        }
        assert!(early || loan.take().is_some());
    });
}

#[test]
fn what_comes_back_after_the_owner_left_is_dropped() {
    loom::model(|| {
        let loan = Arc::new(Loan::new());
        let thing = Arc::new(());
        let holder = {
            let (loan, thing) = (loan.clone(), thing.clone());
            thread::spawn(move || loan.give_back(thing))
        };
        loan.abandon();
        holder.join().unwrap();
        assert_eq!(Arc::strong_count(&thing), 1, "kept for nobody");
        assert!(loan.take().is_none());
    });
}

#[test]
fn one_thread_reads_while_the_other_has_nothing() {
    // the attempt reads frame by frame; the retry takes over in the middle
    loom::model(|| {
        let loan = Arc::new(Loan::new());
        let holder = {
            let loan = loan.clone();
            thread::spawn(move || {
                let thing = Thing::lent();
                for _ in 0..2 {
                    if loan.request() == RecallRequest::Now {
                        break;
                    }
                    thing.read();
                }
                loan.give_back(thing);
            })
        };
        let (_, waker) = flag();
        let mut cx = Context::from_waker(&waker);
        let mut reads = 0;
        if let Poll::Ready(thing) = loan.poll_take(&mut cx) {
            reads += thing.read();
        }
        holder.join().unwrap();
        reads += loan.take().map_or(0, |thing| thing.read());
        assert_eq!(reads, 1);
    });
}
