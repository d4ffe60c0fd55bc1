//! What one service costs for one job, and how it is handed from one program of the bench to the other.

use std::fmt;
use std::str::FromStr;

/// A cell of the table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// Whose service it is, a column.
    pub(crate) who: String,
    /// The [`Job`](crate::job::Job)'s name, a row.
    pub(crate) job: String,
    /// Of one call over the bare upstream's; none where there is no valgrind.
    pub(crate) instructions: Option<f64>,
    /// On the heap, of one call over the bare upstream's.
    pub(crate) allocations: f64,
    /// Of the call future beside the upstream's.
    pub(crate) future_bytes: usize,
}

/// One line with tabs.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, job, instructions, allocations, future_bytes } = self;
        let instructions = instructions.map_or_else(String::new, |n| n.to_string());
        write!(f, "{who}\t{job}\t{instructions}\t{allocations}\t{future_bytes}")
    }
}

/// A line that is none of ours.
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
