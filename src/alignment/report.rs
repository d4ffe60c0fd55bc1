//! The report: all findings, and a timeline of the timeouts.

use std::error::Error;
use std::fmt;

use super::finding::{Finding, Severity};
use super::rules::{self, RuleInput};
use super::timeline::Timeline;
use super::topology::Topology;
use crate::timeout::Timeouts;

/// The findings of [`Timeouts::check`] and a timeline of how the timeouts nest.
///
/// It prints as a block per finding, the most severe first, and a timeline; with feature `serde` it serializes
/// as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) attempts: Option<AttemptEstimate>,
    pub(super) timeline: Timeline,
}

/// Number of attempts configured, and of those that fit into the total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttemptEstimate {
    pub(super) wanted: u32,
    pub(super) full: u32,
}

impl Report {
    pub(super) fn new(timeouts: &Timeouts, topology: &Topology) -> Self {
        let scene = RuleInput { timeouts, topology };
        let mut findings = rules::all(&scene);
        // stable: findings of equal severity keep the table's order
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let full = rules::full_attempts(&scene);
        let attempts = full.map(|(full, _)| AttemptEstimate { wanted: scene.attempts(), full });
        Self { findings, attempts, timeline: Timeline::new(&scene) }
    }

    /// All findings, the most severe first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The findings with which a gateway should not start.
    pub fn refused(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refuse)
    }

    /// Whether no finding is refused; there may be warnings.
    pub fn is_aligned(&self) -> bool {
        self.refused().next().is_none()
    }

    /// How many attempts can run in full within the total; `None` if attempt or total is unlimited.
    pub fn max_attempts(&self) -> Option<u32> {
        self.attempts.map(|attempts| attempts.full)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            f.write_str("all known timeouts fit\n")?;
        }
        for finding in &self.findings {
            writeln!(f, "{finding}\n")?;
        }
        match self.attempts {
            Some(AttemptEstimate { wanted, full }) if wanted > 1 => {
                writeln!(f, "{full} of {wanted} attempts run in full")?;
            }
            _ => {}
        }
        write!(f, "{}", self.timeline)
    }
}

/// The error of [`Timeouts::checked`]: at least one finding is refused. It prints the findings.
#[derive(Clone, Debug)]
pub struct MisalignedTimeouts {
    report: Box<Report>,
}

impl MisalignedTimeouts {
    pub(super) fn new(report: Report) -> Self {
        Self { report: Box::new(report) }
    }

    /// The whole report, warnings included.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Display for MisalignedTimeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the timeouts are not aligned")?;
        for finding in self.report.refused() {
            write!(f, "\n{finding}")?;
        }
        Ok(())
    }
}

impl Error for MisalignedTimeouts {}
