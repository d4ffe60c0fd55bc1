use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use proptest::prelude::*;

use super::super::samples::SampleKind;
use super::*;
use crate::stats::RouteKey;

fn good(took: Duration, now: Instant, in_flight: u32) -> Sample {
    Sample { now, in_flight, kind: SampleKind::Success, took, route: RouteKey::default() }
}

fn overloaded(now: Instant, in_flight: u32) -> Sample {
    Sample { now, in_flight, kind: SampleKind::Overloaded, took: Duration::ZERO, route: RouteKey::default() }
}

/// How service times are spread about their mean.
#[derive(Clone, Copy, Debug)]
enum Distribution {
    Constant,
    Exponential,
    /// Nine in ten take a third of the mean, the tenth takes seven times the mean.
    Bimodal,
    /// With a sigma of 1: one in a hundred takes six times the mean.
    Lognormal,
}

impl Distribution {
    /// What a quarter of the times do not exceed, with a mean of 1.
    fn quarter(self) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => 0.288,
            Self::Bimodal => 1.0 / 3.0,
            Self::Lognormal => 0.309,
        }
    }

    /// With a mean of 1.
    fn draw(self, dice: &mut fastrand::Rng) -> f64 {
        let exponential = |dice: &mut fastrand::Rng| -dice.f64().max(1e-12).ln();
        match self {
            Self::Constant => 1.0,
            Self::Exponential => exponential(dice),
            Self::Bimodal => {
                if dice.u8(..10) == 0 {
                    7.0
                } else {
                    1.0 / 3.0
                }
            }
            Self::Lognormal => {
                // Box and Muller
                let normal = (2.0 * exponential(dice)).sqrt() * (std::f64::consts::TAU * dice.f64()).cos();
                (normal - 0.5).exp()
            }
        }
    }
}

/// An upstream of some workers, asked at some rate through a limiter, in virtual time.
struct Upstream {
    gradient: Gradient,
    dice: fastrand::Rng,
    shape: Distribution,
    workers: usize,
    /// Seconds.
    service: f64,
    /// A second.
    rate: f64,
    now: Instant,
    next: Instant,
    /// By when they are done: when they began.
    busy: BinaryHeap<Reverse<(Instant, Instant)>>,
    line: VecDeque<Instant>,
}

/// The calls of a period, by how they ended.
#[derive(Debug, Default)]
struct Totals {
    asked: u32,
    refused: u32,
    answered: u32,
    /// The sums over all answers.
    seconds: f64,
    limit: f64,
    lowest: f64,
}

impl Totals {
    fn limit(&self) -> f64 {
        self.limit / f64::from(self.answered)
    }

    fn mean(&self) -> f64 {
        self.seconds / f64::from(self.answered)
    }
}

impl Upstream {
    fn new(shape: Distribution, workers: usize, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            gradient: Gradient::new(2, 200),
            dice: fastrand::Rng::with_seed(seed),
            shape,
            workers,
            service: 0.040,
            rate: 0.0,
            now,
            next: now,
            busy: BinaryHeap::new(),
            line: VecDeque::new(),
        }
    }

    /// The number of calls that the workers complete in a second.
    fn capacity(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let workers = self.workers as f64;
        workers / self.service
    }

    fn starts(&mut self, began: Instant) {
        let takes = Duration::from_secs_f64(self.service * self.shape.draw(&mut self.dice));
        self.busy.push(Reverse((self.now + takes, began)));
    }

    /// Goes on for so long, asked at this share of what it can do.
    fn runs(&mut self, seconds: f64, load: f64) -> Totals {
        let end = self.now + Duration::from_secs_f64(seconds);
        self.rate = self.capacity() * load;
        self.next = self.now;
        let mut seen = Totals { lowest: f64::MAX, ..Totals::default() };
        loop {
            let done = self.busy.peek().map(|Reverse((done, _))| *done);
            self.now = done.map_or(self.next, |done| done.min(self.next));
            if self.now >= end {
                self.now = end;
                return seen;
            }
            let in_flight = self.busy.len() + self.line.len();
            if done == Some(self.now) {
                let Some(Reverse((now, began))) = self.busy.pop() else { continue };
                let in_flight = u32::try_from(in_flight).unwrap();
                seen.answered += 1;
                seen.seconds += (now - began).as_secs_f64();
                seen.limit += f64::from(self.gradient.limit());
                seen.lowest = seen.lowest.min(f64::from(self.gradient.limit()));
                self.gradient.sample(&good(now - began, now, in_flight));
                if let Some(began) = self.line.pop_front() {
                    self.starts(began);
                }
            } else {
                self.next += Duration::from_secs_f64(-self.dice.f64().max(1e-12).ln() / self.rate);
                seen.asked += 1;
                if in_flight >= self.gradient.limit() as usize {
                    seen.refused += 1;
                } else if self.busy.len() < self.workers {
                    self.starts(self.now);
                } else {
                    self.line.push_back(self.now);
                }
            }
        }
    }
}

