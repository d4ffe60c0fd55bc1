//! Detects stalls by two checks half a timeout apart: tells a stall from slow progress, and a stuck upload from a slow client.
//!
//! No clock is read per I/O operation: a check reads the connection's counters when it is due and compares them with those
//! of the previous check.

use std::time::Duration;

use tokio::time::Instant;

use crate::cause::{BadGatewayCause, Phase};
use crate::exchange::AttemptProgress;

/// The resolution of timers.
const TICK: Duration = Duration::from_millis(1);

/// The state of one attempt between two checks.
#[derive(Debug)]
pub(super) struct StallDetector {
    /// The longest stall; `None`: unlimited.
    limit: Option<Duration>,
    /// Time of the last progress; after the upload, the time it ended.
    last_progress: Instant,
    uploading: bool,
    written: u64,
    frames: u32,
    read: u64,
}

/// What a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// The next check is due; the timeout has passed if that is now.
    pub(super) due: Option<Instant>,
    /// The upload is not finished, and it is the client's turn or was between the checks.
    pub(super) client_uploads: bool,
    /// Bytes read at the check before.
    pub(super) read_before: u64,
}

impl StallDetector {
    /// Starts at the time the call started.
    pub(super) fn new(begun: Instant, limit: Option<Duration>) -> Self {
        Self { limit, last_progress: begun, uploading: true, written: 0, frames: 0, read: 0 }
    }

    /// Compares the progress with that of the previous check.
    pub(super) fn check(&mut self, now: Instant, progress: &AttemptProgress) -> Check {
        let (uploading, taken) = (is_uploading(progress), progress.upload.map_or(0, |upload| upload.frames));
        let moved = progress.written != self.written || taken != self.frames;
        if uploading && moved {
            self.last_progress = now;
        } else if !uploading && self.uploading {
            let ended = progress.upload.and_then(|upload| upload.ended);
            self.last_progress = ended.unwrap_or(self.last_progress).max(self.last_progress);
        }
        let read_before = std::mem::replace(&mut self.read, progress.read);
        (self.uploading, self.written, self.frames) = (uploading, progress.written, taken);
        let due = self.limit.map(|limit| {
            let due = self.last_progress + limit;
            // never twice at the same time, however short the limit
            if due <= now { now } else { due.min(now + (limit / 2).max(TICK)) }
        });
        Check { due, client_uploads: uploading && (moved || is_client_late(progress)), read_before }
    }

    /// Lengthens the timeout, to `most` at most; returns when it passes.
    pub(super) fn extend(&mut self, limit: Duration, most: Option<Duration>) -> Option<Instant> {
        self.limit = Some(most.map_or(limit, |most| limit.min(most)));
        self.limit.map(|limit| self.last_progress + limit)
    }

    /// Time of the last progress; after the upload, the time it ended.
    pub(super) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// The timeout.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.limit
    }
}

fn is_uploading(progress: &AttemptProgress) -> bool {
    progress.upload.is_some_and(|upload| upload.ended.is_none())
}

fn is_client_late(progress: &AttemptProgress) -> bool {
    progress.upload.is_some_and(|upload| upload.client_stalled)
}

/// The phase an attempt is in.
pub(super) fn phase(progress: &AttemptProgress) -> Phase {
    match progress.stage {
        Some(stage) => stage,
        None if is_uploading(progress) || progress.blocked => Phase::Send,
        None if progress.read == 0 => Phase::Wait,
        None => Phase::Head,
    }
}

