//! The test vectors of the HTTP working group that apply to a List parser.
//!
//! An Item without a comma is a List of one, so the Item vectors count too.

use std::path::PathBuf;
use std::{env, fs};

use serde_json::Value as Json;

use super::{Entry, Item, Parameters, Value, joined, list};

#[test]
fn the_vectors_of_the_http_working_group_are_read_as_expected() {
    let shared =
        env::var_os("SHARED_DIR").map_or(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), Into::into);
    let Ok(files) = fs::read_dir(shared.join("sf/vectors")) else {
        println!("absent");
        return;
    };
    let mut count = 0;
    for file in files.map(|file| file.unwrap().path()).filter(|file| file.extension().is_some_and(|end| end == "json"))
    {
        let cases: Json = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for case in cases.as_array().unwrap().iter().filter(|case| is_for_lists(case)) {
            check(case);
            count += 1;
        }
    }
    assert!(count > 1_100, "only {count} vectors");
}

fn lines(case: &Json) -> Vec<&str> {
    case["raw"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
}

fn is_for_lists(case: &Json) -> bool {
    let lines = lines(case);
    match case["header_type"].as_str().unwrap() {
        "list" => true,
        // Commas, and tabs around them, are errors to an Item only.
        "item" => {
            lines.len() == 1
                && !lines[0].trim_matches(' ').is_empty()
                && !(case["must_fail"] == true && lines[0].contains([',', '\t']))
        }
        _ => false,
    }
}

fn check(case: &Json) {
    let name = case["name"].as_str().unwrap();
    let value = joined(lines(case).into_iter().map(str::as_bytes)).unwrap();
    let read = list(&value);
    if case["must_fail"] == true {
        assert_eq!(read, None, "{name}");
        return;
    }
    if case["can_fail"] == true && read.is_none() {
        return;
    }
    let expected = &case["expected"];
    let expected =
        if case["header_type"] == "item" { vec![entry(expected)] } else { all(expected).iter().map(entry).collect() };
    assert_eq!(read, Some(expected), "{name}");
}

fn all(json: &Json) -> &[Json] {
    json.as_array().unwrap()
}

fn entry(json: &Json) -> Entry<'_> {
    match &json[0] {
        Json::Array(items) => Entry::InnerList(items.iter().map(item).collect(), parameters(&json[1])),
        _ => Entry::Item(item(json)),
    }
}

fn item(json: &Json) -> Item<'_> {
    Item { value: value(&json[0]), parameters: parameters(&json[1]) }
}

fn parameters(json: &Json) -> Parameters<'_> {
    all(json).iter().map(|pair| (pair[0].as_str().unwrap(), value(&pair[1]))).collect()
}

#[allow(clippy::cast_possible_truncation, reason = "fifteen digits fit both")]
fn value(json: &Json) -> Value<'_> {
    match json {
        Json::Bool(truth) => Value::Boolean(*truth),
        Json::String(text) => Value::String(text.into()),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None => Value::Decimal((number.as_f64().unwrap() * 1_000.0).round() as i64),
        },
        _ => {
            let inner = &json["value"];
            match json["__type"].as_str().unwrap() {
                "token" => Value::Token(inner.as_str().unwrap()),
                "binary" => Value::Bytes(base32(inner.as_str().unwrap())),
                "date" => Value::Date(inner.as_i64().unwrap()),
                "displaystring" => Value::Display(inner.as_str().unwrap().into()),
                unknown => panic!("{unknown}"),
            }
        }
    }
}

/// Decodes base32, in which the vectors write bytes (RFC 4648 section 6).
fn base32(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let digit = if digit.is_ascii_digit() { digit - b'2' + 26 } else { digit - b'A' };
        bits = bits << 5 | u32::from(digit);
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held).unwrap());
            bits &= (1 << held) - 1;
        }
    }
    bytes
}
