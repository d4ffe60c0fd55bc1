//! Common mistakes with the layers do not compile, and the compiler says what to do.
//!
//! `misuse/*.rs` are programs, each with a `.stderr` whose lines have to be in the compiler's message: our own text,
//! which no other toolchain changes. `mended.rs` does the same as all of them, and compiles.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use crate::package::{CRATE, Package};

const MENDED: &str = "mended";

/// A package of the programs, with the crate as its users have it: without features.
static PACKAGE: LazyLock<Package> = LazyLock::new(|| {
    let mut manifest = format!(
        "[dependencies]\nbytes = \"1\"\nhttp = \"1\"\nhttp-body-util = \"0.1\"\nhyper = \"1\"\n\
         tower = {{ version = \"0.5\", features = [\"util\"] }}\ntower-upstream = {{ path = {CRATE:?} }}\n"
    );
    for program in programs() {
        let path = folder().join(&program).with_extension("rs");
        let path = path.to_str().unwrap();
        write!(manifest, "\n[[bin]]\nname = {program:?}\npath = {path:?}\n").unwrap();
    }
    Package::new("misuse", &manifest)
});

fn folder() -> PathBuf {
    Path::new(CRATE).join("tests/repo/misuse")
}

fn programs() -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

fn compiled(program: &str) -> Output {
    PACKAGE.cargo("check").args(["--bin", program]).output().unwrap()
}

#[test]
fn mistakes_do_not_compile_and_the_compiler_says_what_to_do() {
    let mut wrong = String::new();
    for program in programs().iter().filter(|program| *program != MENDED) {
        let output = compiled(program);
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = fs::read_to_string(folder().join(program).with_extension("stderr")).unwrap();
        if output.status.success() {
            writeln!(wrong, "{program} compiles").unwrap();
        }
        for line in expected.lines().filter(|line| !said.contains(line)) {
            writeln!(wrong, "{program}: the compiler does not say: {line}\n{said}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(programs().len(), 9);
}

#[test]
fn the_corrected_program_compiles() {
    let output = compiled(MENDED);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
