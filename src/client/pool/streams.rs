//! The number of streams on a shared connection, and what has to happen when one of them ends.
//!
//! Count and flags share one word, so that closing a stream is one atomic step: under any interleaving, an evicted
//! connection is closed by exactly one thread, and a request that starts to wait for a stream either finds the one just
//! closed or is served by the thread that closes the next one (`tests/loom` checks the
//! interleavings).
use crate::stats::sync::{AtomicU32, Ordering};

/// The connection was removed from the pool and accepts no new stream.
const EVICTED: u32 = 1 << 31;
/// A request waits for a stream of this connection.
const AWAITED: u32 = 1 << 30;
const COUNT: u32 = AWAITED - 1;

/// The streams of one connection.
///
/// Streams are opened under the pool's lock and closed without it.
#[derive(Debug)]
pub(crate) struct Streams(AtomicU32);

/// The actions required after closing a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamEnd {
    /// The connection was evicted and this was its last stream: close the connection.
    pub(crate) ends_connection: bool,
    /// A request waits for this stream's slot.
    pub(crate) awaited: bool,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The number of open streams.
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Acquire) & COUNT
    }

    /// Opens a stream unless there are `limit` already; called under the pool's lock.
    pub(crate) fn try_open(&self, limit: u32) -> bool {
        let free = self.count() < limit.min(COUNT);
        if free {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
        free
    }

    /// Like [`try_open`](Self::try_open); if there is no slot, closing the next stream reports that one is awaited.
    pub(crate) fn try_open_or_wait(&self, limit: u32) -> bool {
        let free = self.0.fetch_or(AWAITED, Ordering::AcqRel) & COUNT < limit.min(COUNT);
        if free {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
        free
    }

    /// Records that no request waits; called under the pool's lock.
    pub(crate) fn stop_waiting(&self) {
        self.0.fetch_and(!AWAITED, Ordering::AcqRel);
    }

    /// Closes a stream.
    pub(crate) fn close(&self) -> StreamEnd {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        StreamEnd { ends_connection: before & !AWAITED == EVICTED | 1, awaited: before & AWAITED != 0 }
    }

    /// Marks the connection as evicted; returns `true` if no open stream is left to close it.
    pub(crate) fn evict(&self) -> bool {
        let before = self.0.fetch_or(EVICTED, Ordering::AcqRel);
        before & (EVICTED | COUNT) == 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn no_more_streams_are_opened_than_the_limit() {
        let streams = Streams::new();
        assert!(!streams.try_open(0), "a server that drains announces a limit of 0");
        assert!(streams.try_open(2) && streams.try_open(2) && !streams.try_open(2));
        assert!(!streams.try_open(1), "a limit that fell below the count opens nothing");
        assert_eq!(streams.close(), StreamEnd { ends_connection: false, awaited: false });
        assert!(streams.try_open(2));
    }

    #[test]
    fn the_last_stream_of_an_evicted_connection_ends_it_and_no_other() {
        let streams = Streams::new();
        assert!(streams.try_open(9) && streams.try_open(9));
        assert!(!streams.evict());
        assert!(!streams.close().ends_connection);
        assert!(streams.close().ends_connection);
        assert!(!streams.evict(), "it has been ended");
        assert!(Streams::new().evict(), "evicting a connection without streams ends it");
    }

    #[test]
    fn the_end_of_a_stream_reports_a_request_that_waits() {
        let streams = Streams::new();
        assert!(streams.try_open(1) && !streams.try_open_or_wait(1));
        assert!(!streams.evict());
        assert_eq!(streams.close(), StreamEnd { ends_connection: true, awaited: true });
        streams.stop_waiting();
        assert!(streams.try_open(1));
        assert!(!streams.close().awaited);
    }
}
