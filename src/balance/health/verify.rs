//! One check of every endpoint, with the phases that it reached.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::{HealthCheck, InvalidHealthCheck, Performed};
use crate::balance::check_report::CheckReport;
use crate::balance::handle::BalanceHandle;
use crate::balance::member::Member;
use crate::cause::{Failure, Phase};

/// Report of the check of one endpoint; its `Display` is one line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointReport {
    /// The endpoint.
    pub member: Arc<Member>,
    /// The phases that the check reached, in order, with their durations. A failed check ended in the last one. A check
    /// of your own has none.
    pub phases: Vec<(Phase, Duration)>,
    /// The result of the check.
    pub report: CheckReport,
    /// The failure, if there was no response.
    pub failure: Option<Failure>,
    /// The duration of the check.
    pub took: Duration,
}

impl EndpointReport {
    /// Returns whether the check has passed.
    pub fn is_passed(&self) -> bool {
        self.report.is_passed()
    }
}

impl fmt::Display for EndpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match (self.report.is_passed(), self.report.is_draining()) {
            (true, _) => "passed",
            (_, true) => "asks for no calls",
            _ => "failed",
        };
        write!(f, "{}: {outcome} after {:?}", self.member.key, self.took)?;
        for (index, (phase, took)) in self.phases.iter().enumerate() {
            write!(f, "{}{} {took:?}", if index == 0 { " (" } else { ", " }, phase.as_str())?;
        }
        f.write_str(if self.phases.is_empty() { "" } else { ")" })?;
        if self.report.text().is_empty() { Ok(()) } else { write!(f, ": {}", self.report.text()) }
    }
}

/// Running checks of all endpoints of a pool; dropping it cancels them.
///
/// Checks start when a report is waited for, and at most [`max_concurrent`](HealthCheck::max_concurrent) run at a time.
/// The pool takes calls meanwhile.
#[derive(Debug)]
#[must_use]
pub struct Verification {
    check: Arc<HealthCheck>,
    waiting: VecDeque<Arc<Member>>,
    checks: JoinSet<EndpointReport>,
    members: Vec<Arc<Member>>,
}

impl HealthCheck {
    /// Checks every endpoint of a pool once, such as when a process starts, and changes nothing in the pool.
    ///
    /// ```
    /// use tower_upstream::balance::{Balance, HealthCheck, Member};
    /// # use http_body_util::Full;
    /// # use tower::service_fn;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let make = |_: &Member| service_fn(|_: http::Request<Full<bytes::Bytes>>| async {
    /// #     Ok::<_, std::io::Error>(http::Response::new(Full::<bytes::Bytes>::default()))
    /// # });
    /// let pool = Balance::builder("shop", make).members([Member::new("up"), Member::new("down")]).build().unwrap();
    /// let check = HealthCheck::new(|member: &Member| std::future::ready(Ok::<_, std::io::Error>(&*member.key == "up")));
    ///
    /// let mut verification = check.verify(&pool.handle()).unwrap();
    /// assert!(verification.any_passed().await, "the pool can take calls");
    /// while let Some(endpoint) = verification.next().await {
    ///     println!("{endpoint}");
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidHealthCheck`] if a setting cannot work.
    pub fn verify(&self, pool: &BalanceHandle) -> Result<Verification, InvalidHealthCheck> {
        self.validate()?;
        let members = pool.members().borrow().to_vec();
        let (check, waiting) = (Arc::new(self.clone()), members.iter().cloned().collect());
        Ok(Verification { check, waiting, checks: JoinSet::new(), members })
    }
}

impl Verification {
    /// Waits for the next report; `None` after the last endpoint's.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn next(&mut self) -> Option<EndpointReport> {
        loop {
            while self.checks.len() < self.check.max_concurrent {
                let Some(member) = self.waiting.pop_front() else { break };
                let check = self.check.clone();
                self.checks.spawn(async move { verify(&check, member).await });
            }
            // a check that panics has failed, and none is aborted
            if let Ok(report) = self.checks.join_next().await? {
                return Some(report);
            }
        }
    }

    /// Waits until the check of one endpoint has passed; `false` if none passes.
    ///
    /// Drops the reports until then; [`next`](Self::next) returns the others.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn any_passed(&mut self) -> bool {
        while let Some(report) = self.next().await {
            if report.is_passed() {
                return true;
            }
        }
        false
    }

    /// Waits for the reports of all endpoints, in the order of the members.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub async fn all(mut self) -> Vec<EndpointReport> {
        let mut reports = std::collections::HashMap::new();
        while let Some(report) = self.next().await {
            reports.insert(report.member.key.clone(), report);
        }
        self.members.iter().filter_map(|member| reports.remove(&member.key)).collect()
    }
}

async fn verify(check: &HealthCheck, member: Arc<Member>) -> EndpointReport {
    let Performed { record, phases, failure } = check.perform(member.clone()).await;
    EndpointReport { member, phases, report: record.report, failure, took: record.took }
}
