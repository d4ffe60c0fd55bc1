//! A learned timeout on five streams of latencies: how many normal responses it cuts, and how soon it ends hangs.
//!
//! 20,000 calls, 50 per second, of which 0.2 % hang; the first 60 s do not count. A call slower than the timeout is
//! cut, and teaches only that it was slower. Time is an argument, so that nothing waits. The table is printed by
//!
//!     DEEP=1 cargo test --test layers adaptive_timeout -- --nocapture

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small counts

use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;
use tower_upstream::timeout::AdaptiveTimeout;

use crate::support::repeats;

const SEEDS: u64 = 20;
const CALLS: usize = 20_000;
const CAP: f64 = 10.0;

/// When the latency changes, in seconds.
const CHANGE: f64 = 200.0;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lognormal,
    /// 1 % are slow but normal.
    Bimodal,
    Pareto,
    /// Three times slower for good.
    Shift,
    /// Eight times slower for 5 s.
    Burst,
}

const KINDS: [Kind; 5] = [Kind::Lognormal, Kind::Bimodal, Kind::Pareto, Kind::Shift, Kind::Burst];

fn lognormal(rng: &mut Rng, median: f64, sigma: f64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    median * (sigma * radius * (std::f64::consts::TAU * rng.f64()).cos()).exp()
}

/// When each call begins, and the latency of its response; none for a hang.
type Stream = Vec<(f64, Option<f64>)>;

fn stream(kind: Kind, seed: u64) -> Stream {
    let mut rng = Rng::with_seed(seed);
    let mut at = 0.0;
    let mut call = || {
        at -= (1.0 - rng.f64()).ln() / 50.0;
        if rng.f64() < 0.002 {
            return (at, None);
        }
        let usual = |rng: &mut Rng| lognormal(rng, 0.04, 0.5);
        let takes = match kind {
            Kind::Bimodal if rng.f64() < 0.01 => lognormal(&mut rng, 0.6, 0.3),
            Kind::Pareto => 0.02 / (1.0 - rng.f64()).powf(1.0 / 1.8),
            Kind::Shift if at >= CHANGE => usual(&mut rng) * 3.0,
            Kind::Burst if (CHANGE..CHANGE + 5.0).contains(&at) => usual(&mut rng) * 8.0,
            _ => usual(&mut rng),
        };
        (at, Some(takes))
    };
    (0..CALLS).map(|_| call()).collect()
}

/// An estimator of how long a call may take.
trait Estimator {
    fn limit(&mut self, at: f64) -> f64;
    fn answered(&mut self, at: f64, elapsed: f64);
    fn timed_out(&mut self, at: f64, limit: f64);
}

struct Fixed(f64);

impl Estimator for Fixed {
    fn limit(&mut self, _: f64) -> f64 {
        self.0
    }
    fn answered(&mut self, _: f64, _: f64) {}
    fn timed_out(&mut self, _: f64, _: f64) {}
}

#[derive(Clone, Copy, PartialEq)]
enum Censored {
    Count,
    Dropped,
}

/// The crate's own.
struct Ours {
    start: Instant,
    limit: AdaptiveTimeout,
    censored: Censored,
}

impl Ours {
    fn new(censored: Censored) -> Self {
        Self { start: Instant::now(), limit: AdaptiveTimeout::new(Duration::from_secs_f64(CAP)), censored }
    }

    fn now(&self, at: f64) -> Instant {
        self.start + Duration::from_secs_f64(at)
    }
}

impl Estimator for Ours {
    fn limit(&mut self, at: f64) -> f64 {
        self.limit.limit(self.now(at)).as_secs_f64()
    }
    fn answered(&mut self, at: f64, elapsed: f64) {
        self.limit.record(self.now(at), Duration::from_secs_f64(elapsed));
    }
    fn timed_out(&mut self, at: f64, limit: f64) {
        if self.censored == Censored::Count {
            self.limit.timed_out(self.now(at), Duration::from_secs_f64(limit));
        }
    }
}

/// The simulation's own estimator, "p99.5 x2 60s +guard": six slices of 10 s, buckets of an eighth of an octave.
struct Reference {
    slices: [[u32; 160]; 6],
    slice: u64,
    current: f64,
    calls: u32,
    timed_out: u32,
    next: f64,
    guard: f64,
    censored: Censored,
}

