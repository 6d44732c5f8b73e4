//! A guest from `loaded` to its end, and again if its policy says so.
//!
//! [`Guest::prepare`] writes what the kernel reads at entry, from the ledger
//! as it stands, and makes VM, devices and vCPUs; [`Guest::run`] lets them go;
//! [`Guest::stop`] joins the vCPUs and keeps the images. A second `prepare`
//! scrubs the memory and loads the kept images again.

use std::sync::Arc;

use mkpool::{AddrRange, RangeError};

use crate::boot::boot_params::{self, BootParamsFacts, FIRST_SETUP_DATA, SetupData};
use crate::boot::e820::{self, E820Entry, E820Facts};
use crate::boot::manifest::{self, ManifestFacts};
use crate::boot::{acpi, gdt, layout, page_tables};
use crate::builder::{BuildError, Furnished, GuestConfig, Surroundings, load_images};
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::bus::InstanceBus;
use crate::devices::console::{ConsoleTail, ConsoleWriter};
use crate::devices::irq::IrqTrigger;
use crate::devices::serial::SerialPort;
use crate::devices::violation::ViolationCounter;
use crate::host_pool::{HostPool, SubPool};
use crate::instance::memory::InstanceMemory;
use crate::instance::state::{EndReason, OnEnd, State};
use crate::instance::timeline::{Stage, Timeline};
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::kvm::Vm;
use crate::kvm::cpuid::MkvmmLeaves;
use crate::loader::{self, BootEntry, ImageInfo};
use crate::placement::PlacementPlan;
use crate::vcpu::{ExitBus, Vcpu, VcpuCommand, VcpuHandle, VcpuSetup};

/// `setup_data` node with random bytes for the kernel's entropy pool
/// (`SETUP_RNG_SEED`, Linux 6.0 and later).
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of seed: what Linux's own boot loaders pass on.
const RNG_SEED_SIZE: usize = 32;

/// What exists only while the guest may run.
#[derive(Debug)]
struct Machine {
    // In the order in which they must go.
    vcpus: Vec<VcpuHandle>,
    bus: Arc<InstanceBus>,
    vm: Vm,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All of them before the first is joined: one may wait for another.
        for vcpu in &self.vcpus {
            vcpu.send(VcpuCommand::Stop);
        }
    }
}

/// An instance with its images loaded, running or not.
#[derive(Debug)]
pub struct Guest {
    // First, so that no vCPU outlives the memory.
    machine: Option<Machine>,
    memory: Arc<InstanceMemory>,
    sub_pool: SubPool,
    id: InstanceId,
    epoch: u32,
    config: GuestConfig,
    plan: PlacementPlan,
    entry: u64,
    cmdline: std::ffi::CString,
    state: State,
    /// Whether the memory holds the images as loaded, and nothing has run.
    pristine: bool,
    timeline: Arc<Timeline>,
    violations: Arc<ViolationCounter>,
    tail: Arc<ConsoleTail>,
}

impl Guest {
    /// The guest that `builder::build` furnished.
    pub fn new(
        id: InstanceId,
        config: GuestConfig,
        sub_pool: SubPool,
        furnished: Furnished,
        around: &Surroundings<'_>,
    ) -> Self {
        let violations = ViolationCounter::new(id, config.violation, around.events.clone());
        Self {
            machine: None,
            memory: furnished.memory,
            sub_pool,
            id,
            epoch: 0,
            config,
            plan: furnished.plan,
            entry: furnished.entry,
            cmdline: furnished.cmdline,
            state: State::Loaded,
            pristine: true,
            timeline: furnished.timeline,
            violations: Arc::new(violations),
            tail: Arc::default(),
        }
    }

    /// Its number.
    pub fn id(&self) -> InstanceId {
        self.id
    }

    /// Which run of the instance this is.
    pub fn run_id(&self) -> RunId {
        RunId {
            id: self.id,
            epoch: self.epoch,
        }
    }

    /// Its name.
    pub fn name(&self) -> &InstanceName {
        &self.config.name
    }

