//! Carries out the orders of the manager.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::EventSubscriber;
use kvm_ioctls::Kvm;
use mkpool::AddrRange;
use mkpool::range::RangeError;
use mkvmm_base::affinity::{CpuSet, CpuSetError};
use mkvmm_base::layout::{self, PCI_WINDOW_64_SIZE};
use mkvmm_base::state::EndReason;
use mkvmm_base::{InstanceName, NameError, chain};
use mkvmm_memory::e820::{E820Entry, E820Type};
use mkvmm_wire::WireError;
use mkvmm_wire::messages::{
    BootOrder, ChannelOrder, Copy, Done, Extent, Identity, LoadOrder, MapRow, Order, Refusal,
    RefusalKind, WorkerState,
};
use mkvmm_wire::shared::SharedError;
use mkvmm_wire::shared::bell::Bell;
use mkvmm_wire::shared::board::{Board, BoardWriter};
use mkvmm_wire::shared::console;

use crate::boot::writer::BootData;
use crate::devices::pci::channel_port::Port;
use crate::kvm::host::{Host, HostError};
use crate::kvm::{BareVm, VmError};
use crate::loading::{self, LoadError, Piece};
use crate::machine::{BootConfig, Connections, EarlyMachine, Machine, MachineError};
use crate::memory::{GuestMemory, MemoryError, MemoryPart, PoolMapping, SharedMemory};
use crate::news::NewsSink;
use crate::vcpu::ReadRequest;
use crate::worker::channels::{self, ChannelError};
use crate::worker::console::SharedConsole;
use crate::worker::devices::{self, DeviceError};
use crate::worker::disks::Rings;
use crate::worker::news::Reporter;

/// A reason why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// An order came before another one that must come first.
    #[error("internal error: {order} came before {missing}")]
    TooEarly {
        /// The name of the order.
        order: &'static str,
        /// The precondition that is missing.
        missing: &'static str,
    },
    /// The number of descriptors does not match the order.
    #[error("internal error: {order} came without its descriptors")]
    Descriptors {
        /// The name of the order.
        order: &'static str,
    },
    /// The name of the instance is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The shared memory cannot be opened.
    #[error("the shared memory cannot be opened")]
    Shared(#[from] SharedError),
    /// KVM cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A range is invalid.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The list of processors is invalid.
    #[error(transparent)]
    Affinity(#[from] CpuSetError),
    /// The memory cannot be mapped.
    #[error("its memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// An image cannot be copied.
    #[error("loading failed")]
    Load(#[from] LoadError),
    /// The machine cannot be created.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A device cannot be created.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A channel cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The answer cannot be sent.
    #[error("the manager cannot be answered")]
    Wire(#[from] WireError),
}

impl OrderError {
    fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Machine(MachineError::BootData(error)) if error.is_room() => RefusalKind::Room,
            _ if is_shortage(self) => RefusalKind::Shortage,
            _ => RefusalKind::Failure,
        };
        Refusal {
            text: chain(self),
            kind,
        }
    }
}

/// Whether the host is short of something, which KVM says in its own way.
fn is_shortage(error: &OrderError) -> bool {
    let of_kvm = |error: &kvm_ioctls::Error| io::Error::from_raw_os_error(error.errno());
    let causes = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
    let mut of_kvm = causes.filter_map(|cause| cause.downcast_ref().map(of_kvm));
    mkvmm_base::is_shortage(error) || of_kvm.any(|error| mkvmm_base::is_shortage(&error))
}

/// The identity of the worker, once it was received.
#[derive(Debug)]
struct Me {
    name: InstanceName,
    console: Arc<SharedConsole>,
    bell: Bell,
    board: BoardWriter,
    page: usize,
    huge_pages: bool,
}

/// An empty VM, created by a worker before it received any order.
#[derive(Debug)]
pub struct EarlyVm(BareVm);

/// Shows the name of an instance to people, once.
pub type Show = Box<dyn FnOnce(&str)>;

/// What a worker has that was started before its instance was known.
#[derive(Default)]
pub struct Beginning {
    /// The VM that it has already created, if any.
    pub vm: Option<EarlyVm>,
    /// Shows the name of its instance, once that is known.
    pub show: Option<Show>,
    /// The rings for the disks of its guest.
    pub rings: Rings,
}

impl EarlyVm {
    /// Opens `/dev/kvm` and creates a VM; `None` if that fails, which is
    /// reported when the VM is needed.
    pub fn new() -> Option<Self> {
        let kvm = Kvm::new().ok()?;
        BareVm::new(&kvm).ok().map(Self)
    }
}

impl fmt::Debug for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beginning")
            .field("vm", &self.vm)
            .finish_non_exhaustive()
    }
}

