//! The report as JSON.

use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::finding::{Finding, NamedQuantity};
use super::quantity::Quantity;
use super::report::Report;
use super::timeline::{Span, Timeline};

/// Milliseconds, as everywhere in this crate's JSON.
fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The name, the number in the unit that its key names, and the text for people.
impl Serialize for NamedQuantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Quantity", 3)?;
        out.serialize_field("name", &self.name)?;
        match self.quantity {
            Quantity::Time(time) => out.serialize_field("ms", &millis(time))?,
            Quantity::Unlimited => out.serialize_field("ms", &None::<f64>)?,
            Quantity::Count(number) => out.serialize_field("count", &number)?,
            Quantity::Bytes(bytes) => out.serialize_field("bytes", &bytes)?,
            Quantity::Fraction(share) => out.serialize_field("share", &share.to_string())?,
        }
        out.serialize_field("text", &self.quantity.to_string())?;
        out.end()
    }
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Finding", 11)?;
        out.serialize_field("id", self.id())?;
        out.serialize_field("number", &self.number())?;
        out.serialize_field("severity", &self.severity())?;
        out.serialize_field("left", &self.left)?;
        out.serialize_field("relation", self.relation.as_str())?;
        out.serialize_field("right", &self.right)?;
        out.serialize_field("margin_ms", &millis(self.margin))?;
        out.serialize_field("why", self.reason())?;
        out.serialize_field("client_sees", self.client_sees())?;
        out.serialize_field("set", self.suggestion())?;
        out.serialize_field("at_run_time", &self.mitigation())?;
        out.end()
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Span", 3)?;
        out.serialize_field("name", &self.name)?;
        out.serialize_field("ends_ms", &self.ends.time().map(millis))?;
        let steps: Vec<_> = self.steps.iter().copied().map(millis).collect();
        out.serialize_field("attempts_end_ms", &steps)?;
        out.end()
    }
}

impl Serialize for Timeline {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.spans)
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Report", 5)?;
        out.serialize_field("aligned", &self.is_aligned())?;
        out.serialize_field("attempts", &self.attempts.map(|attempts| attempts.wanted))?;
        out.serialize_field("attempts_that_fit", &self.max_attempts())?;
        out.serialize_field("findings", self.findings())?;
        out.serialize_field("timeline", &self.timeline)?;
        out.end()
    }
}
