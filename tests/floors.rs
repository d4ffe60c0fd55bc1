//! The house: a file imports only from lower floors and from its own room, and the README says so.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room and its floor.
const ROOMS: [(&str, u8); 20] = [
    ("body", 0),
    ("cause", 0),
    ("deadline", 0),
    ("engine", 0),
    ("event", 0),
    ("exchange", 0),
    ("keyed", 0),
    ("measure", 0),
    ("shelf", 0),
    ("adapt", 1),
    ("admission", 1),
    ("breaker", 1),
    ("classify", 1),
    ("error_page", 1),
    ("forward", 1),
    ("limit", 1),
    ("retry", 1),
    ("timeout", 1),
    ("client", 2),
    ("stack", 4),
];

/// Floor 0 is one floor of words: its rooms may name each other, all others may not.
const GROUND: u8 = 0;

fn floor(room: &str) -> Option<u8> {
    ROOMS.iter().find(|row| row.0 == room).map(|row| row.1)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The code before the tests, without comments: what is tested may be met from above.
fn code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = code.split("\n#[cfg(all(test").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that a file names, by `crate::room` or in a braced list behind `crate::`.
fn named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names = if let Some(list) = rest.strip_prefix('{') {
            list.split_once('}').map_or(list, |(list, _)| list)
        } else {
            rest
        };
        for name in names.split(',') {
            let name: String = name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            rooms.push(name);
            if !rest.starts_with('{') {
                break;
            }
        }
    }
    rooms
}

#[test]
fn no_file_imports_from_its_own_floor_or_from_above() {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    let mut wrong = Vec::new();
    for path in &found {
        let inside = path.strip_prefix(root().join("src")).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if room == "lib" {
            continue;
        }
        let own = floor(room).unwrap_or_else(|| panic!("{room} is on no floor: put it into the table"));
        for name in named(&code(&fs::read_to_string(path).unwrap())) {
            let Some(other) = floor(&name) else { continue };
            let fine = name == room || other < own || (own == GROUND && other == GROUND);
            if !fine {
                wrong.push(format!("{} names {name}, on floor {other}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_files_never_import_their_layer() {
    // the layer of a room is its mod.rs; what lies beside it is thinking
    let layers = [
        ("classify", ["ClassifyLayer", "ResponseFuture"].as_slice()),
        ("client", ["ReverseProxy", "ReverseProxyBuilder"].as_slice()),
        ("admission", ["AdmissionLayer", "Admitted"].as_slice()),
        ("breaker", ["CircuitBreakerLayer", "CircuitBreaker<"].as_slice()),
        ("limit", ["LimitLayer", "LimitHandle"].as_slice()),
        ("timeout", ["TimeoutLayer"].as_slice()),
        ("retry", ["RetryLayer", "Retry<"].as_slice()),
        ("error_page", ["ErrorPageLayer", "Paged"].as_slice()),
        ("forward", ["ForwardLayer", "Forward<"].as_slice()),
        ("stack", ["UpstreamLayer", "UpstreamFuture"].as_slice()),
    ];
    let pure = "chain clues judge head verdict stamp text interim policy target address \
                desk guard places service_time \
                baseline gradient limiter probe slots sum verdict \
                watch learned learner timeouts \
                circuit gate reopen streak verdict window word \
                attempts backoff budget decision hedging kept_head ledger pace pushback retry_after round settings shown \
                accept facts grpc html json page plain texts time wish \
                answer caller fields forwarded hop host methods onward syntax upgrade via \
                live_config misconfigured note recorder";
    for (room, names) in layers {
        for file in pure.split_whitespace() {
            let path = root().join("src").join(room).join(file).with_extension("rs");
            let Ok(text) = fs::read_to_string(&path) else { continue };
            for name in names {
                assert!(!code(&text).contains(name), "{} names {name}", path.display());
            }
        }
    }
}

#[test]
fn the_readme_prints_the_same_floors() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut floors: BTreeMap<u8, Vec<&str>> = BTreeMap::new();
    for (room, floor) in ROOMS {
        floors.entry(floor).or_default().push(room);
    }
    for (floor, rooms) in floors {
        let cells: Vec<_> = rooms.iter().map(|room| format!("`{room}`")).collect();
        let row = format!("| {floor} | {} |", cells.join(" "));
        assert!(readme.contains(&row), "the README lacks {row:?}");
    }
}

#[test]
fn the_detectors_detect() {
    assert_eq!(named("use crate::cause::Failure; use crate::{body, event};"), ["cause", "body", "event"]);
    assert_eq!(named("crate::client::Stamped"), ["client"]);
    assert!(!code("a\n// crate::client\nb\n#[cfg(test)]\nmod tests { crate::client }").contains("client"));
}
