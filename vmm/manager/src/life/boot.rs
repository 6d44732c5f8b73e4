//! Starts instances: prepares and boots them.

use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;

use mkpool::AddrRange;
use mkvmm_base::layout;
use mkvmm_base::state::{State, Verb};
use mkvmm_base::timeline::Stage;
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_keeper::cgroup::Cgroups;
use mkvmm_memory::e820::E820Entry;
use mkvmm_wire::devices::Device;
use mkvmm_wire::messages::{BootOrder, ChannelOrder, Done, Extent, MapRow, Order};

use crate::devices::Opened;
use crate::guest::{Guest, Loaded};
use crate::life::attend::AT_WORK;
use crate::life::links::Orders;
use crate::life::{LifeError, StepError};
use crate::manager::Manager;
use crate::manifest::{self, ManifestFacts};
use crate::registry::Registry;

impl Manager {
    /// Boots an instance.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the state of the instance is unchanged then.
    pub async fn start(self: &Rc<Self>, name: &InstanceName) -> Result<(), LifeError> {
        self.start_in(name, None).await
    }

    /// Boots an instance below `cgroup`, if that is given, in place of the
    /// specified one until the next start.
    ///
    /// # Errors
    /// Returns the errors of [`Self::start`].
    pub async fn start_in(
        self: &Rc<Self>,
        name: &InstanceName,
        cgroup: Option<Cgroups>,
    ) -> Result<(), LifeError> {
        let prepared = self.prepare_in(name, cgroup).await?;
        self.run(prepared).await
    }

    /// Prepares everything that an instance needs to run, without running it.
    ///
    /// # Errors
    /// Returns a [`LifeError`]; the state of the instance is unchanged then.
    pub async fn prepare(self: &Rc<Self>, name: &InstanceName) -> Result<Prepared, LifeError> {
        self.prepare_in(name, None).await
    }

    async fn prepare_in(
        self: &Rc<Self>,
        name: &InstanceName,
        cgroup: Option<Cgroups>,
    ) -> Result<Prepared, LifeError> {
        let busy = self.begin(name, Verb::Start)?;
        if self.is_ending() {
            return Err(StepError::Ending.of(name));
        }
        if let Some(guest) = self.registry_mut().guest_mut(busy.id) {
            // Only an explicit request revives an instance that was killed.
            guest.is_doomed = false;
            guest.is_restarting = false;
        }
        let before = self.choose_cgroup(busy.id, cgroup);
        let boot = async {
            if before.is_some() {
                self.leave_cgroup(busy.id).await?;
            }
            self.boot(busy.id).await
        };
        if let Err(error) = boot.await {
            let error = self.explain(busy.id, error).await;
            // It may have an incomplete machine; the next start creates a new
            // one.
            self.drop_worker(busy.id).await;
            if let Some(before) = before {
                self.choose_cgroup(busy.id, before);
                // As soon as its process has left it.
                let _ = self.leave_cgroup(busy.id).await;
            }
            return Err(error.of(name));
        }
        Ok(Prepared {
            name: name.clone(),
            busy,
        })
    }

