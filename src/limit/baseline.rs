//! How long an answer takes when nothing waits in line for it.
//!
//! A long average of the windows' means, with three rules. *Down*: what is shorter is believed, as no load makes answers
//! quicker; where three windows in a row are much shorter, soon. *Up*: the average drifts to a quarter above what was proven
//! last and no further, or a load that rises slowly would take it along. *Proof*: when windows have been pressed for two
//! seconds, that is half as long again as what was proven or with every slot in use, the limiter goes on with a quarter of its
//! limit for a moment. Those answers have next to no line before them, and their mean is what is proven from then on. So a
//! lasting change is followed both ways, and an overload is not taken for one. (BBR probes for its round trip in this way,
//! and Envoy's gradient for its minRTT; those do it by the clock, this one only where it is pressed.)
//!
//! While probes find what was known the rest after them doubles, from 2 to 32 s, and is at least 32 times as long as the
//! probe took, a minute at most: under a lasting overload about one part in thirty is spent on probes.

use std::time::Duration;

use tokio::time::Instant;

/// So many samples weigh as much as all before.
const MEMORY: f64 = 320.0;

/// The average may be this much above what was proven, or below.
const DRIFT: f64 = 1.25;

/// What is longer than this times what was proven is not taken into the average.
const SLOW: f64 = 1.5;

/// So many windows in a row that are much shorter than the average prove that it is; then all that are shorter do.
const FAST_WINDOWS: u32 = 3;
const FAST: f64 = 1.1;

const PROBE_AFTER: Duration = Duration::from_secs(2);
const PROBE_INTERVAL: (Duration, Duration) = (PROBE_AFTER, Duration::from_secs(32));
/// The longest rest after a probe that took long.
const MAX_PROBE_INTERVAL: Duration = Duration::from_secs(60);
const PROBE_SHARE: u32 = 32;

/// What a window was like.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatencySample {
    /// The mean answer time, in seconds.
    pub(super) mean: f64,
    pub(super) samples: u32,
    /// Every slot was in use.
    pub(super) full: bool,
}

