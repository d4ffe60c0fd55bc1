//! What is wrong with a configuration, all of it at once.

use std::error::Error;
use std::fmt;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    setting: String,
    problem: String,
    suggestion: String,
}

impl ConfigError {
    pub(super) fn new(setting: impl Into<String>, problem: impl Into<String>, set: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into(), suggestion: set.into() }
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
    pub fn suggestion(&self) -> &str {
        &self.suggestion
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.setting, self.problem, self.suggestion)
    }
}

/// A configuration that is refused, with everything that is wrong with it; it prints a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// `Ok` where nothing was found.
    pub(super) fn into_result(found: Vec<ConfigError>) -> Result<(), Self> {
        if found.is_empty() { Ok(()) } else { Err(Self { errors: found }) }
    }

    /// Everything that is wrong; at least one.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream's stack is misconfigured")?;
        self.errors.iter().try_for_each(|found| write!(f, "\n  {found}"))
    }
}

impl Error for ConfigErrors {}
