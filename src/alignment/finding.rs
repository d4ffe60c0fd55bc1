//! Findings: inequalities that do not hold.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::quantity::{HumanDuration, Quantity};

macro_rules! ids {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $word:literal;)*) => {
        /// The inequality that a finding is about, one of 18.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum FindingId {
            $($(#[$doc])* $variant = $number,)*
        }

        impl FindingId {
            /// Every id, in the order of the table.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A stable word for logs, JSON and documents.
            pub(super) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

ids! {
    /// The connect limit is shorter than an attempt.
    ConnectAttempt = 1, "connect_attempt";
    /// The head limit is within the attempt, and the attempt within the total.
    HeadAttemptTotal = 2, "head_attempt_total";
    /// All attempts and the pauses between them fit into the total.
    AttemptsTotal = 3, "attempts_total";
    /// The gateway gives up before its client does.
    TotalCaller = 4, "total_caller";
    /// The upstream's own limit fires before the attempt's.
    UpstreamTimeoutAttempt = 5, "upstream_timeout_attempt";
    /// The gateway gives up before the load balancer in front does.
    TotalLoadBalancer = 6, "total_load_balancer";
    /// The pool closes an idle connection before the upstream does.
    PoolIdleUpstreamKeepAlive = 7, "pool_idle_upstream_keep_alive";
    /// Our server keeps an idle connection longer than the load balancer in front does.
    ServerKeepAliveLoadBalancer = 8, "server_keep_alive_load_balancer";
    /// The body's idle limit is between the stream's longest gap and the load balancer's limit.
    BodyIdleStream = 9, "body_idle_stream";
    /// A route that streams has no total, on purpose, and an idle limit.
    StreamTotal = 10, "stream_total";
    /// The breaker's times suit the length of an attempt.
    BreakerAttempt = 11, "breaker_attempt";
    /// The breaker's window holds enough calls to open the circuit.
    BreakerMinRequests = 12, "breaker_min_requests";
    /// The budget's window covers a whole call.
    BudgetWindowTotal = 13, "budget_window_total";
    /// A `Retry-After` that is waited for ends within the total.
    RetryAfterTotal = 14, "retry_after_total";
    /// A hedge starts before its attempt ends, and draws on the retry budget.
    HedgeAttempt = 15, "hedge_attempt";
    /// A rollout leaves time for the load balancer to notice and for calls in flight to end.
    DrainGrace = 16, "drain_grace";
    /// All replay buffers together fit into memory.
    ReplayMemory = 17, "replay_memory";
    /// The share of calls above the learned quantile is larger than the share of calls that hang.
    LearnedQuantile = 18, "learned_quantile";
}

impl FindingId {
    /// Its number in the table, from 1.
    pub(super) const fn number(self) -> u8 {
        self as u8
    }
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Severity {
    /// The crate corrects it at run time, which has a cost.
    Clamp,
    /// It works, but not as intended.
    Warn,
    /// Clients get wrong responses; do not start with it.
    Refuse,
}

impl Severity {
    /// The name in logs and JSON.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Clamp => "clamp",
            Self::Warn => "warn",
            Self::Refuse => "refuse",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A quantity and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedQuantity {
    pub(super) name: Cow<'static, str>,
    pub(super) quantity: Quantity,
}

impl NamedQuantity {
    pub(super) fn new(name: impl Into<Cow<'static, str>>, amount: impl Into<Quantity>) -> Self {
        Self { name: name.into(), quantity: amount.into() }
    }
}

impl fmt::Display for NamedQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.quantity)
    }
}

/// The relation that should hold between two quantities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Below,
    AtMost,
    Above,
    AtLeast,
}

impl Relation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Above => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// One inequality that does not hold.
///
/// It prints as a block of lines: severity, id and number; the conflict as a sentence; the inequality as it should hold; the reason; the effect on clients; the
/// suggestion; and the correction at run time, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub(super) id: FindingId,
    pub(super) severity: Severity,
    pub(super) left: NamedQuantity,
    pub(super) relation: Relation,
    pub(super) right: NamedQuantity,
    pub(super) margin: Duration,
    pub(super) reason: &'static str,
    pub(super) client_sees: &'static str,
    pub(super) suggestion: String,
    pub(super) mitigation: Option<&'static str>,
}

