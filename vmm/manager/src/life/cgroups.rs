//! Puts workers into the cgroups of their guests, before they have any memory.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mkvmm_base::InstanceId;
use mkvmm_keeper::cgroup::{Cgroups, Leaf};
use rustix::process::Pid;
use tokio::task::spawn_blocking;

use crate::begun::{Begun, Entry};
use crate::devices;
use crate::leaves::{self, Leaves, leaf_name};
use crate::life::StepError;
use crate::life::links::admit;
use crate::manager::Manager;
use crate::worker::Worker;

/// The time that a worker that was started early runs outside its leaf: long
/// enough that creating the leaf does not delay the first output of its guest.
const LEAF_DELAY: Duration = Duration::from_millis(50);

impl Manager {
    /// Returns the leaf of an instance, which is created now if it has none.
    async fn leaf(&self, id: InstanceId) -> Result<Option<Arc<Leaf>>, StepError> {
        let leaves = self.host.children.leaves.clone();
        let (name, base, limits) = match self.registry().guest(id) {
            Some(guest) if guest.leaf.is_some() => return Ok(guest.leaf.clone()),
            Some(guest) if matches!(leaves, Leaves::Off) && !guest.needs_cgroup() => {
                return Ok(None);
            }
            Some(guest) => (
                leaf_name(id, guest.name()),
                guest.cgroup_base().cloned(),
                guest.config.resource_limits(),
            ),
            None => return Ok(None),
        };
        let made = spawn_blocking(move || leaves.make(&name, base.as_ref(), &limits));
        Ok(made.await.map_err(std::io::Error::other)??.map(Arc::new))
    }

    /// Has the next workers of an instance in the cgroup that its user named at
    /// its start; below the specified one if they named none. Returns the one
    /// before, where that is a change.
    pub(crate) fn choose_cgroup(
        &self,
        id: InstanceId,
        cgroup: Option<Cgroups>,
    ) -> Option<Option<Cgroups>> {
        let mut registry = self.registry_mut();
        let guest = registry.guest_mut(id)?;
        let before = std::mem::replace(&mut guest.start_cgroup, cgroup);
        (before != guest.start_cgroup).then_some(before)
    }

    /// Ends the worker of an instance that is to have another cgroup, and removes
    /// the one that it has: memory is charged to where it was touched, so it is
    /// touched anew.
    ///
    /// # Errors
    /// Returns [`StepError::Worker`] if the worker does not end.
    pub(crate) async fn leave_cgroup(&self, id: InstanceId) -> Result<(), StepError> {
        self.end_worker(id).await?;
        let leaf = self.registry_mut().guest_mut(id).map(|g| g.leaf.take());
        if let Some(leaf) = leaf.flatten() {
            leaves::remove(leaf).await;
        }
        Ok(())
    }

    /// Starts a worker's process, directly in the leaf of its instance if
    /// possible; or takes the one that was started early for it, or one from the
    /// stock if `from_stock`. A guest that must not run outside its cgroup gets
    /// neither, and one with disks none from the stock, which has made no rings.
    pub(crate) async fn begin_worker(
        self: &Rc<Self>,
        id: InstanceId,
        from_stock: bool,
    ) -> Result<Begun, StepError> {
        let (name, is_named, preparations) = match self.registry().guest(id) {
            Some(guest) => (
                guest.name().clone(),
                guest.needs_cgroup(),
                devices::preparations(&guest.config().spec),
            ),
            None => return Err(StepError::Killed),
        };
        if let Some(early) = self.take_early(&name) {
            return Ok(early);
        }
        let is_required = is_named || self.host.children.leaves.is_required();
        if from_stock
            && !is_required
            && preparations.is_empty()
            && let Some(waiting) = self.stock.take().await
        {
            return Ok(Begun::waiting(waiting, name));
        }
        let leaf = self.leaf(id).await?;
        let begun =
            Begun::start(&self.host.children.with(preparations), name, leaf, is_named).await?;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.leaf.clone_from(&begun.leaf);
        }
        Ok(begun)
    }

    /// Moves a worker that was started before its instance was known to the leaf of
    /// its running instance, where its CPU time counts from then on.
    pub(crate) fn move_later(self: &Rc<Self>, id: InstanceId, worker: Rc<Worker>) {
        if !worker.is_to_enter() {
            return;
        }
        let manager = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(LEAF_DELAY).await;
            if !worker.is_there() {
                return;
            }
            let leaf = manager.leaf(id).await.ok().flatten();
            let (Some(leaf), Some(pid)) = (leaf, Pid::from_raw(worker.pid())) else {
                return;
            };
            let helpers = match manager.registry_mut().guest_mut(id) {
                Some(guest) => {
                    guest.leaf = Some(Arc::clone(&leaf));
                    guest.links.pids()
                }
                None => return,
            };
            for helper in helpers {
                admit(Arc::clone(&leaf), helper).await;
            }
            // A worker that has ended meanwhile cannot be moved.
            if worker.is_there() {
                let _ = spawn_blocking(move || leaf.admit(pid)).await;
            }
        });
    }

    /// Moves a worker into the hierarchies in which it was not started, before
    /// it has touched any memory of its guest. That takes 10 to 30 ms for each.
    ///
    /// # Errors
    /// Returns [`StepError::Cgroup`]; the worker is killed then.
    pub(crate) async fn move_worker(
        &self,
        worker: &Rc<Worker>,
        leaf: Option<Arc<Leaf>>,
        entry: Entry,
    ) -> Result<(), StepError> {
        let (Some(leaf), Some(pid)) = (leaf, Pid::from_raw(worker.pid())) else {
            return Ok(());
        };
        let moved = match entry {
            Entry::Done | Entry::Later => return Ok(()),
            Entry::Rest => spawn_blocking(move || leaf.move_born(pid)),
            Entry::All => spawn_blocking(move || leaf.admit(pid)),
        };
        let moved = moved.await.map_err(std::io::Error::other)?;
        moved.map_err(|error| {
            worker.kill();
            StepError::from(error)
        })
    }
}
