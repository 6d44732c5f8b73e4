//! What can be asked of the VMM, and what it answers.
//!
//! An [`Action`] is complete: names are checked, files are read. Carrying it
//! out takes no waiting, so that the event loop may do it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::builder::{Images, InstanceConfig};
use crate::control::debug::{DebugAction, DebugReply};
use crate::control::error::ControlError;
use crate::control::metrics::MetricsFacts;
use crate::devices::console_ring::ConsoleRing;
use crate::instance::state::Verb;
use crate::instance::{InstanceId, InstanceName};
use mkvmm_api::Range;
use mkvmm_api::instance::{E820Row, Instance};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, IomemRow, Pool, PoolMap, PoolRecord};

/// An instance that is to be planned.
#[derive(Debug)]
pub struct Planned {
    /// What it is to be.
    pub config: InstanceConfig,
    /// What is to be loaded.
    pub images: Option<Box<Images>>,
}

/// One thing to do.
#[derive(Debug)]
pub enum Action {
    /// Describe the pool.
    Pool,
    /// Draw it.
    PoolMap,
    /// List its last allocations.
    PoolLog {
        /// At most so many; all that are kept when `None`.
        limit: Option<u32>,
    },
    /// List the resource tree.
    Iomem,
    /// Prove the books.
    Audit,
    /// Gather what the metrics are made of.
    Metrics,
    /// Describe all instances.
    List,
    /// Describe one.
    Show(InstanceName),
    /// Its memory map.
    E820(InstanceName),
    /// Its console.
    Console(InstanceName),
    /// Look into a guest.
    Debug(InstanceName, DebugAction),
    /// Say what would come of making instances, one after the other.
    Plan(Vec<Planned>),
    /// Make an instance.
    Create {
        /// What it is to be.
        config: InstanceConfig,
        /// What to load at once.
        images: Option<Box<Images>>,
    },
    /// Load images.
    Load {
        /// Into which instance.
        name: InstanceName,
        /// Which.
        images: Box<Images>,
    },
    /// A verb that needs nothing more: start, pause, resume, unload, delete.
    Do {
        /// What.
        verb: Verb,
        /// To which instance.
        name: InstanceName,
    },
    /// End an instance; answered when it has ended.
    Kill {
        /// Which.
        name: InstanceName,
        /// How long it has before it is forced; zero forces it at once.
        grace: Duration,
    },
    /// Allocate memory.
    Alloc {
        /// In which instance; in the main pool when `None`.
        instance: Option<InstanceName>,
        /// Bytes.
        size: u64,
        /// A power of two; 0 and 1 mean any.
        align: u64,
    },
    /// Free it.
    Free {
        /// In which instance; in the main pool when `None`.
        instance: Option<InstanceName>,
        /// Where it begins.
        addr: u64,
    },
}

impl Action {
    /// Its name, for the event log.
    pub fn name(&self) -> String {
        match self {
            Self::Pool => "pool".to_owned(),
            Self::PoolMap => "pool-map".to_owned(),
            Self::PoolLog { .. } => "pool-log".to_owned(),
            Self::Iomem => "iomem".to_owned(),
            Self::Audit => "audit".to_owned(),
            Self::Metrics => "metrics".to_owned(),
            Self::List => "list".to_owned(),
            Self::Show(_) => "show".to_owned(),
            Self::E820(_) => "e820".to_owned(),
            Self::Console(_) => "console".to_owned(),
            Self::Debug(..) => "debug".to_owned(),
            Self::Plan(_) => "plan".to_owned(),
            Self::Create { .. } => "create".to_owned(),
            Self::Load { .. } => Verb::Load.to_string(),
            Self::Do { verb, .. } => verb.to_string(),
            Self::Kill { .. } => Verb::Kill.to_string(),
            Self::Alloc { .. } => "alloc".to_owned(),
            Self::Free { .. } => "free".to_owned(),
        }
    }

    /// Whether it changes something, so that its refusal is news.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Self::Pool
                | Self::PoolMap
                | Self::PoolLog { .. }
                | Self::Iomem
                | Self::Audit
                | Self::Metrics
                | Self::List
                | Self::Show(_)
                | Self::E820(_)
                | Self::Console(_)
                | Self::Debug(..)
                | Self::Plan(_)
        )
    }

    /// The instance it is about.
    pub fn instance(&self) -> Option<&InstanceName> {
        match self {
            Self::Show(name)
            | Self::E820(name)
            | Self::Console(name)
            | Self::Debug(name, _)
            | Self::Load { name, .. }
            | Self::Do { name, .. }
            | Self::Kill { name, .. } => Some(name),
            Self::Create { config, .. } => Some(&config.name),
            Self::Alloc { instance, .. } | Self::Free { instance, .. } => instance.as_ref(),
            Self::Pool
            | Self::PoolMap
            | Self::PoolLog { .. }
            | Self::Iomem
            | Self::Audit
            | Self::Metrics
            | Self::List
            | Self::Plan(_) => None,
        }
    }
}

/// What came of an action.
#[derive(Debug)]
pub enum Reply {
    /// The pool.
    Pool(Pool),
    /// Its map.
    PoolMap(Box<PoolMap>),
    /// Its last allocations, oldest first.
    PoolLog(Vec<PoolRecord>),
    /// The resource tree, in printing order.
    Iomem(Vec<IomemRow>),
    /// The proof, or what is wrong.
    Audit(Audit),
    /// What the metrics are made of.
    Metrics(Box<MetricsFacts>),
    /// All instances by number.
    Instances(Vec<Instance>),
    /// One instance, as it is now.
    Instance(Box<Instance>),
    /// A memory map.
    E820(Vec<E820Row>),
    /// What was seen in a guest.
    Debug(DebugReply),
    /// A plan.
    Plan(Box<Plan>),
    /// A console.
    Console(InstanceId, Arc<ConsoleRing>),
    /// Memory that was allocated or freed.
    Allocation(Range),
}

/// Where an answer goes.
pub type Responder = oneshot::Sender<Result<Reply, ControlError>>;

/// An action on its way to the event loop.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// Whether only to say what would come of it.
    pub dry_run: bool,
    /// Where the answer goes.
    pub respond: Responder,
}