/// The state of this worker's guest.
pub struct Guest {
    // First, so that no vCPU outlives the memory.
    machine: Option<Machine>,
    reporter: Reporter,
    host: Option<Host>,
    /// The VM that was created in advance, until the machine exists; an error is
    /// the answer to the order that needs the VM.
    vm: Option<Result<EarlyMachine, VmError>>,
    me: Option<Me>,
    /// Shows the name of its instance, if nothing shows it yet.
    show: Option<Show>,
    /// The rings that no disk has yet.
    rings: Rings,
    /// The memory files, until the machine is created.
    parts: Vec<MemoryPart>,
    mapping: Option<Arc<PoolMapping>>,
    /// The channels, until the machine is created.
    channels: Vec<(Port, SharedMemory)>,
    /// The part of the pool that all channels are in, if there is one.
    channel_area: Option<AddrRange>,
    is_running: bool,
    /// True once the vCPUs were started.
    has_run: bool,
    subscribers: Vec<Arc<dyn EventSubscriber + Send + Sync>>,
}

impl Guest {
    /// Creates the state before any order.
    pub fn new(reporter: Reporter, beginning: Beginning) -> Self {
        Self {
            machine: None,
            reporter,
            host: None,
            vm: beginning.vm.map(|early| Ok(early.0.into())),
            me: None,
            show: beginning.show,
            rings: beginning.rings,
            parts: Vec::new(),
            mapping: None,
            channels: Vec::new(),
            channel_area: None,
            is_running: false,
            has_run: false,
            subscribers: Vec::new(),
        }
    }

    /// Returns the reporter to the manager.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Returns the doorbell that signals typed input.
    pub fn bell(&self) -> Option<Bell> {
        self.me.as_ref().map(|me| me.bell.clone())
    }

    /// Returns the devices that the loop must watch from now on, once.
    pub fn take_subscribers(&mut self) -> Vec<Arc<dyn EventSubscriber + Send + Sync>> {
        std::mem::take(&mut self.subscribers)
    }

    /// Handles the doorbell of typed input.
    pub fn on_typed(&self) {
        let Some(me) = &self.me else {
            return;
        };
        me.bell.answer();
        // Announce before checking, so that input arriving later rings again.
        me.console.await_input();
        if let Some(machine) = &self.machine {
            machine.feed_console();
        }
    }

    /// Returns why the guest has ended, if it has without a vCPU that left it.
    pub fn silent_end(&mut self) -> Option<EndReason> {
        let machine = self.machine.as_mut().filter(|_| self.is_running)?;
        machine.silent_end()
    }

    /// Returns how long to wait before the next call of [`Self::silent_end`]; `None`
    /// while no guest runs.
    pub fn next_look(&self) -> Option<Duration> {
        let machine = self.machine.as_ref().filter(|_| self.is_running)?;
        Some(machine.next_look())
    }

    /// Notes that the guest may do something now; returns whether it was given a
    /// longer pause.
    pub fn expect_change(&mut self) -> bool {
        let machine = self.machine.as_mut();
        machine.is_some_and(Machine::expect_change)
    }

    /// Leaves the reason of the end in shared memory, for a manager whose channel
    /// has no room for it.
    pub fn note_end(&self, reason: EndReason) {
        if let Some(me) = &self.me {
            me.board.end(reason.number());
        }
    }

    /// Stops the vCPUs.
    pub fn stop(&mut self) {
        self.is_running = false;
        if let Some(machine) = self.machine.take() {
            machine.stop();
        }
    }

