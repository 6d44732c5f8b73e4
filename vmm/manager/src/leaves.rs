//! Guests' own cgroups: a leaf for each, from its first worker to its
//! deletion.
//!
//! Making and removing one is quick by itself, but waits while anybody on the
//! host moves a process between cgroups, so it happens on a thread that may.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::{InstanceId, chain};
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups, Leaf, remove_stale};
use rustix::process::Pid;

use crate::child::{self, Role};
use crate::life::StepError;
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

use mkvmm_keeper::process::Child;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::messages::{Order, Report};

/// Where guests have cgroups.
#[derive(Debug, Clone, Default)]
pub enum Leaves {
    /// Nowhere.
    #[default]
    Off,
    /// Below this one, for accounting, where that costs nothing and may be.
    Offered(Cgroups),
    /// Below this one; a guest that can have none there does not run.
    Required(Cgroups),
}

impl Leaves {
    /// Returns leaves below the cgroup of this process, if any can be made.
    /// Removes those that others have left behind.
    pub fn offered() -> Self {
        let found = Cgroups::find(&Base::Own).and_then(|base| {
            remove_stale(&base);
            Leaf::account(&base, "probe")?.remove()?;
            Ok(base)
        });
        match found {
            Ok(base) => Self::Offered(base),
            Err(error) => {
                log::debug!("guests have no cgroups: {}", chain(&error));
                Self::Off
            }
        }
    }

    /// Returns leaves below `base`. Removes those that others have left behind.
    ///
    /// # Errors
    /// [`CgroupError`] where none can be made.
    pub fn required(base: &Base) -> Result<Self, CgroupError> {
        let base = Cgroups::find(base)?;
        remove_stale(&base);
        let leaf = Leaf::create(&base, "probe")?;
        for missed in leaf.missed() {
            log::warn!("guests are not accounted for there: {}", chain(missed));
        }
        leaf.remove()?;
        Ok(Self::Required(base))
    }

    /// Makes a leaf, where guests have some. To be called where waiting does
    /// no harm.
    fn make(&self, name: &str) -> Result<Option<Leaf>, CgroupError> {
        match self {
            Self::Off => Ok(None),
            Self::Offered(base) => Ok(Leaf::account(base, name)
                .inspect_err(|error| log::debug!("{}", chain(error)))
                .ok()),
            Self::Required(base) => Leaf::create(base, name).map(Some),
        }
    }

    fn is_required(&self) -> bool {
        matches!(self, Self::Required(_))
    }
}

/// Removes a leaf whose processes are gone.
pub(crate) async fn remove(leaf: Arc<Leaf>) {
    // A leaf that stays is said so by the next start.
    let _ = tokio::task::spawn_blocking(move || drop(leaf)).await;
}

/// A worker's process that has just begun.
type Begun = (Child, AsyncChannel<Order, Report>);

impl Manager {
    /// Returns the leaf of an instance, made now if it has none.
    pub(crate) async fn leaf(&self, id: InstanceId) -> Result<Option<Arc<Leaf>>, StepError> {
        let leaves = self.host.leaves.clone();
        let name = match self.registry().guest(id) {
            Some(guest) if guest.leaf.is_some() => return Ok(guest.leaf.clone()),
            // Never the kernel's name of a file, and never given twice.
            Some(guest) => format!("{id}-{}", guest.name()),
            None => return Ok(None),
        };
        if matches!(leaves, Leaves::Off) {
            return Ok(None);
        }
        let made = tokio::task::spawn_blocking(move || leaves.make(&name));
        let leaf = made.await.map_err(std::io::Error::other)??.map(Arc::new);
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.leaf.clone_from(&leaf);
        }
        Ok(leaf)
    }

    /// Starts a worker's process, in `leaf` from its birth where that can be.
    /// Says whether it still has to be moved there.
    pub(crate) fn begin_worker(
        &self,
        id: InstanceId,
        label: &str,
        leaf: Option<&Leaf>,
    ) -> Result<(Begun, Entry), WorkerError> {
        let birthplace = leaf.map(Leaf::birthplace).transpose();
        if let (Some(leaf), Ok(Some(Some(place)))) = (leaf, &birthplace) {
            match child::start(&self.host, Role::Worker, label, Some(place.as_fd())) {
                Ok(begun) if leaf.is_to_be_moved() => return Ok((begun, Entry::Rest)),
                Ok(begun) => return Ok((begun, Entry::Done)),
                // An older kernel, a filter, no right to: or no process at all.
                Err(error) => log::debug!("{label}: {}", chain(&error)),
            }
        }
        let begun = child::start(&self.host, Role::Worker, label, None)?;
        if self.host.leaves.is_required() {
            return Ok((begun, Entry::All));
        }
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            // Nobody is in it.
            guest.leaf = None;
        }
        Ok((begun, Entry::Done))
    }

    /// Moves a worker into the hierarchies that it was not born in, before it
    /// has touched any memory of its guest. That takes 10 to 30 ms for each.
    ///
    /// # Errors
    /// [`StepError::Cgroup`]; the worker is ended then.
    pub(crate) async fn move_worker(
        &self,
        worker: &Rc<Worker>,
        leaf: Option<Arc<Leaf>>,
        entry: Entry,
    ) -> Result<(), StepError> {
        let (Some(leaf), Some(pid)) = (leaf, Pid::from_raw(worker.pid())) else {
            return Ok(());
        };
        let moved = tokio::task::spawn_blocking(move || match entry {
            Entry::Done => Ok(()),
            Entry::Rest => leaf.move_born(pid),
            Entry::All => leaf.admit(pid),
        });
        let moved = moved.await.map_err(std::io::Error::other)?;
        moved.map_err(|error| {
            worker.kill();
            StepError::from(error)
        })
    }
}

/// Which hierarchies a worker still has to enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// None: it was born in its leaf, or has none.
    Done,
    /// Those of v1.
    Rest,
    /// All.
    All,
}
