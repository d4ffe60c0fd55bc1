//! The budget for tower's own retry layer.

use tokio::time::Instant;
use tower::retry::budget::Budget;

use super::{RetryBudget, Withdrawal};

/// The budget of tower's own retry layer.
///
/// tower's trait reports successes and withdrawals. A deposit therefore counts as a call that started and succeeded, and the
/// rate is that of the successes: in a total outage the floor decays with them. A withdrawal is spent immediately, because
/// the trait does not report whether its retry was sent. The clock is read at each.
///
/// Unlike [`TpsBudget`](tower::retry::budget::TpsBudget) it takes no lock, keeps every ratio exactly (`TpsBudget` turns 60 %
/// into 100 %), and its floor is a share of the traffic.
///
/// ```
/// use std::{future, sync::Arc};
/// use tower::retry::{Policy, RetryLayer, budget::Budget};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_upstream::retry::RetryBudget;
///
/// #[derive(Clone)]
/// struct ThreeTimes {
///     budget: Arc<RetryBudget>,
///     left: usize,
/// }
///
/// impl<E> Policy<u32, u32, E> for ThreeTimes {
///     type Future = future::Ready<()>;
///
///     fn retry(&mut self, _: &mut u32, result: &mut Result<u32, E>) -> Option<Self::Future> {
///         if result.is_ok() {
///             self.budget.deposit();
///             return None;
///         }
///         self.left = self.left.checked_sub(1)?;
///         self.budget.withdraw().then(|| future::ready(()))
///     }
///
///     fn clone_request(&mut self, request: &u32) -> Option<u32> {
///         Some(*request)
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let shared = RetryBudget::new();
/// let policy = ThreeTimes { budget: Arc::new(shared.clone()), left: 2 };
/// let broken = service_fn(|_: u32| async { Err::<u32, _>("connection refused") });
/// let answer = RetryLayer::new(policy).layer(broken).oneshot(1).await;
/// assert!(answer.is_err());
/// assert_eq!(shared.snapshot(tokio::time::Instant::now()).withdrawals, 2);
/// # }
/// ```
impl Budget for RetryBudget {
    fn deposit(&self) {
        self.begin(Instant::now());
        self.succeed();
    }

    fn withdraw(&self) -> bool {
        self.try_withdraw(Instant::now()).map(Withdrawal::sent).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower::retry::budget::TpsBudget;

    use super::*;
    use crate::stats::Ratio;

    /// How many of 1000 withdrawals are granted after 1000 deposits and the three tokens of the beginning.
    fn granted(budget: &impl Budget) -> usize {
        (0..1000).for_each(|_| budget.deposit());
        (0..2000).filter(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn every_ratio_is_exact_where_towers_own_rounds() {
        for (per_mille, towers) in [(300_u16, 333), (400, 500), (600, 1000), (900, 1000)] {
            let tps = TpsBudget::new(Duration::from_secs(10), 0, f32::from(per_mille) / 1000.0);
            assert_eq!(granted(&tps), towers);

            let budget = RetryBudget::new().ratio(Ratio::per_mille(per_mille));
            // a rate whose cap holds a thousand deposits
            warm(&budget).await;
            assert_eq!(granted(&budget), usize::from(per_mille));
        }
    }

    /// Runs at 2000 calls a second for ten seconds and leaves less than a token behind.
    async fn warm(budget: &RetryBudget) {
        for _ in 0..1000 {
            (0..20).for_each(|_| budget.begin(Instant::now()));
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        while budget.try_withdraw(Instant::now()).map(Withdrawal::sent).is_some() {}
    }
}
