//! The recipe: from a checked configuration to a guest with its images.
//!
//! With `guest.rs`, which takes it from there, the one place that sees stages
//! ② to ⑦ together. Everything a step took is given back when a later one
//! fails.

use std::ffi::CString;
use std::io;
use std::sync::Arc;

use mkpool::AddrRange;
use mkpool::instance::Draft;
use mkpool::range::RangeError;

use crate::boot::acpi::AcpiError;
use crate::boot::boot_params::BootParamsError;
use crate::boot::page_tables::PageTableError;
use crate::devices::console::ConsoleQueue;
use crate::devices::console_log::LogFile;
use crate::event_loop::EventSender;
use crate::guest::Guest;
use crate::host_pool::{HostPool, HostPoolError, SubPool};
use crate::instance::InstanceName;
use crate::instance::memory::{InstanceMemory, MemoryError};
use crate::instance::state::OnEnd;
use crate::instance::timeline::{Stage, Timeline};
use crate::kvm::{Host, VmError};
use crate::loader::cmdline::{self, CmdlineError};
use crate::loader::{self, ImageInfo, Initramfs, KernelImage, LoadError};
use crate::placement::PlacementPlan;
use crate::reservation::ReservationError;
use crate::vcpu::VcpuError;
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::violation::ViolationPolicy;

/// A guest that can be built: every value checked, every file read.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The instance.
    pub instance: InstanceConfig,
    /// What is loaded into it.
    pub images: Images,
}

/// An instance without images: what `create` takes.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// Its name.
    pub name: InstanceName,
    /// Its memory in bytes.
    pub memory: u64,
    /// log2 of its granule; the pool's own when `None`.
    pub order: Option<u32>,
    /// Its vCPUs.
    pub cpus: u8,
    /// Host processors that its vCPUs may use; all when `None`.
    pub affinity: Option<CpuSet>,
    /// What follows when it touches what is not its own.
    pub violation: ViolationPolicy,
    /// What follows a reboot.
    pub on_reboot: OnEnd,
    /// What follows a panic.
    pub on_panic: OnEnd,
    /// A file that keeps what it prints.
    pub console_log: Option<Arc<LogFile>>,
}

impl InstanceConfig {
    /// One vCPU, and nothing out of the ordinary.
    pub fn new(name: InstanceName, memory: u64) -> Self {
        Self {
            name,
            memory,
            order: None,
            cpus: 1,
            affinity: None,
            violation: ViolationPolicy::Log,
            on_reboot: OnEnd::Stop,
            on_panic: OnEnd::Stop,
            console_log: None,
        }
    }
}

/// What is loaded into an instance: what `load` takes.
#[derive(Debug, Clone)]
pub struct Images {
    /// The kernel.
    pub kernel: Arc<KernelImage>,
    /// Whether the kernel is the built-in probe, which is told about its
    /// instance on its command line.
    pub is_probe: bool,
    /// The initramfs.
    pub initramfs: Option<Initramfs>,
    /// What there is to say about the files: the kernel's first.
    pub infos: Vec<ImageInfo>,
    /// The command line.
    pub cmdline: String,
}

impl Images {
    /// `kernel` alone, with this command line.
    pub fn new(kernel: Arc<KernelImage>, cmdline: &str) -> Self {
        Self {
            kernel,
            is_probe: false,
            initramfs: None,
            infos: Vec::new(),
            cmdline: cmdline.to_owned(),
        }
    }
}

