//! The verbs, each implemented from its checks to its effects.
//!
//! | file | verbs |
//! |---|---|
//! | `create` | create, and its dry run |
//! | `load` | load, unload |
//! | `boot` | start: worker, boot data, machine, run |
//! | `pause` | pause, resume |
//! | `halt` | kill, and handling of an end |
//! | `restart` | restarts by policy |
//! | `release` | delete |
//! | `put_back` | delete, and put back what was deleted |
//! | `place` | placement of images, before anything changes |
//! | `attend` | waiting for workers, which may stall |
//! | `complete` | what an earlier manager did not complete |
//! | `channel_back` | channels, deleted, and put back |
//! | `channels` | channels, created, deleted, and given to their members |
//! | `links` | what network devices are connected to |
//! | `lease` | ends of instances whose clients have gone |
//! | `listen` | reports of workers |
//! | `memory` | memory, taken and returned |
//! | `cgroups` | workers in the cgroups of their guests |
//! | `workers` | processes: started, given their memory, scrubbed afterwards |
//!
//! Every verb first checks everything, then makes its changes; if a later step
//! fails, the earlier ones are undone.

pub(crate) mod attend;
pub mod boot;
mod cgroups;
pub(crate) mod channel_back;
mod channels;
mod complete;
pub mod create;
pub mod halt;
mod lease;
pub(crate) mod links;
mod listen;
pub mod load;
pub(crate) mod memory;
pub mod pause;
pub mod place;
pub(crate) mod put_back;
pub mod release;
mod restart;
pub(crate) mod workers;

use mkpool::range::RangeError;
use mkvmm_base::cmdline::CmdlineError;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{Class, Diagnose, InstanceId, InstanceName, Room, is_shortage};
use mkvmm_keeper::cgroup::CgroupError;
use mkvmm_keeper::client::KeeperError;
use mkvmm_memory::host_pool::HostPoolError;
use mkvmm_memory::reservation::ReservationError;
use mkvmm_wire::WireError;
use mkvmm_wire::messages::RefusalKind;
use mkvmm_wire::shared::SharedError;

use crate::budget::Shortage;
use crate::child::AskError;
use crate::manager::Manager;
use crate::passt::PasstError;
use crate::registry::RegistryError;
use crate::segments::SegmentError;
use crate::worker::WorkerError;

/// What helps when the host refuses a process, a thread or memory.
const SHORTAGE: &str = "delete instances, take fewer vCPUs, or raise the limits of threads, \
                        open files or memory of the host or of the cgroup";

/// What helps where a limit cannot be set.
const NO_CONTROLLER: &str = "leave the limit out, or name a cgroup that has controllers and no \
                             processes";

/// What helps where a process that was killed does not end.
const LET_GO: &str = "thaw its cgroup, or wait for what it waits for: it ends as soon as it can";

/// A reason why a verb failed; the instance is unchanged, or as close to that
/// as possible.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    /// The verb is illegal in the current state.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// One step of the verb failed.
    #[error("instance {name}")]
    Instance {
        /// The name of the instance.
        name: InstanceName,
        /// The underlying error.
        #[source]
        source: Box<StepError>,
    },
}

