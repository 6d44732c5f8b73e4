//! What was visited, and what came of it.

use std::collections::BTreeMap;
use std::fmt;

use mkvmm_test_harness::faults::Fault;
use mkvmm_test_harness::walk::Answer;

use crate::verb::Verb;

/// The faults of one verb in one kind of process.
#[derive(Debug, Default, Clone)]
struct Row {
    visited: u32,
    /// Faults that nobody noticed.
    tolerated: u32,
    /// Errors by their class.
    refused: BTreeMap<String, u32>,
    /// Clients that were hung up on.
    unanswered: u32,
    /// Faults by their call.
    calls: BTreeMap<&'static str, u32>,
}

/// The faults of a walk.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(&'static str, Verb), Row>);

impl Tally {
    /// Counts a fault and what the client heard.
    pub fn count(&mut self, role: &'static str, verb: Verb, fault: &Fault, answer: &Answer) {
        let row = self.0.entry((role, verb)).or_default();
        row.visited += 1;
        *row.calls.entry(fault.call).or_default() += 1;
        match answer {
            Answer::Done => row.tolerated += 1,
            Answer::Refused { class, .. } => {
                *row.refused.entry(class.clone()).or_default() += 1;
            }
            Answer::None => row.unanswered += 1,
        }
    }

    /// Faults in processes of `role`.
    pub fn of_role(&self, role: &str) -> u32 {
        let rows = self.0.iter().filter(|((of, _), _)| *of == role);
        rows.map(|(_, row)| row.visited).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((role, verb), row) in &self.0 {
            write!(
                f,
                "{role:<9} {verb:<8} visited {:>4}: tolerated {}",
                row.visited, row.tolerated
            )?;
            for (class, count) in &row.refused {
                write!(f, ", {class} {count}")?;
            }
            if row.unanswered > 0 {
                write!(f, ", hung up on {}", row.unanswered)?;
            }
            let calls = row
                .calls
                .iter()
                .map(|(call, count)| format!("{call} {count}"));
            writeln!(f, "\n    {}", calls.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}