/// Why a guest was not built or started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The pool cannot hold it.
    #[error(transparent)]
    Pool(#[from] HostPoolError),
    /// Its memory cannot be described.
    #[error("its memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// Its memory cannot be cleaned for another boot.
    #[error("its memory cannot be cleaned")]
    Scrub(#[from] ReservationError),
    /// Its command line does not suit its kernel.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Its images cannot be copied.
    #[error("loading failed")]
    Load(#[from] LoadError),
    /// KVM refused something.
    #[error("KVM cannot set it up")]
    Vm(#[from] VmError),
    /// A vCPU cannot be made.
    #[error("a vCPU cannot be made")]
    Vcpu(#[from] VcpuError),
    /// No identity map covers its images.
    #[error(transparent)]
    PageTables(#[from] PageTableError),
    /// Its memory map is too long.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// Its ACPI tables are too long.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Its manifest cannot be written.
    #[error("the manifest cannot be written")]
    Manifest(#[from] vm_fdt::Error),
    /// Never; see [`crate::boot::e820::build`].
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The host has no descriptor or thread left.
    #[error("the host gives no more descriptors or threads")]
    Io(#[from] io::Error),
}

/// What all guests of a VMM share while they are built.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The host's KVM.
    pub host: &'a Host,
    /// Where events go.
    pub events: &'a EventSender,
    /// Where consoles go, all in one; nowhere else than into each guest's
    /// ring when `None`.
    pub console: Option<&'a Arc<ConsoleQueue>>,
    /// Bytes of output that each guest's ring keeps.
    pub console_ring: usize,
}

/// Images in an instance's memory.
#[derive(Debug)]
pub struct Furnished {
    /// What they are.
    pub images: Images,
    /// Where the pieces lie.
    pub plan: PlacementPlan,
    /// The guest's address space.
    pub memory: Arc<InstanceMemory>,
    /// Guest-physical address of the 64-bit entry.
    pub entry: u64,
    /// The command line as the kernel will read it.
    pub cmdline: CString,
}

/// Builds the guest that `config` describes, up to state `loaded`.
///
/// # Errors
/// [`BuildError`]; the pool is as it was.
pub fn build(
    around: &Surroundings<'_>,
    pool: &mut HostPool,
    config: &GuestConfig,
) -> Result<Guest, BuildError> {
    let mut guest = create(around, pool, config.instance.clone())?;
    match guest.load(pool, &config.images) {
        Ok(()) => Ok(guest),
        Err(error) => {
            pool.undo(guest.into_sub_pool());
            Err(error)
        }
    }
}

/// Makes an instance without images, in state `ready`.
///
/// # Errors
/// [`BuildError`]; the pool is as it was.
pub fn create(
    around: &Surroundings<'_>,
    pool: &mut HostPool,
    config: InstanceConfig,
) -> Result<Guest, BuildError> {
    let order = config.order.unwrap_or(mkpool::main_pool::PAGE_ORDER);
    let id = pool.next_id();
    let timeline = Arc::new(Timeline::default());
    let sub_pool = pool.carve_with_order(id, &config.name, config.memory, order)?;
    timeline.reach(Stage::Created);
    Ok(Guest::new(id, config, sub_pool, timeline, around))
}

/// Finds places for the images of instance `name` and prepares the copying;
/// changes nothing. With it comes the allocator's state once they are placed.
///
/// # Errors
/// [`BuildError`].
pub fn furnish(
    pool: &HostPool,
    sub_pool: &SubPool,
    name: &InstanceName,
    images: &Images,
) -> Result<(Furnished, Draft), BuildError> {
    let text = full_cmdline(name, images, pool.range(), sub_pool.regions());
    let cmdline = cmdline::check(&text, images.kernel.cmdline_max())?;
    let initramfs_size = images.initramfs.as_ref().map(Initramfs::size);
    let facts = images.kernel.facts(initramfs_size);
    let (plan, next) = sub_pool.plan(&facts)?;
    let memory = InstanceMemory::new(pool.reservation(), sub_pool.regions(), plan.low_window)?;
    let furnished = Furnished {
        images: images.clone(),
        plan,
        memory: Arc::new(memory),
        entry: 0,
        cmdline,
    };
    Ok((furnished, next))
}

/// [`furnish`], of which the ledger's log is to know when it fails.
///
/// # Errors
/// [`BuildError`].
pub fn furnish_in_earnest(
    pool: &mut HostPool,
    sub_pool: &SubPool,
    name: &InstanceName,
    images: &Images,
) -> Result<(Furnished, Draft), BuildError> {
    let furnished = furnish(pool, sub_pool, name, images);
    if let Err(BuildError::Pool(error)) = &furnished {
        pool.note_refusal(sub_pool, error);
    }
    furnished
}

/// Copies kernel and initramfs into memory that is zero; returns the entry.
///
/// # Errors
/// [`LoadError`].
pub fn load_images(
    images: &Images,
    memory: &InstanceMemory,
    plan: &PlacementPlan,
) -> Result<u64, LoadError> {
    loader::load(memory, &images.kernel, images.initramfs.as_ref(), plan)
}

/// What the kernel gets to read: for the probe, first what it is to check.
fn full_cmdline(
    name: &InstanceName,
    images: &Images,
    pool: AddrRange,
    regions: &[AddrRange],
) -> String {
    if !images.is_probe {
        return images.cmdline.clone();
    }
    let span = |r: &AddrRange| format!("{:#x}-{:#x}", r.start(), r.end());
    let chunks: Vec<String> = regions.iter().map(span).collect();
    let mut words = vec![
        format!("name={name}"),
        format!("pool={}", span(&pool)),
        format!("chunks={}", chunks.join(",")),
    ];
    if let Some(initramfs) = &images.initramfs {
        words.push(format!(
            "initrd={}:{:08x}",
            initramfs.size(),
            initramfs.crc32()
        ));
    }
    if !images.cmdline.is_empty() {
        words.push(images.cmdline.clone());
    }
    words.join(" ")
}
