//! The baseline latency: the time to the response head without queueing in the upstream.
//!
//! It is a long average of the windows' latencies, with four rules. *Down*: a shorter latency is accepted, because load never
//! makes responses faster; after three windows in a row that are much shorter, quickly. *Up*: the average rises to at most
//! 25 % above the last confirmed value, so that a slowly rising load does not raise it. *Patience*: if latencies are 50 %
//! above the confirmed value for two seconds while nothing is refused, the latest is the new confirmed value: a queue whose
//! length nothing limits, and that does not grow, is none. *Confirmation*: if calls are refused in these two seconds,
//! the limiter probes: it lowers its limit to a
//! quarter for a moment. Those responses hardly queue, and their latency is the new confirmed value. So the baseline follows
//! lasting changes both ways and does not mistake overload for one. (BBR probes its round-trip time and Envoy's gradient
//! its minRTT in this way, but periodically; this limiter probes only while it refuses calls to a slow upstream.)
//!
//! The interval between probes doubles from 2 to 32 s while they confirm the baseline, and is at least 32 times as long as
//! the last probe took, 60 s at most: during lasting overload about one thirtieth of the time is spent on probes.

use std::time::Duration;

use tokio::time::Instant;

/// Number of samples after which old and new weigh equally.
const MEMORY: f64 = 320.0;

/// Number of first samples that have equal weight, whatever they are.
const EARLY: f64 = 64.0;

/// The largest ratio between the average and the confirmed value, either way.
const DRIFT: f64 = 1.25;

/// A window slower than the confirmed value times this is not averaged in.
const SLOW: f64 = 1.5;

/// After this many consecutive windows far below the average, it follows quickly: any window that is shorter.
const FAST_WINDOWS: u32 = 3;
const FAST: f64 = 1.1;

const PROBE_AFTER: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: (Duration, Duration) = (PROBE_AFTER, Duration::from_secs(32));
/// The longest interval after a long probe.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(60);
const PROBE_SHARE: u32 = 32;

/// Summary of one window.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatencySample {
    /// The time that a quarter of the good responses did not exceed, in seconds.
    pub(super) latency: f64,
    pub(super) samples: u32,
    /// All slots were in use.
    pub(super) full: bool,
}

/// The average and the last confirmed value, in seconds.
#[derive(Debug)]
pub(super) struct LatencyBaseline {
    average: f64,
    confirmed: f64,
    samples: f64,
    fast_windows: u32,
    /// Start of the current run of saturated windows, or of healthy ones.
    saturated_since: Option<Instant>,
    healthy_since: Option<Instant>,
    /// Start of the current run of slow windows in which nothing was refused.
    slow_since: Option<Instant>,
    /// Earliest time of the next probe.
    next_probe: Option<Instant>,
    probe_interval: Duration,
}

impl LatencyBaseline {
    pub(super) fn new() -> Self {
        Self {
            average: 0.0,
            confirmed: 0.0,
            samples: 0.0,
            fast_windows: 0,
            saturated_since: None,
            healthy_since: None,
            slow_since: None,
            next_probe: None,
            probe_interval: PROBE_INTERVAL.0,
        }
    }

    /// The average; `None` before the first window.
    pub(super) fn get(&self) -> Option<f64> {
        (self.samples > 0.0).then_some(self.average)
    }

    /// Whether the latest window was saturated.
    pub(super) fn is_saturated(&self) -> bool {
        self.saturated_since.is_some()
    }

    /// Adds a window and returns whether a probe is due.
    pub(super) fn update(&mut self, seen: LatencySample, now: Instant) -> bool {
        let slow = self.samples >= EARLY && seen.latency > self.confirmed * SLOW;
        if !slow {
            self.update_average(seen);
            self.slow_since = None;
            if seen.full {
                return false;
            }
            self.saturated_since = None;
            let well = *self.healthy_since.get_or_insert(now);
            if now.saturating_duration_since(well) >= PROBE_AFTER {
                (self.next_probe, self.probe_interval) = (None, PROBE_INTERVAL.0);
            }
            return false;
        }
        (self.fast_windows, self.healthy_since) = (0, None);
        let saturated = *self.saturated_since.get_or_insert(now);
        if !seen.full {
            // a queue that does not grow, though nothing is refused, is no queue
            let since = *self.slow_since.get_or_insert(now);
            if now.saturating_duration_since(since) >= PROBE_AFTER {
                self.confirm(seen.latency, Duration::ZERO, now);
            }
            return false;
        }
        self.slow_since = None;
        now.saturating_duration_since(saturated) >= PROBE_AFTER && self.next_probe.is_none_or(|rested| rested <= now)
    }

    fn update_average(&mut self, seen: LatencySample) {
        let (mean, samples) = (seen.latency, f64::from(seen.samples));
        let early = self.samples < EARLY;
        self.samples = (self.samples + samples).min(MEMORY);
        let much = if self.fast_windows < FAST_WINDOWS { SLOW } else { FAST };
        self.fast_windows = if mean * much < self.average { self.fast_windows + 1 } else { 0 };
        let weight = match self.fast_windows {
            FAST_WINDOWS.. => 0.5,
            // responses queue, and the length of the queue depends on the limit
            _ if seen.full && !early => 0.0,
            // a window may have more samples than `MEMORY`
            _ => (samples / self.samples).min(1.0),
        };
        let average = self.average + weight * (mean - self.average);
        if early {
            (self.average, self.confirmed) = (average, average);
        } else {
            self.average =
                if mean > self.average { average.min(self.average.max(self.confirmed * DRIFT)) } else { average };
            self.confirmed = self.confirmed.min(self.average * DRIFT);
        }
    }

