//! Health checks and their settings.

mod checks;
#[cfg(feature = "client")]
mod dial;
#[cfg(all(feature = "client", feature = "http2"))]
mod grpc;
#[cfg(feature = "client")]
mod http;
mod machine;
mod probe;
mod progress;
#[cfg(feature = "client")]
mod remote;
mod runner;
mod schedule;
mod verify;

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use self::machine::Schedule;
use self::progress::Progress;
use super::check_report::{CheckRecord, CheckReport};
use super::member::Member;
use crate::body::BoxError;
use crate::cause::{BadGatewayCause, Failure, Phase};

pub use self::checks::HealthChecks;
pub use self::verify::{EndpointReport, Verification};

type CheckFuture = Pin<Box<dyn Future<Output = Result<CheckReport, BoxError>> + Send>>;

/// Kind of a health check and its schedule; see [Health checks](super#health-checks).
///
/// | setting | default |
/// |---|---|
/// | [`interval`](Self::interval) | 5 s +-20 % |
/// | [`transition_interval`](Self::transition_interval), while results differ from the health | 1 s +-20 % |
/// | [`timeout`](Self::timeout) of a check | 1 s |
/// | [`rise`](Self::rise), passed checks in a row until an endpoint is healthy | 2 |
/// | [`fall`](Self::fall), failed checks in a row until an endpoint is unhealthy | 3 |
/// | [`max_concurrent`](Self::max_concurrent) checks | 64 |
///
/// ```
/// use tower_upstream::balance::{HealthCheck, HealthChecks, Member};
///
/// # fn is_up(key: String) -> std::future::Ready<Result<bool, std::io::Error>> { std::future::ready(Ok(!key.is_empty())) }
/// let check = HealthCheck::new(|member: &Member| is_up(member.key.to_string())).rise(1).fall(2);
/// assert!(HealthChecks::new(check).is_ok());
/// ```
#[derive(Clone)]
#[must_use]
pub struct HealthCheck {
    kind: Kind,
    schedule: Schedule,
    limit: Duration,
    max_concurrent: usize,
    /// A setting of HTTP, gRPC or TCP checks was applied to a check of the user.
    is_misused: bool,
}

#[derive(Clone)]
enum Kind {
    User(Arc<dyn Fn(Arc<Member>) -> CheckFuture + Send + Sync>),
    #[cfg(feature = "client")]
    Remote(remote::Remote),
}

/// Error for settings of health checks that cannot work; its text names the setting and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHealthCheck(String);

impl fmt::Display for InvalidHealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidHealthCheck {}

impl HealthCheck {
    /// Checks an endpoint by a future of your own, which returns a [`CheckReport`], `()` or a `bool`.
    ///
    /// If it returns an error, panics or exceeds the [`timeout`](Self::timeout), the check has failed.
    pub fn new<F, T, R, E>(check: F) -> Self
    where
        F: Fn(&Member) -> T + Send + Sync + 'static,
        T: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<CheckReport>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        Self::of(Kind::User(Arc::new(move |member| {
            let check = check(&member);
            Box::pin(async move { check.await.map(Into::into).map_err(Into::into) })
        })))
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            schedule: Schedule::default(),
            limit: Duration::from_secs(1),
            max_concurrent: 64,
            is_misused: false,
        }
    }

    /// Sets the time from the beginning of a check to the beginning of the next one (default 5 s; at most a day). It
    /// varies by +-20 %, so that the checks of many gateways do not coincide.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.schedule.interval = interval;
        self
    }

    /// Sets the interval while results differ from the health of an endpoint, or its health is unknown (default 1 s,
    /// +-20 %).
    pub fn transition_interval(mut self, interval: Duration) -> Self {
        self.schedule.transition = interval;
        self
    }

    /// Limits the time of a check (default 1 s; at most the interval). A check that takes longer has failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sets the number of passed checks in a row after which an endpoint is healthy (default 2; at least 1).
    pub fn rise(mut self, checks: u32) -> Self {
        self.schedule.rise = checks;
        self
    }

    /// Sets the number of failed checks in a row after which an endpoint is unhealthy (default 3; at least 1).
    pub fn fall(mut self, checks: u32) -> Self {
        self.schedule.fall = checks;
        self
    }

    /// Sets the number of checks that may run at a time (default 64; at least 2). Endpoints whose last check took more
    /// than half of the timeout use at most half of it, so that they do not delay the others.
    pub fn max_concurrent(mut self, checks: usize) -> Self {
        self.max_concurrent = checks;
        self
    }

    /// Validates the settings.
    fn validate(&self) -> Result<(), InvalidHealthCheck> {
        let Schedule { interval, transition, rise, fall } = self.schedule;
        let day = Duration::from_secs(24 * 60 * 60);
        let problem = if interval.is_zero() {
            "`interval` is 0: checks would never pause; the default is 5 s".to_owned()
        } else if transition.is_zero() {
            "`transition_interval` is 0: checks would never pause; the default is 1 s".to_owned()
        } else if self.is_misused {
            "a setting of HTTP, gRPC and TCP checks was applied to a check of the user's: remove it".to_owned()
        } else if interval > day || transition > day {
            "an interval is longer than a day: remove the checks instead".to_owned()
        } else if self.limit.is_zero() {
            "`timeout` is 0: every check would fail; the default is 1 s".to_owned()
        } else if self.limit > interval {
            format!("`timeout` ({:?}) must not exceed `interval` ({interval:?}): checks would overlap", self.limit)
        } else if rise == 0 {
            "`rise` is 0: an endpoint would be healthy without a check; use at least 1".to_owned()
        } else if fall == 0 {
            "`fall` is 0: an endpoint would be unhealthy without a check; use at least 1".to_owned()
        } else if self.max_concurrent < 2 {
            "`max_concurrent` is less than 2: an endpoint that hangs would delay the checks of all others".to_owned()
        } else {
            #[cfg(feature = "client")]
            if let Kind::Remote(remote) = &self.kind {
                return remote.validate().map_err(InvalidHealthCheck);
            }
            return Ok(());
        };
        Err(InvalidHealthCheck(problem))
    }

    /// Checks an endpoint once.
    async fn perform(&self, member: Arc<Member>) -> Performed {
        let began = Instant::now();
        let progress = Progress::new(began);
        let check = async {
            match &self.kind {
                Kind::User(check) => check(member).await,
                #[cfg(feature = "client")]
                Kind::Remote(remote) => remote.perform(&member, &progress).await,
            }
        };
        let outcome = timeout(self.limit, caught(check)).await;
        let (now, phase) = (Instant::now(), progress.current());
        let took = now.saturating_duration_since(began);
        let phases = progress.end(now);
        let (report, failure) = match outcome {
            Ok(Ok(report)) => (report, None),
            Ok(Err(error)) => {
                let text = chain_text(&*error);
                (CheckReport::failed(text), Some(Failure::from_error(error)))
            }
            Err(elapsed) => {
                let phase = phase.unwrap_or(Phase::Wait);
                let text = format!("no result within {:?}, in phase {}", self.limit, phase.as_str());
                let failure = Failure::builder(timeout_cause(phase)).phase(phase).source(elapsed);
                (CheckReport::failed(text), Some(failure.build()))
            }
        };
        Performed { record: CheckRecord { at: now, took, report }, phases, failure }
    }

    /// Whether a check of this duration was slow, so that its endpoint must not delay the checks of others.
    fn is_slow(&self, took: Duration) -> bool {
        took > self.limit / 2
    }
}

