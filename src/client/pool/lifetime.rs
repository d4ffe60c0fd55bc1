//! How long an HTTP/2 connection takes further streams: its age, its idle time, and the streams on it that were reset.
//!
//! Servers end a connection whose client resets many streams (CVE-2023-44487), and with it all its other streams. On a
//! shared connection, clients that cancel would cost other clients their responses. h2 and hyper allow for 20 streams
//! that were reset before the server had accepted them, Netty for 200 resets in 30 s, nghttp2 for 1000 and 33 more each
//! second, Envoy for 500 of which half live less than 1 s.

use std::time::Duration;

use tokio::time::Instant;

/// If a connection was opened within this time and its peer accepts no stream, another dial would not help.
const DRAINING: Duration = Duration::from_secs(1);
/// A new connection without a stream is not idle before this time: the requests it was opened for have to find it.
const MIN_UNUSED: Duration = Duration::from_secs(1);
/// The time in which resets before a response head are counted.
const BURST: Duration = Duration::from_secs(1);
/// The resets before a response head, in one [`BURST`], after which a connection takes no further stream.
const MAX_BURST: u32 = 10;
/// The resets of any kind after which a connection takes no further stream; its open streams may be reset in addition.
const MAX_RESETS: u32 = 100;
/// The number of streams that share a connection after a burst: together with [`MAX_BURST`], fewer than h2 allows for.
const CAREFUL_STREAMS: u32 = 10;
/// How long connections are shared carefully after a burst.
const CAREFUL: Duration = Duration::from_secs(60);

/// The data that decides whether one connection takes further streams.
#[derive(Debug)]
pub(super) struct Lifetime {
    opened_at: Instant,
    /// When it is too old for further streams.
    retire_at: Option<Instant>,
    /// A stream has been opened on it.
    used: bool,
    resets: u32,
    /// When the burst began, and the resets in it.
    burst: Option<(Instant, u32)>,
    is_worn: bool,
}

impl Lifetime {
    pub(super) fn new(opened_at: Instant, retire_at: Option<Instant>) -> Self {
        Self { opened_at, retire_at, used: false, resets: 0, burst: None, is_worn: false }
    }

    /// Notes that a stream has been opened.
    pub(super) fn on_stream(&mut self) {
        self.used = true;
    }

    /// Notes that this side resets a stream, before its response head or after; `true` if a burst has just ended the
    /// connection's use.
    pub(super) fn on_reset(&mut self, now: Instant, before_head: bool) -> bool {
        let was_worn = self.is_worn;
        self.resets = self.resets.saturating_add(1);
        self.is_worn |= self.resets >= MAX_RESETS;
        if !before_head {
            return false;
        }
        let burst = match self.burst {
            Some((since, count)) if now.saturating_duration_since(since) < BURST => (since, count.saturating_add(1)),
            _ => (now, 1),
        };
        self.burst = Some(burst);
        let ends_use = burst.1 >= MAX_BURST;
        self.is_worn |= ends_use;
        ends_use && !was_worn
    }

    /// Whether further streams should use another connection.
    pub(super) fn is_retired(&self, now: Instant) -> bool {
        self.is_worn || self.retire_at.is_some_and(|at| at <= now)
    }

    /// Whether it was without a stream for too long.
    pub(super) fn is_idle(&self, idle: Duration, limit: Duration) -> bool {
        idle >= if self.used { limit } else { limit.max(MIN_UNUSED) }
    }

    /// Whether it is new, and no stream has been opened on it.
    pub(super) fn is_untried(&self, now: Instant) -> bool {
        !self.used && now.saturating_duration_since(self.opened_at) < DRAINING
    }
}

/// The number of streams that share a connection of a pool.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    careful_until: Option<Instant>,
}

impl Sharing {
    /// Notes a burst of resets.
    pub(super) fn on_burst(&mut self, now: Instant) {
        self.careful_until = now.checked_add(CAREFUL);
    }

    /// The most streams of a connection, where another connection may be opened beside it.
    pub(super) fn streams(&self, now: Instant, max: u32) -> u32 {
        if self.careful_until.is_some_and(|until| now < until) { max.min(CAREFUL_STREAMS) } else { max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_connection_is_retired_at_its_age() {
        let now = Instant::now();
        let lifetime = Lifetime::new(now, Some(now + millis(10)));
        assert!(!lifetime.is_retired(now + millis(9)) && lifetime.is_retired(now + millis(10)));
        assert!(!Lifetime::new(now, None).is_retired(now + CAREFUL));
    }

    #[test]
    fn a_connection_that_no_stream_has_used_is_idle_a_second_later_at_the_earliest() {
        let mut lifetime = Lifetime::new(Instant::now(), None);
        assert!(!lifetime.is_idle(millis(999), millis(5)) && lifetime.is_idle(millis(1000), millis(5)));
        lifetime.on_stream();
        assert!(!lifetime.is_idle(millis(4), millis(5)) && lifetime.is_idle(millis(5), millis(5)));
    }

    #[test]
    fn a_connection_is_untried_for_a_second() {
        let now = Instant::now();
        let mut lifetime = Lifetime::new(now, None);
        assert!(lifetime.is_untried(now + millis(999)) && !lifetime.is_untried(now + millis(1000)));
        lifetime.on_stream();
        assert!(!lifetime.is_untried(now));
    }

    #[test]
    fn a_burst_of_resets_before_the_head_ends_the_use_of_a_connection_once() {
        let now = Instant::now();
        let mut lifetime = Lifetime::new(now, None);
        let ended: Vec<_> = (0..20).map(|n| lifetime.on_reset(now + millis(n * 10), true)).collect();
        assert_eq!(ended.iter().position(|ended| *ended), Some(9));
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
        assert!(lifetime.is_retired(now));
    }

    #[test]
    fn resets_now_and_then_end_the_use_of_a_connection_late() {
        let now = Instant::now();
        for (before_head, millis_between) in [(true, 120), (false, 0)] {
            let mut lifetime = Lifetime::new(now, None);
            for n in 0..99 {
                assert!(!lifetime.on_reset(now + millis(n * millis_between), before_head));
                assert!(!lifetime.is_retired(now), "{n}");
            }
            assert!(!lifetime.on_reset(now + BURST * 60, before_head), "that is no burst");
            assert!(lifetime.is_retired(now));
        }
    }

    #[test]
    fn connections_are_shared_by_few_streams_for_a_minute_after_a_burst() {
        let (mut sharing, now) = (Sharing::default(), Instant::now());
        assert_eq!(sharing.streams(now, 100), 100);
        sharing.on_burst(now);
        assert_eq!((sharing.streams(now, 100), sharing.streams(now, 3)), (CAREFUL_STREAMS, 3));
        assert_eq!(sharing.streams(now + CAREFUL, 100), 100);
        // the streams that are open when a connection's use ends may be reset as well
        const { assert!(MAX_BURST + CAREFUL_STREAMS <= 20) };
    }
}
