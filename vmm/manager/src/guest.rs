//! The manager's record of one instance.
//!
//! The guest itself runs in a worker process; this is its record: its
//! configuration, its memory in the ledger, its state. Records are only
//! modified in [`crate::life`].

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_base::state::{EndReason, OnEnd, State, Verb};
use mkvmm_base::timeline::Timeline;
use mkvmm_base::{InstanceId, InstanceName, RunId};
use mkvmm_keeper::cgroup::{Cgroups, Leaf};
use mkvmm_keeper::client::Held;
use mkvmm_memory::e820::{self, E820Entry, E820Facts};
use mkvmm_memory::host_pool::{HostPool, SubPool};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::placement::PlacementPlan;
use mkvmm_memory::reservation::ReservationConfig;

use crate::budget::Booking;
use crate::child::Unreaped;
use crate::config::InstanceConfig;
use crate::console::GuestConsole;
use crate::devices::Opened;
use crate::images::Images;
use crate::lease::Lease;
use crate::links::Links;
use crate::log_writer::ConsoleLog;
use crate::status::Status;
use crate::usage::{Footprint, Meter};
use crate::worker::Worker;

/// Images that are placed in an instance's memory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The images that are placed.
    pub images: Images,
    /// The places of the pieces.
    pub plan: PlacementPlan,
    /// The command line that the kernel reads.
    pub cmdline: String,
    /// The memory map of the running guest; empty before the first start.
    pub e820: Vec<E820Entry>,
    /// The memory slots of the running guest, as reported by its worker.
    pub slots: Vec<AddrRange>,
    /// The number of the load.
    pub(crate) generation: u32,
    /// The images' files at the keeper, if there is one.
    #[expect(dead_code, reason = "they are held as long as this exists")]
    pub(crate) held: Option<Rc<Held>>,
}

impl Loaded {
    /// Returns the guest-physical address of the kernel's 64-bit entry point.
    pub fn entry(&self) -> u64 {
        self.plan.kernel.start() + self.images.facts().entry_offset
    }

    /// Returns the range of the initramfs with its exact size, since the kernel
    /// unpacks as many bytes as it is told.
    pub fn initramfs(&self) -> Option<AddrRange> {
        let place = self.plan.initramfs?;
        AddrRange::with_size(place.start(), self.images.initramfs_size()?).ok()
    }
}

/// The descriptors of an instance that the keeper holds, if there is one.
#[derive(Debug, Default)]
#[expect(dead_code, reason = "they are held as long as this exists")]
pub(crate) struct Holdings {
    /// The console and its doorbells.
    pub console: Option<Held>,
    /// The board of the last worker.
    pub board: Option<Held>,
    /// The console log.
    pub log: Option<Held>,
    /// What was opened for its devices.
    pub devices: Option<Held>,
}

/// The record of an instance in any state.
#[derive(Debug)]
pub struct Guest {
    pub(crate) id: InstanceId,
    /// The number of its boots.
    pub(crate) epoch: u32,
    pub(crate) config: InstanceConfig,
    pub(crate) sub_pool: SubPool,
    /// The host resources that are reserved for it.
    pub(crate) booking: Booking,
    /// Its memory, as the files that its worker gets.
    pub(crate) files: Vec<MemoryFile>,
    /// True if the memory reads as zero, except for allocations in it.
    pub(crate) is_clean: bool,
    pub(crate) state: State,
    pub(crate) reason: Option<EndReason>,
    pub(crate) loaded: Option<Loaded>,
    /// The process that has the memory, if there is one.
    pub(crate) worker: Option<Rc<Worker>>,
    /// Processes that have its memory as well, were killed and do not end: a
    /// cleaner, or what an earlier manager had started.
    pub(crate) unreaped: Vec<Unreaped>,
    /// The cgroup that its last start named, in place of the specified one.
    pub(crate) start_cgroup: Option<Cgroups>,
    /// Its cgroup, if it has one, from its first worker on.
    pub(crate) leaf: Option<Arc<Leaf>>,
    /// The CPU time of all its workers.
    pub(crate) meter: Arc<Meter>,
    /// The number of that process, if it is a child of the keeper.
    pub(crate) serial: Option<u64>,
    /// The version of the wire protocol that it speaks.
    pub(crate) wire: u32,
    /// The reason that its worker has given for its end, until that has ended.
    pub(crate) word: Option<EndReason>,
    /// The verb in progress, if there is one.
    pub(crate) busy: Option<Verb>,
    /// True while it is being created.
    pub(crate) is_new: bool,
    /// True if nobody is to be told when it is deleted.
    pub(crate) is_told_gone: bool,
    /// The number of times that images were loaded into it.
    pub(crate) loads: u32,
    /// True if it was killed; only an explicit start or load clears it.
    pub(crate) is_doomed: bool,
    /// When it is killed by force, in nanoseconds of CLOCK_MONOTONIC, if it was
    /// asked to end.
    pub(crate) kill_at: Option<u64>,
    /// True if its process is stopped while an order that takes time is
    /// awaited.
    pub(crate) is_stalled: bool,
    /// True if its memory could not be cleaned, so nobody may have it.
    pub(crate) is_lost: bool,
    /// True while it waits for a restart that its policy demands.
    pub(crate) is_restarting: bool,
    /// Its lease, if it exists only as long as somebody holds one.
    pub(crate) lease: Option<Lease>,
    /// The number of consecutive boots that ended soon.
    pub(crate) short_lives: u32,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) console: Arc<GuestConsole>,
    pub(crate) status: Status,
    pub(crate) log: Option<ConsoleLog>,
    pub(crate) held: Holdings,
    /// What its network devices are connected to, while it has a worker.
    pub(crate) links: Links,
}