/// The average, and what is known of its truth; in seconds.
#[derive(Debug)]
pub(super) struct LatencyBaseline {
    average: f64,
    confirmed: f64,
    samples: f64,
    fast_windows: u32,
    /// Since when all windows have been pressed, or since when none has.
    saturated_since: Option<Instant>,
    healthy_since: Option<Instant>,
    /// No probe before this.
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
            next_probe: None,
            probe_interval: PROBE_INTERVAL.0,
        }
    }

    /// The average; none before the first window.
    pub(super) fn get(&self) -> Option<f64> {
        (self.samples > 0.0).then_some(self.average)
    }

    /// Whether windows are pressed.
    pub(super) fn is_saturated(&self) -> bool {
        self.saturated_since.is_some()
    }

    /// Takes in a window; whether it is time for a probe.
    pub(super) fn update(&mut self, seen: LatencySample, now: Instant) -> bool {
        // the first samples count alike, whatever they are
        let slow = self.samples >= MEMORY && seen.mean > self.confirmed * SLOW;
        if slow {
            self.fast_windows = 0;
        } else {
            self.update_average(seen);
        }
        if !slow && !seen.full {
            self.saturated_since = None;
            let well = *self.healthy_since.get_or_insert(now);
            if now.saturating_duration_since(well) >= PROBE_AFTER {
                (self.next_probe, self.probe_interval) = (None, PROBE_INTERVAL.0);
            }
            return false;
        }
        self.healthy_since = None;
        let pressed = *self.saturated_since.get_or_insert(now);
        now.saturating_duration_since(pressed) >= PROBE_AFTER && self.next_probe.is_none_or(|rested| rested <= now)
    }

    fn update_average(&mut self, seen: LatencySample) {
        let (mean, samples) = (seen.mean, f64::from(seen.samples));
        let early = self.samples < MEMORY;
        self.samples = (self.samples + samples).min(MEMORY);
        let much = if self.fast_windows < FAST_WINDOWS { SLOW } else { FAST };
        self.fast_windows = if mean * much < self.average { self.fast_windows + 1 } else { 0 };
        let weight = match self.fast_windows {
            FAST_WINDOWS.. => 0.5,
            // there is a line, and how long it is depends on the limit
            _ if seen.full && !early => 0.0,
            // a window may have more samples than the memory
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

    /// Believes the mean of a probe that took so long.
    pub(super) fn confirm(&mut self, mean: f64, took: Duration, now: Instant) {
        let known = mean < self.confirmed * SLOW && mean * SLOW > self.confirmed;
        self.confirmed = if known { f64::midpoint(self.confirmed, mean) } else { mean };
        self.average = self.confirmed;
        self.probe_interval = if known { (self.probe_interval * 2).min(PROBE_INTERVAL.1) } else { PROBE_INTERVAL.0 };
        self.reset(if known { took } else { Duration::ZERO }, now);
    }

    /// After a probe, also one that proved nothing.
    pub(super) fn reset(&mut self, took: Duration, now: Instant) {
        let rest = self.probe_interval.max((took * PROBE_SHARE).min(MAX_PROBE_INTERVAL));
        (self.next_probe, self.saturated_since) = (Some(now + rest), None);
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

        /// Windows of 100 ms with 16 samples; how many pass before it asks for a probe.
        fn hears(&mut self, mean: f64, windows: u32) -> Option<u32> {
            self.is_told(LatencySample { mean, samples: 16, full: false }, windows)
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
        // and a load that rises slowly takes it no further
        for step in 0..1000_u32 {
            told.hears(0.055 + f64::from(step) * 0.001, 1);
        }
        assert!(told.baseline() <= 0.0501);
    }

    #[test]
    fn what_became_quicker_is_soon_believed_and_one_quick_window_is_not() {
        let mut told = Fixture::new(0.160);
        told.hears(0.010, 1);
        assert!(told.baseline() > 0.150);
        told.hears(0.160, 100);
        told.hears(0.040, 12);
        assert!(told.baseline() < 0.045, "{}", told.baseline());
        assert!(told.hears(0.080, 100).is_some(), "and it is proven");
    }

    #[test]
    fn what_stays_slow_asks_for_a_probe_and_the_probe_is_believed() {
        let mut told = Fixture::new(0.040);
        assert_eq!(told.hears(0.200, 100), Some(20));
        assert!((told.baseline() - 0.040).abs() < 1e-9, "it is not the probe");
        told.proves(0.200, 50);
        assert!((told.baseline() - 0.200).abs() < 1e-9);
        assert_eq!(told.hears(0.200, 100), None);
    }

    #[test]
    fn who_refuses_calls_makes_sure_now_and_then_that_it_has_to() {
        let mut told = Fixture::new(0.160);
        let full = LatencySample { mean: 0.180, samples: 16, full: true };
        assert_eq!(told.is_told(full, 100), Some(20));
        told.proves(0.040, 50);
        assert!((told.baseline() - 0.040).abs() < 1e-9);
    }

    #[test]
    fn probes_that_find_nothing_new_become_rare_and_good_times_make_them_ready_again() {
        let mut told = Fixture::new(0.040);
        let waits = [(); 7].map(|()| {
            let windows = told.hears(0.100, 10_000);
            told.proves(0.040, 50);
            // one good window after it, as the line grows anew, says nothing
            told.hears(0.040, 1);
            windows.unwrap()
        });
        assert_eq!(waits, [20, 38, 78, 158, 318, 318, 318]);
        told.hears(0.040, 30);
        assert_eq!(told.hears(0.100, 1000), Some(20));
    }

    #[test]
    fn a_long_probe_is_paid_for_with_a_long_rest() {
        let mut told = Fixture::new(0.040);
        told.hears(0.100, 30);
        told.proves(0.040, 1_000);
        assert_eq!(told.hears(0.100, 1000), Some(319));
        told.proves(0.040, 9_000);
        assert_eq!(told.hears(0.100, 1000), Some(599));
    }
}
