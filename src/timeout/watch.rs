//! Two looks, half a limit apart, tell a stall from a drip and a stuck upload from a slow client.
//!
//! No clock is read at each I/O: whoever drives the watch reads the connection's counters when a look
//! is due, and the watch compares them with those of the look before.

use std::time::Duration;

use tokio::time::Instant;

use crate::cause::{BadGatewayCause, Phase};

/// What the counters said at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Bytes written to the upstream.
    pub(crate) written: u64,
    /// Bytes read from the upstream since the request began.
    pub(crate) read: u64,
    /// Frames taken from our own client's body.
    pub(crate) taken: u32,
    /// The request body is not through yet.
    pub(crate) uploading: bool,
    /// The upload waits for our own client, not for the upstream.
    pub(crate) client_late: bool,
    /// The connection took no more bytes.
    pub(crate) blocked: bool,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// Look again at this time.
    Again(Instant),
    /// The limit has passed, for this reason.
    Passed(BadGatewayCause, Phase),
}

/// Watches one attempt up to its response head.
#[derive(Debug)]
pub(crate) struct Watch {
    limit: Duration,
    /// Since when nothing moved; once the upload is through, since then.
    since: Instant,
    last: Look,
}

impl Watch {
    /// Begins a watch at the time the request was sent.
    pub(crate) fn new(now: Instant, limit: Duration) -> Self {
        Self { limit, since: now, last: Look { uploading: true, ..Look::default() } }
    }

    /// When the first look is due; the watch itself may be made then.
    pub(crate) fn first(now: Instant, limit: Duration) -> Instant {
        now + limit / 2
    }

    /// Compares with the look before; `uploaded` is when the request body ended, if it has.
    pub(crate) fn look(&mut self, now: Instant, look: Look, uploaded: Option<Instant>) -> Finding {
        let last = std::mem::replace(&mut self.last, look);
        let moved = look.written != last.written || look.taken != last.taken;
        if look.uploading && moved {
            self.since = now;
        } else if !look.uploading && last.uploading {
            self.since = uploaded.unwrap_or(self.since).max(self.since);
        }
        let due = self.since + self.limit;
        if now < due {
            return Finding::Again(due.min(now + self.limit / 2));
        }
        let (cause, phase) = if look.uploading && look.client_late {
            (BadGatewayCause::UploadStalled, Phase::Send)
        } else if look.uploading || look.blocked {
            (BadGatewayCause::WriteTimeout, Phase::Send)
        } else if look.read == 0 {
            (BadGatewayCause::FirstByteTimeout, Phase::Wait)
        } else if look.read != last.read {
            (BadGatewayCause::HeadTimeout, Phase::Head)
        } else {
            (BadGatewayCause::FirstByteTimeout, Phase::Head)
        };
        Finding::Passed(cause, phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);
    const TICK: Duration = Duration::from_secs(1);

    /// Looks when told to, with the counters of that second.
    fn run(counters: impl Fn(u32) -> Look, uploaded: Option<u32>) -> (u32, BadGatewayCause) {
        let start = Instant::now();
        let mut watch = Watch::new(start, LIMIT);
        let mut due = Watch::first(start, LIMIT);
        for _ in 0..60 {
            let second = u32::try_from((due - start).as_secs()).unwrap();
            let uploaded = uploaded.map(|at| start + TICK * at);
            match watch.look(due, counters(second), uploaded) {
                Finding::Again(next) => {
                    assert!(next > due, "a look leads forward");
                    due = next;
                }
                Finding::Passed(cause, _) => return (second, cause),
            }
        }
        panic!("the limit never passed");
    }

    #[test]
    fn without_a_body_the_limit_runs_from_the_start() {
        assert_eq!(run(|_| Look::default(), None), (2, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn with_a_body_the_limit_runs_from_its_end() {
        let look = |second| Look { uploading: second < 5, taken: second, ..Look::default() };
        let (second, cause) = run(look, Some(4));
        assert_eq!((second, cause), (6, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn a_head_that_drips_is_told_from_one_that_stalls() {
        let drip = |second: u32| Look { read: second.into(), ..Look::default() };
        assert_eq!(run(drip, None), (2, BadGatewayCause::HeadTimeout));
        let stall = |_| Look { read: 9, ..Look::default() };
        assert_eq!(run(stall, None), (2, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn an_upload_that_moves_is_never_late() {
        let look = |second| Look { uploading: second < 40, taken: second, ..Look::default() };
        assert_eq!(run(look, None).0, 41);
    }

    #[test]
    fn an_upload_stands_still_for_its_client_or_for_the_upstream() {
        let client = |_| Look { uploading: true, client_late: true, ..Look::default() };
        assert_eq!(run(client, None), (2, BadGatewayCause::UploadStalled));
        let upstream = |_| Look { uploading: true, ..Look::default() };
        assert_eq!(run(upstream, None), (2, BadGatewayCause::WriteTimeout));
    }

    #[test]
    fn a_request_that_was_not_flushed_is_not_the_answers_fault() {
        let look = |_| Look { blocked: true, ..Look::default() };
        assert_eq!(run(look, None), (2, BadGatewayCause::WriteTimeout));
    }
}