    /// Where its life stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Its memory: ascending, adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        self.sub_pool.regions()
    }

    /// What there is to say about its images: the kernel's first.
    pub fn images(&self) -> &[ImageInfo] {
        &self.config.images
    }

    /// Where its pieces lie.
    pub fn plan(&self) -> &PlacementPlan {
        &self.plan
    }

    /// When it reached which stage.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Accesses to what is not its own, so far.
    pub fn violations(&self) -> u64 {
        self.violations.count()
    }

    /// The last of what it printed.
    pub fn console_tail(&self) -> Vec<u8> {
        self.tail.bytes()
    }

    /// What its policy says about an end.
    pub fn on_end(&self, reason: EndReason) -> OnEnd {
        match reason {
            EndReason::Reboot => self.config.on_reboot,
            EndReason::Panic => self.config.on_panic,
            _ => OnEnd::Stop,
        }
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

    /// Makes VM, devices and vCPUs, which wait; the images are loaded again
    /// if the guest has run before.
    ///
    /// # Errors
    /// [`BuildError`]; nothing of the machine is left then.
    pub fn prepare(
        &mut self,
        around: &Surroundings<'_>,
        pool: &HostPool,
    ) -> Result<(), BuildError> {
        self.machine = None;
        self.epoch += 1;
        if !self.pristine {
            self.timeline.restart();
            for &region in self.sub_pool.regions() {
                pool.reservation().scrub(region)?;
            }
            self.entry = load_images(&self.config, &self.memory, &self.plan)?;
            self.timeline.reach(Stage::Loaded);
            self.pristine = true;
        }
        // Memory slots come with the VM, before irqchip and vCPUs.
        let vm = Vm::new(around.host, Arc::clone(&self.memory))?;
        let bus = self.make_bus(&vm, around)?;
        let manifest = self.write_boot_data(pool)?;
        let mut machine = Machine {
            vcpus: Vec::new(),
            bus,
            vm,
        };
        let setup = VcpuSetup {
            cpus: self.config.cpus,
            entry: BootEntry {
                rip: self.entry,
                boot_params: layout::BOOT_PARAMS_START,
            },
            leaves: MkvmmLeaves {
                pool_start: pool.range().start(),
                pool_size: pool.range().size(),
                manifest_addr: FIRST_SETUP_DATA,
                manifest_size: manifest,
                manifest_version: manifest::VERSION,
            },
        };
        let vcpus = (0..self.config.cpus)
            .map(|index| Vcpu::new(around.host, &machine.vm, index, &setup))
            .collect::<Result<Vec<_>, _>>()?;
        for vcpu in vcpus {
            let bus: Arc<dyn ExitBus> = Arc::clone(&machine.bus) as Arc<dyn ExitBus>;
            let affinity = self.config.affinity.clone();
            let handle = vcpu.start(self.run_id(), self.name(), affinity, bus, around.events)?;
            machine.vcpus.push(handle);
        }
        self.machine = Some(machine);
        Ok(())
    }

    fn make_bus(&self, vm: &Vm, around: &Surroundings<'_>) -> Result<Arc<InstanceBus>, BuildError> {
        let (com1, sci) = (IrqTrigger::new()?, IrqTrigger::new()?);
        vm.register_irqfd(com1.event(), layout::COM1_IRQ)?;
        vm.register_irqfd(sci.event(), layout::SCI_IRQ)?;
        let console = ConsoleWriter::new(around.console, self.name(), &self.tail);
        Ok(Arc::new(InstanceBus::new(
            SerialPort::new(com1, console),
            AcpiPm::new(sci),
            Arc::clone(&self.timeline),
            Arc::clone(&self.violations),
        )))
    }

    /// Fills the low window; returns the manifest's size.
    fn write_boot_data(&self, pool: &HostPool) -> Result<u32, BuildError> {
        let guest = self.memory.guest();
        let initramfs = self.initramfs()?;
        let manifest = self.manifest(pool.range())?;
        // An FDT's own size field has 32 bits.
        let manifest_size = u32::try_from(manifest.len()).unwrap_or(u32::MAX);
        let mut seed = vec![0; RNG_SEED_SIZE];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(std::io::Error::from)?;
        let node = |kind, data| SetupData { kind, data };
        let params = boot_params::build(&BootParamsFacts {
            setup_header: self.config.kernel.setup_header(),
            e820: &self.e820(pool)?,
            cmdline_len: self.cmdline.as_bytes().len(),
            initramfs,
            rsdp: layout::ACPI_START,
            // The manifest first: CPUID says where it lies.
            setup_data: &[
                node(manifest::SETUP_DATA_TYPE, manifest),
                node(SETUP_RNG_SEED, seed),
            ],
        })?;
        let mut mapped = vec![
            AddrRange::with_size(0, layout::LOW_WINDOW_SIZE)?,
            self.plan.kernel,
        ];
        mapped.extend(self.plan.initramfs);
        let tables = words(page_tables::build(&mapped)?.as_flattened());
        for (addr, bytes) in [
            (layout::GDT_START, words(&gdt::table()).as_slice()),
            (layout::IDT_START, &[0; 8]),
            (layout::BOOT_PARAMS_START, &params.page),
            (layout::PAGE_TABLES_START, &tables),
            (layout::CMDLINE_START, self.cmdline.as_bytes_with_nul()),
            (layout::SETUP_DATA_START, &params.setup_data),
            (layout::ACPI_START, &acpi::build(self.config.cpus)?),
        ] {
            loader::write(guest, addr, bytes)?;
        }
        Ok(manifest_size)
    }

    /// The initramfs with its exact size: the kernel unpacks what it is told.
    fn initramfs(&self) -> Result<Option<AddrRange>, RangeError> {
        let (Some(place), Some(file)) = (self.plan.initramfs, &self.config.initramfs) else {
            return Ok(None);
        };
        AddrRange::with_size(place.start(), file.size()).map(Some)
    }

    fn manifest(&self, pool: AddrRange) -> Result<Vec<u8>, BuildError> {
        Ok(manifest::build(&ManifestFacts {
            addr: FIRST_SETUP_DATA,
            pool,
            id: self.id.0,
            name: self.name().as_str(),
            chunks: self.sub_pool.regions(),
            plan: &self.plan,
            initramfs_size: self.initramfs()?.map_or(0, |r| r.size()),
            entry: self.entry,
            cpus: self.config.cpus,
            cmdline: &self.cmdline.to_string_lossy(),
            cmdline_addr: layout::CMDLINE_START,
        })?)
    }

    /// Lets the vCPUs go.
    pub fn run(&mut self) {
        self.state = State::Active;
        self.pristine = false;
        self.timeline.reach(Stage::Exec);
        self.tell(VcpuCommand::Run);
    }

    /// Asks the vCPUs to leave the guest. They report when they have.
    pub fn kill(&self) {
        self.tell(VcpuCommand::Stop);
    }

    /// Presses the power button: a guest that listens turns itself off.
    pub fn press_power_button(&self) {
        if let Some(machine) = &self.machine {
            machine.bus.press_power_button();
        }
    }

    fn tell(&self, command: VcpuCommand) {
        for vcpu in self.machine.iter().flat_map(|m| &m.vcpus) {
            vcpu.send(command);
        }
    }

    /// Whether all vCPUs sleep for good. To be asked about once a second: it
    /// has the idle ones looked at, and answers what the last look found.
    pub fn is_halted(&mut self) -> bool {
        let Some(machine) = &mut self.machine else {
            return false;
        };
        // Each one is looked at, whatever the others say.
        let asleep = machine.vcpus.iter_mut().map(VcpuHandle::check_sleep);
        self.state == State::Active && asleep.fold(true, |all, one| all & one)
    }

    /// Ends the guest's run: joins its vCPUs, drops VM and devices. Memory and
    /// images stay.
    pub fn stop(&mut self, reason: EndReason) {
        self.machine = None;
        self.state = reason.state();
        self.timeline.reach(Stage::Ended);
    }

    /// Ends the guest for good; what is left is its memory, to be released.
    pub fn into_sub_pool(self) -> SubPool {
        let Self {
            machine,
            memory,
            sub_pool,
            ..
        } = self;
        // Never give back memory that something may run in.
        drop(machine);
        drop(memory);
        sub_pool
    }
}

/// 64-bit words as they lie in the guest's memory.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
