//! Errors of a configuration, reported all at once.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// An invalid setting of a configuration.
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

    /// The setting, such as `timeouts.total` or `limiter`, or the number of an [inequality](crate::alignment).
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// The problem with it.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The suggested change.
    pub fn suggestion(&self) -> &str {
        &self.suggestion
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.setting, self.problem, self.suggestion)
    }
}

/// All errors of a refused configuration; `Display` writes one line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    upstream: Arc<str>,
    errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// `Ok` if there are no errors.
    pub(super) fn into_result(upstream: &Arc<str>, errors: Vec<ConfigError>) -> Result<(), Self> {
        if errors.is_empty() { Ok(()) } else { Err(Self { upstream: upstream.clone(), errors }) }
    }

    /// Every error; at least one.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid settings for upstream `{}`:", self.upstream)?;
        self.errors.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl Error for ConfigErrors {}
