//! One inequality with its quantities, and the finding if it does not hold.

use std::time::Duration;

use super::super::finding::{Finding, FindingId, NamedQuantity, Relation, Severity};
use super::super::quantity::{Quantity, margin};
use super::super::topology::Topology;
use crate::exchange::CallKind;
use crate::timeout::Timeouts;

/// The configured timeouts and the declared topology.
pub(in crate::alignment) struct RuleInput<'a> {
    pub(in crate::alignment) timeouts: &'a Timeouts,
    pub(in crate::alignment) topology: &'a Topology,
}

impl RuleInput<'_> {
    /// The time until the client gets a response: the total, or the maximum duration if that is shorter.
    pub(in crate::alignment) fn total(&self) -> Quantity {
        Quantity::from(self.timeouts.total).min(self.timeouts.max_duration.into())
    }

    /// The timeout of an attempt; the total if it has none of its own.
    pub(in crate::alignment) fn attempt(&self) -> NamedQuantity {
        match self.timeouts.attempt {
            Some(limit) => NamedQuantity::new("attempt", limit),
            None => NamedQuantity::new("attempt, as long as the total", self.total()),
        }
    }

    pub(in crate::alignment) fn attempts(&self) -> u32 {
        self.topology.attempts.unwrap_or(1).max(1)
    }

    /// Whether calls are unbounded: then limits on the whole call do not apply.
    pub(in crate::alignment) fn is_unbounded(&self) -> bool {
        self.timeouts.kind == CallKind::Unbounded
    }
}

/// An inequality with its quantities.
pub(super) struct Check {
    id: FindingId,
    left: NamedQuantity,
    relation: Relation,
    right: NamedQuantity,
    margin: Duration,
}

/// The explanation of an inequality that does not hold.
pub(super) struct Explanation {
    pub(super) reason: &'static str,
    pub(super) client_sees: &'static str,
    pub(super) suggestion: String,
    pub(super) mitigation: Option<&'static str>,
}

impl Check {
    pub(super) fn new(id: FindingId, left: NamedQuantity, relation: Relation, right: NamedQuantity) -> Self {
        Self { id, left, relation, right, margin: Duration::ZERO }
    }

    /// Adds the usual margin for messages and clocks.
    pub(super) fn with_margin(mut self) -> Self {
        self.margin = margin(self.left.quantity, self.right.quantity);
        self
    }

    /// Adds the usual margin, at least this one.
    pub(super) fn with_margin_of(mut self, least: Duration) -> Self {
        self.margin = margin(self.left.quantity, self.right.quantity).max(least);
        self
    }

    fn holds(&self) -> bool {
        let (left, right) = (self.left.quantity, self.right.quantity);
        match self.relation {
            // an unlimited quantity is larger than any other
            Relation::Below | Relation::AtMost if right.is_unlimited() => true,
            Relation::Above | Relation::AtLeast if left.is_unlimited() => true,
            Relation::Below => left.plus(self.margin).is_below(right),
            Relation::AtMost => !right.is_below(left.plus(self.margin)),
            Relation::Above => right.plus(self.margin).is_below(left),
            Relation::AtLeast => !left.is_below(right.plus(self.margin)),
        }
    }

    /// Returns a finding if the inequality does not hold.
    pub(super) fn or_explain(self, severity: Severity, said: impl FnOnce() -> Explanation) -> Option<Finding> {
        if self.holds() {
            return None;
        }
        let Self { id, left, relation, right, margin } = self;
        let Explanation { reason: why, client_sees: sees, suggestion: set, mitigation: at_run_time } = said();
        Some(Finding {
            id,
            severity,
            left,
            relation,
            right,
            margin,
            reason: why,
            client_sees: sees,
            suggestion: set,
            mitigation: at_run_time,
        })
    }
}
