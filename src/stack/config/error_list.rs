//! What contradicts itself in a file, for `build` to tell with all the rest.

use super::super::config_error::ConfigError;
use super::tables::Fraction;
use crate::retry::Ratio;

/// What is wrong so far.
pub(super) struct ErrorList(pub(super) Vec<ConfigError>);

impl ErrorList {
    pub(super) fn bad(&mut self, setting: &str, problem: impl Into<String>, set: impl Into<String>) {
        self.0.push(ConfigError::new(setting, problem, set));
    }

    /// The number, if it is in this range; none was given, or none is taken, else.
    pub(super) fn number(&mut self, setting: &str, given: Option<u64>, least: u32, most: u32) -> Option<u32> {
        let given = given?;
        let number = u32::try_from(given).ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.bad(setting, format!("{given} is out of range"), format!("set a number from {least} to {most}"));
        }
        number
    }

    pub(super) fn share(&mut self, setting: &str, given: Option<Fraction>) -> Option<Ratio> {
        let Fraction(share) = given?;
        if (0.001..=1.0).contains(&share) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 1 to 1000
            return Some(Ratio::per_mille((share * 1000.0).round() as u16));
        }
        let problem = format!("{share} is no share of the calls");
        self.bad(setting, problem, "set one from 0.001 to 1, or from \"0.1%\" to \"100%\"");
        None
    }
}
