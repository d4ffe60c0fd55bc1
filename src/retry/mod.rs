//! Retries that cannot become a storm.

mod budget;
mod ledger;
mod pace;
mod ratio;
#[cfg(feature = "tower-retry")]
mod tower_budget;

pub use self::budget::{Balance, RetryBudget, Withdrawal};
pub use self::ratio::Ratio;
#[cfg(feature = "tower-retry")]
pub use self::tower_budget::TowerBudget;
