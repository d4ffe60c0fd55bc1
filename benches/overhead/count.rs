//! Counts the cost of a row: allocations by the allocator, instructions by callgrind.

use std::alloc::System;
use std::env;
use std::io;
use std::process::Command;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::cell::Cell;
use crate::row::Row;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Calls whose allocations are counted.
const COUNTED: u32 = 1000;
/// The two lengths of the loops under callgrind.
const LOOPS: (u32, u32) = (1000, 3000);
/// The argument that makes the program run only the loops of one row.
const LOOP: &str = "--loop";

/// Heap allocations of a call, for a row that has been prepared.
fn allocations(row: &mut Row) -> f64 {
    let own = counted(|| row.calls(COUNTED));
    let bare = counted(|| row.bare(COUNTED));
    per_call(own, bare, COUNTED)
}

/// A reallocation counts as an allocation.
fn counted(work: impl FnOnce()) -> u64 {
    let region = Region::new(ALLOCATOR);
    work();
    let change = region.change();
    u64::try_from(change.allocations + change.reallocations).unwrap_or(u64::MAX)
}

fn per_call(own: u64, bare: u64, calls: u32) -> f64 {
    let count = |n: u64| u32::try_from(n).map_or(f64::INFINITY, f64::from);
    // the difference of two loops can be slightly negative
    (count(own) - count(bare)) / f64::from(calls)
}

/// Instructions of a call: the difference of two runs under callgrind that differ only in their number of calls.
fn instructions(index: usize) -> io::Result<f64> {
    let (few, many) = LOOPS;
    Ok(per_call(collected(index, many, few)?, collected(index, few, many)?, many - few))
}

/// The instructions of a run with these numbers of calls of the service and of the bare upstream.
fn collected(index: usize, calls: u32, bare: u32) -> io::Result<u64> {
    let numbers = [index.to_string(), calls.to_string(), bare.to_string()];
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .arg(LOOP)
        .args(numbers)
        .output()?;
    let text = String::from_utf8_lossy(&run.stderr);
    let count = text.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
    count.filter(|_| run.status.success()).ok_or_else(|| io::Error::other(text.into_owned()))
}

/// Runs the loops of a row if the arguments name one, which is the case under callgrind.
pub(crate) fn looped(rows: impl FnOnce() -> Vec<Row>) -> bool {
    let args: Vec<_> = env::args().skip(1).collect();
    let [flag, index, calls, bare] = args.as_slice() else { return false };
    if flag != LOOP {
        return false;
    }
    let number = |arg: &String| arg.parse::<u32>().expect("a number");
    let index = usize::try_from(number(index)).expect("an index");
    let mut row = rows().swap_remove(index);
    row.prepare();
    row.calls(number(calls));
    row.bare(number(bare));
    true
}

/// The cost of each row with a selected job; prints once why instructions cannot be counted.
pub(crate) fn cells(rows: Vec<Row>, job: &str) -> Vec<Cell> {
    let mut has_valgrind = true;
    let mut cells = Vec::new();
    for (index, mut row) in rows.into_iter().enumerate().filter(|(_, row)| row.job.name.contains(job)) {
        let instructions = has_valgrind.then(|| instructions(index));
        if let Some(Err(error)) = &instructions {
            eprintln!("valgrind counts no instructions: {error}");
            has_valgrind = false;
        }
        row.prepare();
        cells.push(Cell {
            who: row.who.into(),
            job: row.job.name.into(),
            instructions: instructions.and_then(Result::ok),
            allocations: allocations(&mut row),
            future_bytes: row.future_bytes(),
        });
    }
    cells
}
