//! A machine: VM, devices and vCPUs of one guest. It can be created before
//! there is an image ([`Machine::new`]), gets its boot data and vCPUs later
//! ([`Machine::boot`]), runs on request, and can be paused, inspected and
//! stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::EventSubscriber;
use mkpool::AddrRange;
use mkvmm_base::InstanceName;
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::layout::{self, CHANNEL_SLOT, PCI_SLOTS};
use mkvmm_base::state::EndReason;
use mkvmm_base::violation::ViolationPolicy;
use mkvmm_virtio::{GuestSpace, VirtioDevice};
use mkvmm_wire::shared::board::BoardWriter;

use crate::boot::writer::{self, BootData, BootDataError};
use crate::console::Console;
use crate::devices::board::{Board, BoardError};
use crate::devices::pci::channel_port::Port;
use crate::devices::pci::channels::ChannelFunction;
use crate::devices::pci::config::Windows;
use crate::devices::pci::function::Function;
use crate::devices::pci::host_bridge::{HostBridge, Slot};
use crate::devices::pci::line::Lines;
use crate::devices::pci::wiring::Wiring;
use crate::devices::violation::ViolationCounter;
use crate::devices::virtio::function::{Surroundings, VirtioFunction};
use crate::kernel_log::KernelLog;
use crate::kvm::cpuid::MkvmmLeaves;
use crate::kvm::host::Host;
use crate::kvm::vm::{BareVm, Vm, VmError};
use crate::loading::BootEntry;
use crate::memory::{GuestMemory, SharedMemory};
use crate::news::{News, NewsSink};
use crate::progress::Progress;
use crate::vcpu::cpu::{FirstVcpu, Vcpu, VcpuError, VcpuSetup};
use crate::vcpu::{
    ExitBus, HaltCheck, LOOK, Paused, ReadRequest, Standstill, VcpuCommand, VcpuHandle,
};

/// How long a pause waits for what the host does for devices, such as reads of a disk.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The configuration of a boot.
#[derive(Debug)]
pub struct BootConfig<'a> {
    /// The name of the instance, for thread names and log messages.
    pub name: &'a InstanceName,
    /// The host processors that the vCPUs may use; all if `None`.
    pub affinity: Option<CpuSet>,
    /// The range of the whole pool.
    pub pool: AddrRange,
    /// The address of the kernel's 64-bit entry point.
    pub entry: u64,
    /// The boot data for the kernel.
    pub boot: BootData<'a>,
}

/// The external connections of a machine.
#[derive(Debug)]
pub struct Connections {
    /// The other end of the serial line.
    pub console: Arc<dyn Console>,
    /// The receiver of notifications.
    pub news: Arc<dyn NewsSink>,
    /// The board for counters and the last registers.
    pub board: BoardWriter,
    /// The devices, in the order of their PCI slots.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// The channels that the guest has from the beginning.
    pub channels: Vec<(Port, SharedMemory)>,
    /// The window of the PCI bridge above 4 GiB, if there is one.
    pub pci_high: Option<AddrRange>,
    /// The part of the pool that all channels are in, if there is one.
    pub channel_area: Option<AddrRange>,
}

