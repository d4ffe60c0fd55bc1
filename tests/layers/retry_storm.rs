//! A fleet of gateways before a cluster that is slow for ten seconds: how much load retries add, and whether it
//! recovers.
//!
//! A discrete-event simulation in virtual time with the crate's own budget, and with tower's `TpsBudget` on tokio's
//! paused clock. 5 servers with 8 workers each and a mean service time of 40 ms (exponential) serve 1000 calls per
//! second; each has a queue of 400, responds with 503 if it is full, and does not see that a client has cancelled. 700
//! calls arrive per second throughout, spread over the gateways. A client cancels after 2 s, an attempt times out after
//! 0.5 s, and there are up to 4 attempts, each at another server than the last, after a backoff with full jitter of 25
//! ms to 1 s. From second 10 to 20 service takes four times as long. The table is printed by
//!
//!     cargo test --test layers retry_storm -- --nocapture

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small counts

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};
use tower_upstream::retry::{RetryBudget, Withdrawal};

use crate::support::repeats;

/// Time is in microseconds.
type Micros = u64;

const SECOND: Micros = 1_000_000;
const RATE: f64 = 700.0;
const SERVERS: usize = 5;
const WORKERS: usize = 8;
const QUEUE: usize = 400;
const SERVICE: f64 = 0.04;
const HOP: Micros = 1000;
const PATIENCE: Micros = 2 * SECOND;
const ATTEMPT: Micros = SECOND / 2;
const ATTEMPTS: u32 = 4;
const SLOWER: f64 = 4.0;
/// The seconds in which the servers are slow.
const SLOW: Range<usize> = 10..20;
/// Number of consecutive good seconds after which the fleet counts as recovered.
const STEADY: usize = 5;

/// The retry budget of a gateway.
enum Purse {
    Ours(RetryBudget),
    Towers(TpsBudget),
}

impl Purse {
    fn begin(&self, now: Instant) {
        if let Self::Ours(budget) = self {
            budget.begin(now);
        }
    }

    fn succeed(&self) {
        match self {
            Self::Ours(budget) => budget.succeed(),
            Self::Towers(budget) => budget.deposit(),
        }
    }

    /// The price of a retry.
    fn withdraw(&self, now: Instant) -> Option<Price> {
        match self {
            Self::Ours(budget) => budget.try_withdraw(now).map(Price::Token),
            Self::Towers(budget) => budget.withdraw().then_some(Price::Spent),
        }
    }
}

/// What was withdrawn for a retry.
enum Price {
    /// Is refunded if the retry is not sent.
    Token(Withdrawal),
    Spent,
}

struct Call {
    gateway: usize,
    second: usize,
    deadline: Micros,
    attempts: u32,
    last: usize,
    done: bool,
    paid: Option<Price>,
}

struct Attempt {
    call: usize,
    server: usize,
    over: bool,
}

#[derive(Default)]
struct Server {
    busy: usize,
    queue: VecDeque<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive,
    /// The client cancels.
    Leave(usize),
    Send(usize),
    Receive(usize),
    Finish(usize),
    Answer(usize),
    /// A 503 of a server whose queue is full.
    Refuse(usize),
    TimeOut(usize),
}

fn second(when: Micros) -> usize {
    (when / SECOND) as usize
}

struct Fleet {
    /// Number of seconds after the slow ones in which the fleet may recover.
    look: usize,
    rng: Rng,
    start: Instant,
    now: Micros,
    order: u64,
    coming: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    purses: Vec<Purse>,
    turns: Vec<usize>,
    servers: Vec<Server>,
    calls: Vec<Call>,
    attempts: Vec<Attempt>,
    /// Per second: calls, attempts, and the calls that got a response in time.
    begun: Vec<u32>,
    sent: Vec<u32>,
    answered: Vec<u32>,
}

/// The result of a run.
struct Outcome {
    /// Attempts per call, in the worst second and over the slow ones.
    peak: f64,
    slow: f64,
    /// Seconds until 95 % get a response for five seconds in a row.
    recovered: Option<usize>,
    lost: u32,
}