    /// Starts the vCPUs of a prepared instance.
    ///
    /// # Errors
    /// Returns a [`LifeError`] if its worker is gone by now.
    pub async fn run(self: &Rc<Self>, prepared: Prepared) -> Result<(), LifeError> {
        let Prepared { name, busy } = prepared;
        match self.let_go(busy.id).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain_run(busy.id, error).await.of(&name)),
        }
    }

    /// Ends a boot that [`Self::prepare`] began, and that is not wanted.
    pub(crate) async fn abandon(&self, prepared: Prepared) {
        // Before anybody else may use the instance: the next start needs a new one.
        self.drop_worker(prepared.busy.id).await;
    }

    /// Boots and runs an instance for a restart that its policy demands.
    pub(crate) async fn boot_and_go(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        self.boot(id).await?;
        self.let_go(id).await
    }

    async fn let_go(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        self.check_alive(id)?;
        let worker = self.living_worker(id)?;
        {
            let mut registry = self.registry_mut();
            if let Some(guest) = registry.guest_mut(id) {
                guest.state = State::Active;
                guest.reason = None;
                guest.timeline.reach(Stage::Exec);
            }
            // Announce before the order, so that later reports belong to a live
            // instance.
            registry.announce(id);
        }
        self.changed.notify_waiters();
        let told = Rc::clone(&worker);
        let run = async move { told.tell(&Order::Run, &[]).await };
        let gone = self.expect_soon(&worker, run, None).await;
        gone.inspect_err(|error| {
            if !matches!(error, StepError::Stalled { .. }) {
                // It would wait forever, and be taken for one that runs.
                worker.kill();
            }
        })?;
        self.move_later(id, worker);
        Ok(())
    }

    /// Loads the images again if they have run before, and has the worker
    /// create the machine.
    async fn boot(self: &Rc<Self>, id: InstanceId) -> Result<(), StepError> {
        let is_fresh = {
            let registry = self.registry();
            registry.guest(id).is_some_and(|guest| {
                let is_there = guest.worker.as_ref().is_some_and(|w| w.is_there());
                // One that an earlier version has started may know no channels.
                let knows = guest.wire >= ChannelOrder::SINCE;
                let mut channels = registry.channels();
                let is_able = knows || channels.all(|it| it.position(guest.name()).is_err());
                guest.state == State::Loaded && is_there && is_able
            })
        };
        if !is_fresh {
            if let Some(guest) = self.registry().guest(id) {
                guest.timeline.restart();
            }
            self.fill(id).await?;
        }
        let devices = match self.registry().guest(id) {
            Some(guest) => Arc::clone(&guest.config.devices),
            None => return Ok(()),
        };
        let links = self.connect_links(id).await?;
        let worker = self.living_worker(id)?;
        let area = self.registry().pool().channel_area();
        if let Some(area) = area {
            let order = Order::ChannelArea(extent(area));
            self.attend(&worker, AT_WORK, worker.tell(&order, &[]))
                .await?;
        }
        self.join_channels(id, &worker).await?;
        let (orders, files) = device_orders(&devices, &links);
        let (order, e820) = {
            let registry = self.registry();
            let Some(guest) = registry.guest(id) else {
                return Ok(());
            };
            let Some(loaded) = guest.loaded() else {
                return Ok(());
            };
            let e820 = guest.e820(registry.pool())?;
            (boot_order(&registry, guest, loaded, &e820, orders)?, e820)
        };
        let order = Order::Boot(Box::new(order));
        let booted = worker.ask(&order, &files);
        let booted = self.attend(&worker, AT_WORK, booted).await;
        drop(links);
        // After a failure the contents of the memory are unknown.
        let done = booted.inspect_err(|_| worker.kill())?;
        let Done::Booted { slots } = done else {
            return Err(worker.condemn().into());
        };
        let range = |slot: Extent| AddrRange::with_size(slot.start, slot.len).ok();
        let slots: Vec<AddrRange> = slots.into_iter().filter_map(range).collect();
        let registry = self.registry();
        let guest = registry.guest(id);
        let is_wrong = guest.is_some_and(|guest| registry.due_slots(guest) != slots);
        drop(registry);
        if is_wrong {
            // The worker's report is wrong, so it cannot be trusted.
            return Err(worker.condemn().into());
        }
        self.check_alive(id)?;
        // Do this last: a boot that fails does not truncate the log.
        self.start_log(id)?;
        let mut registry = self.registry_mut();
        if let Some(loaded) = registry.guest_mut(id).and_then(|g| g.loaded.as_mut()) {
            loaded.e820 = e820;
            loaded.slots = slots;
        }
        Ok(())
    }
}

/// An instance that is ready to run, and busy until it does.
#[derive(Debug)]
pub struct Prepared {
    name: InstanceName,
    busy: crate::manager::Busy,
}

impl Prepared {
    /// Returns the name of the instance.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }
}

fn extent(range: AddrRange) -> Extent {
    Extent {
        start: range.start(),
        len: range.size(),
    }
}

/// Returns the orders for all devices, and their descriptors.
fn device_orders<'a>(
    devices: &'a [Opened],
    links: &'a Orders,
) -> (Vec<Device>, Vec<BorrowedFd<'a>>) {
    let (mut orders, mut files) = (Vec::new(), Vec::new());
    for (index, opened) in devices.iter().enumerate() {
        let linked = links.get(&index);
        let linked = linked.map(|(device, file)| (device.clone(), vec![file.as_fd()]));
        if let Some((device, own)) = linked.or_else(|| opened.order()) {
            orders.push(device);
            files.extend(own);
        }
    }
    (orders, files)
}

/// Returns the boot order, with the memory map and the manifest computed from
/// the current ledger, never from an earlier one.
fn boot_order(
    registry: &Registry,
    guest: &Guest,
    loaded: &Loaded,
    e820: &[E820Entry],
    devices: Vec<Device>,
) -> Result<BootOrder, StepError> {
    let config = guest.config();
    let facts = loaded.images.facts();
    let allocations: Vec<AddrRange> = guest.sub_pool().withheld().collect();
    let channels = registry.channels_of(guest);
    let manifest = manifest::build(&ManifestFacts {
        addr: layout::MANIFEST_START,
        pool: registry.pool().range(),
        id: guest.id().0,
        name: guest.name().as_str(),
        chunks: guest.regions(),
        plan: &loaded.plan,
        allocations: &allocations,
        channel_area: registry.pool().channel_area(),
        channels: &channels,
        initramfs_size: loaded.initramfs().map_or(0, |range| range.size()),
        entry: loaded.entry(),
        cpus: config.cpus(),
        cmdline: &loaded.cmdline,
        cmdline_addr: layout::CMDLINE_START,
    })?;
    let row = |entry: &E820Entry| MapRow {
        extent: extent(entry.range),
        kind: entry.kind.raw(),
    };
    Ok(BootOrder {
        cpus: config.cpus(),
        affinity: config.spec.cpus_affinity.as_ref().map(ToString::to_string),
        violation: config.spec.violation,
        pool: extent(registry.pool().range()),
        low_window: extent(loaded.plan.low_window),
        kernel: extent(loaded.plan.kernel),
        initramfs: loaded.initramfs().map(extent),
        entry: loaded.entry(),
        setup_header: facts.setup_header.clone(),
        e820: e820.iter().map(row).collect(),
        manifest,
        cmdline: loaded.cmdline.clone().into_bytes(),
        devices,
    })
}
