//! The 18 inequalities, each a function that may find something.

mod guards;
mod nesting;
mod outside;
mod streams;

use std::time::Duration;

use super::amount::{Amount, margin};
use super::finding::{Finding, FindingId, Quantity, Relation, Severity};
use super::topology::Topology;
use crate::exchange::CallKind;
use crate::timeout::Timeouts;

pub(super) use self::nesting::full_attempts;
pub use self::outside::pool_idle_finding;

/// Looks at all of them, in the order of their numbers.
pub(super) fn all(scene: &Scene<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    nesting::look(scene, &mut found);
    outside::look(scene, &mut found);
    streams::look(scene, &mut found);
    guards::look(scene, &mut found);
    found.sort_by_key(Finding::id);
    found
}

/// What was configured and what was declared, and what follows from both.
pub(super) struct Scene<'a> {
    pub(super) timeouts: &'a Timeouts,
    pub(super) topology: &'a Topology,
}

impl Scene<'_> {
    /// The time until somebody is answered: the total, or the absolute limit where that is shorter.
    pub(super) fn total(&self) -> Amount {
        Amount::from(self.timeouts.total).min(self.timeouts.max_duration.into())
    }

    /// An attempt has what remains of the total where it has no limit of its own.
    pub(super) fn attempt(&self) -> Quantity {
        match self.timeouts.attempt {
            Some(limit) => Quantity::new("attempt", limit),
            None => Quantity::new("attempt, as long as the total", self.total()),
        }
    }

    pub(super) fn attempts(&self) -> u32 {
        self.topology.attempts.unwrap_or(1).max(1)
    }

    /// It has no end on purpose, so that limits on the whole say nothing.
    pub(super) fn is_unbounded(&self) -> bool {
        self.timeouts.kind == CallKind::Unbounded
    }
}

/// An inequality with its numbers, before it is known whether it holds.
pub(super) struct Inequality {
    id: FindingId,
    left: Quantity,
    relation: Relation,
    right: Quantity,
    margin: Duration,
}

/// What is said of an inequality that does not hold.
struct Said {
    why: &'static str,
    sees: &'static str,
    set: String,
    at_run_time: Option<&'static str>,
}

impl Inequality {
    fn new(id: FindingId, left: Quantity, relation: Relation, right: Quantity) -> Self {
        Self { id, left, relation, right, margin: Duration::ZERO }
    }

    /// With the margin that messages and clocks need.
    fn with_margin(mut self) -> Self {
        self.margin = margin(self.left.amount, self.right.amount);
        self
    }

    /// With that margin, and not less than this.
    fn with_margin_of(mut self, least: Duration) -> Self {
        self.margin = margin(self.left.amount, self.right.amount).max(least);
        self
    }

    fn holds(&self) -> bool {
        let (left, right) = (self.left.amount, self.right.amount);
        match self.relation {
            // what has no limit never comes first, and waits for everybody
            Relation::Below | Relation::AtMost if right.is_unlimited() => true,
            Relation::Above | Relation::AtLeast if left.is_unlimited() => true,
            Relation::Below => left.plus(self.margin).is_below(right),
            Relation::AtMost => !right.is_below(left.plus(self.margin)),
            Relation::Above => right.plus(self.margin).is_below(left),
            Relation::AtLeast => !left.is_below(right.plus(self.margin)),
        }
    }

    /// A finding, if it does not hold.
    fn or(self, severity: Severity, said: impl FnOnce() -> Said) -> Option<Finding> {
        if self.holds() {
            return None;
        }
        let Self { id, left, relation, right, margin } = self;
        let Said { why, sees, set, at_run_time } = said();
        Some(Finding { id, severity, left, relation, right, margin, why, sees, set, at_run_time })
    }
}

#[cfg(test)]
mod tests;
