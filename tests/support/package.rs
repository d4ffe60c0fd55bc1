//! A package as a user of the crate has it, for tests of what compiles there.

// each test binary uses only a part of the helpers
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the crate itself lies: what a `path` dependency names.
pub(crate) const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// A package in the tests' folder; what it was built of stays there for the next run.
pub(crate) struct Package(PathBuf);

impl Package {
    /// A package of this name; `rest` of its manifest begins with the dependencies.
    pub(crate) fn new(name: &str, rest: &str) -> Self {
        let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let manifest = format!(
            "[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n[workspace]\n\n{rest}"
        );
        fs::create_dir_all(package.join("src")).unwrap();
        fs::write(package.join("Cargo.toml"), manifest).unwrap();
        // the versions that are on this machine
        let lock = fs::read(Path::new(CRATE).join("Cargo.lock"));
        lock.map_or(Ok(()), |lock| fs::write(package.join("Cargo.lock"), lock)).unwrap();
        Self(package)
    }

    /// Cargo in it, without the network.
    pub(crate) fn cargo(&self, command: &str) -> Command {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([command, "--quiet", "--offline", "--color=never", "--target-dir"]).arg(self.0.join("target"));
        cargo.current_dir(&self.0);
        cargo
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }
}
