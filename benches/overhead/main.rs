//! The cost of a call, compared with tower and the closest peer: `cargo bench --bench overhead [-- part of a job's name]`.
//!
//! Prints one markdown table. Every service is called in a loop around an upstream that responds immediately, with a request
//! of eight fields; the response has 12 bytes, and is read to its end as a server reads it. The cost of the request and of
//! the bare upstream is subtracted. Instructions are counted by valgrind's callgrind: the program runs itself twice with
//! loops of different lengths, so that everything but the calls cancels out. Without valgrind only allocations and sizes are
//! printed. The kernel's part of reading a clock is not counted, and the counter of allocations adds a few instructions to
//! each allocation. Circuits are opened by 2,000 failures before they are measured.
//!
//! The peers are measured by a crate of its own, `benches/peers`, so that this crate does not depend on them.

mod cell;
mod count;
mod job;
mod ours;
mod row;
mod table;
mod tower;
mod upstream;

use std::env;
use std::io;
use std::process::{Command, Stdio};

use cell::Cell;
use row::Row;
use table::Table;

const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/Cargo.toml");
const PEERS_TARGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers");

fn rows() -> Vec<Row> {
    let mut rows = tower::rows();
    rows.extend(ours::rows());
    rows
}

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _entered = runtime.enter();
    if count::looped(rows) {
        return Ok(());
    }
    let args: Vec<_> = env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        // `cargo test --benches`: every row does its job, nothing is measured
        rows().iter_mut().for_each(Row::prepare);
        return Ok(());
    }
    let job = args.iter().find(|arg| !arg.starts_with("--")).map_or("", String::as_str);
    let mut cells = count::cells(rows(), job);
    let (tower, ours): (Vec<_>, Vec<_>) = cells.drain(..).partition(|cell| cell.who.starts_with("tower "));
    let peers = peers(job).unwrap_or_else(|error| {
        eprintln!("no peers: {error}");
        Vec::new()
    });
    print!("{}", Table([tower, peers, ours].concat()));
    Ok(())
}

/// The cells that the peers' crate measures; builds it first.
fn peers(job: &str) -> io::Result<Vec<Cell>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--manifest-path", PEERS, "--", job])
        .env("CARGO_TARGET_DIR", PEERS_TARGET)
        .stderr(Stdio::inherit())
        .output()?;
    if !run.status.success() {
        return Err(io::Error::other(run.status.to_string()));
    }
    Ok(String::from_utf8_lossy(&run.stdout).lines().filter_map(|line| line.parse().ok()).collect())
}