impl Fleet {
    fn new(purses: Vec<Purse>, seed: u64, look: usize) -> Self {
        let seconds = SLOW.end + look + STEADY;
        Self {
            look,
            rng: Rng::with_seed(seed),
            start: Instant::now(),
            now: 0,
            order: 0,
            coming: BinaryHeap::new(),
            turns: (0..purses.len()).collect(),
            purses,
            servers: (0..SERVERS).map(|_| Server::default()).collect(),
            calls: Vec::new(),
            attempts: Vec::new(),
            begun: vec![0; seconds],
            sent: vec![0; seconds],
            answered: vec![0; seconds],
        }
    }

    /// Runs to the end, and advances tokio's clock, which tower's budget reads.
    async fn run(mut self) -> Outcome {
        let mut clock = 0;
        self.at(0, Event::Arrive);
        while let Some(Reverse((now, _, event))) = self.coming.pop() {
            if second(now) >= self.begun.len() {
                break;
            }
            self.now = now;
            let settles = matches!(event, Event::Answer(_) | Event::Refuse(_) | Event::TimeOut(_));
            if settles && now > clock && matches!(self.purses[0], Purse::Towers(_)) {
                tokio::time::advance(Duration::from_micros(now - clock)).await;
                clock = now;
            }
            self.happens(event);
        }
        self.outcome()
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Leave(call) => self.ends(call),
            Event::Send(call) => self.send(call),
            Event::Receive(attempt) => self.receive(attempt),
            Event::Finish(attempt) => self.finish(attempt),
            Event::Answer(attempt) => self.answer(attempt),
            Event::Refuse(attempt) | Event::TimeOut(attempt) => self.fail(attempt),
        }
    }

    fn at(&mut self, when: Micros, event: Event) {
        self.order += 1;
        self.coming.push(Reverse((when, self.order, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    /// Exponentially distributed with this mean in seconds.
    fn exponential(&mut self, mean: f64) -> Micros {
        (-(1.0 - self.rng.f64()).ln() * mean * SECOND as f64) as Micros
    }

    fn arrive(&mut self) {
        let next = self.exponential(1.0 / RATE);
        self.at(self.now + next, Event::Arrive);
        let (gateway, second) = (self.rng.usize(..self.purses.len()), second(self.now));
        self.begun[second] += 1;
        self.purses[gateway].begin(self.instant());
        let deadline = self.now + PATIENCE;
        self.calls.push(Call { gateway, second, deadline, attempts: 0, last: SERVERS, done: false, paid: None });
        self.at(deadline, Event::Leave(self.calls.len() - 1));
        self.send(self.calls.len() - 1);
    }

    fn ends(&mut self, call: usize) {
        self.calls[call].done = true;
        // a retry that waits is not sent any more
        self.calls[call].paid = None;
    }

    fn send(&mut self, call: usize) {
        if self.calls[call].done {
            return;
        }
        let (gateway, last) = (self.calls[call].gateway, self.calls[call].last);
        self.turns[gateway] += 1;
        let mut server = self.turns[gateway] % SERVERS;
        if server == last {
            self.turns[gateway] += 1;
            server = self.turns[gateway] % SERVERS;
        }
        let sent = &mut self.calls[call];
        if let Some(Price::Token(token)) = sent.paid.take() {
            token.sent();
        }
        sent.attempts += 1;
        sent.last = server;
        let until = sent.deadline.min(self.now + ATTEMPT);
        let now = second(self.now);
        self.sent[now] += 1;
        self.attempts.push(Attempt { call, server, over: false });
        self.at(self.now + HOP, Event::Receive(self.attempts.len() - 1));
        self.at(until, Event::TimeOut(self.attempts.len() - 1));
    }

    fn receive(&mut self, attempt: usize) {
        let server = &mut self.servers[self.attempts[attempt].server];
        if server.busy < WORKERS {
            self.work(attempt);
        } else if server.queue.len() >= QUEUE {
            self.at(self.now + HOP, Event::Refuse(attempt));
        } else {
            server.queue.push_back(attempt);
        }
    }

    fn work(&mut self, attempt: usize) {
        let slower = if SLOW.contains(&second(self.now)) { SLOWER } else { 1.0 };
        self.servers[self.attempts[attempt].server].busy += 1;
        let takes = self.exponential(SERVICE * slower);
        self.at(self.now + takes, Event::Finish(attempt));
    }

    fn finish(&mut self, attempt: usize) {
        self.at(self.now + HOP, Event::Answer(attempt));
        let server = &mut self.servers[self.attempts[attempt].server];
        server.busy -= 1;
        if let Some(next) = server.queue.pop_front() {
            self.work(next);
        }
    }

    fn answer(&mut self, attempt: usize) {
        let Attempt { call, over, .. } = self.attempts[attempt];
        if over {
            return;
        }
        self.attempts[attempt].over = true;
        self.purses[self.calls[call].gateway].succeed();
        if !self.calls[call].done {
            self.ends(call);
            self.answered[self.calls[call].second] += 1;
        }
    }

    fn fail(&mut self, attempt: usize) {
        let Attempt { call, over, .. } = self.attempts[attempt];
        if over {
            return;
        }
        self.attempts[attempt].over = true;
        let now = self.instant();
        let Call { gateway, attempts, done, .. } = self.calls[call];
        if done {
            return;
        }
        if attempts == ATTEMPTS {
            self.ends(call);
            return;
        }
        let Some(paid) = self.purses[gateway].withdraw(now) else {
            self.ends(call);
            return;
        };
        self.calls[call].paid = Some(paid);
        let most = (25_000 << (attempts - 1)).min(SECOND);
        let wait = self.rng.u64(..most);
        self.at(self.now + wait, Event::Send(call));
    }

    fn outcome(&self) -> Outcome {
        let share = |part: u32, whole: u32| f64::from(part) / f64::from(whole.max(1));
        let sum = |counts: &[u32]| counts.iter().sum::<u32>();
        let end = SLOW.end + self.look;
        let answered = |second: usize| share(self.answered[second], self.begun[second]) >= 0.95;
        let peak = (SLOW.start..end).map(|second| share(self.sent[second], self.begun[second])).fold(0.0, f64::max);
        Outcome {
            peak,
            slow: share(sum(&self.sent[SLOW]), sum(&self.begun[SLOW])),
            recovered: (0..=self.look - STEADY).find(|after| (0..STEADY).all(|more| answered(SLOW.end + after + more))),
            lost: sum(&self.begun[SLOW.start..end]) - sum(&self.answered[SLOW.start..end]),
        }
    }
}

async fn run(name: &str, (gateways, seed): (usize, u64), look: usize, purse: impl Fn() -> Purse) -> Outcome {
    let outcome = Fleet::new((0..gateways).map(|_| purse()).collect(), seed, look).run().await;
    let recovered = outcome.recovered.map_or(format!("not in {look} s"), |seconds| format!("{seconds} s"));
    println!(
        "| {name:16} | {gateways:3} | {seed} | {:.3} | {:.3} | {recovered:>11} | {:6} |",
        outcome.peak, outcome.slow, outcome.lost
    );
    outcome
}

fn print_head() {
    println!("| budget | gateways | seed | load, worst second | load while slow | recovered after | lost |");
    println!("|---|---|---|---|---|---|---|");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_recovers_with_the_retry_budget() {
    print_head();
    for gateways in [5, 100] {
        let mut peaks = 0.0;
        for seed in 1..=3 {
            let outcome = run("RetryBudget", (gateways, seed), 15, || Purse::Ours(RetryBudget::new())).await;
            assert!(outcome.recovered.is_some_and(|seconds| seconds <= 7), "{gateways} gateways, seed {seed}");
            // the worst of 25 seconds is partly chance: of 20 seeds the worst has 1.26
            assert!(outcome.peak <= 1.27, "{gateways} gateways, seed {seed}: {:.3}", outcome.peak);
            peaks += outcome.peak;
        }
        assert!(peaks / 3.0 <= 1.25, "{gateways} gateways: {:.3}", peaks / 3.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fixed_minimum_of_retries_per_process_keeps_a_fleet_down() {
    print_head();
    let few = run("tower TpsBudget", (5, 1), 30, || Purse::Towers(TpsBudget::default())).await;
    let many = run("tower TpsBudget", (100, 1), repeats(40, 87), || Purse::Towers(TpsBudget::default())).await;
    assert!(few.recovered.is_some(), "few large gateways recover");
    assert_eq!(many.recovered, None);
    assert!(many.peak > 3.0, "{:.2}", many.peak);
}
