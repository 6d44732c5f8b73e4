//! The recipe: from a checked configuration to a guest that is ready to run.
//!
//! The one module that sees stages ② to ⑦ together. [`build`] takes an
//! instance from nothing to `loaded`; [`Guest::prepare`] writes what the
//! kernel reads at entry, from the ledger as it stands, and creates the
//! vCPU; [`Guest::run`] lets it go. Everything a step took is given back
//! when a later one fails.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use mkpool::{AddrRange, RangeError};

use crate::boot::boot_params::{self, BootParamsError, BootParamsFacts};
use crate::boot::e820::{self, E820Entry, E820Facts};
use crate::boot::page_tables::{self, PageTableError};
use crate::boot::{gdt, layout};
use crate::devices::bus::InstanceBus;
use crate::devices::console::{ConsoleQueue, ConsoleWriter};
use crate::devices::serial::{COM1_IRQ, IrqTrigger, SerialPort};
use crate::devices::violation::{ViolationCounter, ViolationPolicy};
use crate::event_loop::EventSender;
use crate::host_pool::{HostPool, HostPoolError, SubPool};
use crate::instance::memory::{InstanceMemory, MemoryError};
use crate::instance::state::State;
use crate::instance::{InstanceId, InstanceName};
use crate::kvm::{Host, Vm, VmError};
use crate::loader::cmdline::{self, CmdlineError};
use crate::loader::{self, BootEntry, ImageFile, KernelImage, LoadError};
use crate::placement::{ImageFacts, PlacementPlan};
use crate::vcpu::{ExitBus, Vcpu, VcpuCommand, VcpuHandle};

/// A guest that can be built: every value checked, every file read.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Its name.
    pub name: InstanceName,
    /// Its kernel.
    pub kernel: Arc<KernelImage>,
    /// Whether the kernel is the built-in probe, which is told about its
    /// instance on its command line.
    pub is_probe: bool,
    /// Its initramfs.
    pub initramfs: Option<Arc<ImageFile>>,
    /// Its command line.
    pub cmdline: String,
    /// Its memory in bytes.
    pub memory: u64,
    /// What follows when it touches what is not its own.
    pub violation: ViolationPolicy,
}

