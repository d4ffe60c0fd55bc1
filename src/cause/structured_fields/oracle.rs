//! Compares the parser with the crate `sfv`: both accept and reject the same fields, with the same values.

use proptest::prelude::*;

use super::{Entry, Item, Parameters, Value, list};

fn other(input: &[u8]) -> Option<Vec<sfv::ListEntry>> {
    sfv::Parser::new(input).parse().ok()
}

fn entry(entry: &sfv::ListEntry) -> Entry<'_> {
    match entry {
        sfv::ListEntry::Item(one) => Entry::Item(item(one)),
        sfv::ListEntry::InnerList(inner) => {
            Entry::InnerList(inner.items.iter().map(item).collect(), parameters(&inner.params))
        }
    }
}

fn item(item: &sfv::Item) -> Item<'_> {
    Item { value: value(&item.bare_item), parameters: parameters(&item.params) }
}

fn parameters(parameters: &sfv::Parameters) -> Parameters<'_> {
    parameters.iter().map(|(key, bare)| (key.as_str(), value(bare))).collect()
}

fn value(bare: &sfv::BareItem) -> Value<'_> {
    match bare {
        sfv::BareItem::Token(token) => Value::Token(token.as_str()),
        sfv::BareItem::String(text) => Value::String(text.as_str().into()),
        sfv::BareItem::Integer(number) => Value::Integer((*number).into()),
        sfv::BareItem::Decimal(number) => Value::Decimal(number.as_integer_scaled_1000().into()),
        sfv::BareItem::ByteSequence(bytes) => Value::Bytes(bytes.clone()),
        sfv::BareItem::Boolean(truth) => Value::Boolean(*truth),
        sfv::BareItem::Date(date) => Value::Date(date.unix_seconds().into()),
        sfv::BareItem::DisplayString(text) => Value::Display(text.clone()),
    }
}

fn agree(input: &[u8]) -> Result<(), TestCaseError> {
    let expected = other(input);
    let expected = expected.as_ref().map(|entries| entries.iter().map(entry).collect());
    prop_assert_eq!(list(input), expected, "{:?}", String::from_utf8_lossy(input));
    Ok(())
}

fn bare() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z*][a-zA-Z0-9:/*.%-]{0,6}",
        r#""([ !#-\[\]-~]|\\["\\]){0,6}""#,
        "-?[0-9]{1,16}",
        r"-?[0-9]{1,13}\.[0-9]{1,4}",
        ":[a-zA-Z0-9+/]{0,9}={0,3}:",
        r"\?[01]",
        "@-?[0-9]{1,15}",
        r#"%"([ -!#-$&-~]|%[0-7][0-9a-f]|%c3%[89ab][0-9a-f]){0,5}""#,
    ]
}

fn with_parameters(what: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let parameter = ("; {0,2}", "[a-c*][a-b0-1_.*-]{0,1}", proptest::option::of(bare()));
    (what, proptest::collection::vec(parameter, 0..5)).prop_map(|(mut text, parameters)| {
        for (blank, key, value) in parameters {
            text += &blank;
            text += &key;
            text += &value.map_or(String::new(), |value| format!("={value}"));
        }
        text
    })
}

fn field() -> impl Strategy<Value = String> {
    let inner =
        proptest::collection::vec(with_parameters(bare()), 0..4).prop_map(|items| format!("({})", items.join("  ")));
    let member = prop_oneof![3 => with_parameters(bare()).boxed(), 1 => with_parameters(inner).boxed()];
    (proptest::collection::vec(member, 0..4), "[ \t]{0,2},[ \t]{0,2}").prop_map(|(members, comma)| members.join(&comma))
}

/// A byte that is removed, inserted or replaced, mostly by one with a meaning in the grammar.
fn mutation() -> impl Strategy<Value = (prop::sample::Index, usize, Option<u8>)> {
    let byte = prop_oneof![4 => prop::sample::select(br#" ,;="\()?:@%-.*a0=	"#.as_slice()), 1 => any::<u8>()];
    (any::<prop::sample::Index>(), 0..=1_usize, proptest::option::of(byte))
}

proptest! {
    #[test]
    fn both_read_well_formed_fields_alike(input in field()) {
        agree(input.as_bytes())?;
    }

    #[test]
    fn both_read_nearly_well_formed_fields_alike(input in field(), mutations in proptest::collection::vec(mutation(), 1..4)) {
        let mut input = input.into_bytes();
        for (at, gone, byte) in mutations {
            let at = at.index(input.len() + 1);
            let end = (at + gone).min(input.len());
            input.splice(at..end, byte);
        }
        agree(&input)?;
    }

    #[test]
    fn both_read_any_bytes_alike(input in proptest::collection::vec(any::<u8>(), 0..40)) {
        agree(&input)?;
    }

    #[test]
    fn both_read_any_meaningful_bytes_alike(input in r#"[a-c01 ,;=()"\\?:@%*.\t-]{0,24}"#) {
        agree(input.as_bytes())?;
    }
}
