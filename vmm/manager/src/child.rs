//! Starts the manager's child processes and communicates with them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use mkvmm_base::chain;
use mkvmm_keeper::client::{Keeper, Start};
use mkvmm_keeper::process::{Child, Exit, Killer, Output, ProcessError, Spawn, Starting};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::channel::{self, Message};
use mkvmm_wire::settings::WAITS_VARIABLE;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::leaves::Leaves;
use crate::still::{ENDING, HELD};
use crate::worker::WorkerError;

/// The environment variables of every child, in addition to the host's. The C
/// library's allocator would otherwise open files, which kills a confined
/// process: one with the number of processors, to limit the number of its heap
/// arenas, each of which takes 64 MiB of address space; and one that says how
/// memory is overcommitted, before it makes the heap of a thread smaller. So
/// heaps keep what was freed, and large blocks are none of theirs.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("MALLOC_MMAP_THRESHOLD_", "2097152"),
];
/// The label of a worker without an instance, whose names have no brackets.
const WAITING: &str = "(waits)";
/// The time within which a child that has answered must exit by itself.
const LAST_MOMENTS: Duration = Duration::from_secs(1);
/// How often a child is looked at that has not answered.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that find a child stopped before it is killed.
const STOPPED_LOOKS: u64 = 5;
/// SIGKILL: sent by somebody, or by a kernel that has no memory left.
const KILLED: i32 = 9;

/// The role of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A process that runs one guest.
    Worker,
    /// A process that reads and unpacks one image.
    Unpacker,
    /// A process that makes memory read as zero.
    Cleaner,
    /// A process that executes a program that is not mkvmm's, for one guest.
    Helper,
}

impl Role {
    /// The list of all roles.
    pub const ALL: [Self; 4] = [Self::Worker, Self::Unpacker, Self::Cleaner, Self::Helper];

    /// Returns the name of the role, which `ps` shows and the child receives.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Unpacker => "unpacker",
            Self::Cleaner => "cleaner",
            Self::Helper => "helper",
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
    /// The keeper process that starts children; this process does if there is
    /// none.
    pub keeper: Option<Keeper>,
}

/// A child that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// The process of the child.
    pub child: Starting,
    /// This end of the socket to it.
    pub socket: OwnedFd,
    /// Its number, if it is a child of the keeper.
    pub serial: Option<u64>,
}

impl Children {
    /// Returns the same parameters with more variables.
    #[must_use]
    pub fn with(&self, variables: Vec<(String, String)>) -> Self {
        let mut children = self.clone();
        children.environment.extend(variables);
        children
    }

    /// Begins to start a child of `role` for `label`, in the v2 cgroup whose
    /// open directory is given, if any.
    ///
    /// # Errors
    /// Returns a [`WorkerError`]; no process is left then.
    pub(crate) async fn start(
        &self,
        role: Role,
        label: &str,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Started, WorkerError> {
        self.start_with(role, label, cgroup, None).await
    }

    /// Begins to start a worker that has no instance yet.
    ///
    /// # Errors
    /// Returns the errors of [`Self::start`].
    pub(crate) async fn start_waiting(&self) -> Result<Started, WorkerError> {
        let waits = Some((WAITS_VARIABLE, "1"));
        self.start_with(Role::Worker, WAITING, None, waits).await
    }

    async fn start_with(
        &self,
        role: Role,
        label: &str,
        cgroup: Option<BorrowedFd<'_>>,
        variable: Option<(&str, &str)>,
    ) -> Result<Started, WorkerError> {
        let (ours, theirs) = channel::pair()?;
        let given = self.environment.iter();
        let given = given.map(|(name, value)| (name.as_str(), value.as_str()));
        let environment: Vec<(&str, &str)> = given.chain(ENVIRONMENT).chain(variable).collect();
        if let Some(keeper) = &self.keeper {
            let start = Start {
                role: role.word(),
                label,
                environment: &environment,
                has_output: self.output == Output::Inherit,
                cgroup,
                theirs: theirs.as_fd(),
                ours: ours.as_fd(),
            };
            let started = keeper.start(&start).await;
            let (serial, child) = started.map_err(|source| ProcessError::Start {
                role: role.word().to_owned(),
                label: label.to_owned(),
                source,
            })?;
            return Ok(Started {
                child: child.into(),
                socket: ours,
                serial: Some(serial),
            });
        }
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
        Ok(Started {
            child,
            socket: ours,
            serial: None,
        })
    }
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
    /// It was killed, and is still there.
    #[error("the {role} process ({}) was killed and {HELD}", .held.pid)]
    Held {
        /// What it was.
        role: &'static str,
        /// What is left of it.
        held: Unreaped,
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
            // Another one must not have what this one still has.
            Self::Held { .. } | Self::Worker(_) => false,
        }
    }
}

/// A child that was killed and does not end. It is reaped when it does.
#[derive(Debug, Clone)]
pub struct Unreaped {
    pid: i32,
    /// Closed once it is gone.
    gone: watch::Receiver<()>,
}

impl Unreaped {
    /// Reaps a child that was killed, whenever it ends.
    pub(crate) fn new(mut child: Child, runtime: &Handle) -> Self {
        let (there, gone) = watch::channel(());
        let pid = child.pid();
        runtime.spawn(async move {
            if let Err(error) = child.ended().await {
                log::error!("process {pid}: {}", chain(&error));
            }
            drop(there);
        });
        Self { pid, gone }
    }

