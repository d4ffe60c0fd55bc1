//! A chart of the nested timeouts, on one axis.

use std::fmt;
use std::time::Duration;

use super::quantity::{HumanDuration, Quantity};
use super::rules::RuleInput;
use super::topology::ClientHop;

/// Columns of the axis; with names and times a line stays within 100.
const WIDTH: usize = 60;
/// An axis shows this many decades at most.
const DECADES: u32 = 4;

/// The limits from the longest to the shortest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    pub(super) spans: Vec<Span>,
}

/// One limit, or several attempts one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) name: String,
    pub(super) ends: Quantity,
    /// Where the attempts end, if there are several.
    pub(super) steps: Vec<Duration>,
}

impl Timeline {
    pub(super) fn new(scene: &RuleInput<'_>) -> Self {
        let (timeouts, topology) = (scene.timeouts, scene.topology);
        let mut spans = Vec::new();
        let mut add = |name: String, ends: Option<Quantity>| {
            spans.extend(ends.map(|ends| Span { name, ends, steps: Vec::new() }));
        };
        let caller =
            topology.client.map(|(ClientHop::Declared(limit) | ClientHop::Deadline(limit))| Quantity::Time(limit));
        add("caller".to_owned(), caller);
        if let Some((_, patience)) = topology.load_balancer_wait() {
            add(topology.balancer.map_or("", |balancer| balancer.name).to_owned(), Some(patience));
        }
        add("absolute".to_owned(), timeouts.max_duration.map(Quantity::Time));
        add("total".to_owned(), Some(timeouts.total.into()));
        add("head".to_owned(), timeouts.response_head.map(Quantity::Time));
        add("connect".to_owned(), topology.connect.map(Quantity::Time));
        add("upstream's own".to_owned(), topology.upstream_timeout.map(Quantity::Time));
        spans.extend(attempts(scene));
        // stable: of two equal spans, the outer one was added first
        spans.sort_by(|one, other| other.ends.order(one.ends));
        Self { spans }
    }

    /// The longest and the shortest time of all spans.
    fn range(&self) -> Option<(Duration, Duration)> {
        let ends = || self.spans.iter().filter_map(|span| span.ends.time()).filter(|end| !end.is_zero());
        let steps = self.spans.iter().filter_map(|span| span.steps.first().copied()).filter(|step| !step.is_zero());
        Some((ends().max()?, ends().chain(steps).min()?))
    }
}

/// More attempts than this are not drawn individually.
const MAX_STEPS: u32 = 9;

fn attempts(scene: &RuleInput<'_>) -> Option<Span> {
    let each = scene.timeouts.attempt?;
    let pause = |number| scene.topology.backoff.map_or(Duration::ZERO, |backoff| backoff.sum(number));
    let end = |number: u32| each.saturating_mul(number).saturating_add(pause(number - 1));
    let number = scene.attempts();
    let name = if number == 1 { "attempt".to_owned() } else { format!("{number} attempts") };
    let steps = if number == 1 { Vec::new() } else { (1..=number.min(MAX_STEPS)).map(end).collect() };
    Some(Span { name, ends: Quantity::Time(end(number)), steps })
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((longest, shortest)) = self.range() else { return Ok(()) };
        let axis = Axis::new(shortest, longest);
        for span in &self.spans {
            let bar = match span.ends {
                Quantity::Time(end) => axis.bar(end, &span.steps),
                _ => format!("|{:-<WIDTH$}>", ""),
            };
            let name: String = span.name.chars().take(20).collect();
            writeln!(f, "{name:>20} {bar} {}", span.ends)?;
        }
        write!(f, "{:>20} {}", "", axis.ticks())
    }
}

/// A logarithmic axis: equal factors have equal distances.
struct Axis {
    decade: u32,
    decades: f64,
}

impl Axis {
    fn new(shortest: Duration, longest: Duration) -> Self {
        let (low, high) = (log(shortest).floor(), log(longest).ceil());
        let high = high.max(low + 1.0);
        let low = low.max(high - f64::from(DECADES));
        // a duration's logarithm in nanoseconds lies between 0 and 29
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Self { decade: low as u32, decades: high - low }
    }

    /// The column in which a time lies.
    fn column(&self, time: Duration) -> usize {
        let share = ((log(time) - f64::from(self.decade)) / self.decades).clamp(0.0, 1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let column = (share * WIDTH as f64).round() as usize;
        column
    }

    fn bar(&self, end: Duration, steps: &[Duration]) -> String {
        let mut bar = vec![b'-'; self.column(end)];
        for (step, number) in steps.iter().zip(b'1'..) {
            if let Some(place) = self.column(*step).checked_sub(1).and_then(|column| bar.get_mut(column)) {
                *place = number;
            }
        }
        format!("|{}|", String::from_utf8_lossy(&bar))
    }

    fn ticks(&self) -> String {
        let mut line = String::new();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let decades = self.decades as u32;
        for tick in 0..=decades {
            let Some(nanos) = 10u64.checked_pow(self.decade + tick) else { break };
            let time = Duration::from_nanos(nanos);
            // behind the bars' first stroke
            let column = self.column(time) + usize::from(tick > 0);
            line.extend(std::iter::repeat_n(' ', column.saturating_sub(line.chars().count())));
            line.push('|');
            line.push_str(&HumanDuration(time).to_string());
        }
        line
    }
}

/// The decimal logarithm in nanoseconds.
fn log(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e9).max(1.0).log10()
}
