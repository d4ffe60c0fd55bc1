//! Values as a file has them, and how a table is read key by key, so that one pass finds every fault.

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    self, Deserialize, DeserializeOwned, Deserializer, Expected, IgnoredAny, IntoDeserializer, MapAccess, Unexpected,
    Visitor,
};
use serde::forward_to_deserialize_any;

use super::super::config_error::ConfigError;

/// A value whose type has not been checked yet.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    String(String),
    Table(Entries),
    List(Vec<Value>),
    Other(IgnoredAny),
}

/// The entries of a table; a format may allow a key to occur twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries(Vec<(String, Value)>);

#[cfg(all(feature = "balance", feature = "client"))]
impl Entries {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    pub(super) fn insert(&mut self, key: &str, value: Value) {
        self.0.push((key.to_owned(), value));
    }
}

impl Entries {
    /// The text of a key.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|(name, value)| match value {
            Value::String(text) if name == key => Some(&**text),
            _ => None,
        })
    }
}

/// A fault of a value: the problem, and the form that was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) problem: String,
    pub(super) suggestion: String,
    /// The keys of the table, where the fault is an unknown one.
    known: &'static [&'static str],
}

impl Fault {
    pub(super) fn new(problem: impl Into<String>, suggestion: impl Into<String>) -> Self {
        Self { problem: problem.into(), suggestion: suggestion.into(), known: &[] }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.problem, self.suggestion)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    /// Splits what `Display` joined: serde passes the error of a `try_from` through as text.
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        let (problem, suggestion) = message.rsplit_once(": ").unwrap_or((&message, ""));
        Self::new(problem, suggestion)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Unit => "null".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            other => other.to_string(),
        };
        Self::new(format!("found {}", cut(&found)), format!("expected {expected}"))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("unknown value {:?}", cut(word)), suggest(word, known))
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self { known, ..Self::new("unknown key", suggest(key, known)) }
    }
}

impl Value {
    /// The fault of a value of another type than this one.
    pub(super) fn expected(&self, expected: &str) -> Fault {
        let found = match self {
            Self::Bool(flag) => Unexpected::Bool(*flag),
            Self::Unsigned(number) => Unexpected::Unsigned(*number),
            Self::Signed(number) => Unexpected::Signed(*number),
            Self::Float(number) => Unexpected::Float(*number),
            Self::String(text) => Unexpected::Str(text),
            Self::Table(_) => Unexpected::Map,
            Self::List(_) => Unexpected::Seq,
            Self::Other(_) => Unexpected::Unit,
        };
        de::Error::invalid_type(found, &expected)
    }
}

/// Reads a table and adds its faults to `errors`; entries with a fault are left out.
///
/// serde stops at the first fault of a struct, so each key is tried alone before all good ones are read together.
pub(super) fn read<T: DeserializeOwned + Default>(table: &str, entries: Entries, errors: &mut Vec<ConfigError>) -> T {
    let mut good: Vec<(String, Value)> = Vec::new();
    for (key, value) in entries.0 {
        let fault = if good.iter().any(|(other, _)| *other == key) {
            Fault::new("this key occurs twice", "keep one of the two")
        } else {
            match one::<T>(&key, value.clone()) {
                Ok(_) => {
                    good.push((key, value));
                    continue;
                }
                Err(fault) => fault,
            }
        };
        let dot = if table.is_empty() { "" } else { "." };
        let suggestion = match super::table_of(&key).filter(|_| !fault.known.is_empty()) {
            Some("") => format!("`{key}` belongs to the top level, above all tables"),
            Some(table) => format!("`{key}` belongs to [{table}]"),
            None => fault.suggestion,
        };
        errors.push(ConfigError::new(format!("{table}{dot}{}", cut(&key)), fault.problem, suggestion));
    }
    T::deserialize(MapDeserializer::<_, Fault>::new(good.into_iter())).unwrap_or_default()
}

/// The keys of a table, as serde's derive knows them.
pub(super) fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    one::<T>("", Value::Bool(true)).err().map_or(&[], |fault| fault.known)
}

fn one<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, Fault> {
    T::deserialize(MapDeserializer::new(std::iter::once((key, value))))
}

/// The known word that was probably meant, or all of them.
fn suggest(word: &str, known: &[&str]) -> String {
    let plain = word.to_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::osa_distance(&plain, known);
    // distances are quadratic in the length
    let near = known.iter().filter(|known| word.len() <= 64 && distance(known) <= (known.len() / 3).min(3));
    match near.min_by_key(|known| distance(known)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of {}", known.join(", ")),
    }
}

/// At most 60 characters, for an error message.
pub(super) fn cut(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Table)
    }
}

impl IntoDeserializer<'_, Fault> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::Bool(flag) => visitor.visit_bool(flag),
            Self::Unsigned(number) => visitor.visit_u64(number),
            Self::Signed(number) => visitor.visit_i64(number),
            Self::Float(number) => visitor.visit_f64(number),
            Self::String(text) => visitor.visit_string(text),
            Self::Table(entries) => visitor.visit_map(MapDeserializer::new(entries.0.into_iter())),
            Self::List(values) => visitor.visit_seq(SeqDeserializer::new(values.into_iter())),
            Self::Other(_) => visitor.visit_unit(),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Self::String(word) => visitor.visit_enum(word.into_deserializer()),
            other => Err(other.expected("a string")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
