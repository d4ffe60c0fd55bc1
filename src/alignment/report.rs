//! All findings, and the limits as they nest.

use std::error::Error;
use std::fmt;

use super::finding::{Finding, Severity};
use super::rules::{self, RuleInput};
use super::timeline::Timeline;
use super::topology::Topology;
use crate::timeout::Timeouts;

/// What [`Timeouts::check`] found, and how the limits nest.
///
/// It prints as a block for each finding, the worst first, and a timeline; with feature `serde` it is
/// JSON as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub(super) findings: Vec<Finding>,
    pub(super) attempts: Option<AttemptEstimate>,
    pub(super) timeline: Timeline,
}

/// How many attempts were wanted, and how many fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AttemptEstimate {
    pub(super) wanted: u32,
    pub(super) full: u32,
}

impl Report {
    pub(super) fn new(timeouts: &Timeouts, topology: &Topology) -> Self {
        let scene = RuleInput { timeouts, topology };
        let mut findings = rules::all(&scene);
        // stable: among equals the table's order stays
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let full = rules::full_attempts(&scene);
        let attempts = full.map(|(full, _)| AttemptEstimate { wanted: scene.attempts(), full });
        Self { findings, attempts, timeline: Timeline::new(&scene) }
    }

    /// Everything that was found, the worst first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What nobody should start with.
    pub fn refused(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refuse)
    }

    /// Whether nothing is refused; there may be warnings.
    pub fn is_aligned(&self) -> bool {
        self.refused().next().is_none()
    }

    /// How many attempts can run in full within the total; `None` where attempt or total have no end.
    pub fn max_attempts(&self) -> Option<u32> {
        self.attempts.map(|attempts| attempts.full)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            f.write_str("all that is known fits\n")?;
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

/// A configuration with something in it that is refused; it prints what that is.
#[derive(Clone, Debug)]
pub struct MisalignedTimeouts {
    report: Box<Report>,
}

impl MisalignedTimeouts {
    pub(super) fn new(report: Report) -> Self {
        Self { report: Box::new(report) }
    }

    /// Everything that was found, warnings too.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Everything that was found, warnings too.
    pub fn into_report(self) -> Report {
        *self.report
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
