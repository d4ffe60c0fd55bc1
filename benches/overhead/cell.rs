//! The cost of one service for one job, and its line in the output of the peers' program.

use std::fmt;
use std::str::FromStr;

/// A cell of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// The crate of the service: a column.
    pub(crate) who: String,
    /// The name of the [`Job`](crate::job::Job): a row.
    pub(crate) job: String,
    /// Instructions of one call, without those of the bare upstream; `None` without valgrind.
    pub(crate) instructions: Option<f64>,
    /// Heap allocations of one call, without those of the bare upstream.
    pub(crate) allocations: f64,
    /// Bytes of the call future, without those of the upstream's future.
    pub(crate) future_bytes: usize,
}

/// A line with tabs.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, job, instructions, allocations, future_bytes } = self;
        let instructions = instructions.map_or_else(String::new, |n| n.to_string());
        write!(f, "{who}\t{job}\t{instructions}\t{allocations}\t{future_bytes}")
    }
}

/// A line that is not a cell.
#[derive(Debug)]
pub(crate) struct NoCell;

impl FromStr for Cell {
    type Err = NoCell;

    fn from_str(line: &str) -> Result<Self, NoCell> {
        let columns: Vec<_> = line.split('\t').collect();
        let [who, job, instructions, allocations, future_bytes] = columns.as_slice() else { return Err(NoCell) };
        Ok(Self {
            who: (*who).into(),
            job: (*job).into(),
            instructions: instructions.parse().ok(),
            allocations: allocations.parse().map_err(|_| NoCell)?,
            future_bytes: future_bytes.parse().map_err(|_| NoCell)?,
        })
    }
}