    /// Carries out an order, and answers it if it is one that has an answer.
    ///
    /// # Errors
    /// Returns an [`OrderError`] for an order that has no answer, and if the
    /// manager cannot be answered.
    pub fn carry_out(&mut self, order: Order, files: Vec<OwnedFd>) -> Result<(), OrderError> {
        match order {
            Order::Kvm(leaves) => {
                let order = "KVM";
                let [kvm]: [OwnedFd; 1] = files
                    .try_into()
                    .or(Err(OrderError::Descriptors { order }))?;
                let host = Host::examined(kvm, &leaves)?;
                self.vm.get_or_insert_with(|| early_machine(&host));
                self.host = Some(host);
            }
            Order::Prepare(pool) => {
                let prepared = self.prepare(pool);
                self.answer(prepared.map(|()| Done::Prepared))?;
            }
            Order::Identity(identity) => self.become_one(&identity, files)?,
            Order::Memory(extents) => {
                for (extent, file) in extents.into_iter().zip(files) {
                    let range = range(extent)?;
                    self.parts.push(MemoryPart { range, file });
                }
            }
            Order::Channel(order) => {
                let joined = self.join(&order, files);
                self.answer(joined.map(|()| Done::Joined))?;
            }
            Order::LeaveChannel(id) => {
                let left = self.leave(id);
                self.answer(left.map(|()| Done::Left))?;
            }
            Order::ChannelArea(extent) => self.channel_area = Some(range(extent)?),
            Order::Load(order) => {
                let loaded = self.load(&order, &files);
                self.answer(loaded.map(|()| Done::Loaded))?;
            }
            Order::Boot(order) => {
                let slots = self.boot(&order, files);
                self.answer(slots.map(|slots| Done::Booted { slots }))?;
                if let Some(machine) = &mut self.machine {
                    // While the manager reads the answer.
                    machine.complete()?;
                    // No other VM is made, and nothing else needs /dev/kvm.
                    self.host = None;
                }
            }
            Order::Run => {
                if let Some(machine) = &mut self.machine {
                    machine.run();
                    (self.is_running, self.has_run) = (true, true);
                }
            }
            Order::Pause => {
                if let Some(machine) = &mut self.machine {
                    machine.pause();
                }
                self.is_running = false;
                self.answer(Ok(Done::Paused))?;
            }
            Order::PowerButton => {
                if let Some(machine) = &self.machine {
                    machine.press_power_button();
                }
            }
            Order::Registers {
                ticket,
                cpu,
                translate,
            } => {
                if let Some(machine) = &self.machine {
                    machine.read_registers(cpu, ReadRequest { ticket, translate });
                }
            }
            Order::State(number) => self.reporter.report_state(number, self.state())?,
        }
        Ok(())
    }

    fn state(&self) -> WorkerState {
        match (&self.machine, self.is_running, self.has_run) {
            (None, ..) => WorkerState::Preparing,
            (Some(_), true, _) => WorkerState::Running,
            (Some(_), false, true) => WorkerState::Paused,
            (Some(_), false, false) => WorkerState::Booted,
        }
    }

    fn answer(&self, result: Result<Done, OrderError>) -> Result<(), OrderError> {
        let answer = result.map_err(|error| error.refusal());
        Ok(self.reporter.answer(answer)?)
    }

    /// Creates what does not depend on the guest.
    fn prepare(&mut self, pool: Extent) -> Result<(), OrderError> {
        let (order, missing) = ("a preparation", "KVM");
        let early = || OrderError::TooEarly { order, missing };
        let host = self.host.as_ref().ok_or_else(early)?;
        let vm = self
            .vm
            .take()
            .ok_or_else(early)?
            .map_err(MachineError::Vm)?;
        self.vm = Some(Ok(vm.with_devices(host, range(pool)?)?));
        Ok(())
    }

    fn become_one(&mut self, identity: &Identity, files: Vec<OwnedFd>) -> Result<(), OrderError> {
        let order = "an identity";
        let files: [OwnedFd; 3] = files
            .try_into()
            .or(Err(OrderError::Descriptors { order }))?;
        let [console, bell, board] = files;
        let bell = Bell::from(bell);
        let (printer, input) = console::Console::open(console)?.worker(&bell);
        let console = Arc::new(SharedConsole::new(printer, input));
        console.await_input();
        if let Some(show) = self.show.take() {
            show(&identity.name);
        }
        self.me = Some(Me {
            name: identity.name.parse()?,
            console,
            bell,
            board: Board::open(board)?.writer(),
            // No page is larger than the address space.
            page: usize::try_from(identity.page).unwrap_or(usize::MAX),
            huge_pages: identity.huge_pages,
        });
        Ok(())
    }

    fn me(&self, order: &'static str) -> Result<&Me, OrderError> {
        let missing = "an identity";
        self.me
            .as_ref()
            .ok_or(OrderError::TooEarly { order, missing })
    }

    fn load(&mut self, order: &LoadOrder, files: &[OwnedFd]) -> Result<(), OrderError> {
        let name = "a load";
        let me = self.me(name)?;
        let (page, huge_pages) = (me.page, me.huge_pages);
        let mapping = PoolMapping::new(&self.parts, page, huge_pages)?;
        let mapping = Arc::new(mapping);
        let memory = GuestMemory::new(&mapping, None)?;
        let descriptors = OrderError::Descriptors { order: name };
        let (kernel, archives) = files.split_first().ok_or(descriptors)?;
        for copy in &order.kernel {
            self.copy(&memory, kernel, copy)?;
        }
        for (copy, archive) in order.archives.iter().zip(archives) {
            self.copy(&memory, archive, copy)?;
        }
        self.mapping = Some(mapping);
        Ok(())
    }

