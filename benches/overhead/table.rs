//! The table as markdown: a row for each job, a column for each peer.

use std::fmt;

use crate::cell::Cell;
use crate::job;

/// A cell as text: `instructions / allocations / bytes of the future`, `-` if a peer has no such layer.
pub(crate) struct Table(pub(crate) Vec<Cell>);

impl Table {
    fn columns(&self) -> Vec<&str> {
        let mut columns: Vec<&str> = Vec::new();
        for cell in &self.0 {
            if !columns.contains(&cell.who.as_str()) {
                columns.push(&cell.who);
            }
        }
        columns
    }

    fn cell(&self, who: &str, job: &str) -> String {
        let found = self.0.iter().find(|cell| cell.who == who && cell.job == job);
        found.map_or_else(|| "-".into(), written)
    }
}

fn written(cell: &Cell) -> String {
    let instructions = cell.instructions.map_or_else(|| "?".into(), |n| format!("{n:.0}"));
    let whole = (cell.allocations - cell.allocations.round()).abs() < 0.005;
    let places = if whole { 0 } else { 2 };
    format!("{instructions} / {:.places$} / {}", cell.allocations, cell.future_bytes)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        writeln!(f, "| one call: instructions / allocations / bytes of its future | {} |", columns.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(columns.len()))?;
        for job in job::ALL.map(|job| job.name) {
            if self.0.iter().any(|cell| cell.job == job) {
                let cells: Vec<_> = columns.iter().map(|who| self.cell(who, job)).collect();
                writeln!(f, "| {job} | {} |", cells.join(" | "))?;
            }
        }
        Ok(())
    }
}
