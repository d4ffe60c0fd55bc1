//! A record as text and as JSON.

use std::fmt;

use super::{DRAINING, Detail, Failure};

impl Failure {
    /// The cause's summary for operators, and the next step, as far as the detail does not say more.
    pub(crate) fn hints(&self) -> (&'static str, &'static str) {
        match self.0.detail {
            Some(Detail::Text(DRAINING)) => (
                "Not sent: this gateway is draining",
                "Expected during a shutdown: send requests to another instance, or end the drain",
            ),
            _ => (self.0.cause.summary(), self.0.cause.next_step()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &*self.0;
        f.write_str(record.cause.as_str())?;
        if let Some(class) = record.cause.proxy_status_error() {
            write!(f, " ({class})")?;
        }
        write!(f, " in phase {}", record.phase)?;
        if let Some(upstream) = &record.upstream {
            write!(f, ", upstream {upstream}")?;
        }
        if let Some(peer) = record.peer {
            write!(f, ", peer {peer}")?;
        }
        if let Some(connection) = record.connection {
            write!(f, ", {connection} connection")?;
        }
        if let Some(detail) = record.detail {
            write!(f, ", {detail}")?;
        }
        if let Some(failure) = &record.opened_by {
            write!(f, ", opened by {}", failure.cause().as_str())?;
        }
        if let Some(hop) = &record.remote_hop {
            write!(f, ", {:?} says {}", hop.name(), hop.error().unwrap_or("nothing"))?;
        }
        match (record.attempts, record.retry_stop) {
            (..=1, None) => {}
            (..=1, Some(stop)) => write!(f, ", not retried ({})", stop.reason())?,
            (attempts, None) => write!(f, ", attempt {attempts}")?,
            (attempts, Some(stop)) => write!(f, ", gave up after {attempts} attempts ({})", stop.reason())?,
        }
        match (record.elapsed, record.total_elapsed) {
            (Some(elapsed), Some(total)) => write!(f, ", the last took {elapsed:.1?} of {total:.1?} in all")?,
            (Some(elapsed), None) if record.attempts > 1 => write!(f, ", the last took {elapsed:.1?}")?,
            (Some(elapsed), None) => write!(f, ", after {elapsed:.1?}")?,
            (None, _) => {}
        }
        let (summary, next_step) = self.hints();
        write!(f, ": {summary}. {next_step}.")
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        use std::time::Duration;

        let record = &*self.0;
        let millis = |elapsed: Option<Duration>| elapsed.map(|elapsed| elapsed.as_secs_f64() * 1e3);
        let mut out = serializer.serialize_struct("Failure", 17)?;
        out.serialize_field("cause", &record.cause)?;
        out.serialize_field("class", &record.cause.proxy_status_error())?;
        out.serialize_field("status", &self.status().as_u16())?;
        out.serialize_field("phase", &record.phase)?;
        out.serialize_field("replay", &record.replay)?;
        out.serialize_field("evidence", &record.evidence)?;
        out.serialize_field("detail", &record.detail)?;
        out.serialize_field("connection", &record.connection)?;
        out.serialize_field("peer", &record.peer.map(|peer| peer.to_string()))?;
        out.serialize_field("upstream", &record.upstream.as_deref())?;
        out.serialize_field("opened_by", &record.opened_by.as_ref().map(Failure::cause))?;
        out.serialize_field("hop", &record.remote_hop.as_ref().map(|hop| hop.name()))?;
        out.serialize_field("hop_error", &record.remote_hop.as_ref().and_then(|hop| hop.error()))?;
        out.serialize_field("attempts", &record.attempts)?;
        out.serialize_field("retry_stop", &record.retry_stop)?;
        out.serialize_field("elapsed_ms", &millis(record.elapsed))?;
        out.serialize_field("total_ms", &millis(record.total_elapsed))?;
        out.end()
    }
}
