//! What is wrong with a configuration, all of it at once.

use std::error::Error;
use std::fmt;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misconfiguration {
    setting: String,
    problem: String,
    set: String,
}

impl Misconfiguration {
    pub(super) fn new(setting: impl Into<String>, problem: impl Into<String>, set: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into(), set: set.into() }
    }

    /// What it is about: `timeouts.head`, `limiter`, or the number of an [inequality](crate::alignment).
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// What is wrong with it.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// What to set instead.
    pub fn set(&self) -> &str {
        &self.set
    }
}

impl fmt::Display for Misconfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.setting, self.problem, self.set)
    }
}

/// A configuration that is refused, with everything that is wrong with it; it prints a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misconfigured {
    found: Vec<Misconfiguration>,
}

impl Misconfigured {
    /// `Ok` where nothing was found.
    pub(super) fn unless_none(found: Vec<Misconfiguration>) -> Result<(), Self> {
        if found.is_empty() { Ok(()) } else { Err(Self { found }) }
    }

    /// Everything that is wrong; at least one.
    pub fn found(&self) -> &[Misconfiguration] {
        &self.found
    }
}

impl fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream's stack is misconfigured")?;
        self.found.iter().try_for_each(|found| write!(f, "\n  {found}"))
    }
}

impl Error for Misconfigured {}
