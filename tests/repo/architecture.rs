//! The layers of the crate: a module imports only from lower layers and from itself, and pure files never name a service.
//!
//! The modules are those of the directory `src`. A new one fails the first test until it is given a layer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from below. Modules of the lowest may import from each other, all others may not.
const LAYERS: [&[&str]; 6] = [
    // the vocabulary
    &["body", "cause", "deadline", "event", "free_list", "keyed_map", "opaque", "stats"],
    // the driver behind every middleware
    &["exchange"],
    // middleware
    &["admission", "alignment", "breaker", "classify", "compat", "error_page", "forward", "limit", "retry", "timeout"],
    // the client
    &["client"],
    // many endpoints
    &["balance"],
    // the stack, the pages of the guide, and the scripted upstream of users' tests
    &["guide", "stack", "test_util"],
];

/// Modules of one layer that import from each other: `Timeouts::check` is defined beside the rules that it applies, and the
/// timeout layer warns of a pool by one of these rules.
const PAIRS: [[&str; 2]; 1] = [["alignment", "timeout"]];

/// Types that are a module's middleware, which only the files named with them may use; the module's own `mod.rs` may too.
const MIDDLEWARE: [(&str, &[&str], &[&str]); 10] = [
    ("admission", &["AdmissionLayer", "Admission<"], &[]),
    ("breaker", &["CircuitBreakerLayer", "CircuitBreaker<"], &["keyed"]),
    ("classify", &["ClassifyLayer", "ClassifyFuture"], &[]),
    ("client", &["ReverseProxy", "ReverseProxyBuilder"], &["proxy", "exchange", "tunnel"]),
    ("error_page", &["ErrorPageLayer", "ErrorPageService"], &[]),
    ("forward", &["ForwardLayer", "Forward<"], &["layer"]),
    ("limit", &["ConcurrencyLimitLayer", "LimitHandle"], &["keyed"]),
    ("retry", &["RetryLayer", "RetryFuture"], &["has_failure"]),
    (
        "stack",
        &["UpstreamLayer", "UpstreamFuture"],
        &["builder", "config", "ext", "future", "handle", "presets", "spec"],
    ),
    ("timeout", &["TimeoutLayer"], &[]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files below a directory, with their text.
fn files(under: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path.strip_prefix(source()).unwrap().to_owned(), text));
        }
    }
}

/// The top-level module of a file.
fn module(file: &Path) -> &str {
    file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The code without its tests and comments: a test may use what lies above.
fn code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = code.split("\n#[cfg(all(test").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules that code imports, by `crate::module` or in a braced list behind `crate::`.
fn imports(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let names = if let Some(list) = rest.strip_prefix('{') {
            list.split_once('}').map_or(list, |(list, _)| list)
        } else {
            rest
        };
        for name in names.split(',') {
            modules.push(name.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            if !rest.starts_with('{') {
                break;
            }
        }
    }
    modules
}

#[test]
fn every_module_has_a_layer() {
    let mut found = Vec::new();
    files(&source(), &mut found);
    let modules: BTreeSet<_> = found.iter().map(|(file, _)| module(file)).filter(|name| *name != "lib").collect();
    let listed: BTreeSet<_> = LAYERS.iter().flat_map(|modules| modules.iter().copied()).collect();
    assert_eq!(modules, listed, "LAYERS names other modules than src has");
}

#[test]
fn a_module_imports_only_from_lower_layers_and_from_itself() {
    let mut found = Vec::new();
    files(&source(), &mut found);
    let mut wrong = Vec::new();
    for (file, text) in &found {
        let Some(own) = layer(module(file)) else { continue };
        if file.ends_with("tests.rs") {
            continue;
        }
        for name in imports(&code(text)) {
            let Some(other) = layer(&name) else { continue };
            let paired = PAIRS.iter().any(|pair| pair.contains(&module(file)) && pair.contains(&&*name));
            if name != module(file) && other >= own && (own, other) != (0, 0) && !paired {
                wrong.push(format!("{} imports {name} of layer {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_files_never_name_their_modules_middleware() {
    let mut found = Vec::new();
    files(&source(), &mut found);
    let mut wrong = Vec::new();
    for (file, text) in &found {
        let Some((_, types, users)) = MIDDLEWARE.iter().find(|row| row.0 == module(file)) else { continue };
        let names: Vec<_> = file.iter().skip(1).map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
        if names == ["mod"] || names.last() == Some(&"tests") || users.contains(&names[0]) {
            continue;
        }
        let code = code(text);
        wrong.extend(
            types.iter().filter(|name| code.contains(**name)).map(|name| format!("{}: {name}", file.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_detectors_detect() {
    assert_eq!(imports("use crate::cause::Failure; use crate::{body, event};"), ["cause", "body", "event"]);
    assert_eq!(imports("crate::client::Stamped"), ["client"]);
    assert!(!code("a\n// crate::client\nb\n#[cfg(test)]\nmod tests { crate::client }").contains("client"));
}