/// A reason why a machine could not be created.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// An operation of KVM failed.
    #[error("KVM cannot set it up")]
    Vm(#[from] VmError),
    /// A vCPU cannot be created.
    #[error("a vCPU cannot be created")]
    Vcpu(#[from] VcpuError),
    /// A device cannot be created.
    #[error("its devices cannot be created")]
    Board(#[from] BoardError),
    /// The boot data cannot be written.
    #[error(transparent)]
    BootData(#[from] BootDataError),
    /// There are more devices than PCI slots.
    #[error("{count} devices exceed the limit")]
    Devices {
        /// The number of devices requested.
        count: usize,
    },
    /// A device is in the slot that channels have.
    #[error("a guest with a device in each PCI slot has no channels")]
    NoChannels,
    /// There are more vCPUs than slots on the board.
    #[error("{cpus} vCPUs exceed the limit")]
    Cpus {
        /// The number of vCPUs requested.
        cpus: u8,
    },
    /// The host gives no thread.
    #[error("the host gives no thread for vCPU {index} of {cpus}")]
    Thread {
        /// The number of the vCPU, from 0.
        index: usize,
        /// How many there are.
        cpus: u8,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
}

/// The VM, devices and vCPUs of a guest.
#[derive(Debug)]
pub struct Machine {
    // The fields are in the order in which they must be dropped.
    vcpus: Vec<VcpuHandle>,
    board: Board,
    /// The devices in PCI slots.
    functions: Vec<Arc<VirtioFunction>>,
    channels: Option<Arc<ChannelFunction>>,
    /// The first vCPU until the boot, if it is there already.
    first: Option<FirstVcpu>,
    vm: Vm,
    halt: HaltCheck,
    standstill: Standstill,
    log: Arc<KernelLog>,
    paused: Option<Paused>,
    status: BoardWriter,
    news: Arc<dyn NewsSink>,
}

/// Passes news on, and says of an end what the guest's console said of it.
#[derive(Debug)]
struct Judged {
    log: Arc<KernelLog>,
    news: Arc<dyn NewsSink>,
}

impl NewsSink for Judged {
    fn tell(&self, news: News) {
        self.news.tell(match news {
            News::Ended { reason } => News::Ended {
                reason: self.log.judge(reason),
            },
            other => other,
        });
    }
}

/// What there can be of a machine before its guest is known.
#[derive(Debug)]
pub struct EarlyMachine {
    vm: BareVm,
    first: Option<FirstVcpu>,
}

impl From<BareVm> for EarlyMachine {
    /// Takes a VM without devices and vCPUs.
    fn from(vm: BareVm) -> Self {
        Self { vm, first: None }
    }
}

impl EarlyMachine {
    /// Adds interrupt controllers, timer and the first vCPU, for a guest
    /// with one vCPU in `pool` whose manifest has a usual length.
    ///
    /// # Errors
    /// Returns a [`MachineError`]; nothing is left then.
    pub fn with_devices(self, host: &Host, pool: AddrRange) -> Result<Self, MachineError> {
        let vm = self.vm.with_devices()?;
        let first = FirstVcpu::new(host, &vm, leaves(pool, layout::MANIFEST_UNIT))?;
        Ok(Self {
            vm,
            first: Some(first),
        })
    }
}

/// Returns mkvmm's CPUID leaves for a guest in `pool`, with a manifest of this many
/// bytes.
fn leaves(pool: AddrRange, manifest: usize) -> MkvmmLeaves {
    MkvmmLeaves {
        pool_start: pool.start(),
        pool_size: pool.size(),
        manifest_addr: layout::MANIFEST_START,
        // The size field of an FDT has 32 bits as well.
        manifest_size: u32::try_from(manifest).unwrap_or(u32::MAX),
        manifest_version: layout::MANIFEST_VERSION,
    }
}

impl Machine {
    /// Adds memory and devices to a VM; the contents of the memory do not
    /// matter yet. `violation` is the response when the guest accesses memory it does
    /// not own.
    ///
    /// # Errors
    /// Returns a [`MachineError`]; nothing is left then.
    pub fn new(
        host: &Host,
        early: EarlyMachine,
        memory: Arc<GuestMemory>,
        violation: ViolationPolicy,
        connections: Connections,
    ) -> Result<Self, MachineError> {
        // Memory slots come first, before irqchip and vCPUs.
        let EarlyMachine { vm, first } = early;
        let Connections {
            console,
            news,
            board: status,
            devices,
            channels,
            pci_high,
            channel_area,
        } = connections;
        let (ports, shared): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        let vm = Vm::new(host, vm, memory, shared)?;
        let violations = ViolationCounter::new(violation, status.clone(), Arc::clone(&news));
        let progress = Arc::new(Progress::new(Arc::clone(&news)));
        let log = Arc::default();
        let Functions {
            bridge,
            devices: functions,
            channels,
        } = functions(&vm, devices, (pci_high, channel_area), &status)?;
        for port in ports {
            let none = MachineError::NoChannels;
            channels
                .as_ref()
                .ok_or(none)?
                .add(port)
                .map_err(BoardError::Io)?;
        }
        let board = Board::new(console, &progress, &log, Arc::new(violations), bridge)?;
        for line in board.bus().lines() {
            vm.register_irqfd(line.event(), line.gsi())?;
        }
        Ok(Self {
            vcpus: Vec::new(),
            board,
            functions,
            channels,
            first,
            vm,
            halt: HaltCheck::default(),
            standstill: Standstill::default(),
            paused: None,
            status,
            news: Arc::new(Judged {
                log: Arc::clone(&log),
                news,
            }),
            log,
        })
    }

    /// Writes the boot data of the images that are in memory now, and creates
    /// the vCPUs, each waiting in its own thread. To be called once, and before
    /// [`Self::complete`].
    ///
    /// # Errors
    /// Returns a [`MachineError`]; the machine must be dropped then.
    pub fn boot(&mut self, host: &Host, config: &BootConfig<'_>) -> Result<(), MachineError> {
        writer::write(self.vm.memory(), &config.boot)?;
        let cpus = config.boot.cpus;
        let setup = VcpuSetup {
            cpus,
            entry: BootEntry {
                rip: config.entry,
                boot_params: layout::BOOT_PARAMS_START,
            },
            leaves: leaves(config.pool, config.boot.manifest.len()),
        };
        let vcpus = (0..cpus)
            .map(|index| match self.first.take_if(|_| index == 0) {
                Some(first) => Vcpu::of_first(first, host, &setup),
                None => Vcpu::new(host, &self.vm, index, &setup),
            })
            .collect::<Result<Vec<_>, _>>()?;
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let slot = self.status.vcpu(index);
            let slot = slot.ok_or(MachineError::Cpus { cpus })?;
            let bus: Arc<dyn ExitBus> = Arc::clone(self.board.bus()) as Arc<dyn ExitBus>;
            let affinity = config.affinity.clone();
            let started = vcpu.start(config.name, affinity, slot, bus, &self.news);
            let thread_error = |source| MachineError::Thread {
                index,
                cpus,
                source,
            };
            self.vcpus.push(started.map_err(thread_error)?);
        }
        Ok(())
    }

    /// Adds what the guest needs before it runs, and nobody needs before that: the
    /// timer.
    ///
    /// # Errors
    /// Returns a [`MachineError`]; the machine must be dropped then.
    pub fn complete(&mut self) -> Result<(), MachineError> {
        Ok(self.vm.add_timer()?)
    }

    /// Returns the ranges of the memory slots, in ascending order.
    pub fn slots(&self) -> Vec<AddrRange> {
        self.vm.slots()
    }

    /// Gives the guest a channel, also while it runs. One that it has already is
    /// ignored.
    ///
    /// # Errors
    /// Returns a [`MachineError`]; nothing has changed then.
    pub fn join(&mut self, port: Port, memory: SharedMemory) -> Result<(), MachineError> {
        let channels = self.channels.as_ref().ok_or(MachineError::NoChannels)?;
        if channels.range(port.id).is_some() {
            return Ok(());
        }
        let range = memory.range();
        self.vm.share(memory)?;
        if let Err(error) = channels.add(port) {
            self.vm.unshare(range)?;
            return Err(BoardError::Io(error).into());
        }
        Ok(())
    }

    /// Takes a channel away from the guest, also while it runs. One that it does not
    /// have is ignored.
    ///
    /// # Errors
    /// Returns a [`MachineError`]; the guest has the memory then.
    pub fn leave(&mut self, id: u32) -> Result<(), MachineError> {
        let Some(channels) = &self.channels else {
            return Ok(());
        };
        if let Some(range) = channels.range(id) {
            self.vm.unshare(range)?;
            channels.remove(id);
        }
        Ok(())
    }

    /// Returns the subscribers that the event loop must watch for the devices.
    pub fn subscribers(&self) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        self.board.bus().subscribers()
    }

    /// Starts the vCPUs, or resumes them after a pause.
    pub fn run(&mut self) {
        match self.paused.take() {
            Some(paused) => {
                self.functions.iter().for_each(|function| function.resume());
                paused.resume(&self.vm, &self.vcpus);
            }
            None => self.tell(&VcpuCommand::Run),
        }
    }

    /// Makes the vCPUs leave the guest until [`Self::run`], and waits until
    /// they have left and devices have ended what they had under way: nothing
    /// changes the memory of a paused guest.
    pub fn pause(&mut self) {
        if self.paused.is_some() {
            return;
        }
        let paused = crate::vcpu::pause(&self.vm, &self.vcpus);
        if paused.is_late() {
            log::warn!("a vCPU takes long to pause");
        }
        self.paused = Some(paused);
        let end = Instant::now() + SETTLE_TIMEOUT;
        for function in &self.functions {
            if !function.pause(end) {
                let name = function.name();
                log::warn!("{name} is paused while the host still reads or writes for it");
            }
        }
    }

    /// Returns whether the machine is paused.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// Passes input typed on the console to the guest, as far as it accepts it.
    pub fn feed_console(&self) {
        self.board.feed_console();
    }

    /// Requests the registers of all vCPUs, or of one.
    pub fn read_registers(&self, cpu: Option<u8>, request: ReadRequest) {
        for (index, vcpu) in (0_u8..).zip(&self.vcpus) {
            if cpu.is_none_or(|cpu| cpu == index) {
                vcpu.send(VcpuCommand::Read(request));
            }
        }
    }

    /// Returns why the guest has come to an end that no vCPU leaves it for: all
    /// of them have halted permanently, or loop after a panic. To be asked after
    /// each [pause](Self::next_look) while the guest runs.
    pub fn silent_end(&mut self) -> Option<EndReason> {
        if self.paused.is_some() {
            return None;
        }
        if self.halt.check(&mut self.vcpus) {
            return Some(self.log.judge(EndReason::Halt));
        }
        let stands = self.standstill.check(self.log.stands(), &self.vcpus);
        stands.then_some(EndReason::Panic)
    }

    /// Returns how long to wait before the next call of [`Self::silent_end`].
    pub fn next_look(&self) -> Duration {
        match self.log.stands() {
            true => LOOK,
            false => self.halt.next_look(),
        }
    }

    /// Notes that the guest may do something now; returns whether it was given a
    /// longer pause.
    pub fn expect_change(&mut self) -> bool {
        self.halt.expect_change()
    }

    /// Stops all vCPUs. Their registers are on the board afterwards.
    pub fn stop(mut self) {
        self.tell(&VcpuCommand::Stop);
        for vcpu in std::mem::take(&mut self.vcpus) {
            vcpu.finish();
        }
    }

    fn tell(&self, command: &VcpuCommand) {
        for vcpu in &self.vcpus {
            vcpu.send(command.clone());
        }
    }
}

/// The functions of a guest, in their slots.
struct Functions {
    bridge: HostBridge,
    devices: Vec<Arc<VirtioFunction>>,
    /// The function of its channels, unless a device has the last slot.
    channels: Option<Arc<ChannelFunction>>,
}

/// Creates the PCI bridge with a slot for each of `devices`, and with the last one for
/// channels; `windows` are that of the bridge above 4 GiB, and the channel area.
fn functions(
    vm: &Vm,
    devices: Vec<Box<dyn VirtioDevice>>,
    windows: (Option<AddrRange>, Option<AddrRange>),
    status: &BoardWriter,
) -> Result<Functions, MachineError> {
    let (pci_high, area) = windows;
    let wiring: Arc<dyn Wiring> = Arc::new(vm.wires());
    let lines = Lines::new(Arc::clone(&wiring));
    let count = devices.len();
    let (mut slots, mut functions) = (Vec::new(), Vec::new());
    for (index, (device, number)) in devices.into_iter().zip(1..PCI_SLOTS).enumerate() {
        let too_many = MachineError::Devices { count };
        let surroundings = Surroundings {
            slot: number,
            memory: Arc::clone(vm.memory()) as Arc<dyn GuestSpace>,
            wiring: Arc::clone(&wiring),
            lines: &lines,
            counters: status.device(index).ok_or(too_many)?,
        };
        let function = VirtioFunction::new(device, surroundings).map_err(BoardError::Io)?;
        functions.push(Arc::clone(&function));
        slots.push(Slot { number, function });
    }
    if slots.len() < count {
        return Err(MachineError::Devices { count });
    }
    let mut channels = None;
    if slots.iter().all(|slot| slot.number != CHANNEL_SLOT) {
        let function =
            ChannelFunction::new(CHANNEL_SLOT, area, wiring, &lines).map_err(BoardError::Io)?;
        channels = Some(Arc::clone(&function));
        slots.push(Slot {
            number: CHANNEL_SLOT,
            function,
        });
    }
    let high = pci_high.map(|high| (high.start(), high.last()));
    Ok(Functions {
        bridge: HostBridge::new(Windows { high }, slots),
        devices: functions,
        channels,
    })
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Tell all of them before the first is joined: one may wait for
        // another.
        self.tell(&VcpuCommand::Stop);
    }
}