/// Polls a check, and turns a panic of the user's code into a failure.
async fn caught(check: impl Future<Output = Result<CheckReport, BoxError>>) -> Result<CheckReport, BoxError> {
    let mut check = pin!(check);
    std::future::poll_fn(|cx| {
        let poll = catch_unwind(AssertUnwindSafe(|| check.as_mut().poll(cx)));
        poll.unwrap_or_else(|_| Poll::Ready(Err("the check panicked".into())))
    })
    .await
}

/// Result of one check, and the phases that it reached.
#[derive(Debug)]
struct Performed {
    record: CheckRecord,
    phases: Vec<(Phase, Duration)>,
    failure: Option<Failure>,
}

fn timeout_cause(phase: Phase) -> BadGatewayCause {
    match phase {
        Phase::Resolve => BadGatewayCause::DnsTimeout,
        Phase::Connect => BadGatewayCause::ConnectTimeout,
        Phase::Tls => BadGatewayCause::TlsTimeout,
        _ => BadGatewayCause::FirstByteTimeout,
    }
}

/// Returns the text of an error and of its sources.
fn chain_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Failure>() {
        // its own text is longer, and names attempts and upstream as well
        Some(failure) => format!("{} in phase {}", failure.cause().as_str(), failure.phase().as_str()),
        None => error.to_string(),
    };
    let mut source = error.source();
    // a chain may be of any length, but a report is short
    for _ in 0..8 {
        let Some(cause) = source else { break };
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl fmt::Debug for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheck")
            .field("schedule", &self.schedule)
            .field("timeout", &self.limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn check() -> HealthCheck {
        HealthCheck::new(|_| async { Ok::<_, std::io::Error>(()) })
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_the_reason() {
        for (check, reason) in [
            (check().interval(Duration::ZERO), "`interval` is 0"),
            (check().transition_interval(Duration::ZERO), "`transition_interval` is 0"),
            (check().interval(Duration::MAX), "longer than a day"),
            (check().timeout(Duration::ZERO), "`timeout` is 0"),
            (check().interval(999 * MS), "`timeout` (1s) must not exceed `interval` (999ms)"),
            (check().rise(0), "`rise` is 0"),
            (check().fall(0), "`fall` is 0"),
            (check().max_concurrent(1), "`max_concurrent` is less than 2"),
        ] {
            let error = HealthChecks::new(check).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
        assert!(HealthChecks::new(check().interval(100 * MS).timeout(100 * MS).rise(1).fall(1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_of_the_user_passes_fails_or_takes_too_long() {
        let check = HealthCheck::new(|member: &Member| {
            let key = member.key.clone();
            async move {
                match &*key {
                    "up" => Ok(true),
                    "down" => Ok(false),
                    "errs" => Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                    _ => std::future::pending().await,
                }
            }
        });
        let found = async |key: &str| check.perform(Arc::new(Member::new(key))).await;
        assert!(found("up").await.record.report.is_passed());
        assert!(!found("down").await.record.report.is_passed());
        let refused = found("errs").await;
        assert_eq!(refused.record.report.text(), "connection refused");
        assert_eq!(refused.failure.unwrap().cause(), BadGatewayCause::ConnectionRefused);
        let hung = found("hangs").await;
        assert_eq!(hung.record.took, Duration::from_secs(1));
        assert!(hung.record.report.text().contains("no result within 1s"));
        assert_eq!(hung.failure.unwrap().cause(), BadGatewayCause::FirstByteTimeout);
    }
}
