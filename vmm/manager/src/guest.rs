//! What the manager knows of one instance.
//!
//! The guest itself runs in a worker process; here is its record: what it was
//! made of, what the ledger gave it, where its life stands. Records change in
//! [`crate::life`] and nowhere else.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_base::state::{EndReason, OnEnd, State, Verb};
use mkvmm_base::timeline::Timeline;
use mkvmm_base::{InstanceId, InstanceName, RunId};
use mkvmm_keeper::cgroup::Leaf;
use mkvmm_memory::e820::{self, E820Entry, E820Facts};
use mkvmm_memory::host_pool::{HostPool, SubPool};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::placement::PlacementPlan;
use mkvmm_memory::reservation::ReservationConfig;

use crate::budget::Booking;
use crate::config::InstanceConfig;
use crate::console::GuestConsole;
use crate::console_log::ConsoleLog;
use crate::images::Images;
use crate::status::Status;
use crate::usage::{Footprint, Meter};
use crate::worker::Worker;

/// Images that have their places in an instance's memory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What they are.
    pub images: Images,
    /// Where the pieces lie.
    pub plan: PlacementPlan,
    /// The command line as the kernel will read it.
    pub cmdline: String,
    /// The map that the running guest was given; empty before the first start.
    pub e820: Vec<E820Entry>,
    /// The memory slots of the running guest, by its worker's word.
    pub slots: Vec<AddrRange>,
}

impl Loaded {
    /// Returns the guest-physical address of the kernel's 64-bit entry.
    pub fn entry(&self) -> u64 {
        self.plan.kernel.start() + self.images.facts().entry_offset
    }

    /// Returns the initramfs with its exact size: the kernel unpacks what it
    /// is told.
    pub fn initramfs(&self) -> Option<AddrRange> {
        let place = self.plan.initramfs?;
        AddrRange::with_size(place.start(), self.images.initramfs_size()?).ok()
    }
}

/// An instance, with its images or without, running or not.
#[derive(Debug)]
pub struct Guest {
    pub(crate) id: InstanceId,
    /// Counts its boots.
    pub(crate) epoch: u32,
    pub(crate) config: InstanceConfig,
    pub(crate) sub_pool: SubPool,
    /// What it may take of the host.
    pub(crate) booking: Booking,
    /// The memory, as the files that its worker gets.
    pub(crate) files: Vec<MemoryFile>,
    /// Whether the memory reads as zero, but for what was allocated in it.
    pub(crate) is_clean: bool,
    pub(crate) state: State,
    pub(crate) reason: Option<EndReason>,
    pub(crate) loaded: Option<Loaded>,
    /// The process that has the memory, if one has.
    pub(crate) worker: Option<Rc<Worker>>,
    /// Its cgroup, if it has one, from its first worker on.
    pub(crate) leaf: Option<Arc<Leaf>>,
    /// The CPU time of all its workers.
    pub(crate) meter: Arc<Meter>,
    /// The verb that is being carried out and takes its time.
    pub(crate) busy: Option<Verb>,
    /// Whether somebody wants it dead; only an explicit start clears it.
    pub(crate) is_doomed: bool,
    /// Whether its process stands still while something is waited for that
    /// takes time.
    pub(crate) is_stalled: bool,
    /// Whether its memory could not be cleaned, and nobody may have it.
    pub(crate) is_lost: bool,
    /// Whether it waits to be booted again, by its policy.
    pub(crate) is_restarting: bool,
    /// Boots in a row that ended soon.
    pub(crate) short_lives: u32,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) console: Arc<GuestConsole>,
    pub(crate) status: Status,
    pub(crate) log: Option<ConsoleLog>,
}

impl Guest {
    /// Returns its number.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Returns which run of the instance this is.
    pub fn run_id(&self) -> RunId {
        RunId {
            id: self.id,
            epoch: self.epoch,
        }
    }

    /// Returns its name.
    pub fn name(&self) -> &InstanceName {
        &self.config.name
    }

    /// Returns where its life stands, for people: one whose process stands
    /// still while it is loaded or booted is `stalled`.
    pub fn state(&self) -> State {
        match self.is_stalled {
            true => State::Stalled,
            false => self.state,
        }
    }

    /// Returns why it ended, in `stopped` and `failed`.
    pub fn reason(&self) -> Option<EndReason> {
        self.reason
    }

    /// Returns what it was made of.
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// Returns the number of the process that it runs in, if there is one.
    pub fn pid(&self) -> Option<i32> {
        self.worker.as_ref().map(|worker| worker.pid())
    }

    /// Returns where to read what it uses; its memory is made as `config` says.
    pub fn footprint(&self, config: &ReservationConfig) -> Footprint {
        let process = self.worker.as_ref().map(|worker| worker.killer().clone());
        Footprint::new(Arc::clone(&self.meter), process, &self.files, config)
    }

    /// Returns a directory of its cgroup, if it has one: that in the v2 tree
    /// where it is in that.
    pub fn cgroup(&self) -> Option<&Path> {
        let directories = self.leaf.as_ref()?.directories();
        let mut all = directories.v2.iter().chain(directories.v1.values());
        all.next().map(PathBuf::as_path)
    }

    /// Whether it was to be deleted, and its memory could not be cleaned.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether it ended and waits to be booted again by its policy.
    pub fn is_restarting(&self) -> bool {
        self.is_restarting
    }

    /// Returns its memory and what that is used for.
    pub fn sub_pool(&self) -> &SubPool {
        &self.sub_pool
    }

    /// Returns its memory: ascending, adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        self.sub_pool.regions()
    }

    /// Returns the files of its memory.
    pub fn files(&self) -> &[MemoryFile] {
        &self.files
    }

    /// Returns its images, where it has some.
    pub fn loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref()
    }

    /// Returns when it reached which stage.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Returns what its worker has left in shared memory.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Returns its serial console.
    pub fn console(&self) -> &Arc<GuestConsole> {
        &self.console
    }

    /// Returns what its policy says about an end.
    pub fn on_end(&self, reason: EndReason) -> OnEnd {
        match reason {
            EndReason::Reboot => self.config.spec.on_reboot,
            EndReason::Panic => self.config.spec.on_panic,
            _ => OnEnd::Stop,
        }
    }

    /// Returns its memory map, from the ledger as it stands.
    ///
    /// # Errors
    /// See [`e820::build`].
    pub fn e820(&self, pool: &HostPool) -> Result<Vec<E820Entry>, RangeError> {
        e820(pool, &self.sub_pool, self.loaded.as_ref())
    }

    /// Returns the memory slots that its machine has to have: the low window,
    /// then its memory.
    pub fn due_slots(&self) -> Vec<AddrRange> {
        let low = AddrRange::with_size(0, LOW_WINDOW_SIZE).ok();
        low.into_iter()
            .chain(self.regions().iter().copied())
            .collect()
    }

    /// Returns the map that the guest was given at its start, and the ranges
    /// of its memory slots by its worker's word; `None` unless it is live.
    pub fn machine_facts(&self) -> Option<(&[E820Entry], &[AddrRange])> {
        let loaded = self.loaded.as_ref().filter(|_| self.state.is_live())?;
        Some((&loaded.e820, &loaded.slots))
    }
}

/// Returns the memory map of an instance, from the ledger as it stands.
///
/// # Errors
/// See [`e820::build`].
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