/// Where the limit comes to rest for so many workers, by Little's law; see the module.
fn rest(shape: Distribution, workers: usize) -> f64 {
    let quarter = shape.quarter();
    #[allow(clippy::cast_precision_loss)]
    let workers = workers as f64;
    (0..50).fold(workers, |limit, _| workers * (1.0 - quarter + 2.0 * quarter / (1.0 - 1.0 / limit.sqrt())))
}

const SHAPES: [Distribution; 4] =
    [Distribution::Constant, Distribution::Exponential, Distribution::Bimodal, Distribution::Lognormal];

/// How far the limit is from where it should rest, and what of the workers' time is used, over two minutes.
fn rests(upstream: &mut Upstream) -> (f64, f64) {
    let seen = upstream.runs(120.0, 2.0);
    let off = seen.limit() / rest(upstream.shape, upstream.workers) - 1.0;
    let used = f64::from(seen.answered) / 120.0 / upstream.capacity();
    println!(
        "{:?}, {} workers: limit {:.1} ({off:+.3}), lowest {}, used {used:.3}, mean {:.3}, baseline {:?}",
        upstream.shape,
        upstream.workers,
        seen.limit(),
        seen.lowest,
        seen.mean(),
        upstream.gradient.baseline(),
    );
    (off, used)
}

/// The same in three runs: how far off on average, at most, and the least use.
fn rests_in_three(shape: Distribution, workers: usize, before: &[(f64, f64)]) -> (f64, f64, f64) {
    let runs = [1, 2, 7].map(|seed| {
        let mut upstream = Upstream::new(shape, workers, seed);
        for (seconds, load) in before {
            upstream.runs(*seconds, *load);
        }
        rests(&mut upstream)
    });
    let off = runs.iter().map(|run| run.0);
    (
        off.clone().sum::<f64>() / 3.0,
        off.map(f64::abs).fold(0.0, f64::max),
        runs.iter().map(|run| run.1).fold(1.0, f64::min),
    )
}

/// Under twice the load, and after this.
fn rests_where_littles_law_says_and_no_worker_idles(before: &[(f64, f64)]) {
    for workers in [8, 40] {
        for shape in [Distribution::Constant, Distribution::Exponential, Distribution::Lognormal] {
            let (_, most, used) = rests_in_three(shape, workers, before);
            assert!(most <= 0.2 && used >= 0.93, "{shape:?}, {workers} workers: {most:.3} {used:.3}");
        }
        // a window with more of the slow ones than usual looks like a line: lower, and less even
        let (mean, most, used) = rests_in_three(Distribution::Bimodal, workers, before);
        assert!(mean.abs() <= 0.3 && most <= 0.35 && used >= 0.92, "{mean:.3} {most:.3} {used:.3}");
    }
}

#[test]
fn after_normal_load_twice_as_much_settles_at_the_limit_of_littles_law() {
    rests_where_littles_law_says_and_no_worker_idles(&[(20.0, 0.6), (10.0, 2.0)]);
}

#[test]
fn twice_the_load_from_the_start_settles_at_the_limit_of_littles_law() {
    rests_where_littles_law_says_and_no_worker_idles(&[(60.0, 2.0)]);
}

#[test]
fn with_spare_capacity_no_call_is_rejected() {
    for shape in SHAPES {
        let mut upstream = Upstream::new(shape, 40, 7);
        upstream.runs(10.0, 0.7);
        let seen = upstream.runs(120.0, 0.7);
        assert!(seen.refused * 1000 <= seen.asked, "{shape:?}: {} of {}", seen.refused, seen.asked);
    }
}

#[test]
fn a_lasting_change_is_followed_in_seconds_both_ways() {
    for shape in SHAPES {
        let mut upstream = Upstream::new(shape, 40, 7);
        upstream.runs(20.0, 0.6);
        // four times as slow, with as many more workers: nothing waits in line, and four times as many are in flight
        for (slower, workers) in [(4.0, 160), (1.0, 40)] {
            (upstream.service, upstream.workers) = (0.040 * slower, workers);
            upstream.runs(10.0, 0.6);
            let seen = upstream.runs(20.0, 0.6);
            let off = upstream.gradient.baseline().unwrap().as_secs_f64() / upstream.service / shape.quarter() - 1.0;
            println!("{shape:?} {slower}: {off:+.3}, refused {} of {}", seen.refused, seen.asked);
            assert!(off.abs() <= 0.35, "{shape:?}, {slower} times slower: {off:+.3}");
            assert!(seen.refused * 20 <= seen.asked, "{shape:?}: {} of {}", seen.refused, seen.asked);
        }
    }
}

