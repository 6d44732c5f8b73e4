//! Children of the manager: how they are made and asked.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use mkvmm_keeper::process::{Child, Exit, Output, ProcessError, Spawn, Starting};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::channel::{self, Message};

use crate::leaves::Leaves;
use crate::worker::WorkerError;

/// What every child is told besides what the host says. The C library's
/// allocator would count the processors by a file, which a confined process
/// may not open, to find out how many heaps a process may have; and each heap
/// of a thread takes 64 MiB of addresses.
const ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "2")];
/// How long a child that has answered has to be gone by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs one guest.
    Worker,
    /// Reads and unpacks one image.
    Unpacker,
    /// Makes memory read as zero.
    Cleaner,
}

impl Role {
    /// Every role that there is.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Unpacker, Self::Cleaner];

    /// Returns the word that `ps` shows and that the child finds.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Unpacker => "unpacker",
            Self::Cleaner => "cleaner",
        }
    }
}

/// How children are made.
#[derive(Debug, Clone)]
pub struct Children {
    /// The program that children run; this one when `None`.
    pub program: Option<PathBuf>,
    /// The environment of children.
    pub environment: Vec<(String, String)>,
    /// Where the output of children goes.
    pub output: Output,
    /// Where guests have cgroups of their own.
    pub leaves: Leaves,
}

impl Children {
    /// Begins to start a child of `role` for `label`, and returns this end of
    /// the socket to it; in a v2 cgroup whose directory is open, if one is given.
    ///
    /// # Errors
    /// [`WorkerError`]; no process is left then.
    pub(crate) fn start(
        &self,
        role: Role,
        label: &str,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Starting, OwnedFd), WorkerError> {
        let (ours, theirs) = channel::pair()?;
        let given = self.environment.iter();
        let given = given.map(|(name, value)| (name.as_str(), value.as_str()));
        let environment: Vec<(&str, &str)> = given.chain(ENVIRONMENT).collect();
        let child = Spawn {
            role: role.word(),
            label,
            channel: theirs,
            environment: &environment,
            output: self.output,
            program: self.program.as_deref(),
            cgroup,
        }
        .begin()?;
        Ok((child, ours))
    }
}

/// Starts a child for one question, and returns its answer once the child is
/// gone. Dropped, it ends the child.
///
/// # Errors
/// [`WorkerError`] when the child ended without an answer.
pub(crate) async fn ask<Out: Message, In: Message>(
    children: &Children,
    role: Role,
    label: &str,
    question: &Out,
    descriptors: &[BorrowedFd<'_>],
) -> Result<In, WorkerError> {
    let (child, socket) = children.start(role, label, None)?;
    let mut child = child.confirm()?;
    let mut channel = AsyncChannel::<Out, In>::open(socket)?;
    channel.sender.send(question, descriptors).await?;
    let answer = channel.receiver.recv().await;
    let exit = ended(&mut child).await?;
    match answer {
        Ok(Some(received)) => Ok(received.message),
        Ok(None) | Err(WireError::Closed) => Err(WorkerError::Gone { exit }),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a child that has nothing more to say is gone. One that stays is
/// ended: nothing may still have what it was given.
async fn ended(child: &mut Child) -> Result<Exit, ProcessError> {
    match tokio::time::timeout(LAST_MOMENTS, child.ended()).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            child.kill()?;
            child.ended().await
        }
    }
}
