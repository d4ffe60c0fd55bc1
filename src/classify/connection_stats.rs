//! Counters of a connection: evidence that no error value carries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
#[cfg(feature = "client")]
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// The number of bytes of a response that are kept to detect its protocol.
const KEPT: usize = 16;

/// One connection's counters, shared between its I/O and the classification of its failures.
///
/// A reset on a reused connection and one on a fresh connection are the same error value; only these counters distinguish a
/// stale keep-alive from a crash. The I/O side writes them without a clock or a lock.
///
/// The counters can also close their connection ([`kill`](Self::kill)): a task blocked in a write never learns
/// that its request was cancelled.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionStats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    peer: Option<SocketAddr>,
    h2: AtomicBool,
    /// Requests started by [`ConnectionStats::begin`]; 0 while it is not used and the I/O side infers them.
    begun: AtomicU32,
    served: AtomicU32,
    /// The number of requests before the one that the I/O side inferred last.
    #[cfg(feature = "client")]
    guessed: AtomicU32,
    written: AtomicU64,
    written_before: AtomicU64,
    /// Bytes read since the request started.
    since: AtomicU64,
    first: [AtomicU64; 2],
    interim: AtomicU32,
    eof: AtomicBool,
    blocked: AtomicBool,
    killed: AtomicBool,
    task: AtomicWaker,
}

/// A snapshot of [`ConnectionStats`]: activity since the request started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WireSnapshot {
    /// Bytes written since the request started.
    pub(crate) written: u64,
    /// Bytes read since the request started; on a fresh connection since it was opened.
    pub(crate) read: u64,
    /// Responses this connection had carried before.
    pub(crate) served: u32,
    /// Interim (1xx) heads of the last response that had any; hyper drops all but 100 and 101.
    pub(crate) interim: u32,
    /// The peer closed its side.
    pub(crate) eof: bool,
    /// The last write was blocked.
    pub(crate) blocked: bool,
    /// The connection carries concurrent requests, so the byte counts do not belong to one of them.
    pub(crate) multiplexed: bool,
    /// The first bytes read, zero-padded.
    pub(crate) first: [u8; KEPT],
}

impl WireSnapshot {
    /// The first bytes read, at most 16.
    pub(crate) fn first_bytes(&self) -> &[u8] {
        let have = usize::try_from(self.read).unwrap_or(KEPT).min(KEPT);
        &self.first[..have]
    }
}

impl ConnectionStats {
    /// Counters for a connection that was just opened.
    pub(crate) fn new(peer: Option<SocketAddr>) -> Self {
        Self(Arc::new(Shared {
            peer,
            h2: AtomicBool::new(false),
            begun: AtomicU32::new(0),
            served: AtomicU32::new(0),
            #[cfg(feature = "client")]
            guessed: AtomicU32::new(0),
            written: AtomicU64::new(0),
            written_before: AtomicU64::new(0),
            since: AtomicU64::new(0),
            first: Default::default(),
            interim: AtomicU32::new(0),
            eof: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            task: AtomicWaker::new(),
        }))
    }

    /// The address at the other end.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// Records the start of a request. Bytes that a fresh connection received before count as its response.
    pub(crate) fn begin(&self) {
        let begun = self.0.begun.load(Relaxed);
        self.0.begun.store(begun.wrapping_add(1).max(1), Relaxed);
        // on a shared connection the counts do not restart for a request
        if self.0.served.load(Relaxed) > 0 && !self.0.h2.load(Relaxed) {
            self.0.since.store(0, Relaxed);
            self.0.written_before.store(self.0.written.load(Relaxed), Relaxed);
        }
    }

    /// Notes that a response head arrived: the connection's next request is on a reused one.
    pub(crate) fn record_response(&self) {
        let served = self.0.served.load(Relaxed);
        self.0.served.store(served.saturating_add(1), Relaxed);
    }

    /// Records that the connection speaks HTTP/2.
    pub(crate) fn multiplexed(&self) {
        self.0.h2.store(true, Relaxed);
    }

    /// Closes the connection: pending and later reads and writes fail.
    pub(crate) fn kill(&self) {
        self.0.killed.store(true, Relaxed);
        self.0.task.wake();
    }

    /// Whether [`kill`](Self::kill) was called.
    pub(crate) fn is_killed(&self) -> bool {
        self.0.killed.load(Relaxed)
    }

    /// A snapshot of the counters.
    pub(crate) fn wire(&self) -> WireSnapshot {
        let shared = &*self.0;
        let mut first = [0; KEPT];
        first[..8].copy_from_slice(&shared.first[0].load(Relaxed).to_ne_bytes());
        first[8..].copy_from_slice(&shared.first[1].load(Relaxed).to_ne_bytes());
        WireSnapshot {
            // the I/O side may advance between the two loads
            written: shared.written.load(Relaxed).saturating_sub(shared.written_before.load(Relaxed)),
            read: shared.since.load(Relaxed),
            served: shared.served.load(Relaxed),
            interim: shared.interim.load(Relaxed),
            eof: shared.eof.load(Relaxed),
            blocked: shared.blocked.load(Relaxed),
            multiplexed: shared.h2.load(Relaxed),
            first,
        }
    }
}

