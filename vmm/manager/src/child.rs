//! Starts the manager's child processes and communicates with them.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use mkvmm_keeper::process::{Child, Exit, Output, ProcessError, Spawn, Starting};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::channel::{self, Message};

use crate::leaves::Leaves;
use crate::worker::WorkerError;

/// The environment variables of every child, in addition to the host's. The C
/// library's allocator would otherwise read the number of processors from a
/// file, which a confined process may not open, to limit the number of its heap
/// arenas; and each thread's arena takes 64 MiB of address space.
const ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "2")];
/// The time within which a child that has answered must exit by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(1);

/// The role of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A process that runs one guest.
    Worker,
    /// A process that reads and unpacks one image.
    Unpacker,
    /// A process that makes memory read as zero.
    Cleaner,
}

impl Role {
    /// The list of all roles.
    pub const ALL: [Self; 3] = [Self::Worker, Self::Unpacker, Self::Cleaner];

    /// Returns the name of the role, which `ps` shows and the child receives.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Unpacker => "unpacker",
            Self::Cleaner => "cleaner",
        }
    }
}

/// The parameters for starting children.
#[derive(Debug, Clone)]
pub struct Children {
    /// The program that children execute; this one if `None`.
    pub program: Option<PathBuf>,
    /// The environment of children.
    pub environment: Vec<(String, String)>,
    /// The destination of the children's output.
    pub output: Output,
    /// The cgroups that guests get.
    pub leaves: Leaves,
}

impl Children {
    /// Begins to start a child of `role` for `label`, in the v2 cgroup whose
    /// open directory is given, if any. Returns this end of the socket to it.
    ///
    /// # Errors
    /// Returns a [`WorkerError`]; no process is left then.
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

/// Starts a child for one request, and returns its answer once the child is
/// gone. If the future is dropped, the child is killed.
///
/// # Errors
/// Returns a [`WorkerError`] if the child exited without an answer.
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

/// Waits until a child that has answered is gone, and kills it if it does not
/// exit: nothing may still have access to the files it was given.
async fn ended(child: &mut Child) -> Result<Exit, ProcessError> {
    match tokio::time::timeout(LAST_MOMENTS, child.ended()).await {
        Ok(exit) => exit,
        Err(_elapsed) => {
            child.kill()?;
            child.ended().await
        }
    }
}