impl Guest {
    /// Returns the number of the instance.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Returns the current run of the instance.
    pub fn run_id(&self) -> RunId {
        RunId {
            id: self.id,
            epoch: self.epoch,
        }
    }

    /// Returns the name of the instance.
    pub fn name(&self) -> &InstanceName {
        &self.config.name
    }

    /// Returns the state of the instance as people see it: one whose process
    /// is stopped while it is loaded or booted is `stalled`.
    pub fn state(&self) -> State {
        match self.is_stalled {
            true => State::Stalled,
            false => self.state,
        }
    }

    /// Returns the reason of its end, in `stopped` and `failed`.
    pub fn reason(&self) -> Option<EndReason> {
        self.reason
    }

    /// Returns the configuration of the instance.
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// Returns the process ID of its worker, if there is one.
    pub fn pid(&self) -> Option<i32> {
        self.worker.as_ref().map(|worker| worker.pid())
    }

    /// Returns the sources of its resource usage; its memory is allocated
    /// according to `config`.
    pub fn footprint(&self, config: &ReservationConfig) -> Footprint {
        let process = self.worker.as_ref().map(|worker| worker.killer().clone());
        Footprint::new(Arc::clone(&self.meter), process, &self.files, config)
    }

    /// Returns the cgroup below which its user wants its own, if they named one.
    pub(crate) fn cgroup_base(&self) -> Option<&Cgroups> {
        self.start_cgroup.as_ref().or(self.config.cgroup.as_ref())
    }

    /// Returns whether its user wants it in a cgroup, so that it must not run
    /// outside.
    pub(crate) fn needs_cgroup(&self) -> bool {
        self.start_cgroup.is_some() || self.config.needs_cgroup()
    }

    /// Returns a directory of its cgroup, if it has one, preferably in the v2
    /// hierarchy.
    pub fn cgroup(&self) -> Option<&Path> {
        let directories = self.leaf.as_ref()?.directories();
        let mut all = directories.v2.iter().chain(directories.v1.values());
        all.next().map(PathBuf::as_path)
    }

    /// Returns the number of its boots.
    pub fn boots(&self) -> u32 {
        self.epoch
    }

    /// Returns the user who created it.
    pub fn owner(&self) -> u32 {
        self.config.owner
    }

    /// Returns whether it was to be deleted and its memory could not be cleaned.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Returns whether it has ended and waits for a restart that its policy
    /// demands.
    pub fn is_restarting(&self) -> bool {
        self.is_restarting
    }

    /// Returns whether its process was killed and does not end: somebody holds
    /// it.
    pub fn is_held(&self) -> bool {
        self.worker.as_ref().is_some_and(|worker| worker.is_held())
    }

    /// Returns its sub-pool with the pieces in it.
    pub fn sub_pool(&self) -> &SubPool {
        &self.sub_pool
    }

    /// Returns its memory, in ascending order, with adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        self.sub_pool.regions()
    }

    /// Returns the files of its memory.
    pub fn files(&self) -> &[MemoryFile] {
        &self.files
    }

    /// Returns its images, if it has any.
    pub fn loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref()
    }

    /// Returns the times at which it reached its stages.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Returns the status that its workers have left in shared memory.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Returns its serial console.
    pub fn console(&self) -> &Arc<GuestConsole> {
        &self.console
    }

    /// Returns all its consoles: the serial one, then those of its devices.
    pub fn consoles(&self) -> impl Iterator<Item = &Arc<GuestConsole>> {
        let others = self.config.devices.iter().filter_map(Opened::console);
        std::iter::once(&self.console).chain(others)
    }

    /// Returns its policy for an end with this reason.
    pub fn on_end(&self, reason: EndReason) -> OnEnd {
        match reason {
            EndReason::Reboot => self.config.spec.on_reboot,
            EndReason::Panic => self.config.spec.on_panic,
            _ => OnEnd::Stop,
        }
    }

    /// Returns its memory map, computed from the current ledger.
    ///
    /// # Errors
    /// Returns the errors of [`e820::build`].
    pub fn e820(&self, pool: &HostPool) -> Result<Vec<E820Entry>, RangeError> {
        e820(pool, &self.sub_pool, self.loaded.as_ref())
    }

    /// Returns the memory slots that its machine must have: the low window,
    /// then its memory.
    pub fn due_slots(&self) -> Vec<AddrRange> {
        let low = AddrRange::with_size(0, LOW_WINDOW_SIZE).ok();
        low.into_iter()
            .chain(self.regions().iter().copied())
            .collect()
    }

    /// Returns the memory map of the running guest, and its memory slots as
    /// reported by its worker; `None` unless it is live.
    pub fn machine_facts(&self) -> Option<(&[E820Entry], &[AddrRange])> {
        let loaded = self.loaded.as_ref().filter(|_| self.state.is_live())?;
        Some((&loaded.e820, &loaded.slots))
    }
}

/// Returns the memory map of an instance, computed from the current ledger.
///
/// # Errors
/// Returns the errors of [`e820::build`].
pub fn e820(
    pool: &HostPool,
    sub_pool: &SubPool,
    loaded: Option<&Loaded>,
) -> Result<Vec<E820Entry>, RangeError> {
    let mut withheld: Vec<AddrRange> = sub_pool.withheld().collect();
    if let Some(loaded) = loaded {
        withheld.extend(loaded.plan.withheld());
    }
    e820::build(&E820Facts {
        pool: pool.range(),
        chunks: sub_pool.regions(),
        withheld: &withheld,
    })
}