    fn copy(&self, memory: &GuestMemory, file: &OwnedFd, copy: &Copy) -> Result<(), OrderError> {
        let Ok(place) = AddrRange::with_size(copy.addr, copy.file.len) else {
            return Ok(()); // nothing to copy
        };
        let offset = copy.file.start;
        Ok(loading::copy(
            memory,
            &self.parts,
            file,
            Piece { offset, place },
        )?)
    }

    fn join(&mut self, order: &ChannelOrder, files: Vec<OwnedFd>) -> Result<(), OrderError> {
        let me = self.me("a channel")?;
        let (port, memory) = channels::open(order, files, me.page, me.huge_pages)?;
        match &mut self.machine {
            Some(machine) => machine.join(port, memory)?,
            None => {
                let is_new = self.channels.iter().all(|(own, _)| own.id != port.id);
                self.channels.extend(is_new.then_some((port, memory)));
            }
        }
        Ok(())
    }

    fn leave(&mut self, id: u32) -> Result<(), OrderError> {
        self.channels.retain(|(port, _)| port.id != id);
        match &mut self.machine {
            Some(machine) => Ok(machine.leave(id)?),
            None => Ok(()),
        }
    }

    fn boot(&mut self, order: &BootOrder, files: Vec<OwnedFd>) -> Result<Vec<Extent>, OrderError> {
        let vm = self.vm.take();
        let channels = std::mem::take(&mut self.channels);
        let devices = devices::build(&order.devices, files, &mut self.rings)?;
        let name = "a boot";
        let missing = "its images";
        let mapping = self.mapping.as_ref();
        let mapping = mapping.ok_or(OrderError::TooEarly {
            order: name,
            missing,
        })?;
        let me = self.me(name)?;
        let missing = "KVM";
        let host = self.host.as_ref();
        let host = host.ok_or(OrderError::TooEarly {
            order: name,
            missing,
        })?;
        let memory = GuestMemory::new(mapping, Some(range(order.low_window)?))?;
        let e820 = order.e820.iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let affinity: Option<CpuSet> = match &order.affinity {
            Some(list) => Some(list.parse()?),
            None => None,
        };
        let pool = range(order.pool)?;
        let bits = u8::try_from(host.address_bits()).unwrap_or(u8::MAX);
        let pci_high = layout::pci_window_64(bits, pool.start(), pool.last());
        let pci_high = pci_high.map(|start| AddrRange::with_size(start, PCI_WINDOW_64_SIZE));
        let pci_high = pci_high.transpose()?;
        let windows: Vec<AddrRange> = pci_high.into_iter().chain(self.channel_area).collect();
        let config = BootConfig {
            name: &me.name,
            affinity,
            pool,
            entry: order.entry,
            boot: BootData {
                cpus: order.cpus,
                kernel: range(order.kernel)?,
                initramfs: order.initramfs.map(range).transpose()?,
                setup_header: order.setup_header.as_deref(),
                e820: &e820,
                manifest: &order.manifest,
                cmdline: &order.cmdline,
                pci_high: &windows,
            },
        };
        let connections = Connections {
            console: Arc::clone(&me.console) as Arc<dyn crate::console::Console>,
            news: Arc::new(self.reporter.clone()) as Arc<dyn NewsSink>,
            board: me.board.clone(),
            devices,
            channels,
            pci_high,
            channel_area: self.channel_area,
        };
        let memory = Arc::new(memory);
        let vm = vm.unwrap_or_else(|| early_machine(host));
        let vm = vm.map_err(MachineError::Vm)?;
        let mut machine = Machine::new(host, vm, memory, order.violation, connections)?;
        machine.boot(host, &config)?;
        let slots = machine.slots().into_iter().map(|slot| Extent {
            start: slot.start(),
            len: slot.size(),
        });
        let slots = slots.collect();
        self.subscribers = machine.subscribers();
        self.machine = Some(machine);
        // The files are mapped, so they are not needed any more.
        self.parts = Vec::new();
        Ok(slots)
    }
}

/// Creates no more than a VM: the rest comes after the memory.
fn early_machine(host: &Host) -> Result<EarlyMachine, VmError> {
    BareVm::new(host.kvm()).map(EarlyMachine::from)
}

fn range(extent: Extent) -> Result<AddrRange, RangeError> {
    AddrRange::with_size(extent.start, extent.len)
}

fn row(row: &MapRow) -> Result<E820Entry, RangeError> {
    Ok(E820Entry {
        range: range(row.extent)?,
        kind: E820Type::from_raw(row.kind),
    })
}