#[test]
fn a_slow_period_costs_little_throughput_and_has_no_lasting_effect() {
    for shape in [Distribution::Constant, Distribution::Exponential, Distribution::Lognormal] {
        let mut upstream = Upstream::new(shape, 40, 7);
        upstream.runs(20.0, 0.7);
        // at a load of 70 %, four times slower: asked for 2.8 times what it can do
        upstream.service = 0.160;
        let slow = upstream.runs(10.0, 2.8);
        let used = f64::from(slow.answered) / 10.0 / upstream.capacity();
        upstream.service = 0.040;
        upstream.runs(3.0, 0.7);
        let after = upstream.runs(30.0, 0.7);
        println!(
            "{shape:?}: used {used:.3}, lowest {}, then refused {} of {}",
            slow.lowest, after.refused, after.asked
        );
        assert!(used >= 0.7, "{shape:?}: {used}");
        assert!(after.refused * 100 <= after.asked, "{shape:?}: {} of {}", after.refused, after.asked);
    }
}

/// One caller after the other, in so many lanes at once: what is asked, when that is answered in so long.
fn healthy(gradient: &mut Gradient, now: &mut Instant, lanes: u32, took: Duration, seconds: u64) {
    let end = *now + Duration::from_secs(seconds);
    while *now < end {
        let in_flight = gradient.limit().min(lanes);
        *now += took;
        for _ in 0..in_flight {
            gradient.sample(&good(took, *now, in_flight));
        }
    }
}

fn sample() -> impl Strategy<Value = (u64, u64, bool, u32)> {
    // the pause before it, its time in microseconds, whether it is bad, how many were in flight
    let took = prop_oneof![0..100_u64, 0..100_000_u64, 0..60_000_000_u64];
    let pause = prop_oneof![8 => 0..10_000_u64, 2 => 0..1_000_000_u64, 1 => 0..100_000_000_u64];
    (pause, took, prop::bool::weighted(0.2), 1..300_u32)
}

proptest! {
    // each plays two minutes and a half after its history
    #![proptest_config(ProptestConfig {
        cases: 48,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn after_any_history_the_limit_is_in_its_bounds_and_grows_to_the_demand(
        least in 1..10_u32,
        history in prop::collection::vec((sample(), 1..100_usize), 0..40),
        lanes in 1..80_u32,
        millis in 5..500_u64,
    ) {
        let mut gradient = Gradient::new(least, 200);
        let mut now = Instant::now() + Duration::from_secs(100);
        for ((pause, took, bad, in_flight), times) in history {
            for _ in 0..times {
                now += Duration::from_micros(pause);
                let took = Duration::from_micros(took);
                gradient.sample(&if bad { overloaded(now, in_flight) } else { good(took, now, in_flight) });
                prop_assert!((least..=200).contains(&gradient.limit()));
            }
        }
        // half a minute for a probe that is under way, a minute of rest after it, another probe, and time to grow
        healthy(&mut gradient, &mut now, lanes, Duration::from_millis(millis), 150);
        // a probe lowers the limit for a moment
        let limit = gradient.probe.as_ref().map_or(gradient.limit, |probe| probe.limit);
        prop_assert!(limit >= f64::from(lanes), "{} of {}: {:?}", limit, lanes, gradient);
    }
}

#[test]
fn it_begins_at_the_upper_bound_and_overload_lowers_it_to_what_is_in_flight_and_then_once_in_a_window() {
    let (mut gradient, mut now) = (Gradient::new(2, 200), Instant::now());
    let mut limits = vec![gradient.limit()];
    for _ in 0..400 {
        now += Duration::from_millis(1);
        gradient.sample(&overloaded(now, 20));
        if limits.last() != Some(&gradient.limit()) {
            limits.push(gradient.limit());
        }
    }
    assert_eq!(limits, [200, 28, 19, 13]);
    assert_eq!((gradient.moved(), gradient.baseline()), (Some(LimitChangeReason::Overloaded), None));
}

#[test]
fn one_overloaded_response_in_ten_is_tolerated() {
    for (every, tolerated) in [(10, true), (9, false)] {
        let (mut gradient, mut now) = (Gradient::new(2, 200), Instant::now());
        for number in 1..=400 {
            now += Duration::from_millis(1);
            let took = Duration::from_millis(10);
            gradient.sample(&if number % every == 0 { overloaded(now, 19) } else { good(took, now, 19) });
        }
        assert_eq!(gradient.limit() == 200, tolerated, "{every}: {}", gradient.limit());
    }
}

#[test]
fn a_limit_that_is_not_needed_does_not_grow_with_samples() {
    for (in_flight, limit) in [(9, 20), (10, 21)] {
        let (mut gradient, mut now) = (Gradient::new(2, 200), Instant::now());
        gradient.limit = 20.0;
        healthy(&mut gradient, &mut now, in_flight, Duration::from_millis(10), 4);
        assert!(if limit == 20 { gradient.limit() == 20 } else { gradient.limit() >= limit }, "{}", gradient.limit());
    }
}