impl Reference {
    fn new(censored: Censored) -> Self {
        let slices = [[0; 160]; 6];
        Self { slices, slice: 0, current: CAP, calls: 0, timed_out: 0, next: 0.0, guard: 1.0, censored }
    }

    fn sample(&mut self, at: f64, elapsed: f64) {
        self.roll(at);
        let bucket = (8.0 * (elapsed.max(1e-4) / 1e-3).log2()).clamp(0.0, 159.0) as usize;
        self.slices[(self.slice % 6) as usize][bucket] += 1;
    }

    fn roll(&mut self, at: f64) {
        while self.slice < (at / 10.0) as u64 {
            self.slice += 1;
            self.slices[(self.slice % 6) as usize] = [0; 160];
        }
    }
}

impl Estimator for Reference {
    fn limit(&mut self, at: f64) -> f64 {
        if at >= self.next {
            self.next = at + 1.0;
            self.roll(at);
            let total: Vec<u32> = (0..160).map(|bucket| self.slices.iter().map(|slice| slice[bucket]).sum()).collect();
            let samples: u32 = total.iter().sum();
            self.current = CAP;
            if samples >= 200 {
                let mut passed = 0;
                let found = total.iter().position(|count| {
                    passed += count;
                    f64::from(passed) >= 0.995 * f64::from(samples)
                });
                let upper = 1e-3 * ((found.unwrap() + 1) as f64 / 8.0).exp2();
                self.current = (upper * 2.0).clamp(0.05, CAP);
            }
            let suspect = self.calls >= 20 && f64::from(self.timed_out) > 0.02 * f64::from(self.calls);
            self.guard = if suspect { (self.guard * 2.0).min(16.0) } else { (self.guard * 0.9).max(1.0) };
            (self.calls, self.timed_out) = (0, 0);
        }
        (self.current * self.guard).min(CAP)
    }
    fn answered(&mut self, at: f64, elapsed: f64) {
        self.calls += 1;
        self.sample(at, elapsed);
    }
    fn timed_out(&mut self, at: f64, limit: f64) {
        self.calls += 1;
        self.timed_out += 1;
        if self.censored == Censored::Count {
            self.sample(at, 2.0 * limit);
        }
    }
}

/// A call's end on its way to the estimator; the soonest is the greatest.
#[derive(PartialEq)]
struct End {
    at: f64,
    elapsed: f64,
    cut: bool,
}

impl Eq for End {}