/// Why a guest was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The pool cannot hold it.
    #[error(transparent)]
    Pool(#[from] HostPoolError),
    /// Its memory cannot be described.
    #[error("its memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// Its command line does not suit its kernel.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Its images cannot be copied.
    #[error("loading failed")]
    Load(#[from] LoadError),
    /// KVM refused something.
    #[error("KVM cannot set it up")]
    Vm(#[from] VmError),
    /// No identity map covers its images.
    #[error(transparent)]
    PageTables(#[from] PageTableError),
    /// Its memory map is too long.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// Never; see [`e820::build`].
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The host has no descriptor or thread left.
    #[error("the host gives no more descriptors or threads")]
    Io(#[from] io::Error),
}

/// What all guests of a VMM share while they are built.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The host's KVM.
    pub host: &'a Host,
    /// Where events go.
    pub events: &'a EventSender,
    /// Where consoles go.
    pub console: &'a Arc<ConsoleQueue>,
}

/// An instance with its images loaded, running or not.
#[derive(Debug)]
pub struct Guest {
    // In the order in which they must go: the vCPUs first, then the VM, the
    // devices, and the memory.
    vcpus: Vec<VcpuHandle>,
    vm: Vm,
    bus: Arc<InstanceBus>,
    sub_pool: SubPool,
    id: InstanceId,
    name: InstanceName,
    plan: PlacementPlan,
    entry: u64,
    setup_header: Option<Vec<u8>>,
    cmdline: Vec<u8>,
    initramfs_size: u64,
    state: State,
    started: Instant,
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
    let id = pool.next_id();
    let mut sub_pool = pool.carve(id, &config.name, config.memory)?;
    match furnish(around, pool, config, id, &mut sub_pool) {
        Ok(parts) => Ok(parts.into_guest(id, config, sub_pool)),
        Err(error) => {
            pool.undo(sub_pool);
            Err(error)
        }
    }
}

/// What [`furnish`] made.
struct Parts {
    plan: PlacementPlan,
    vm: Vm,
    bus: Arc<InstanceBus>,
    entry: u64,
    cmdline: Vec<u8>,
}

impl Parts {
    fn into_guest(self, id: InstanceId, config: &GuestConfig, sub_pool: SubPool) -> Guest {
        Guest {
            vcpus: Vec::new(),
            vm: self.vm,
            bus: self.bus,
            sub_pool,
            id,
            name: config.name.clone(),
            plan: self.plan,
            entry: self.entry,
            setup_header: config.kernel.setup_header().map(<[u8]>::to_vec),
            cmdline: self.cmdline,
            initramfs_size: config
                .initramfs
                .as_ref()
                .map_or(0, |i| i.bytes().len() as u64),
            state: State::Loaded,
            started: Instant::now(),
        }
    }
}

/// Places and loads the images, makes the VM and its devices.
fn furnish(
    around: &Surroundings<'_>,
    pool: &mut HostPool,
    config: &GuestConfig,
    id: InstanceId,
    sub_pool: &mut SubPool,
) -> Result<Parts, BuildError> {
    let initramfs = config.initramfs.as_deref().map(ImageFile::bytes);
    let text = full_cmdline(config, pool.range(), sub_pool.regions());
    let cmdline = cmdline::check(&text, config.kernel.cmdline_max())?;
    let facts = ImageFacts::new(&config.kernel, initramfs.map(|bytes| bytes.len() as u64));
    let plan = pool.place(sub_pool, &facts)?;
    let memory = InstanceMemory::new(pool.reservation(), sub_pool.regions(), plan.low_window)?;
    let entry = loader::load(memory.guest(), &config.kernel, initramfs, &plan)?;

    let vm = Vm::new(around.host, Arc::new(memory))?;
    let irq = IrqTrigger::new()?;
    vm.register_irqfd(irq.event(), COM1_IRQ)?;
    let console = ConsoleWriter::new(around.console, &config.name);
    let violations = ViolationCounter::new(id, config.violation, around.events.clone());
    let bus = InstanceBus::new(SerialPort::new(irq, console), violations);
    Ok(Parts {
        plan,
        vm,
        bus: Arc::new(bus),
        entry,
        cmdline: cmdline.into_bytes_with_nul(),
    })
}

/// What the kernel gets to read: for the probe, first what it is to check.
fn full_cmdline(config: &GuestConfig, pool: AddrRange, regions: &[AddrRange]) -> String {
    if !config.is_probe {
        return config.cmdline.clone();
    }
    let span = |r: &AddrRange| format!("{:#x}-{:#x}", r.start(), r.end());
    let chunks: Vec<String> = regions.iter().map(span).collect();
    let mut words = vec![
        format!("name={}", config.name),
        format!("pool={}", span(&pool)),
        format!("chunks={}", chunks.join(",")),
    ];
    if let Some(initramfs) = &config.initramfs {
        let bytes = initramfs.bytes();
        words.push(format!(
            "initrd={}:{:08x}",
            bytes.len(),
            crc32fast::hash(bytes)
        ));
    }
    if !config.cmdline.is_empty() {
        words.push(config.cmdline.clone());
    }
    words.join(" ")
}

impl Guest {
    /// Its number.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &InstanceName {
        &self.name
    }

    /// Where its life stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// When its vCPUs were let go (before that: when it was built).
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Accesses to what is not its own, so far.
    pub fn violations(&self) -> u64 {
        self.bus.violations()
    }

    /// Its memory map, from the ledger as it stands.
    ///
    /// # Errors
    /// See [`e820::build`].
    pub fn e820(&self, pool: &HostPool) -> Result<Vec<E820Entry>, RangeError> {
        e820::build(&E820Facts {
            pool: pool.range(),
            chunks: self.sub_pool.regions(),
            withheld: &self.plan.withheld(),
        })
    }

    /// Writes boot_params, page tables and descriptors, and puts the vCPU in
    /// its thread, where it waits.
    ///
    /// # Errors
    /// [`BuildError`]; the guest can be released then.
    pub fn prepare(
        &mut self,
        around: &Surroundings<'_>,
        pool: &HostPool,
    ) -> Result<(), BuildError> {
        self.write_boot_data(&self.e820(pool)?)?;
        let entry = BootEntry {
            rip: self.entry,
            boot_params: layout::BOOT_PARAMS_START,
        };
        let vcpu = Vcpu::new(around.host, &self.vm, 0, entry)?;
        let bus: Arc<dyn ExitBus> = Arc::clone(&self.bus) as Arc<dyn ExitBus>;
        let handle = vcpu.start(self.id, &self.name, bus, around.events.clone())?;
        self.vcpus.push(handle);
        Ok(())
    }

    /// Fills the low window.
    fn write_boot_data(&self, e820: &[E820Entry]) -> Result<(), BuildError> {
        let guest = self.vm.memory().guest();
        // The exact size, not whole pages: the kernel unpacks what it is told.
        let initramfs = match self.plan.initramfs {
            Some(place) => Some(AddrRange::with_size(place.start(), self.initramfs_size)?),
            None => None,
        };
        let params = boot_params::build(&BootParamsFacts {
            setup_header: self.setup_header.as_deref(),
            e820,
            cmdline_len: self.cmdline.len() - 1,
            initramfs,
        })?;
        let mut mapped = vec![
            AddrRange::with_size(0, layout::LOW_WINDOW_SIZE)?,
            self.plan.kernel,
        ];
        mapped.extend(self.plan.initramfs);
        let tables: Vec<u8> = words(page_tables::build(&mapped)?.as_flattened());
        for (addr, bytes) in [
            (layout::GDT_START, words(&gdt::table())),
            (layout::IDT_START, vec![0; 8]),
            (layout::BOOT_PARAMS_START, params.page),
            (layout::PAGE_TABLES_START, tables),
            (layout::CMDLINE_START, self.cmdline.clone()),
            (layout::SETUP_DATA_START, params.setup_data),
        ] {
            loader::write(guest, addr, &bytes)?;
        }
        Ok(())
    }

    /// Lets the vCPUs go.
    pub fn run(&mut self) {
        self.state = State::Active;
        self.started = Instant::now();
        self.tell(VcpuCommand::Run);
    }

    /// Asks the vCPUs to leave the guest. They report when they have.
    pub fn kill(&self) {
        self.tell(VcpuCommand::Stop);
    }

    fn tell(&self, command: VcpuCommand) {
        for vcpu in &self.vcpus {
            vcpu.send(command);
        }
    }

    /// Ends the guest: joins its vCPUs, drops its VM and devices. What is
    /// left is its memory, to be released.
    pub fn into_sub_pool(self) -> SubPool {
        let Self {
            vcpus,
            vm,
            bus,
            sub_pool,
            ..
        } = self;
        // vCPUs first: never give back memory that something may run in.
        drop(vcpus);
        drop(vm);
        drop(bus);
        sub_pool
    }
}

/// 64-bit words as they lie in the guest's memory.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
