//! Loads images into an instance's memory, and removes them.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use mkvmm_base::state::{State, Verb};
use mkvmm_base::timeline::Stage;
use mkvmm_base::{InstanceId, InstanceName, chain, is_shortage};
use mkvmm_wire::keeping::Key;
use mkvmm_wire::messages::{Copy, Done, Extent, LoadOrder, Order};

use crate::guest::Loaded;
use crate::images::Images;
use crate::life::attend::AT_WORK;
use crate::life::{LifeError, StepError};
use crate::manager::Manager;
use crate::worker::{Worker, WorkerError};

/// Bytes of images that a worker copies in each second beyond the first
/// minute: 32 MiB, a hundredth of what an idle machine does.
const COPIED_PER_SECOND: u64 = 32 << 20;

impl Manager {
    /// Loads images into an instance's memory, replacing earlier ones.
    ///
    /// # Errors
    /// Returns a [`LifeError`]. If the images do not fit, nothing has changed;
    /// if copying them fails, the instance is `ready`, without images.
    pub async fn load(
        self: &Rc<Self>,
        name: &InstanceName,
        images: Images,
    ) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Load)?;
        if let Some(guest) = self.registry_mut().guest_mut(busy.id) {
            // An explicit load revives an instance that was killed, as in
            // `prepare`.
            guest.is_doomed = false;
            guest.is_restarting = false;
        }
        if let Err(error) = self.load_into(busy.id, images).await {
            return Err(self.explain(busy.id, error).await.of(name));
        }
        Ok(())
    }

    /// Checks whether [`Self::load`] would find room.
    ///
    /// # Errors
    /// Returns the errors of [`Self::load`].
    pub fn check_load(&self, name: &InstanceName, images: &Images) -> Result<(), LifeError> {
        let id = self.registry().check(name, Verb::Load)?;
        self.check_idle(id).map_err(|error| error.of(name))?;
        self.place(id, images).map_err(|error| error.of(name))?;
        Ok(())
    }

    fn check_idle(&self, id: InstanceId) -> Result<(), StepError> {
        match self.registry().guest(id) {
            Some(guest) => Ok(guest.sub_pool().check_control_idle()?),
            None => Ok(()),
        }
    }

    /// Plans the placement, books it, and copies the images.
    pub(crate) async fn load_into(
        self: &Rc<Self>,
        id: InstanceId,
        images: Images,
    ) -> Result<(), StepError> {
        self.check_idle(id)?;
        let files = self.registry().guest(id).map_or(0, |g| g.files().len());
        self.book_files(id, files, Some(&images)).await?;
        let Some((loaded, next)) = self.place(id, &images)? else {
            return Ok(());
        };
        let loaded = self.hold_images(id, loaded)?;
        if let Some((guest, pool)) = self.registry_mut().with_pool(id) {
            pool.book(&mut guest.sub_pool, &loaded.plan, next)?;
            guest.loaded = Some(loaded);
            guest.timeline.restart();
            guest.timeline.reach(Stage::Placed);
        }
        let filled = self.fill(id).await;
        if filled.is_err() {
            self.drop_worker(id).await;
        }
        let mut registry = self.registry_mut();
        let Some((guest, pool)) = registry.with_pool(id) else {
            return filled;
        };
        let (was, is_new) = (guest.state, guest.is_new);
        guest.reason = None;
        guest.state = State::Loaded;
        if filled.is_err() {
            guest.loaded = None;
            guest.state = State::Ready;
            pool.unplace(&mut guest.sub_pool)?;
        }
        // A new instance is announced once it was created.
        if !is_new && (filled.is_ok() || guest.state != was) {
            registry.announce(id);
        }
        drop(registry);
        self.changed.notify_waiters();
        filled
    }

    /// Has the keeper hold the images, for restarts by another manager.
    fn hold_images(&self, id: InstanceId, loaded: Loaded) -> Result<Loaded, StepError> {
        let generation = match self.registry_mut().guest_mut(id) {
            Some(guest) => {
                guest.loads = guest.loads.wrapping_add(1);
                guest.loads
            }
            None => 0,
        };
        let held = self.hold(Key::Images(id.0, generation), &files(&loaded))?;
        Ok(Loaded {
            generation,
            held: held.map(Rc::new),
            ..loaded
        })
    }

    /// Has a new worker copy the images of an instance into memory that reads
    /// as zero.
    pub(crate) async fn fill(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        let stock = Cell::new(false);
        let Err(error) = self.fill_by(id, Some(&stock)).await else {
            return Ok(());
        };
        let is_silent = matches!(&error, StepError::Worker(WorkerError::Silent { .. }));
        // A worker that was lost while it waited is no fault of the instance.
        let is_lost = stock.get() && (error.is_loss() || is_silent);
        let again = is_lost || is_shortage(&error) && self.stock.give_back().await;
        if !again || self.check_alive(id).is_err() {
            return Err(error);
        }
        log::warn!("instance {id}: once more: {}", chain(&error));
        self.fill_by(id, None).await
    }

    /// Does [`Self::fill`] with a worker from the stock, if there is one and `stock`
    /// is given, where that is noted; with a new one otherwise.
    async fn fill_by(
        self: &Rc<Self>,
        id: InstanceId,
        stock: Option<&Cell<bool>>,
    ) -> Result<(), StepError> {
        self.end_worker(id).await?;
        self.clean(id).await?;
        let worker = self.make_worker(id, stock).await?;
        let Some(loaded) = self.loaded(id) else {
            return Ok(());
        };
        let order = load_order(&loaded);
        let copies = order.kernel.iter().chain(&order.archives);
        let bytes = copies.map(|copy| copy.file.len).sum::<u64>();
        let limit = AT_WORK + Duration::from_secs(bytes / COPIED_PER_SECOND);
        let (order, files) = (Order::Load(order), files(&loaded));
        let loading = worker.ask(&order, &files);
        let loading = async {
            if worker.has_kvm() {
                return loading.await;
            }
            // KVM can be queried while the worker copies.
            let (loaded, told) = tokio::join!(loading, self.give_kvm(&worker));
            let done = loaded?;
            told.map(|()| done)
        };
        if self.attend(&worker, limit, loading).await? != Done::Loaded {
            return Err(worker.condemn().into());
        }
        worker.has_proved_itself();
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.timeline.reach(Stage::Loaded);
        }
        self.check_alive(id)
    }

    async fn give_kvm(&self, worker: &Worker) -> Result<(), WorkerError> {
        let cpuid = self.host.facts.get().cpuid.clone();
        let kvm = self.host.kvm.as_fd();
        worker.tell(&Order::Kvm(cpuid), &[kvm]).await
    }

    /// Returns the images of an instance.
    pub(crate) fn loaded(&self, id: InstanceId) -> Option<Loaded> {
        self.registry().guest(id)?.loaded().cloned()
    }

    /// Returns an error if the instance was killed meanwhile.
    pub(crate) fn check_alive(&self, id: InstanceId) -> Result<(), StepError> {
        match self.registry().guest(id) {
            Some(guest) if guest.is_doomed => Err(StepError::Killed),
            _ => Ok(()),
        }
    }

    /// Removes the images from an instance's memory.
    ///
    /// # Errors
    /// Returns a [`LifeError`] if they cannot be removed.
    pub async fn unload(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        let busy = self.begin(name, Verb::Unload)?;
        let id = busy.id;
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            guest.is_restarting = false;
        }
        let unloaded = self.empty(id).await;
        unloaded.map_err(|error| error.of(name))
    }

    pub(crate) async fn empty(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        self.check_idle(id)?;
        self.end_worker(id).await?;
        self.clean(id).await?;
        let mut registry = self.registry_mut();
        let Some((guest, pool)) = registry.with_pool(id) else {
            return Ok(());
        };
        pool.unplace(&mut guest.sub_pool)?;
        guest.loaded = None;
        guest.timeline.restart();
        guest.state = State::Ready;
        guest.reason = None;
        registry.announce(id);
        drop(registry);
        self.changed.notify_waiters();
        Ok(())
    }
}

/// Returns the load order: which bytes of which file are copied where.
fn load_order(loaded: &Loaded) -> LoadOrder {
    let start = loaded.plan.kernel.start();
    let segments = &loaded.images.facts().segments;
    let kernel = segments.iter().map(|segment| Copy {
        file: Extent {
            start: segment.file_offset,
            len: segment.file_size,
        },
        addr: start + segment.offset,
    });
    let place = loaded.plan.initramfs.map_or(0, |place| place.start());
    let archives = loaded.images.archives();
    let archives = archives.map(|(offset, archive)| Copy {
        file: Extent {
            start: 0,
            len: archive.size(),
        },
        addr: place + offset,
    });
    LoadOrder {
        kernel: kernel.collect(),
        archives: archives.collect(),
    }
}

fn files(loaded: &Loaded) -> Vec<BorrowedFd<'_>> {
    let archives = loaded.images.archives();
    let archives = archives.map(|(_, archive)| archive.file().as_fd());
    let kernel = loaded.images.kernel().file().as_fd();
    std::iter::once(kernel).chain(archives).collect()
}
