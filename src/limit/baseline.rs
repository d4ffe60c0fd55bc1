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
const QUICK_WINDOWS: u32 = 3;
const QUICK: f64 = 1.1;

const PATIENCE: Duration = Duration::from_secs(2);
const REST: (Duration, Duration) = (PATIENCE, Duration::from_secs(32));
/// The longest rest after a probe that took long.
const MOST_REST: Duration = Duration::from_secs(60);
const PROBE_SHARE: u32 = 32;

/// What a window was like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The mean answer time, in seconds.
    pub(super) mean: f64,
    pub(super) samples: u32,
    /// Every slot was in use.
    pub(super) full: bool,
}

/// The average, and what is known of its truth; in seconds.
#[derive(Debug)]
pub(super) struct Baseline {
    average: f64,
    proven: f64,
    samples: f64,
    quick: u32,
    /// Since when all windows have been pressed, or since when none has.
    pressed: Option<Instant>,
    well: Option<Instant>,
    /// No probe before this.
    rested: Option<Instant>,
    rest: Duration,
}

impl Baseline {
    pub(super) fn new() -> Self {
        Self {
            average: 0.0,
            proven: 0.0,
            samples: 0.0,
            quick: 0,
            pressed: None,
            well: None,
            rested: None,
            rest: REST.0,
        }
    }

    /// The average; none before the first window.
    pub(super) fn get(&self) -> Option<f64> {
        (self.samples > 0.0).then_some(self.average)
    }

    /// Whether windows are pressed.
    pub(super) fn is_pressed(&self) -> bool {
        self.pressed.is_some()
    }

    /// Takes in a window; whether it is time for a probe.
    pub(super) fn follow(&mut self, seen: Seen, now: Instant) -> bool {
        // the first samples count alike, whatever they are
        let slow = self.samples >= MEMORY && seen.mean > self.proven * SLOW;
        if slow {
            self.quick = 0;
        } else {
            self.average_in(seen);
        }
        if !slow && !seen.full {
            self.pressed = None;
            let well = *self.well.get_or_insert(now);
            if now.saturating_duration_since(well) >= PATIENCE {
                (self.rested, self.rest) = (None, REST.0);
            }
            return false;
        }
        self.well = None;
        let pressed = *self.pressed.get_or_insert(now);
        now.saturating_duration_since(pressed) >= PATIENCE && self.rested.is_none_or(|rested| rested <= now)
    }

    fn average_in(&mut self, seen: Seen) {
        let (mean, samples) = (seen.mean, f64::from(seen.samples));
        let early = self.samples < MEMORY;
        self.samples = (self.samples + samples).min(MEMORY);
        let much = if self.quick < QUICK_WINDOWS { SLOW } else { QUICK };
        self.quick = if mean * much < self.average { self.quick + 1 } else { 0 };
        let weight = match self.quick {
            QUICK_WINDOWS.. => 0.5,
            // there is a line, and how long it is depends on the limit
            _ if seen.full && !early => 0.0,
            // a window may have more samples than the memory
            _ => (samples / self.samples).min(1.0),
        };
        let average = self.average + weight * (mean - self.average);
        if early {
            (self.average, self.proven) = (average, average);
        } else {
            self.average =
                if mean > self.average { average.min(self.average.max(self.proven * DRIFT)) } else { average };
            self.proven = self.proven.min(self.average * DRIFT);
        }
    }

    /// Believes the mean of a probe that took so long.
    pub(super) fn prove(&mut self, mean: f64, took: Duration, now: Instant) {
        let known = mean < self.proven * SLOW && mean * SLOW > self.proven;
        self.proven = if known { f64::midpoint(self.proven, mean) } else { mean };
        self.average = self.proven;
        self.rest = if known { (self.rest * 2).min(REST.1) } else { REST.0 };
        self.rest(if known { took } else { Duration::ZERO }, now);
    }

    /// After a probe, also one that proved nothing.
    pub(super) fn rest(&mut self, took: Duration, now: Instant) {
        let rest = self.rest.max((took * PROBE_SHARE).min(MOST_REST));
        (self.rested, self.pressed) = (Some(now + rest), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Told(Baseline, Instant);

    impl Told {
        fn new(mean: f64) -> Self {
            let mut told = Self(Baseline::new(), Instant::now());
            assert_eq!(told.hears(mean, 100), None);
            told
        }

        /// Windows of 100 ms with 16 samples; how many pass before it asks for a probe.
        fn hears(&mut self, mean: f64, windows: u32) -> Option<u32> {
            self.is_told(Seen { mean, samples: 16, full: false }, windows)
        }

        fn is_told(&mut self, seen: Seen, windows: u32) -> Option<u32> {
            (0..windows).find(|_| {
                self.1 += Duration::from_millis(100);
                self.0.follow(seen, self.1)
            })
        }

        fn proves(&mut self, mean: f64, millis: u64) {
            self.0.prove(mean, Duration::from_millis(millis), self.1);
        }

        fn baseline(&self) -> f64 {
            self.0.get().unwrap()
        }
    }

    #[test]
    fn a_rise_is_believed_only_as_far_as_noise_goes() {
        let mut told = Told::new(0.040);
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
        let mut told = Told::new(0.160);
        told.hears(0.010, 1);
        assert!(told.baseline() > 0.150);
        told.hears(0.160, 100);
        told.hears(0.040, 12);
        assert!(told.baseline() < 0.045, "{}", told.baseline());
        assert!(told.hears(0.080, 100).is_some(), "and it is proven");
    }

    #[test]
    fn what_stays_slow_asks_for_a_probe_and_the_probe_is_believed() {
        let mut told = Told::new(0.040);
        assert_eq!(told.hears(0.200, 100), Some(20));
        assert!((told.baseline() - 0.040).abs() < 1e-9, "it is not the probe");
        told.proves(0.200, 50);
        assert!((told.baseline() - 0.200).abs() < 1e-9);
        assert_eq!(told.hears(0.200, 100), None);
    }

    #[test]
    fn who_refuses_calls_makes_sure_now_and_then_that_it_has_to() {
        let mut told = Told::new(0.160);
        let full = Seen { mean: 0.180, samples: 16, full: true };
        assert_eq!(told.is_told(full, 100), Some(20));
        told.proves(0.040, 50);
        assert!((told.baseline() - 0.040).abs() < 1e-9);
    }

    #[test]
    fn probes_that_find_nothing_new_become_rare_and_good_times_make_them_ready_again() {
        let mut told = Told::new(0.040);
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
        let mut told = Told::new(0.040);
        told.hears(0.100, 30);
        told.proves(0.040, 1_000);
        assert_eq!(told.hears(0.100, 1000), Some(319));
        told.proves(0.040, 9_000);
        assert_eq!(told.hears(0.100, 1000), Some(599));
    }
}
