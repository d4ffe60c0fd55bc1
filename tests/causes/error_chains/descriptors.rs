//! The gateway's own limits, met in a process of their own.

use std::env;
use std::fs::File;
use std::process::{Command, Stdio};

use hyper_util::client::legacy::connect::HttpConnector;
use tower_upstream::BadGatewayCause as Cause;

use super::client::{dial, url};
use super::peer::{Peer, upstream};
use super::table::{Got, check, no_connection, row};

/// Set in the process that runs the rows.
const INSIDE: &str = "ERROR_CHAINS_INSIDE";

/// Runs the test `name` again below `wrapper`, a command that ends in its own arguments' command.
///
/// `None` says that this is that process already, and that it is its turn to run the rows.
///
/// # Panics
/// If the test fails there, or does not run.
pub fn again_below(wrapper: &[&str], name: &str) -> Option<()> {
    if env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        println!("{INSIDE} {name}");
        return None;
    }
    let this = env::current_exe().expect("this test has a path");
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(this).args(["--exact", name, "--nocapture"]).env(INSIDE, name);
    let ran = command.stdin(Stdio::null()).output().expect("the wrapper runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    let ok = ran.status.success() && said.contains(&format!("{INSIDE} {name}"));
    assert!(ok, "{name} below {wrapper:?}:\n{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    print!("{said}");
    Some(())
}

async fn with_every_descriptor_taken() -> [Got; 2] {
    let address = upstream(Peer::silence);
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    dial(HttpConnector::new(), url(address)).await
}

#[test]
fn a_gateway_without_descriptors_blames_itself() {
    let limited = ["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""];
    if again_below(&limited, "error_chains::descriptors::a_gateway_without_descriptors_blames_itself").is_none() {
        let want = no_connection(Cause::GatewayResources).errno(24);
        check(vec![row("A24", "descriptors exhausted", with_every_descriptor_taken(), want)]);
    }
}