    /// Returns its process ID, for people.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it is gone, for a while; returns whether it is.
    pub(crate) async fn is_gone_soon(&mut self) -> bool {
        // Nothing is ever sent.
        let gone = async { while self.gone.changed().await.is_ok() {} };
        tokio::time::timeout(ENDING, gone).await.is_ok()
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
    children: &Children,
    question: &Question<'_, Out>,
) -> Result<In, AskError> {
    let (answer, _none) = ask_early(children, question, |_| false).await?;
    Ok(answer)
}

/// Does [`ask`], but returns at the first answer if `is_partial` says that there will
/// be another one.
///
/// # Errors
/// Returns the errors of [`ask`].
pub(crate) async fn ask_early<Out: Message, In: Message>(
    children: &Children,
    question: &Question<'_, Out>,
    is_partial: impl Fn(&In) -> bool,
) -> Result<(In, Option<More<Out, In>>), AskError> {
    let Question { role, label, .. } = *question;
    let Started { child, socket, .. } = children.start(role, label, None).await?;
    let (child, execution) = child.split();
    let killer = child.killer();
    let mut child = Asked {
        role: role.word(),
        child: Some(child),
    };
    if let Err(error) = execution.waited().await {
        child.ended(true).await?;
        return Err(WorkerError::from(error).into());
    }
    let mut channel = match AsyncChannel::<Out, In>::open(socket) {
        // It has ended already, and says with which status.
        Err(WireError::Closed) => None,
        opened => Some(opened.map_err(WorkerError::from)?),
    };
    let answer = tokio::select! {
        answer = talk(&mut channel, question) => answer,
        error = watch_over(&killer, role.word(), question.limit) => Err(error),
    };
    match (answer, channel) {
        (Ok(Some(answer)), Some(channel)) if is_partial(&answer) => {
            let limit = question.limit;
            let more = More {
                child,
                killer,
                channel,
                limit,
            };
            Ok((answer, Some(more)))
        }
        (answer, _) => Ok((child.conclude(answer).await?, None)),
    }
}

/// A child that has answered and will do so once more. Dropped, it is ended.
pub(crate) struct More<Out, In> {
    child: Asked,
    killer: Killer,
    channel: AsyncChannel<Out, In>,
    limit: Option<Duration>,
}

impl<Out: Message, In: Message> More<Out, In> {
    /// Waits for the answer, and until the child is gone, like [`ask`].
    ///
    /// # Errors
    /// Returns the errors of [`ask`].
    pub(crate) async fn answer(mut self) -> Result<In, AskError> {
        let answer = tokio::select! {
            answer = receive(&mut self.channel) => answer,
            error = watch_over(&self.killer, self.child.role, self.limit) => Err(error),
        };
        self.child.conclude(answer).await
    }
}

/// Asks and waits for the answer; `None` where the child is gone without one.
async fn talk<Out: Message, In: Message>(
    channel: &mut Option<AsyncChannel<Out, In>>,
    question: &Question<'_, Out>,
) -> Result<Option<In>, AskError> {
    let Some(channel) = channel else {
        return Ok(None);
    };
    let sent = channel.sender.send(question.message, question.descriptors);
    match sent.await {
        // One that could not begin may have said why without being asked.
        Ok(()) | Err(WireError::Closed) => {}
        // It waits for the question.
        Err(error) => return Err(WorkerError::from(error).into()),
    }
    receive(channel).await
}

async fn receive<Out: Message, In: Message>(
    channel: &mut AsyncChannel<Out, In>,
) -> Result<Option<In>, AskError> {
    match channel.receiver.recv().await {
        Ok(Some(received)) => Ok(Some(received.message)),
        Ok(None) | Err(WireError::Closed) => Ok(None),
        Err(error) => Err(WorkerError::from(error).into()),
    }
}

/// Returns once a child has been stopped for some seconds, or has had `limit`.
/// Time is counted by looks, so that none passes while this process itself
/// is stopped.
async fn watch_over(killer: &Killer, role: &'static str, limit: Option<Duration>) -> AskError {
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
struct Asked {
    role: &'static str,
    child: Option<Child>,
}

impl Asked {
    /// Waits until the child is gone, which has given its last `answer`.
    async fn conclude<In>(&mut self, answer: Result<Option<In>, AskError>) -> Result<In, AskError> {
        let exit = self.ended(answer.is_err()).await?;
        let role = self.role;
        answer?.ok_or_else(|| match exit.not_executed(role) {
            Some(error) => WorkerError::from(error).into(),
            None => AskError::Gone { role, exit },
        })
    }

    /// Waits until the child is gone, which has nothing more to say. One that
    /// stays is ended: nothing may still have what it was given.
    async fn ended(&mut self, kill: bool) -> Result<Exit, AskError> {
        let exit = self.ended_within(LAST_MOMENTS, kill).await?;
        let exit = match exit {
            Some(exit) => Some(exit),
            None => self.ended_within(ENDING, true).await?,
        };
        let child = self.child.take();
        match (exit, child) {
            (Some(exit), _) => Ok(exit),
            (None, Some(child)) => Err(AskError::Held {
                role: self.role,
                held: Unreaped::new(child, &Handle::current()),
            }),
            // It was taken by an earlier call.
            (None, None) => Ok(Exit::Code(-1)),
        }
    }

    async fn ended_within(
        &mut self,
        limit: Duration,
        kill: bool,
    ) -> Result<Option<Exit>, WorkerError> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        if kill {
            child.kill()?;
        }
        match tokio::time::timeout(limit, child.ended()).await {
            Ok(exit) => Ok(Some(exit?)),
            Err(_elapsed) => Ok(None),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        if let Ok(runtime) = Handle::try_current()
            && child.kill().is_ok()
        {
            // Until the kernel has taken it down.
            Unreaped::new(child, &runtime);
        }
    }
}
