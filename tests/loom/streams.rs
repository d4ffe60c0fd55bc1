//! The streams on a shared connection: its eviction, and requests that wait for a stream.

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

use crate::pool::streams::Streams;

/// What the pool keeps of one connection.
struct Connection {
    streams: Streams,
    /// How often the connection was ended.
    ended: AtomicUsize,
    /// The pool's lock: how many requests wait, and how many of them were given a stream.
    queue: Mutex<(u32, u32)>,
}

impl Connection {
    fn with_streams(count: u32) -> Arc<Self> {
        let streams = Streams::new();
        (0..count).for_each(|_| assert!(streams.try_open(count)));
        Arc::new(Self { streams, ended: AtomicUsize::new(0), queue: Mutex::new((0, 0)) })
    }

    /// As the end of an `H2`.
    fn close(&self) {
        let end = self.streams.close();
        if end.ends_connection {
            self.ended.fetch_add(1, Relaxed);
        }
        if end.awaited {
            let mut queue = self.queue.lock().unwrap();
            while queue.0 > 0 && self.streams.try_open_or_wait(1) {
                *queue = (queue.0 - 1, queue.1 + 1);
            }
            if queue.0 == 0 {
                self.streams.stop_waiting();
            }
        }
    }

    fn evict(&self) {
        if self.streams.evict() {
            self.ended.fetch_add(1, Relaxed);
        }
    }

    /// Takes a stream or queues for one; as `next_h2`.
    fn lease(&self) -> bool {
        let mut queue = self.queue.lock().unwrap();
        let leased = self.streams.try_open(1) || self.streams.try_open_or_wait(1);
        queue.0 += u32::from(!leased);
        leased
    }
}

#[test]
fn an_evicted_connection_is_ended_by_one_thread_whoever_is_last() {
    loom::model(|| {
        let connection = Connection::with_streams(2);
        let threads = [0, 1].map(|_| {
            let connection = connection.clone();
            thread::spawn(move || connection.close())
        });
        connection.evict();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(connection.ended.load(Relaxed), 1);
    });
}

#[test]
fn a_connection_that_two_evict_is_ended_once() {
    loom::model(|| {
        let connection = Connection::with_streams(1);
        let other = {
            let connection = connection.clone();
            thread::spawn(move || connection.evict())
        };
        connection.evict();
        connection.close();
        other.join().unwrap();
        assert_eq!(connection.ended.load(Relaxed), 1);
    });
}

#[test]
fn a_request_that_begins_to_wait_as_a_stream_ends_gets_the_stream() {
    loom::model(|| {
        let connection = Connection::with_streams(1);
        let other = {
            let connection = connection.clone();
            thread::spawn(move || connection.close())
        };
        let leased = connection.lease();
        other.join().unwrap();
        let (waiting, given) = *connection.queue.lock().unwrap();
        assert_eq!((waiting, u32::from(leased) + given, connection.streams.count()), (0, 1, 1));
    });
}

#[test]
fn requests_that_wait_are_served_in_turn_and_none_is_forgotten() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let connection = Connection::with_streams(1);
        let waits = {
            let connection = connection.clone();
            thread::spawn(move || {
                if connection.lease() {
                    connection.close();
                }
            })
        };
        let closes = {
            let connection = connection.clone();
            thread::spawn(move || connection.close())
        };
        if connection.lease() {
            connection.close();
        }
        waits.join().unwrap();
        closes.join().unwrap();
        let given = connection.queue.lock().unwrap().1;
        // each that was given a stream holds it; the second waits for it
        let (waiting, _) = *connection.queue.lock().unwrap();
        assert_eq!(connection.streams.count(), given.min(1));
        assert!(waiting == 0 || given == 1, "{waiting} wait beside a free stream");
    });
}