    /// Takes the mean of a probe as the confirmed value; `took` is the probe's duration.
    pub(super) fn confirm(&mut self, mean: f64, took: Duration, now: Instant) {
        let known = mean < self.confirmed * SLOW && mean * SLOW > self.confirmed;
        self.confirmed = if known { f64::midpoint(self.confirmed, mean) } else { mean };
        self.average = self.confirmed;
        self.probe_interval = if known { (self.probe_interval * 2).min(PROBE_INTERVAL.1) } else { PROBE_INTERVAL.0 };
        self.reset(if known { took } else { Duration::ZERO }, now);
    }

    /// Schedules the next probe; also after a probe without a result.
    pub(super) fn reset(&mut self, took: Duration, now: Instant) {
        let rest = self.probe_interval.max((took * PROBE_SHARE).min(MAX_PROBE_INTERVAL));
        (self.next_probe, self.saturated_since, self.slow_since) = (Some(now + rest), None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture(LatencyBaseline, Instant);

    impl Fixture {
        fn new(mean: f64) -> Self {
            let mut told = Self(LatencyBaseline::new(), Instant::now());
            assert_eq!(told.hears(mean, 100), None);
            told
        }

        /// Adds windows of 100 ms with 16 samples; returns how many passed before a probe was due.
        fn hears(&mut self, latency: f64, windows: u32) -> Option<u32> {
            self.is_told(LatencySample { latency, samples: 16, full: false }, windows)
        }

        /// The same while all slots are in use.
        fn is_pressed(&mut self, latency: f64, windows: u32) -> Option<u32> {
            self.is_told(LatencySample { latency, samples: 16, full: true }, windows)
        }

        fn is_told(&mut self, seen: LatencySample, windows: u32) -> Option<u32> {
            (0..windows).find(|_| {
                self.1 += Duration::from_millis(100);
                self.0.update(seen, self.1)
            })
        }

        fn proves(&mut self, mean: f64, millis: u64) {
            self.0.confirm(mean, Duration::from_millis(millis), self.1);
        }

        fn baseline(&self) -> f64 {
            self.0.get().unwrap()
        }
    }

    #[test]
    fn a_rise_is_believed_only_as_far_as_noise_goes() {
        let mut told = Fixture::new(0.040);
        assert_eq!(told.hears(0.055, 1000), None);
        assert!((0.0499..=0.0501).contains(&told.baseline()), "{}", told.baseline());
        // a slowly rising load raises it no further
        for step in 0..1000_u32 {
            told.is_pressed(0.055 + f64::from(step) * 0.001, 1);
        }
        assert!(told.baseline() <= 0.0501);
    }

    #[test]
    fn the_baseline_follows_lasting_speed_and_not_one_fast_window() {
        let mut told = Fixture::new(0.160);
        told.hears(0.010, 1);
        assert!(told.baseline() > 0.150);
        told.hears(0.160, 100);
        told.hears(0.040, 12);
        assert!(told.baseline() < 0.045, "{}", told.baseline());
        assert!(told.is_pressed(0.080, 100).is_some(), "and it is proven");
    }

    #[test]
    fn lasting_slowness_causes_a_probe_and_the_probe_is_trusted() {
        let mut told = Fixture::new(0.040);
        assert_eq!(told.is_pressed(0.200, 100), Some(20));
        assert!((told.baseline() - 0.040).abs() < 1e-9, "it is not the probe");
        told.proves(0.200, 50);
        assert!((told.baseline() - 0.200).abs() < 1e-9);
        assert_eq!(told.is_pressed(0.200, 100), None);
    }

    #[test]
    fn slow_responses_while_nothing_is_refused_are_believed_after_two_seconds() {
        let mut told = Fixture::new(0.010);
        assert_eq!(told.hears(0.400, 20), None);
        assert!((told.baseline() - 0.010).abs() < 1e-9, "a moment proves nothing");
        assert_eq!(told.hears(0.400, 1), None);
        assert!((told.baseline() - 0.400).abs() < 1e-9);
    }

    #[test]
    fn probes_that_find_nothing_new_become_rare_and_good_times_make_them_ready_again() {
        let mut told = Fixture::new(0.040);
        let waits = [(); 7].map(|()| {
            let windows = told.is_pressed(0.100, 10_000);
            told.proves(0.040, 50);
            // one fast window while the queue grows again proves nothing
            told.hears(0.040, 1);
            windows.unwrap()
        });
        assert_eq!(waits, [20, 38, 78, 158, 318, 318, 318]);
        told.hears(0.040, 30);
        assert_eq!(told.is_pressed(0.100, 1000), Some(20));
    }

    #[test]
    fn a_long_probe_is_paid_for_with_a_long_rest() {
        let mut told = Fixture::new(0.040);
        told.is_pressed(0.100, 30);
        told.proves(0.040, 1_000);
        assert_eq!(told.is_pressed(0.100, 1000), Some(319));
        told.proves(0.040, 9_000);
        assert_eq!(told.is_pressed(0.100, 1000), Some(599));
    }
}
