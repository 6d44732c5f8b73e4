//! The ways in which the manager is killed at one of its calls.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, Signal, kill_process};

use super::calls::Call;
use super::listener::Question;

/// What descriptors of a journal stand for.
const JOURNAL: &str = "/memfd:mkvmm-journal";
/// The call that writes to a journal.
const WRITE: &str = "pwrite64";

/// When the manager is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Before a call, any that can fail.
    Call,
    /// Before a write to the journal.
    JournalBefore,
    /// In the middle of a write to the journal.
    JournalTorn,
    /// After a write to the journal.
    JournalAfter,
}

impl Moment {
    /// The moments of a write to the journal.
    pub const JOURNAL: [Self; 3] = [Self::JournalBefore, Self::JournalTorn, Self::JournalAfter];

    /// Whether a call, whose first argument stands for `on`, is one of those.
    pub(super) fn is_at(self, call: &Call, on: &str) -> bool {
        self == Self::Call || (call.name() == WRITE && on.starts_with(JOURNAL))
    }

    /// Kills `manager`, whose call waits. A write is made for it, as far as it
    /// comes.
    ///
    /// # Errors
    /// Returns why the write was not made; the manager is killed in any case.
    pub(super) fn strike(self, question: &Question, manager: i32) -> io::Result<()> {
        let part = match self {
            Self::Call | Self::JournalBefore => None,
            Self::JournalTorn => Some(2),
            Self::JournalAfter => Some(1),
        };
        let written = part.map(|part| write(question, manager, part));
        if let Some(pid) = Pid::from_raw(manager) {
            kill_process(pid, Signal::KILL)?;
        }
        written.unwrap_or(Ok(()))
    }
}

/// Makes one `part`-th of a write that process `pid` waits for.
fn write(question: &Question, pid: i32, part: usize) -> io::Result<()> {
    let [descriptor, from, len, offset, ..] = question.arguments;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut bytes, from)?;
    let path = format!("/proc/{pid}/fd/{descriptor}");
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&bytes[..len / part], offset)
}

/// A manager that was killed.
#[derive(Debug, Clone)]
pub struct Death {
    /// When it was.
    pub moment: Moment,
    /// The name of the call.
    pub call: &'static str,
    /// The name of the thread that made it.
    pub thread: String,
    /// What its first argument stood for, where that is a descriptor.
    pub on: String,
    /// Why it was not killed in the way that was asked for.
    pub error: Option<String>,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            moment,
            call,
            thread,
            on,
            error,
        } = self;
        write!(f, "{moment:?}: {call} on `{on}` in {thread}")?;
        match error {
            Some(error) => write!(f, ", but {error}"),
            None => Ok(()),
        }
    }
}