/// The cause and the phase of an attempt that timed out.
pub(super) fn cause_and_phase(progress: &AttemptProgress, read_before: u64) -> (BadGatewayCause, Phase) {
    let phase = phase(progress);
    let cause = match phase {
        Phase::Pool => BadGatewayCause::QueueTimeout,
        Phase::Resolve => BadGatewayCause::DnsTimeout,
        Phase::Connect => BadGatewayCause::ConnectTimeout,
        Phase::Tls => BadGatewayCause::TlsTimeout,
        Phase::Send if is_uploading(progress) && is_client_late(progress) => BadGatewayCause::UploadStalled,
        Phase::Send => BadGatewayCause::WriteTimeout,
        Phase::Head if progress.read != read_before => BadGatewayCause::HeadTimeout,
        _ => BadGatewayCause::FirstByteTimeout,
    };
    (cause, phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::UploadProgress;

    const LIMIT: Duration = Duration::from_secs(2);
    const SECOND: Duration = Duration::from_secs(1);

    /// Checks when a check is due, with the progress of that second.
    fn run(seen: impl Fn(u32, Instant) -> AttemptProgress) -> (u32, BadGatewayCause) {
        let start = Instant::now();
        let mut state = StallDetector::new(start, Some(LIMIT));
        let mut due = start + LIMIT / 2;
        for _ in 0..60 {
            let second = u32::try_from((due - start).as_secs()).unwrap();
            let progress = seen(second, start);
            let check = state.check(due, &progress);
            let next = check.due.unwrap();
            if next == due {
                return (second, cause_and_phase(&progress, check.read_before).0);
            }
            assert!(next > due);
            due = next;
        }
        panic!("the limit never passed");
    }

    fn upload(taken: u32, client_late: bool, ended: Option<Instant>) -> AttemptProgress {
        AttemptProgress {
            reported: true,
            upload: Some(UploadProgress { frames: taken, client_stalled: client_late, ended }),
            ..AttemptProgress::default()
        }
    }

    #[test]
    fn without_a_body_the_limit_runs_from_the_start() {
        assert_eq!(run(|_, _| AttemptProgress::default()), (2, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn with_a_body_the_limit_runs_from_its_end() {
        let seen = |second, start| upload(second, false, (second >= 5).then_some(start + SECOND * 4));
        assert_eq!(run(seen), (6, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn a_slow_head_is_distinguished_from_a_stalled_one() {
        let drip = |second: u32, _| AttemptProgress { read: second.into(), ..AttemptProgress::default() };
        assert_eq!(run(drip), (2, BadGatewayCause::HeadTimeout));
        let stall = |_, _| AttemptProgress { read: 9, ..AttemptProgress::default() };
        assert_eq!(run(stall), (2, BadGatewayCause::FirstByteTimeout));
    }

    #[test]
    fn an_upload_that_moves_is_never_late() {
        let seen = |second, start| upload(second, false, (second >= 40).then_some(start + SECOND * 39));
        assert_eq!(run(seen).0, 41);
    }

    #[test]
    fn an_upload_stands_still_for_its_client_or_for_the_upstream() {
        assert_eq!(run(|_, _| upload(0, true, None)), (2, BadGatewayCause::UploadStalled));
        assert_eq!(run(|_, _| upload(0, false, None)), (2, BadGatewayCause::WriteTimeout));
    }

    #[test]
    fn an_unfinished_upload_is_the_clients_while_it_moves_and_while_it_waits_for_the_client() {
        let start = Instant::now();
        let looks = |seen: [AttemptProgress; 2]| {
            let mut state = StallDetector::new(start, None);
            seen.map(|progress| state.check(start, &progress).client_uploads)
        };
        let written = |bytes| AttemptProgress { written: bytes, ..upload(1, false, None) };
        assert_eq!(looks([written(1), written(2)]), [true, true]);
        assert_eq!(looks([written(1), written(1)]), [true, false], "the upstream does not read");
        assert_eq!(looks([upload(1, true, None), upload(1, true, None)]), [true, true]);
        assert_eq!(looks([upload(1, false, Some(start)), upload(1, true, Some(start))]), [false, false]);
    }

    #[test]
    fn an_unflushed_request_is_a_write_timeout() {
        let seen = |_, _| AttemptProgress { blocked: true, ..AttemptProgress::default() };
        assert_eq!(run(seen), (2, BadGatewayCause::WriteTimeout));
    }

    #[test]
    fn the_phase_before_a_connection_is_named() {
        let stages = [
            (Phase::Pool, BadGatewayCause::QueueTimeout),
            (Phase::Resolve, BadGatewayCause::DnsTimeout),
            (Phase::Connect, BadGatewayCause::ConnectTimeout),
            (Phase::Tls, BadGatewayCause::TlsTimeout),
        ];
        for (stage, cause) in stages {
            assert_eq!(cause_and_phase(&AttemptProgress::before(stage), 0), (cause, stage));
        }
    }
}
