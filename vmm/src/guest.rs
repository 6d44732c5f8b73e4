//! An instance from `ready` to its end, and again if its policy says so.
//!
//! [`Guest::load`] puts images into its memory; [`Guest::prepare`] writes what
//! the kernel reads at entry, from the ledger as it stands, and makes VM,
//! devices and vCPUs; [`Guest::run`] lets them go; [`Guest::stop`] joins the
//! vCPUs and keeps the images. A second `prepare` scrubs the memory and loads
//! the kept images again. Which of them is legal when, `instance/state.rs`
//! knows and `manager.rs` asks.

mod console_log;
mod machine;

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use mkpool::AddrRange;
use mkpool::map::MemoryMap;
use mkpool::range::RangeError;

use crate::boot::boot_params::{self, BootParamsFacts, FIRST_SETUP_DATA, SetupData};
use crate::boot::e820::{self, E820Entry, E820Facts};
use crate::boot::manifest::{self, ManifestFacts};
use crate::boot::{acpi, gdt, page_tables};
use crate::builder::{
    self, BuildError, Furnished, Images, InstanceConfig, Surroundings, load_images,
};
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::bus::InstanceBus;
use crate::devices::console::ConsoleWriter;
use crate::devices::console_log::ConsoleLog;
use crate::devices::console_ring::ConsoleRing;
use crate::devices::irq::IrqTrigger;
use crate::devices::serial::SerialPort;
use crate::devices::violation::ViolationCounter;
use crate::guest::machine::Machine;
use crate::host_pool::{HostPool, SubPool};
use crate::instance::state::{EndReason, OnEnd, State};
use crate::instance::timeline::{Stage, Timeline};
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::kvm::Vm;
use crate::kvm::cpuid::MkvmmLeaves;
use crate::kvm::snapshot::Snapshot;
use crate::layout;
use crate::loader::{self, BootEntry};
use crate::reservation::ReservationError;
use crate::vcpu::{ExitBus, ReadRequest, Vcpu, VcpuCommand, VcpuHandle, VcpuSetup};
use mkvmm_base::ExitCounts;
use mkvmm_machine::news::NewsSink;

/// `setup_data` node with random bytes for the kernel's entropy pool
/// (`SETUP_RNG_SEED`, Linux 6.0 and later).
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of seed: what Linux's own boot loaders pass on.
const RNG_SEED_SIZE: usize = 32;

/// How long vCPUs may take to leave their guest when it is paused.
const PAUSE_PATIENCE: Duration = Duration::from_secs(1);

/// An instance, with its images or without, running or not.
#[derive(Debug)]
pub struct Guest {
    // First, so that no vCPU outlives the memory.
    machine: Option<Machine>,
    loaded: Option<Loaded>,
    sub_pool: SubPool,
    id: InstanceId,
    epoch: u32,
    config: InstanceConfig,
    state: State,
    reason: Option<EndReason>,
    /// By vCPU, of the run that has ended.
    last_registers: Vec<Option<Snapshot>>,
    timeline: Arc<Timeline>,
    violations: Arc<ViolationCounter>,
    console: Arc<ConsoleRing>,
    /// Of each vCPU, over all boots.
    exits: Vec<Arc<ExitCounts>>,
    log: Option<ConsoleLog>,
}

#[derive(Debug)]
struct Loaded {
    images: Furnished,
    /// Whether the memory holds them as loaded, and nothing has run.
    pristine: bool,
    /// The map that the running guest was given.
    e820: Vec<E820Entry>,
}

