//! The form of the tables, and the test that a table is right.

use std::error::Error;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::StatusCode;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use tower_upstream::cause::{Connection, Detail, Evidence, Phase, Replay};
use tower_upstream::{BadGatewayCause as Cause, Failure};

/// No row stalls for longer.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a client got.
#[derive(Clone, Debug)]
pub enum Got {
    /// A whole answer.
    Answer(StatusCode),
    /// A failure instead of a head, or after one.
    Failed(Failure, Option<StatusCode>),
}

impl IntoIterator for Got {
    type Item = Self;
    type IntoIter = std::iter::Once<Self>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self)
    }
}

/// What must come of a row; what is not set may be anything.
#[derive(Default)]
pub struct Want {
    answer: Option<StatusCode>,
    causes: Vec<Cause>,
    phase: Option<Phase>,
    replay: Option<(Replay, Option<Evidence>)>,
    details: Vec<Detail>,
    connection: Option<Connection>,
    after_head: Option<bool>,
}

/// A whole answer with this status.
pub fn answer(status: u16) -> Want {
    Want { answer: StatusCode::from_u16(status).ok(), ..Want::default() }
}

/// A failure for this cause, instead of a head.
pub fn cause(cause: Cause) -> Want {
    Want { causes: vec![cause], ..Want::default() }
}

/// A failure for this cause, after the head: nothing may be sent again.
pub fn cut(cause: Cause) -> Want {
    let replay = Some((Replay::Never, None));
    Want { causes: vec![cause], phase: Some(Phase::Body), replay, after_head: Some(true), ..Want::default() }
}

/// A failure for this cause, in which no connection was had.
pub fn no_connection(at: Cause) -> Want {
    cause(at).not_sent(Evidence::NoConnection)
}

impl Want {
    pub fn phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    pub fn not_sent(mut self, evidence: Evidence) -> Self {
        self.replay = Some((Replay::NotSent, Some(evidence)));
        self
    }

    pub fn idempotent_only(mut self) -> Self {
        self.replay = Some((Replay::IdempotentOnly, None));
        self
    }

    pub fn never(mut self) -> Self {
        self.replay = Some((Replay::Never, None));
        self
    }

    /// Where the kernel may say either.
    pub fn or_detail(mut self, detail: Detail) -> Self {
        self.details.push(detail);
        self
    }

    pub fn errno(self, errno: i32) -> Self {
        self.or_detail(Detail::Errno(errno))
    }

    pub fn h2(self, code: u32) -> Self {
        self.or_detail(Detail::H2(code))
    }

    pub fn text(self, text: &'static str) -> Self {
        self.or_detail(Detail::Text(text))
    }

    pub fn on(mut self, connection: Connection) -> Self {
        self.connection = Some(connection);
        self
    }

    /// With the hold of `ClassifyLayer`, a body that fails at once never had its head handed on.
    pub fn held(mut self) -> Self {
        self.after_head = Some(false);
        self
    }

    /// What is wrong with `got`, `None` if nothing is.
    fn refutes(&self, got: &Got) -> Option<String> {
        let failure = match (self.answer, got) {
            (Some(wanted), Got::Answer(status)) if wanted == *status => return None,
            (_, Got::Answer(status)) => return Some(format!("answered {status}")),
            (Some(wanted), Got::Failed(failure, _)) => return Some(format!("no {wanted}: {failure}")),
            (None, Got::Failed(failure, head)) => {
                if self.after_head.is_some_and(|after| after != head.is_some()) {
                    return Some(format!("head handed on: {head:?}"));
                }
                failure
            }
        };
        let mut wrong = String::new();
        let mut differs = |what: &str, got: &dyn std::fmt::Debug, want: &dyn std::fmt::Debug, same: bool| {
            if !same {
                let _ = write!(wrong, "{what} {got:?}, expected {want:?}; ");
            }
        };
        differs("cause", &failure.cause(), &self.causes, self.causes.contains(&failure.cause()));
        if let Some(phase) = self.phase {
            differs("phase", &failure.phase(), &phase, failure.phase() == phase);
        }
        if let Some((replay, evidence)) = self.replay {
            differs("replay", &failure.replay(), &replay, failure.replay() == replay);
            let evidence = evidence.unwrap_or(failure.evidence());
            differs("evidence", &failure.evidence(), &evidence, failure.evidence() == evidence);
        }
        if !self.details.is_empty() {
            let told = failure.detail().is_some_and(|detail| self.details.contains(&detail));
            differs("detail", &failure.detail(), &self.details, told);
        }
        if self.connection.is_some() {
            differs("connection", &failure.connection(), &self.connection, failure.connection() == self.connection);
        }
        (!wrong.is_empty()).then_some(wrong)
    }
}

/// One line of a table.
pub struct Row {
    id: &'static str,
    what: &'static str,
    case: Pin<Box<dyn Future<Output = Vec<Got>>>>,
    want: Want,
}

/// One line of a table; `case` may come to several results, which all must be as wanted.
pub fn row<C>(id: &'static str, what: &'static str, case: C, want: Want) -> Row
where
    C: Future + 'static,
    C::Output: IntoIterator<Item = Got>,
{
    Row { id, what, case: Box::pin(async { case.await.into_iter().collect() }), want }
}

/// Runs every row of a table.
///
/// # Panics
/// If a row is wrong; the message lists all that are.
pub fn check(rows: Vec<Row>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut wrong = String::new();
    for Row { id, what, case, want } in rows {
        let local = LocalSet::new();
        let ran = local.block_on(&runtime, async { timeout(PATIENCE, spawn_local(case)).await });
        let complaint = match ran {
            Err(_) => Some("nothing came of it in time".into()),
            Ok(Err(panic)) => Some(panic.to_string()),
            Ok(Ok(all)) if all.is_empty() => Some("nothing came of it".into()),
            Ok(Ok(all)) => all.iter().find_map(|got| Some(want.refutes(got)? + "\n    " + &chain(got))),
        };
        if let Some(complaint) = complaint {
            let _ = writeln!(wrong, "{id} ({what}): {complaint}");
        }
    }
    runtime.shutdown_background();
    assert!(wrong.is_empty(), "wrong rows:\n{wrong}");
}

/// The chain as text, outermost first.
fn chain(got: &Got) -> String {
    let Got::Failed(failure, _) = got else { return String::new() };
    let Some(source) = failure.source() else { return "no source".into() };
    let mut links = vec![source.to_string()];
    let mut link = source;
    while let Some(next) = wrapped(link) {
        links.push(next.to_string());
        link = next;
    }
    links.join(" -> ")
}

/// What an error wraps: also what `io::Error` and h2 do not return as their source.
fn wrapped<'a>(link: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(error) = link.downcast_ref::<std::io::Error>() {
        return error.get_ref().map(|payload| payload as _);
    }
    if let Some(error) = link.downcast_ref::<h2::Error>() {
        return error.get_io().map(|error| error as _);
    }
    link.source()
}
