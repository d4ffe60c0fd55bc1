//! How tables are read through serde: each value knows its place, so that each refusal names it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};

use super::duration::{cut, quoted};
use super::suggest::nearest;

/// What can stand in a file.
pub(super) trait Value: Sized {
    /// What is said to be expected where something else stands.
    const EXPECTED: &'static str;

    fn of(_: &ScalarValue<'_>) -> Result<Self, DeError> {
        Err(DeError::Kind)
    }

    fn table<'de, A: MapAccess<'de>>(_: A, at: &PathSeed<Self>) -> Result<Self, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Map, at))
    }
}

/// A value that is no table and no list.
#[derive(Clone, Copy, Debug)]
pub(super) enum ScalarValue<'a> {
    Flag(bool),
    Whole(u64),
    Below(i64),
    Real(f64),
    Text(&'a str),
}

/// Why a value is not what was expected.
#[derive(Debug)]
pub(super) enum DeError {
    /// It is of another kind.
    Kind,
    Because(String),
}

/// A place, and the kind of value that belongs there.
pub(super) struct PathSeed<T> {
    path: &'static str,
    kind: PhantomData<fn() -> T>,
}

impl<T: Value> PathSeed<T> {
    pub(super) fn new(path: &'static str) -> Self {
        Self { path, kind: PhantomData }
    }

    fn convert<E: Error>(&self, scalar: ScalarValue<'_>) -> Result<T, E> {
        T::of(&scalar).map_err(|refused| match refused {
            DeError::Because(why) => E::custom(format_args!("{}: {why}", self.path)),
            DeError::Kind => E::invalid_type(
                match scalar {
                    ScalarValue::Flag(flag) => Unexpected::Bool(flag),
                    ScalarValue::Whole(number) => Unexpected::Unsigned(number),
                    ScalarValue::Below(number) => Unexpected::Signed(number),
                    ScalarValue::Real(number) => Unexpected::Float(number),
                    ScalarValue::Text(text) => Unexpected::Str(cut(text)),
                },
                self,
            ),
        })
    }
}

impl<'de, T: Value> DeserializeSeed<'de> for PathSeed<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Value> Visitor<'de> for PathSeed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, " at `{}`", self.path) }
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
        self.convert(ScalarValue::Flag(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.convert(ScalarValue::Whole(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.convert(u64::try_from(number).map_or(ScalarValue::Below(number), ScalarValue::Whole))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.convert(ScalarValue::Real(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        self.convert(ScalarValue::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::table(map, &self)
    }
}

/// A key of a table: one of those that are known.
pub(super) struct KeyName {
    /// Of the table, with a dot at its end.
    pub(super) path: &'static str,
    pub(super) known: &'static [&'static str],
    /// All tables, for a key that stands in the wrong one.
    pub(super) tables: &'static [(&'static str, &'static [&'static str])],
}

impl<'de> DeserializeSeed<'de> for KeyName {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyName {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of the keys {}", self.known.join(", "))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<&'static str, E> {
        if let Some(known) = self.known.iter().find(|known| **known == key) {
            return Ok(known);
        }
        let shown = quoted(&format!("{}{}", self.path, cut(key)));
        let hint = match (nearest(key, self.known), self.tables.iter().find(|table| table.1.contains(&key))) {
            (_, Some(("", _))) => format!("`{key}` stands at the top, above all tables"),
            (_, Some((table, _))) => format!("`{key}` belongs to [{}]", table.trim_end_matches('.')),
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, None) => format!("known are {}", self.known.join(", ")),
        };
        Err(E::custom(format_args!("unknown key {shown}: {hint}")))
    }
}

/// Makes structs of optional values and reads them: `Name "path." expected "a table" { key: kind, }`.
macro_rules! tables {
    ($($name:ident $path:literal expected $expected:literal { $($key:ident: $kind:ty,)* })*) => {
        /// The tables and their keys.
        pub(super) const TABLES: &[(&str, &[&str])] = &[$(($path, &[$(stringify!($key)),*]),)*];

        $(
            #[derive(Clone, Debug, Default)]
            pub(super) struct $name {
                $(pub(super) $key: Option<$kind>,)*
            }

            impl Value for $name {
                const EXPECTED: &'static str = $expected;

                fn table<'de, A: MapAccess<'de>>(mut map: A, _: &PathSeed<Self>) -> Result<Self, A::Error> {
                    let mut table = Self::default();
                    let key = || KeyName { path: $path, known: &[$(stringify!($key)),*], tables: TABLES };
                    while let Some(key) = map.next_key_seed(key())? {
                        $(if key == stringify!($key) {
                            const PATH: &str = concat!($path, stringify!($key));
                            if table.$key.is_some() {
                                return Err(A::Error::custom(format_args!("{PATH} is given twice")));
                            }
                            table.$key = Some(map.next_value_seed(PathSeed::new(PATH))?);
                        })*
                    }
                    Ok(table)
                }
            }
        )*
    };
}

pub(super) use tables;