impl Ord for End {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.total_cmp(&self.at)
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The result of one estimator on one stream.
#[derive(Clone, Copy, Debug)]
struct Score {
    /// Normal calls that were cut, per cent; those of the 30 s after a change are not among them.
    cut: f64,
    /// The median time until a hang is given up, in milliseconds.
    hang: f64,
    /// Normal calls that were cut in the 10 s after the change, per cent.
    changed: f64,
}

fn run(estimator: &mut dyn Estimator, kind: Kind, stream: &Stream) -> Score {
    let mut ends: BinaryHeap<End> = BinaryHeap::new();
    let mut hangs = Vec::new();
    let [mut calls, mut cut_calls, mut changed, mut cut_changed] = [0_u32; 4];
    for &(at, takes) in stream {
        while ends.peek().is_some_and(|end| end.at <= at) {
            let end = ends.pop().unwrap();
            if end.cut { estimator.timed_out(end.at, end.elapsed) } else { estimator.answered(end.at, end.elapsed) }
        }
        let limit = estimator.limit(at);
        let elapsed = takes.unwrap_or(f64::INFINITY).min(limit);
        let cut = takes.is_none_or(|takes| takes > limit);
        ends.push(End { at: at + elapsed, elapsed, cut });
        if at < 60.0 {
            continue;
        }
        if takes.is_none() {
            hangs.push(limit * 1000.0);
            continue;
        }
        let after = matches!(kind, Kind::Shift | Kind::Burst) && at >= CHANGE;
        if after && at < CHANGE + 10.0 {
            changed += 1;
            cut_changed += u32::from(cut);
        }
        if !after || at >= CHANGE + 30.0 {
            calls += 1;
            cut_calls += u32::from(cut);
        }
    }
    let percent = |part: u32, of: u32| 100.0 * f64::from(part) / f64::from(of.max(1));
    Score { cut: percent(cut_calls, calls), hang: median(hangs), changed: percent(cut_changed, changed) }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len() as f64
}

/// One row of the table: the scores by kind and seed.
fn row(streams: &[Vec<Stream>], make: impl Fn() -> Box<dyn Estimator>) -> Vec<Vec<Score>> {
    let scores = |(kind, streams): (&Kind, &Vec<Stream>)| {
        streams.iter().map(|stream| run(&mut *make(), *kind, stream)).collect()
    };
    KINDS.iter().zip(streams).map(scores).collect()
}

fn all(scores: &[Score], field: impl Fn(&Score) -> f64) -> Vec<f64> {
    scores.iter().map(field).collect()
}

/// The five cells of a row.
fn cells(scores: &[Vec<Score>]) -> String {
    let cell = |(kind, scores): (&Kind, &Vec<Score>)| {
        let cell = if matches!(kind, Kind::Shift | Kind::Burst) {
            let changed = all(scores, |score| score.changed);
            format!("{:.2} ({:.2})", median(changed.clone()), mean(&changed))
        } else {
            let cut = all(scores, |score| score.cut);
            let hang = median(all(scores, |score| score.hang));
            format!("{:.3} ({:.3}) / {hang:.0}", mean(&cut), most(&cut))
        };
        format!("| {cell:22} ")
    };
    KINDS.iter().zip(scores).map(cell).collect()
}

fn most(of: &[f64]) -> f64 {
    of.iter().copied().fold(0.0, f64::max)
}

#[test]
fn normal_responses_pass_hangs_are_ended_and_slower_latencies_are_learned() {
    let streams: Vec<Vec<_>> = KINDS.iter().map(|kind| (0..SEEDS).map(|seed| stream(*kind, seed)).collect()).collect();
    let fixed = |limit: f64| row(&streams, || Box::new(Fixed(limit)));
    let simulation = |censored| row(&streams, || Box::new(Reference::new(censored)));
    let learned = |censored| row(&streams, || Box::new(Ours::new(censored)));
    let (reference, ours, deaf) = (simulation(Censored::Count), learned(Censored::Count), learned(Censored::Dropped));

    println!("normal calls cut in % (worst seed) / ms until a hang is given up: mean and median of {SEEDS} seeds");
    println!("where the latency changes, normal calls cut in the 10 s after it in %: median (mean) of the seeds");
    let heads = ["lognormal", "1 % slow", "Pareto 1.8", "x3 for good", "x8 for 5 s"];
    println!("{:26}{}", "", heads.map(|head| format!("| {head:22} ")).concat());
    let row = |name: &str, scores: &[Vec<Score>]| println!("{name:26}{}", cells(scores));
    row("simulation's p99.5 x2", &reference);
    row("ours", &ours);
    row("- not told of timeouts", &deaf);
    // for comparison alone
    if repeats(false, true) {
        row("fixed 30 s", &fixed(30.0));
        row("fixed 0.5 s", &fixed(0.5));
        row("- timeouts no samples", &simulation(Censored::Dropped));
    }

    for (at, kind) in KINDS.iter().enumerate() {
        let (score, theirs) = (&ours[at], &reference[at]);
        let cut = all(score, |score| score.cut);
        assert!(mean(&cut) <= 0.1, "{kind:?}: {} % of the normal calls were cut", mean(&cut));
        // the limit is 17 of a stream's 17,000 calls, and chance is 4 of them
        assert!(most(&cut) <= 0.125, "{kind:?}: {} % were cut with one of the seeds", most(&cut));
        let slowest = most(&all(score, |score| score.hang));
        assert!(slowest <= 3000.0, "{kind:?}: hangs were found after {slowest} ms with one of the seeds");
        for middle in [|of: &[f64]| median(of.to_vec()), mean] {
            let (own, bar) = (middle(&all(score, |score| score.changed)), middle(&all(theirs, |score| score.changed)));
            assert!(own <= bar, "{kind:?}: {own} % were cut after the change, {bar} % by the simulation's");
        }
    }

    // without samples of timeouts every stream is worse, and those with a change by far
    for at in 0..KINDS.len() {
        let cut = |scores: &[Vec<Score>]| mean(&all(&scores[at], |score| score.cut + score.changed));
        assert!(cut(&deaf) > cut(&ours), "{:?}", KINDS[at]);
    }
}
