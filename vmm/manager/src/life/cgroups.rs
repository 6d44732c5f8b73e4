//! Workers in the cgroups of their guests, before they have any memory.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::{InstanceId, chain};
use mkvmm_keeper::cgroup::Leaf;
use mkvmm_keeper::process::Child;
use mkvmm_wire::channel::asynchronous::AsyncChannel;
use mkvmm_wire::messages::{Order, Report};
use rustix::process::Pid;

use crate::child::{self, Role};
use crate::leaves::Leaves;
use crate::life::StepError;
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

/// A worker's process that has just begun.
type Begun = (Child, AsyncChannel<Order, Report>);

impl Manager {
    /// Returns the leaf of an instance, made now if it has none.
    pub(crate) async fn leaf(&self, id: InstanceId) -> Result<Option<Arc<Leaf>>, StepError> {
        let leaves = self.host.leaves.clone();
        let (name, base, limits) = match self.registry().guest(id) {
            Some(guest) if guest.leaf.is_some() => return Ok(guest.leaf.clone()),
            Some(guest) if matches!(leaves, Leaves::Off) && !guest.config.needs_cgroup() => {
                return Ok(None);
            }
            // Never the kernel's name of a file, and never given twice.
            Some(guest) => (
                format!("{id}-{}", guest.name()),
                guest.config.cgroup.clone(),
                guest.config.resource_limits(),
            ),
            None => return Ok(None),
        };
        let made = tokio::task::spawn_blocking(move || leaves.make(&name, base.as_ref(), &limits));
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
        let registry = self.registry();
        let needs = registry.guest(id).is_some_and(|g| g.config.needs_cgroup());
        drop(registry);
        if needs || self.host.leaves.is_required() {
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
    /// Every hierarchy that its leaf is in.
    All,
}