impl Finding {
    /// The inequality, as a stable word for logs, JSON and documents: `total_caller`.
    pub fn id(&self) -> &'static str {
        self.id.as_str()
    }

    /// The number of the inequality in the [table](super), from 1.
    pub fn number(&self) -> u8 {
        self.id.number()
    }

    /// The severity.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// The inequality as it should hold: `total (60 s) + 3 s < load balancer's idle limit (60 s)`.
    pub fn inequality(&self) -> String {
        let Self { left, right, relation, .. } = self;
        let relation = relation.as_str();
        let margin = HumanDuration(self.margin);
        match self.relation {
            _ if self.margin.is_zero() => format!("{left} {relation} {right}"),
            Relation::Below | Relation::AtMost => format!("{left} + {margin} {relation} {right}"),
            Relation::Above | Relation::AtLeast => format!("{left} {relation} {right} + {margin}"),
        }
    }

    /// The conflict as a sentence: `3 attempts plus backoff can take 180 s, but total is 60 s`.
    pub fn conflict(&self) -> String {
        let Self { id, left, right, relation, .. } = self;
        if *id == FindingId::AttemptsTotal {
            return format!("{} can take {}, but `{}` is {}", left.name, left.quantity, right.name, right.quantity);
        }
        let margin = (!self.margin.is_zero()).then_some(HumanDuration(self.margin));
        match (relation, margin) {
            (Relation::Below | Relation::AtMost, Some(margin)) => format!("{left} must be {margin} below {right}"),
            (Relation::Above | Relation::AtLeast, Some(margin)) => format!("{left} must be {margin} above {right}"),
            (Relation::Below, None) => format!("{left} must be below {right}"),
            (Relation::AtMost, None) => format!("{left} must not exceed {right}"),
            (Relation::Above, None) => format!("{left} must be above {right}"),
            (Relation::AtLeast, None) => format!("{left} must be at least {right}"),
        }
    }

    /// The reason, in one sentence.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The effect on clients, usually a status.
    pub fn client_sees(&self) -> &'static str {
        self.client_sees
    }

    /// The setting that satisfies the inequality.
    pub fn suggestion(&self) -> &str {
        &self.suggestion
    }

    /// The correction that the crate makes at run time; `None` if it makes none.
    pub fn mitigation(&self) -> Option<&'static str> {
        self.mitigation
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<7} {} (no. {})", self.severity, self.id(), self.number())?;
        writeln!(f, "        found   {}", self.conflict())?;
        writeln!(f, "        rule    {}", self.inequality())?;
        writeln!(f, "        why     {}", self.reason)?;
        writeln!(f, "        client  {}", self.client_sees)?;
        write!(f, "        set     {}", self.suggestion)?;
        if let Some(deed) = self.mitigation {
            write!(f, "\n        crate   {deed}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_has_every_rule_in_its_order() {
        let rows = include_str!("../guide/alignment.md").lines();
        let rows = rows.filter(|line| line.starts_with("| ") && line.split('|').count() == 7);
        let ids: Vec<_> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        assert_eq!(ids, FindingId::ALL.iter().map(|id| id.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn the_ids_are_numbered_as_in_the_table_and_named_once() {
        let numbers: Vec<_> = FindingId::ALL.iter().map(|id| id.number()).collect();
        assert_eq!(numbers, (1..=18).collect::<Vec<_>>());
        let mut words: Vec<_> = FindingId::ALL.iter().map(|id| id.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 18);
        assert!(words.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }
}
