//! Children of the manager: how they are made and asked.

use std::os::fd::BorrowedFd;

use std::time::Duration;

use mkvmm_keeper::process::{Child, Exit, Killer, ProcessError, Spawn};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::channel::{self, Message};

use crate::host::Host;
use crate::worker::WorkerError;

/// What every child is told besides what the host says. The C library's
/// allocator would count the processors by a file, which a confined process
/// may not open, to find out how many heaps a process may have; and each heap
/// of a thread takes 64 MiB of addresses.
const ENVIRONMENT: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "2")];
/// How long a child that has answered has to be gone by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(1);
/// How often a child is looked at that has not answered.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that find a child stopped before it is killed.
const STOPPED_LOOKS: u64 = 5;
/// SIGKILL: sent by somebody, or by a kernel that has no memory left.
const KILLED: i32 = 9;

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

/// Starts a child of `role` for `label`, with a channel to it; in a v2 cgroup
/// whose directory is open, if one is given.
///
/// # Errors
/// [`WorkerError`]; no process is left then.
pub(crate) fn start<Out: Message, In: Message>(
    host: &Host,
    role: Role,
    label: &str,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, AsyncChannel<Out, In>), WorkerError> {
    let (ours, theirs) = channel::pair()?;
    let of_host = host.environment.iter();
    let of_host = of_host.map(|(name, value)| (name.as_str(), value.as_str()));
    let environment: Vec<(&str, &str)> = of_host.chain(ENVIRONMENT).collect();
    let child = Spawn {
        role: role.word(),
        label,
        channel: theirs,
        environment: &environment,
        output: host.child_output,
        program: host.program.as_deref(),
        cgroup,
    }
    .start()?;
    Ok((child, AsyncChannel::open(ours)?))
}

/// One question to a child that is made for it.
#[derive(Debug)]
pub(crate) struct Question<'a, Out> {
    /// What the child is.
    pub role: Role,
    /// Whose it is, for people.
    pub label: &'a str,
    /// What it is asked.
    pub message: &'a Out,
    /// The descriptors that go with it.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// How long an honest child takes at most; unlimited where it waits for
    /// somebody else.
    pub limit: Option<Duration>,
}

/// Why a child has not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be made or asked.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// It ended without an answer.
    #[error("the {role} process ended ({exit}) before it answered")]
    Gone {
        /// What it was.
        role: &'static str,
        /// How it ended.
        exit: Exit,
    },
    /// A signal had stopped it, and it was killed.
    #[error("the {role} process was stopped for {STOPPED_LOOKS} s, and was killed")]
    Stopped {
        /// What it was.
        role: &'static str,
    },
    /// It took longer than its work can take, and was killed.
    #[error("the {role} process did not answer in {} s, and was killed", .limit.as_secs())]
    Slow {
        /// What it was.
        role: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
}

impl AskError {
    /// Whether somebody outside is to blame, so that another child may do
    /// better. One that broke down by itself would do so again.
    pub(crate) fn is_from_outside(&self) -> bool {
        match self {
            Self::Stopped { .. } | Self::Slow { .. } => true,
            Self::Gone { exit, .. } => *exit == Exit::Signal(KILLED),
            Self::Worker(_) => false,
        }
    }
}

/// Starts a child for one question, and returns its answer once the child is
/// gone. One that a signal has stopped, or that takes too long, is killed.
/// Dropped, it ends the child.
///
/// # Errors
/// [`AskError`] when the child ended without an answer, or was killed; it is
/// gone then.
pub(crate) async fn ask<Out: Message, In: Message>(
    host: &Host,
    question: &Question<'_, Out>,
) -> Result<In, AskError> {
    let Question { role, label, .. } = *question;
    let (child, channel) = start::<Out, In>(host, role, label, None)?;
    let killer = child.killer();
    let mut child = Asked(Some(child));
    let role = role.word();
    let answer = tokio::select! {
        answer = talk(channel, question) => answer,
        error = watch(&killer, role, question.limit) => Err(error),
    };
    let killed = matches!(
        answer,
        Err(AskError::Stopped { .. } | AskError::Slow { .. })
    );
    let exit = child.ended(killed).await.map_err(WorkerError::from)?;
    match answer? {
        Some(answer) => Ok(answer),
        None => Err(AskError::Gone { role, exit }),
    }
}

/// Asks and waits for the answer; `None` where the child is gone without one.
async fn talk<Out: Message, In: Message>(
    mut channel: AsyncChannel<Out, In>,
    question: &Question<'_, Out>,
) -> Result<Option<In>, AskError> {
    let sent = channel.sender.send(question.message, question.descriptors);
    let sent = sent.await;
    // One that could not begin may have said why without being asked.
    match channel.receiver.recv().await {
        Ok(Some(received)) => Ok(Some(received.message)),
        Ok(None) | Err(WireError::Closed) => Ok(None),
        Err(error) => Err(WorkerError::from(sent.err().unwrap_or(error)).into()),
    }
}

/// Returns once a child has been stopped for some seconds, or has had `limit`.
/// Time is counted by looks, so that none passes while this process itself
/// stands still.
async fn watch(killer: &Killer, role: &'static str, limit: Option<Duration>) -> AskError {
    let (mut passed, mut stopped) = (Duration::ZERO, 0);
    loop {
        tokio::time::sleep(LOOK).await;
        passed += LOOK;
        stopped = if killer.is_stopped() { stopped + 1 } else { 0 };
        if stopped >= STOPPED_LOOKS {
            return AskError::Stopped { role };
        }
        if let Some(limit) = limit.filter(|limit| passed >= *limit) {
            return AskError::Slow { role, limit };
        }
    }
}

/// A child that is ended when this is dropped, without anybody waiting for it.
struct Asked(Option<Child>);

impl Asked {
    /// Waits until the child is gone, which has nothing more to say. One that
    /// stays is ended: nothing may still have what it was given.
    async fn ended(&mut self, kill: bool) -> Result<Exit, ProcessError> {
        let Some(child) = &mut self.0 else {
            return Ok(Exit::Code(-1));
        };
        if kill {
            child.kill()?;
        }
        let exit = match tokio::time::timeout(LAST_MOMENTS, child.ended()).await {
            Ok(exit) => exit,
            Err(_elapsed) => {
                child.kill()?;
                child.ended().await
            }
        };
        // It was reaped.
        self.0 = None;
        exit
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(child) = self.0.take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Until the kernel has taken it down.
            runtime.spawn_blocking(move || drop(child));
        }
    }
}