impl Guest {
    /// The instance that `builder::create` made.
    pub fn new(
        id: InstanceId,
        config: InstanceConfig,
        sub_pool: SubPool,
        timeline: Arc<Timeline>,
        around: &Surroundings<'_>,
    ) -> Self {
        let violations =
            ViolationCounter::new(id, config.violation, Arc::new(around.events.clone()));
        let exits = (0..config.cpus).map(|_| Arc::default()).collect();
        Self {
            machine: None,
            loaded: None,
            sub_pool,
            id,
            epoch: 0,
            config,
            state: State::Ready,
            reason: None,
            last_registers: Vec::new(),
            timeline,
            violations: Arc::new(violations),
            console: Arc::new(ConsoleRing::new(around.console_ring)),
            exits,
            log: None,
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

    /// Why it ended, in `stopped` and `failed`.
    pub fn reason(&self) -> Option<EndReason> {
        self.reason
    }

    /// What it was made of.
    pub fn config(&self) -> &InstanceConfig {
        &self.config
    }

    /// Its memory and what it is used for.
    pub fn sub_pool(&self) -> &SubPool {
        &self.sub_pool
    }

    /// The same, to allocate in.
    pub fn sub_pool_mut(&mut self) -> &mut SubPool {
        &mut self.sub_pool
    }

    /// Its memory: ascending, adjacent chunks merged.
    pub fn regions(&self) -> &[AddrRange] {
        self.sub_pool.regions()
    }

    /// Its images, where it has some.
    pub fn images(&self) -> Option<&Furnished> {
        self.loaded.as_ref().map(|loaded| &loaded.images)
    }

    /// When it reached which stage.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.timeline
    }

    /// Accesses to what is not its own, so far.
    pub fn violations(&self) -> u64 {
        self.violations.count()
    }

    /// Exits of each of its vCPUs so far.
    pub fn exits(&self) -> &[Arc<ExitCounts>] {
        &self.exits
    }

    /// Its serial console.
    pub fn console(&self) -> &Arc<ConsoleRing> {
        &self.console
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
        let mut withheld: Vec<AddrRange> = self.sub_pool.withheld().collect();
        if let Some(images) = self.images() {
            withheld.extend(images.plan.withheld());
        }
        e820::build(&E820Facts {
            pool: pool.range(),
            chunks: self.sub_pool.regions(),
            withheld: &withheld,
        })
    }

    /// The map that the guest was given at its start, and the ranges that its
    /// VM's memory slots show; `None` unless it is live.
    pub fn machine_facts(&self) -> Option<(&[E820Entry], Vec<AddrRange>)> {
        let (machine, loaded) = (self.machine.as_ref()?, self.loaded.as_ref()?);
        let slots = machine.vm.memory().ranges().collect();
        Some((&loaded.e820, slots))
    }

    /// Puts images into its memory, in place of those that are there. It must
    /// not be live.
    ///
    /// # Errors
    /// [`BuildError`]; what was loaded before still is.
    pub fn load(&mut self, pool: &mut HostPool, images: &Images) -> Result<(), BuildError> {
        self.sub_pool.check_control_idle()?;
        let name = &self.config.name;
        let (mut images, next) = builder::furnish_in_earnest(pool, &self.sub_pool, name, images)?;
        if let Some(old) = &mut self.loaded {
            // From here on they are no longer in memory, but still kept.
            old.pristine = false;
            scrub(&self.sub_pool, pool)?;
        }
        pool.book(&mut self.sub_pool, &images.plan, next)?;
        self.timeline.restart();
        self.timeline.reach(Stage::Placed);
        images.entry = match load_images(&images.images, &images.memory, &images.plan) {
            Ok(entry) => entry,
            Err(error) => {
                self.drop_images(pool)?;
                return Err(error.into());
            }
        };
        self.timeline.reach(Stage::Loaded);
        self.loaded = Some(Loaded {
            images,
            pristine: true,
            e820: Vec::new(),
        });
        self.state = State::Loaded;
        self.reason = None;
        Ok(())
    }

    /// Whether [`Guest::load`] would do it.
    ///
    /// # Errors
    /// As [`Guest::load`].
    pub fn check_load(&self, pool: &HostPool, images: &Images) -> Result<(), BuildError> {
        self.sub_pool.check_control_idle()?;
        builder::furnish(pool, &self.sub_pool, &self.config.name, images).map(drop)
    }

    /// Takes the images out of its memory. It must not be live.
    ///
    /// # Errors
    /// [`BuildError`]; they are still there then.
    pub fn unload(&mut self, pool: &mut HostPool) -> Result<(), BuildError> {
        self.sub_pool.check_control_idle()?;
        self.drop_images(pool)
    }

    fn drop_images(&mut self, pool: &mut HostPool) -> Result<(), BuildError> {
        if let Some(loaded) = &mut self.loaded {
            loaded.pristine = false;
        }
        scrub(&self.sub_pool, pool)?;
        pool.unplace(&mut self.sub_pool)?;
        self.loaded = None;
        self.timeline.restart();
        self.state = State::Ready;
        self.reason = None;
        Ok(())
    }

    /// Makes VM, devices and vCPUs, which wait; the images are loaded again
    /// if the guest has run before. Without images it does nothing.
    ///
    /// # Errors
    /// [`BuildError`]; nothing of the machine is left then.
    pub fn prepare(
        &mut self,
        around: &Surroundings<'_>,
        pool: &HostPool,
    ) -> Result<(), BuildError> {
        self.machine = None;
        let e820 = self.e820(pool)?;
        let Some(loaded) = &mut self.loaded else {
            return Ok(());
        };
        self.epoch += 1;
        // Said once, and only of an instance that starts.
        if let (1, Some(asked)) = (self.epoch, self.sub_pool.rounded_from()) {
            let (name, given) = (&self.config.name, self.sub_pool.size());
            log::warn!("{name}: {asked} bytes of memory were rounded up to {given}");
        }
        let images = &mut loaded.images;
        if !loaded.pristine {
            self.timeline.restart();
            scrub(&self.sub_pool, pool)?;
            images.entry = load_images(&images.images, &images.memory, &images.plan)?;
            self.timeline.reach(Stage::Loaded);
            loaded.pristine = true;
        }
        let (memory, entry) = (Arc::clone(&images.memory), images.entry);
        // Memory slots come with the VM, before irqchip and vCPUs.
        let vm = Vm::new(around.host, memory)?;
        let bus = self.make_bus(&vm, around)?;
        let manifest = self.write_boot_data(pool, &e820)?;
        let mut machine = Machine {
            vcpus: Vec::new(),
            bus,
            vm,
        };
        let setup = VcpuSetup {
            cpus: self.config.cpus,
            entry: BootEntry {
                rip: entry,
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
        self.start_vcpus(&mut machine, around, &setup)?;
        // Last: a boot that comes to nothing empties no log.
        self.start_log(around)?;
        if let Some(loaded) = &mut self.loaded {
            loaded.e820 = e820;
        }
        self.machine = Some(machine);
        Ok(())
    }

    /// Adds the vCPUs to `machine`, each in its thread, where it waits.
    fn start_vcpus(
        &self,
        machine: &mut Machine,
        around: &Surroundings<'_>,
        setup: &VcpuSetup,
    ) -> Result<(), BuildError> {
        let vcpus = (0..self.config.cpus)
            .map(|index| Vcpu::new(around.host, &machine.vm, index, setup))
            .collect::<Result<Vec<_>, _>>()?;
        let news: Arc<dyn NewsSink> = Arc::new(around.events.clone());
        for (vcpu, exits) in vcpus.into_iter().zip(&self.exits) {
            let vcpu = vcpu.counting_on(Arc::clone(exits));
            let bus: Arc<dyn ExitBus> = Arc::clone(&machine.bus) as Arc<dyn ExitBus>;
            let affinity = self.config.affinity.clone();
            let handle = vcpu.start(self.run_id(), self.name(), affinity, bus, &news)?;
            machine.vcpus.push(handle);
        }
        Ok(())
    }

    fn make_bus(&self, vm: &Vm, around: &Surroundings<'_>) -> Result<Arc<InstanceBus>, BuildError> {
        let (com1, sci) = (IrqTrigger::new()?, IrqTrigger::new()?);
        vm.register_irqfd(com1.event(), layout::COM1_IRQ)?;
        vm.register_irqfd(sci.event(), layout::SCI_IRQ)?;
        let console = ConsoleWriter::new(around.console, self.name(), &self.console);
        Ok(Arc::new(InstanceBus::new(
            SerialPort::new(com1, console, Arc::clone(&self.console)),
            AcpiPm::new(sci),
            Arc::clone(&self.timeline),
            Arc::clone(&self.violations),
        )))
    }

    /// Fills the low window; returns the manifest's size.
    fn write_boot_data(&self, pool: &HostPool, e820: &[E820Entry]) -> Result<u32, BuildError> {
        let Some(images) = self.images() else {
            return Ok(0);
        };
        let guest = images.memory.guest();
        let initramfs = initramfs(images)?;
        let manifest = self.manifest(images, pool.range())?;
        // An FDT's own size field has 32 bits.
        let manifest_size = u32::try_from(manifest.len()).unwrap_or(u32::MAX);
        let mut seed = vec![0; RNG_SEED_SIZE];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .map_err(std::io::Error::from)?;
        let node = |kind, data| SetupData { kind, data };
        let params = boot_params::build(&BootParamsFacts {
            setup_header: images.images.kernel.setup_header(),
            e820,
            cmdline_len: images.cmdline.as_bytes().len(),
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
            images.plan.kernel,
        ];
        mapped.extend(images.plan.initramfs);
        let tables = words(page_tables::build(&mapped)?.as_flattened());
        for (addr, bytes) in [
            (layout::GDT_START, words(&gdt::table()).as_slice()),
            (layout::IDT_START, &[0; 8]),
            (layout::BOOT_PARAMS_START, &params.page),
            (layout::PAGE_TABLES_START, &tables),
            (layout::CMDLINE_START, images.cmdline.as_bytes_with_nul()),
            (layout::SETUP_DATA_START, &params.setup_data),
            (layout::ACPI_START, &acpi::build(self.config.cpus)?),
        ] {
            loader::write(guest, addr, bytes)?;
        }
        Ok(manifest_size)
    }

    fn manifest(&self, images: &Furnished, pool: AddrRange) -> Result<Vec<u8>, BuildError> {
        let allocations: Vec<AddrRange> = self.sub_pool.withheld().collect();
        Ok(manifest::build(&ManifestFacts {
            addr: FIRST_SETUP_DATA,
            pool,
            id: self.id.0,
            name: self.name().as_str(),
            chunks: self.sub_pool.regions(),
            plan: &images.plan,
            allocations: &allocations,
            initramfs_size: initramfs(images)?.map_or(0, |r| r.size()),
            entry: images.entry,
            cpus: self.config.cpus,
            cmdline: &images.cmdline.to_string_lossy(),
            cmdline_addr: layout::CMDLINE_START,
        })?)
    }

    /// Lets the vCPUs go.
    pub fn run(&mut self) {
        self.state = State::Active;
        self.reason = None;
        if let Some(loaded) = &mut self.loaded {
            loaded.pristine = false;
        }
        self.timeline.reach(Stage::Exec);
        self.tell(&VcpuCommand::Run);
    }

    /// Has the vCPUs leave the guest until [`Guest::resume`]; waits until they
    /// have.
    pub fn pause(&mut self) {
        let (sender, left) = mpsc::channel();
        self.tell(&VcpuCommand::Pause(sender));
        self.state = State::Paused;
        // Every vCPU drops its sender when it has left. Only one that waits in
        // a device for longer than anything there takes would not.
        if left.recv_timeout(PAUSE_PATIENCE) == Err(RecvTimeoutError::Timeout) {
            log::warn!("{}: a vCPU takes long to pause", self.name());
        }
    }

    /// Lets paused vCPUs go on.
    pub fn resume(&mut self) {
        self.state = State::Active;
        self.tell(&VcpuCommand::Run);
    }

    /// Gives the guest what is typed on its console, as far as it takes it.
    pub fn feed_console(&self) {
        if let Some(machine) = &self.machine {
            machine.bus.feed_console();
        }
    }

    /// Has a live guest's vCPUs, or one of them, say what their registers hold.
    /// The answers go to the request's channel, at once as a rule.
    pub fn read_registers(&self, cpu: Option<u8>, request: &ReadRequest) {
        let vcpus = self.machine.iter().flat_map(|machine| &machine.vcpus);
        for (index, vcpu) in (0_u8..).zip(vcpus) {
            if cpu.is_none_or(|cpu| cpu == index) {
                vcpu.send(VcpuCommand::Read(request.clone()));
            }
        }
    }

    /// What the vCPUs' registers held when the guest ended, by vCPU. Empty
    /// unless it has ended and its images are still those that ran.
    pub fn last_registers(&self) -> &[Option<Snapshot>] {
        match self.state {
            State::Stopped | State::Failed => &self.last_registers,
            _ => &[],
        }
    }

    /// Asks the vCPUs to leave the guest. They report when they have.
    pub fn kill(&self) {
        self.tell(&VcpuCommand::Stop);
    }

    /// Presses the power button: a guest that listens turns itself off.
    pub fn press_power_button(&self) {
        if let Some(machine) = &self.machine {
            machine.bus.press_power_button();
        }
    }

    fn tell(&self, command: &VcpuCommand) {
        for vcpu in self.machine.iter().flat_map(|m| &m.vcpus) {
            vcpu.send(command.clone());
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
        self.last_registers = self.machine.take().map_or_else(Vec::new, Machine::end);
        self.state = reason.state();
        self.reason = Some(reason);
        self.timeline.reach(Stage::Ended);
    }

    /// Ends the guest for good; what is left is its memory, to be released.
    pub fn into_sub_pool(self) -> SubPool {
        let Self {
            machine,
            loaded,
            sub_pool,
            ..
        } = self;
        // Never give back memory that something may run in.
        drop(machine);
        drop(loaded);
        sub_pool
    }
}

/// Zeroes an instance's memory, but for what somebody allocated in it.
fn scrub(sub_pool: &SubPool, pool: &HostPool) -> Result<(), ReservationError> {
    let mut map = MemoryMap::new();
    for &region in sub_pool.regions() {
        map.overwrite(region, true);
    }
    for kept in sub_pool.withheld() {
        map.overwrite(kept, false);
    }
    let doomed = map.iter().filter(|(_, scrubbed)| *scrubbed);
    for (range, _) in doomed {
        pool.reservation().scrub(range)?;
    }
    Ok(())
}

/// The initramfs with its exact size: the kernel unpacks what it is told.
fn initramfs(images: &Furnished) -> Result<Option<AddrRange>, RangeError> {
    let (Some(place), Some(file)) = (images.plan.initramfs, &images.images.initramfs) else {
        return Ok(None);
    };
    AddrRange::with_size(place.start(), file.size()).map(Some)
}

/// 64-bit words as they lie in the guest's memory.
fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