/// A reason why a step of a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The ledger refused the operation.
    #[error(transparent)]
    Pool(#[from] HostPoolError),
    /// The host lacks a resource.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The instance's process does not make progress.
    #[error("its process did not respond within {} s, and is stalled", .timeout.as_secs())]
    Stalled {
        /// The time after which it was given up.
        timeout: std::time::Duration,
    },
    /// The memory cannot be allocated, or cannot be returned.
    #[error("its memory cannot be provided")]
    Memory(#[from] ReservationError),
    /// The memory could not be scrubbed. It is not reused before it is.
    #[error("its memory cannot be cleaned: {text}")]
    Clean {
        /// The error of the cleaner.
        text: String,
    },
    /// The console or the board cannot be created.
    #[error("its shared memory cannot be created")]
    Shared(#[from] SharedError),
    /// The command line is not valid for the kernel.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Another child of the instance failed.
    #[error(transparent)]
    Child(#[from] AskError),
    /// The keeper does not hold a descriptor.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// A network device has no helper.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A network device cannot be on its segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Its worker ended between two orders.
    #[error("its worker process has ended meanwhile")]
    Lost,
    /// A required cgroup cannot be created.
    #[error("its cgroup")]
    Cgroup(#[from] CgroupError),
    /// The memory map or the manifest cannot be computed: an internal error.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The manifest cannot be written: an internal error.
    #[error("the manifest cannot be written")]
    Manifest(#[from] vm_fdt::Error),
    /// The console log cannot be started.
    #[error("the host has no more descriptors or threads")]
    Io(#[from] std::io::Error),
    /// The instance was killed meanwhile.
    #[error("it was killed meanwhile")]
    Killed,
    /// The guest ended by itself meanwhile.
    #[error("it has ended meanwhile ({reason})")]
    Ended {
        /// The reason of its end.
        reason: EndReason,
    },
    /// The manager is shutting down.
    #[error("mkvmm is shutting down")]
    Ending,
}

impl LifeError {
    fn inner(&self) -> &dyn Diagnose {
        match self {
            Self::Registry(error) => error,
            Self::Instance { source, .. } => source,
        }
    }
}

impl Diagnose for LifeError {
    fn class(&self) -> Class {
        self.inner().class()
    }

    fn hint(&self) -> Option<String> {
        self.inner().hint()
    }

    fn room(&self) -> Option<Room> {
        self.inner().room()
    }

    fn state(&self) -> Option<State> {
        self.inner().state()
    }
}

impl StepError {
    /// Returns the class of what no shortage of the host has brought about.
    fn own_class(&self) -> Class {
        match self {
            Self::Pool(error) => error.class(),
            Self::Memory(error) => error.class(),
            Self::Cmdline(error) => error.class(),
            Self::Worker(WorkerError::Refused(refusal)) => match refusal.kind {
                RefusalKind::Room => Class::NoRoom,
                RefusalKind::Shortage => Class::Exhausted,
                RefusalKind::Failure => Class::VmmFailed,
            },
            Self::Shortage(error) => error.class(),
            Self::Passt(error) => error.class(),
            Self::Segment(error) => error.class(),
            Self::Cgroup(_) => Class::Cgroup,
            _ if self.is_held() => Class::Busy,
            Self::Killed | Self::Ended { .. } | Self::Stalled { .. } => Class::WrongState,
            Self::Ending => Class::Lost,
            _ => Class::VmmFailed,
        }
    }
}

impl Diagnose for StepError {
    fn class(&self) -> Class {
        match self.own_class() {
            Class::VmmFailed | Class::Cgroup if is_shortage(self) => Class::Exhausted,
            class => class,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Pool(error) => error.hint(),
            Self::Shortage(error) => error.hint(),
            Self::Passt(error) if error.hint().is_some() => error.hint(),
            Self::Stalled { .. } => Some(State::Stalled.legal_hint()),
            Self::Memory(error) => error.hint(),
            Self::Cmdline(error) => error.hint(),
            Self::Cgroup(CgroupError::NoController { .. }) => Some(NO_CONTROLLER.to_owned()),
            _ if self.is_held() => Some(LET_GO.to_owned()),
            _ if self.class() == Class::Exhausted => Some(SHORTAGE.to_owned()),
            _ => None,
        }
    }

    fn room(&self) -> Option<Room> {
        match self {
            Self::Pool(error) => error.room(),
            _ => None,
        }
    }

    fn state(&self) -> Option<State> {
        match self {
            Self::Killed => Some(EndReason::Killed.state()),
            Self::Stalled { .. } => Some(State::Stalled),
            Self::Ended { reason } => Some(reason.state()),
            _ => None,
        }
    }
}

impl StepError {
    /// Whether a process that was killed is still there.
    pub(crate) fn is_held(&self) -> bool {
        matches!(
            self,
            Self::Worker(WorkerError::Held { .. }) | Self::Child(AskError::Held { .. })
        )
    }

    /// Whether the worker was lost.
    fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Lost
                | Self::Worker(WorkerError::Gone { .. } | WorkerError::Wire(WireError::Closed))
        )
    }

    /// Returns the error of instance `name`.
    pub fn of(self, name: &InstanceName) -> LifeError {
        LifeError::Instance {
            name: name.clone(),
            source: Box::new(self),
        }
    }
}

impl Manager {
    /// Returns the error of a verb on an instance whose guest did not run. Where
    /// the verb failed since its worker went, that says whether somebody killed
    /// it.
    pub(crate) async fn explain(&self, id: InstanceId, error: StepError) -> StepError {
        if !error.is_loss() {
            return error;
        }
        let worker = self.registry().guest(id).and_then(|g| g.worker.clone());
        if let Some(worker) = worker {
            // Its channel is closed. One that does not end has no better reason.
            let _ = worker.gone_soon().await;
        }
        match self.registry().guest(id) {
            Some(guest) if !guest.is_doomed => error,
            _ => StepError::Killed,
        }
    }

    /// The same for a guest that ran, and so may have ended by itself.
    pub(crate) async fn explain_run(&self, id: InstanceId, error: StepError) -> StepError {
        let error = self.explain(id, error).await;
        let reason = self.registry().guest(id).and_then(|guest| guest.reason());
        match reason {
            Some(reason) if error.is_loss() && reason != EndReason::Vmm => {
                StepError::Ended { reason }
            }
            _ => error,
        }
    }
}
