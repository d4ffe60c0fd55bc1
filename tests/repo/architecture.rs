//! The layers of the crate: a module imports only from lower layers and from itself, files of a module do not import from each
//! other in a circle, and pure files never name a service.
//!
//! The modules are those of the directory `src`. A new one fails the first test until it is given a layer.

use std::collections::{BTreeMap, BTreeSet};
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

/// Files that import from each other: a spec names the box of its calls, and a call the parts of its spec.
const CIRCLES: [[&str; 2]; 2] = [["exchange/active", "exchange/spec"], ["balance/pool", "balance/settings"]];

/// Types that are a module's middleware, which only the files named with them may use; the module's own `mod.rs` may too.
const MIDDLEWARE: [(&str, &[&str], &[&str]); 10] = [
    ("admission", &["AdmissionLayer", "Admission<"], &[]),
    ("breaker", &["CircuitBreakerLayer", "CircuitBreaker<"], &[]),
    ("classify", &["ClassifyLayer", "ClassifyFuture"], &[]),
    ("client", &["ReverseProxy", "ReverseProxyBuilder"], &["proxy", "exchange", "tunnel"]),
    ("error_page", &["ErrorPageLayer", "ErrorPageService"], &[]),
    ("forward", &["ForwardLayer", "Forward<"], &["layer"]),
    ("limit", &["ConcurrencyLimitLayer", "LimitHandle"], &[]),
    ("retry", &["RetryLayer", "RetryFuture"], &["has_failure"]),
    (
        "stack",
        &["UpstreamLayer", "UpstreamFuture"],
        &["boxed", "builder", "config", "ext", "future", "handle", "presets", "spec"],
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

/// The paths of a tree of imports, such as `super::{a, b::{c, d}}`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, list)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().to_owned()];
    };
    let list = list.strip_suffix('}').unwrap_or(list);
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in list.char_indices().chain([(list.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let item = &list[start..at];
                start = (at + 1).min(list.len());
                if !item.trim().is_empty() {
                    found.extend(paths(item).iter().map(|path| format!("{before}{path}")));
                }
            }
            _ => {}
        }
    }
    found
}

/// The import statements of code, each with whether it exports again.
fn statements(code: &str) -> Vec<(bool, String)> {
    let code = code.replace('\n', " ");
    let starts = code.match_indices("use ").filter(|(at, _)| code[..*at].ends_with([' ', ';', '}', ')']) || *at == 0);
    let found = starts.map(|(at, _)| {
        let statement = code[at + 4..].split(';').next().unwrap_or_default();
        let exports = code[..at].trim_end().ends_with(')') || code[..at].trim_end().ends_with("pub");
        (exports, statement.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    found.collect()
}

/// The files of a module, by the path of their Rust module; a file and those in the directory of its name are one.
struct Files {
    code: BTreeMap<Vec<String>, String>,
    /// What a module exports of another one.
    exports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl Files {
    fn read() -> Self {
        let mut found = Vec::new();
        files(&source(), &mut found);
        let mut all = Self { code: BTreeMap::new(), exports: BTreeMap::new() };
        for (file, text) in found.iter().filter(|(file, _)| !file.ends_with("tests.rs")) {
            let mut name: Vec<_> =
                file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            name.retain(|part| part != "mod" && part != "lib");
            all.code.insert(name, code(text));
        }
        for (name, code) in &all.code {
            for path in statements(code).iter().filter(|(exports, _)| *exports).flat_map(|(_, tree)| paths(tree)) {
                if let Some(path) = all.absolute(name, &path) {
                    all.exports.insert((name.clone(), path.last().cloned().unwrap_or_default()), path);
                }
            }
        }
        all
    }

    /// A path as from the root of the crate; `None` if it leads out of it.
    fn absolute(&self, from: &[String], path: &str) -> Option<Vec<String>> {
        let mut parts: Vec<_> = path.split("::").map(|part| part.trim().to_owned()).collect();
        let mut base = from.to_vec();
        match parts[0].as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                while parts.first().is_some_and(|part| part == "super") {
                    base.pop();
                    parts.remove(0);
                }
                return Some([base, parts].concat());
            }
            child if self.code.contains_key(&[from, &[child.to_owned()]].concat()) => {
                return Some([base, parts].concat());
            }
            _ => return None,
        }
        Some([base, parts.split_off(1)].concat())
    }

    /// The module in which the item of a path is defined.
    fn defines(&self, path: &[String], depth: u32) -> Option<Vec<String>> {
        let module = (0..=path.len()).rev().map(|end| &path[..end]).find(|start| self.code.contains_key(*start))?;
        let item = path.get(module.len());
        match item.and_then(|item| self.exports.get(&(module.to_vec(), item.clone()))) {
            Some(other) if depth < 8 && other != path => self.defines(other, depth + 1),
            _ => Some(module.to_vec()),
        }
    }

    /// The files of its module that each file imports from; a module's own `mod.rs` is not among them.
    fn graph(&self) -> BTreeMap<String, BTreeSet<String>> {
        let unit = |name: &[String]| name.get(1).map(|file| format!("{}/{file}", name[0]));
        let mut graph = BTreeMap::<_, BTreeSet<_>>::new();
        for (name, code) in &self.code {
            let Some(from) = unit(name) else { continue };
            let imported = graph.entry(from.clone()).or_default();
            for path in statements(code).iter().flat_map(|(_, tree)| paths(tree)) {
                let defined = self.absolute(name, &path).and_then(|path| self.defines(&path, 0));
                let Some(to) = defined.filter(|to| to[..1] == name[..1]).and_then(|to| unit(&to)) else { continue };
                if to != from && !CIRCLES.contains(&[&from, &to]) && !CIRCLES.contains(&[&to, &from]) {
                    imported.insert(to);
                }
            }
        }
        graph
    }
}

/// The files on a circle: those that remain when files that import from none, or that none imports, are taken away.
fn on_circles(mut graph: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let imported: BTreeSet<_> = graph.values().flatten().cloned().collect();
        let kept: BTreeSet<_> = graph
            .iter()
            .filter(|(name, to)| !to.is_empty() && imported.contains(*name))
            .map(|row| row.0.clone())
            .collect();
        if kept.len() == graph.len() {
            return graph;
        }
        graph.retain(|name, _| kept.contains(name));
        for to in graph.values_mut() {
            to.retain(|name| kept.contains(name));
        }
    }
}

#[test]
fn files_of_a_module_do_not_import_from_each_other_in_a_circle() {
    let circles = on_circles(Files::read().graph());
    assert!(circles.is_empty(), "{circles:#?}");
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
    assert_eq!(paths("super::{a::B, c::{D, E}}"), ["super::a::B", "super::c::D", "super::c::E"]);
    assert_eq!(
        statements("pub use self::a::B; use super::c;"),
        [(true, "self::a::B".to_owned()), (false, "super::c".to_owned())]
    );
    let graph = [("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("d", "e")];
    let graph = graph.iter().fold(BTreeMap::<_, BTreeSet<_>>::new(), |mut graph, (from, to)| {
        graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        graph
    });
    assert_eq!(on_circles(graph).into_keys().collect::<Vec<_>>(), ["b", "c"]);
    let imported = &Files::read().graph()["exchange/future"];
    assert!(imported.contains("exchange/hedge") && imported.contains("exchange/active"), "{imported:?}");
    assert!(!code("a\n// crate::client\nb\n#[cfg(test)]\nmod tests { crate::client }").contains("client"));
}
