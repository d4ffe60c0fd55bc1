//! How tables are read through serde: each value knows its place, so that each refusal names it.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};

use super::duration::{cut, quoted};
use super::nearest::nearest;

/// What can stand in a file.
pub(super) trait Value: Sized {
    /// What is said to be expected where something else stands.
    const EXPECTED: &'static str;

    fn of(_: &Scalar<'_>) -> Result<Self, Refused> {
        Err(Refused::Kind)
    }

    fn table<'de, A: MapAccess<'de>>(_: A, at: &At<Self>) -> Result<Self, A::Error> {
        Err(A::Error::invalid_type(Unexpected::Map, at))
    }
}

/// A value that is no table and no list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    Flag(bool),
    Whole(u64),
    Below(i64),
    Real(f64),
    Text(&'a str),
}

/// Why a value is not what was expected.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is of another kind.
    Kind,
    Because(String),
}

/// A place, and the kind of value that belongs there.
pub(super) struct At<T> {
    path: &'static str,
    kind: PhantomData<fn() -> T>,
}

impl<T: Value> At<T> {
    pub(super) fn new(path: &'static str) -> Self {
        Self { path, kind: PhantomData }
    }

    fn read<E: Error>(&self, scalar: Scalar<'_>) -> Result<T, E> {
        T::of(&scalar).map_err(|refused| match refused {
            Refused::Because(why) => E::custom(format_args!("{}: {why}", self.path)),
            Refused::Kind => E::invalid_type(
                match scalar {
                    Scalar::Flag(flag) => Unexpected::Bool(flag),
                    Scalar::Whole(number) => Unexpected::Unsigned(number),
                    Scalar::Below(number) => Unexpected::Signed(number),
                    Scalar::Real(number) => Unexpected::Float(number),
                    Scalar::Text(text) => Unexpected::Str(cut(text)),
                },
                self,
            ),
        })
    }
}

impl<'de, T: Value> DeserializeSeed<'de> for At<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Value> Visitor<'de> for At<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)?;
        if self.path.is_empty() { Ok(()) } else { write!(f, " at `{}`", self.path) }
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<T, E> {
        self.read(Scalar::Flag(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.read(Scalar::Whole(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.read(u64::try_from(number).map_or(Scalar::Below(number), Scalar::Whole))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        self.read(Scalar::Real(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        self.read(Scalar::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::table(map, &self)
    }
}

/// A key of a table: one of those that are known.
pub(super) struct Key {
    /// Of the table, with a dot at its end.
    pub(super) path: &'static str,
    pub(super) known: &'static [&'static str],
    /// All tables, for a key that stands in the wrong one.
    pub(super) tables: &'static [(&'static str, &'static [&'static str])],
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<&'static str, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
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

                fn table<'de, A: MapAccess<'de>>(mut map: A, _: &At<Self>) -> Result<Self, A::Error> {
                    let mut table = Self::default();
                    let key = || Key { path: $path, known: &[$(stringify!($key)),*], tables: TABLES };
                    while let Some(key) = map.next_key_seed(key())? {
                        $(if key == stringify!($key) {
                            const PATH: &str = concat!($path, stringify!($key));
                            if table.$key.is_some() {
                                return Err(A::Error::custom(format_args!("{PATH} is given twice")));
                            }
                            table.$key = Some(map.next_value_seed(At::new(PATH))?);
                        })*
                    }
                    Ok(table)
                }
            }
        )*
    };
}

pub(super) use tables;
