//! The 18 inequalities, each a function that returns findings.

mod check;
mod neighbours;
mod nesting;
mod resilience;
mod streaming;

use super::finding::Finding;

pub(super) use self::check::RuleInput;
pub(crate) use self::neighbours::pool_idle_finding;
pub(super) use self::nesting::full_attempts;

/// Checks all inequalities, in the order of their numbers.
pub(super) fn all(scene: &RuleInput<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    nesting::check(scene, &mut found);
    neighbours::check(scene, &mut found);
    streaming::check(scene, &mut found);
    resilience::check(scene, &mut found);
    found.sort_by_key(|finding| finding.id);
    found
}

#[cfg(test)]
mod tests;