/// The I/O side: a single task writes, so plain loads and stores suffice.
#[cfg(feature = "client")]
impl ConnectionStats {
    /// The number of requests started, for the I/O side's state per response.
    pub(crate) fn begun(&self) -> u32 {
        self.0.begun.load(Relaxed)
    }

    pub(crate) fn record_read(&self, bytes: &[u8]) {
        let shared = &*self.0;
        let since = shared.since.load(Relaxed);
        if since < KEPT as u64 {
            self.keep(since, bytes);
        }
        shared.since.store(since + bytes.len() as u64, Relaxed);
    }

    fn keep(&self, since: u64, bytes: &[u8]) {
        let [low, high] = &self.0.first;
        let whole = bytes.split_first_chunk::<8>().and_then(|(low, rest)| Some((low, rest.first_chunk::<8>()?)));
        if let (0, Some((first, second))) = (since, whole) {
            low.store(u64::from_ne_bytes(*first), Relaxed);
            high.store(u64::from_ne_bytes(*second), Relaxed);
            return;
        }
        let mut first = self.wire().first;
        let at = usize::try_from(since).unwrap_or(KEPT);
        let more = bytes.len().min(KEPT - at);
        first[at..at + more].copy_from_slice(&bytes[..more]);
        if let Some((first, second)) = first.split_first_chunk::<8>() {
            low.store(u64::from_ne_bytes(*first), Relaxed);
            high.store(second.try_into().map_or(0, u64::from_ne_bytes), Relaxed);
        }
    }

    pub(crate) fn record_interim(&self, heads: u32) {
        self.0.interim.store(heads, Relaxed);
    }

    pub(crate) fn record_eof(&self) {
        self.0.eof.store(true, Relaxed);
    }

    pub(crate) fn record_write(&self, bytes: usize) {
        let shared = &*self.0;
        shared.written.store(shared.written.load(Relaxed) + bytes as u64, Relaxed);
        if shared.blocked.load(Relaxed) {
            shared.blocked.store(false, Relaxed);
        }
    }

    pub(crate) fn record_write_blocked(&self) {
        self.0.blocked.store(true, Relaxed);
    }

    /// Without [`begin`](Self::begin) (another client's pool), infers from a write after a read that a request starts; returns whether it does.
    ///
    /// Only once a response has been returned since the last request: a write after an interim response or an incomplete head
    /// belongs to the same request.
    pub(crate) fn infer_request_start(&self) -> bool {
        let shared = &*self.0;
        let served = shared.served.load(Relaxed);
        if served == shared.guessed.load(Relaxed) {
            return false;
        }
        shared.guessed.store(served, Relaxed);
        // on a shared connection the counts do not restart for a request
        if !shared.h2.load(Relaxed) {
            shared.since.store(0, Relaxed);
            shared.written_before.store(shared.written.load(Relaxed), Relaxed);
        }
        true
    }

    pub(crate) fn register_waker(&self, task: &Waker) {
        self.0.task.register(task);
    }
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use super::*;

    #[test]
    fn bytes_before_the_first_request_count_as_its_response() {
        let stamp = ConnectionStats::new(None);
        stamp.record_read(b"SSH-2.0");
        stamp.begin();
        assert_eq!(stamp.wire().first_bytes(), b"SSH-2.0");
    }

    #[test]
    fn a_later_request_begins_at_nought() {
        let stamp = ConnectionStats::new(None);
        stamp.begin();
        stamp.record_write(40);
        stamp.record_read(b"HTTP/1.1 200 OK\r\n\r\n");
        stamp.record_response();
        stamp.begin();
        assert_eq!((stamp.wire().written, stamp.wire().read, stamp.wire().served), (0, 0, 1));
        stamp.record_read(b"HT");
        stamp.record_read(b"TP/1.1 500 Internal Server Error");
        assert_eq!(stamp.wire().first_bytes(), b"HTTP/1.1 500 Int");
    }

    #[test]
    fn a_new_stream_does_not_reset_the_counters_of_others() {
        let stamp = ConnectionStats::new(None);
        stamp.multiplexed();
        stamp.begin();
        stamp.record_write(40);
        stamp.record_response();
        stamp.begin();
        assert_eq!(stamp.wire().written, 40);
    }

    #[test]
    fn a_request_start_is_inferred_only_after_the_previous_response() {
        let stamp = ConnectionStats::new(None);
        stamp.record_write(40);
        stamp.record_read(b"HTTP/1.1 103 Early Hints\r\n\r\n");
        assert!(!stamp.infer_request_start(), "an interim response does not end the request");
        stamp.record_read(b"HTTP/1.1 200 OK\r\n\r\n");
        stamp.record_response();
        assert!(stamp.infer_request_start());
        stamp.record_write(40);
        stamp.record_read(b"HTTP/1.1 2");
        assert!(!stamp.infer_request_start(), "nor is half a head");
        assert_eq!((stamp.wire().written, stamp.wire().read), (40, 10));
    }

    #[test]
    fn bytes_beyond_those_kept_are_only_counted() {
        let stamp = ConnectionStats::new(None);
        stamp.record_read(&[7; 100]);
        stamp.record_read(&[8; 100]);
        assert_eq!(stamp.wire().read, 200);
        assert_eq!(stamp.wire().first_bytes(), [7; 16]);
    }
}
