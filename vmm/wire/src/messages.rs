//! The orders of a manager and the reports of its children.
//!
//! ```text
//!   manager                                   worker
//!     Kvm      [/dev/kvm]            ────────►  (a worker of the stock)
//!     Prepare                        ────────►
//!                                    ◄──────── Done(Ok(Prepared))
//!
//!     Identity [console, bell, board] ───────►
//!     Memory   [a file per extent]   ────────►  (as often as needed)
//!     Load     [kernel, archives …]  ────────►
//!     Kvm      [/dev/kvm]            ────────►  (any other: it creates its VM)
//!                                    ◄──────── Done(Ok(Loaded))
//!     Channel  [memory, doorbells]   ────────►  (for each channel)
//!                                    ◄──────── Done(Ok(Joined))
//!     Boot     [those of devices]    ────────►
//!                                    ◄──────── Done(Ok(Booted))
//!     Run                            ────────►
//!                                    ◄──────── Reached, Mark, Violation, …
//!     Pause                          ────────►
//!                                    ◄──────── Done(Ok(Paused))
//!                                    ◄──────── Ended, and the process exits
//! ```
//!
//! A manager that takes the place of another says hello again and asks for the
//! [`WorkerState`].
//!
//! [`Order::Prepare`], [`Order::Load`], [`Order::Boot`] and [`Order::Pause`] are
//! each answered by one [`Report::Done`], in the order in which they were sent. All other
//! reports are notifications: they may be dropped when the socket is full, and
//! only what users are shown depends on them.

use std::ops::RangeInclusive;

use mkvmm_base::registers::Registers;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Stage;
use mkvmm_base::unpacking::{Job, UnpackError, Unpacked};
use mkvmm_base::violation::{Violation, ViolationPolicy};
use serde::{Deserialize, Serialize};

use crate::channel::{DESCRIPTORS_MAX, Message};
use crate::devices::Device;

/// The maximum number of initramfs archives of one instance.
pub const ARCHIVES_MAX: usize = 64;
/// The descriptors of [`Order::Identity`]: the console, its doorbell, and the
/// board.
const IDENTITY_DESCRIPTORS: usize = 3;

/// A range of an address space or of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first address or offset.
    pub start: u64,
    /// The length in bytes.
    pub len: u64,
}

/// A leaf of the CPUID that KVM supports, as `KVM_GET_SUPPORTED_CPUID` returns
/// it (Documentation/virt/kvm/api.rst, 4.46). That call takes longer than
/// creating a VM, so one process makes it for all workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// The value of EAX that selects the leaf.
    pub function: u32,
    /// The value of ECX that selects the subleaf.
    pub index: u32,
    /// The `KVM_CPUID_FLAG_*` bits, which tell whether `index` is significant.
    pub flags: u32,
    /// The value of EAX in the leaf.
    pub eax: u32,
    /// The value of EBX in the leaf.
    pub ebx: u32,
    /// The value of ECX in the leaf.
    pub ecx: u32,
    /// The value of EDX in the leaf.
    pub edx: u32,
}

/// The identity of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The number of its instance.
    pub id: u32,
    /// The name of its instance, for log messages.
    pub name: String,
    /// The page size of its memory files in bytes.
    pub page: u64,
    /// True if its memory should use transparent huge pages.
    pub huge_pages: bool,
}

/// A part of a kernel: a range of the sealed file and its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// The range of the file.
    pub file: Extent,
    /// The guest-physical address of the first byte.
    pub addr: u64,
}

/// The images to copy into the guest's memory, which is zero before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// The parts of the kernel, from the first descriptor.
    pub kernel: Vec<Copy>,
    /// The archives of the initramfs, each a whole file with a descriptor of
    /// its own.
    pub archives: Vec<Copy>,
}

/// A row of the guest's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRow {
    /// The guest-physical addresses of the row.
    pub extent: Extent,
    /// The type of the range, as e820 numbers it.
    pub kind: u32,
}

/// Everything needed to build a machine, computed from the ledger when the
/// guest is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrder {
    /// The number of vCPUs.
    pub cpus: u8,
    /// The host processors that the vCPUs may use, as a list such as `2-5,7`.
    pub affinity: Option<String>,
    /// The response when the guest accesses memory it does not own.
    pub violation: ViolationPolicy,
    /// The range of the whole pool.
    pub pool: Extent,
    /// The pool addresses that the guest also sees at address 0.
    pub low_window: Extent,
    /// The range of the kernel.
    pub kernel: Extent,
    /// The range of the initramfs with its exact size, if there is one.
    pub initramfs: Option<Extent>,
    /// The address of the kernel's 64-bit entry point.
    pub entry: u64,
    /// The setup header of a bzImage.
    pub setup_header: Option<Vec<u8>>,
    /// The memory map, in ascending order.
    pub e820: Vec<MapRow>,
    /// The manifest, a flattened device tree.
    pub manifest: Vec<u8>,
    /// The command line without its NUL.
    pub cmdline: Vec<u8>,
    /// The devices, in the order of their PCI slots.
    pub devices: Vec<Device>,
}

/// An order of the manager to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Tells the worker its identity; this is the first order about a guest.
    Identity(Identity),
    /// Provides `/dev/kvm` and the CPUID that it supports; sent before
    /// [`Self::Boot`].
    Kvm(Vec<CpuidLeaf>),
    /// Provides memory: the pool addresses of as many files, each of which is
    /// exactly as long as its extent.
    Memory(Vec<Extent>),
    /// Copies images. The worker answers it.
    Load(LoadOrder),
    /// Writes the boot data and creates the VM, its devices and vCPUs, without
    /// running them. Its descriptors are those of the devices, in their order.
    /// The worker answers it.
    Boot(Box<BootOrder>),
    /// Starts the vCPUs, or resumes them after a pause.
    Run,
    /// Makes the vCPUs leave the guest until [`Order::Run`]. The worker answers
    /// it.
    Pause,
    /// Presses the ACPI power button.
    PowerButton,
    /// Requests the registers of vCPUs.
    Registers {
        /// An identifier that is returned with each answer.
        ticket: u64,
        /// The index of the vCPU; `None` for all.
        cpu: Option<u8>,
        /// A guest-virtual address that KVM should translate as well.
        translate: Option<u64>,
    },
    /// Asks what the worker is doing: the first order of a manager that has
    /// taken the place of another. The number comes back with the answer.
    State(u64),
    /// Creates what does not depend on the guest, for one that is not known yet:
    /// the VM, its interrupt controllers and timer, and the first vCPU. The range is
    /// that of the whole pool. The worker answers it.
    Prepare(Extent),
    /// Gives the guest a channel, before [`Self::Boot`] or while there is a machine.
    /// The worker answers it; one that the guest has already is ignored. Since
    /// version 5.
    Channel(ChannelOrder),
    /// Takes the channel with this number away from the guest. The worker answers it;
    /// one that the guest does not have is ignored. Since version 5.
    LeaveChannel(u32),
    /// Names the part of the pool that all channels are in, before [`Self::Boot`]; no
    /// order if there is none. Since version 6.
    ChannelArea(Extent),
}

impl Message for Order {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        let count = match self {
            Self::Kvm(_) => 1,
            Self::Identity(_) => IDENTITY_DESCRIPTORS,
            Self::Memory(extents) => extents.len(),
            Self::Load(order) => 1 + order.archives.len(),
            Self::Boot(order) => order.devices.iter().map(Device::descriptors).sum(),
            Self::Channel(order) => order.descriptors(),
            _ => 0,
        };
        count..=count
    }
}

/// The maximum number of channels of a guest.
pub const CHANNELS_MAX: usize = 8;
/// The maximum number of doorbells that each member of a channel has.
pub const DOORBELLS_MAX: u8 = 4;

/// A channel, as one of its members gets it. The descriptors are the files of the
/// memory, the page of the members' states, the doorbell that tells this member of
/// changes there, and the eventfds of all members, one member after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelOrder {
    /// The number of the channel.
    pub id: u32,
    /// The pool addresses of the files of its memory, without gaps.
    pub extents: Vec<Extent>,
    /// Whether the member can only read the memory.
    pub read_only: bool,
    /// The number of the member, from 0.
    pub member: u8,
    /// The number of members.
    pub members: u8,
    /// The number of doorbells that each member has.
    pub doorbells: u8,
}

impl ChannelOrder {
    /// The version of the protocol from which on a worker knows it.
    pub const SINCE: u32 = 5;

    /// Returns the number of descriptors that come with it.
    pub fn descriptors(&self) -> usize {
        let doorbells = usize::from(self.members) * usize::from(self.doorbells);
        self.extents.len() + 2 + doorbells
    }
}

/// The result of an order that is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// The images are in the guest's memory.
    Loaded,
    /// The machine was created, with these memory slots.
    Booted {
        /// The guest-physical ranges of the slots, in ascending order.
        slots: Vec<Extent>,
    },
    /// No vCPU is in the guest any more.
    Paused,
    /// Everything is there that does not depend on the guest.
    Prepared,
    /// The guest has the channel.
    Joined,
    /// The guest does not have the channel, and the process neither.
    Left,
}

/// The reason why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The error and its causes on one line.
    pub text: String,
    /// What is at fault.
    pub kind: RefusalKind,
}

/// What is at fault when an order is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// KVM, the host or mkvmm itself.
    Failure,
    /// The guest's images or map, which find no room.
    Room,
    /// The host, which has no more threads, memory or descriptors for it.
    Shortage,
}

/// The level of a line of a child's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// An operation failed.
    Error,
    /// Something is unusual and may need attention.
    Warn,
    /// A normal event of interest.
    Info,
    /// Information that is useful to developers.
    Debug,
}

/// A report of a worker to its manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Answers the oldest unanswered order.
    Done(Result<Done, Refusal>),
    /// Reports that the guest has ended and the process is about to exit. The
    /// manager relies on it only once the process is gone.
    Ended(EndReason),
    /// Reports that the guest accessed memory it does not own.
    Violation {
        /// The access that the guest made.
        violation: Violation,
        /// True if later violations are only counted.
        last_reported: bool,
    },
    /// Reports that a stage of the boot was reached.
    Reached {
        /// The stage that was reached.
        stage: Stage,
        /// The time in nanoseconds of CLOCK_MONOTONIC.
        at: u64,
    },
    /// Reports that the guest wrote a mark to a debug port.
    Mark {
        /// The time in nanoseconds of CLOCK_MONOTONIC.
        at: u64,
        /// The text of the mark.
        text: String,
    },
    /// Reports the registers of a vCPU.
    Registers {
        /// The identifier from the order.
        ticket: u64,
        /// The number of the vCPU, from 0.
        cpu: u8,
        /// The contents of the registers.
        registers: Box<Registers>,
        /// The answer to `translate`; the inner `None` means that the address
        /// is not mapped.
        translated: Option<Option<u64>>,
    },
    /// Passes on a log message.
    Log {
        /// The level of the message.
        level: LogLevel,
        /// The text, one line without a newline.
        text: String,
    },
    /// Answers [`Order::State`] once.
    State {
        /// The number from the order.
        number: u64,
        /// What the worker is doing.
        state: WorkerState,
    },
}

impl Message for Report {}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It has no machine yet.
    Preparing,
    /// Its machine was created and has never run.
    Booted,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs were made to leave the guest.
    Paused,
}

/// A range of one of the files that came with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    /// The index of the descriptor, from 0.
    pub file: u32,
    /// The range of that file.
    pub extent: Extent,
}

/// The order to a cleaner: make parts of the attached files read as zero. It is
/// answered by one [`Cleaned`], and the process exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanOrder {
    /// True to overwrite the pages; false to give them back to the host.
    pub keep_pages: bool,
    /// The number of attached files.
    pub files: u32,
    /// The parts to be cleaned.
    pub parts: Vec<FilePart>,
}

impl Message for CleanOrder {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        let count = self.files as usize;
        count..=count
    }
}

/// The result of a [`CleanOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned(pub Result<(), String>);

impl Message for Cleaned {}

/// The order to an unpacker, with two descriptors: the image, and the output
/// file. It is answered by one [`UnpackReport`], and the process exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackOrder(pub Job);

impl Message for UnpackOrder {
    const DESCRIPTORS_MAX: usize = 2;

    fn descriptors(&self) -> RangeInclusive<usize> {
        2..=2
    }
}

/// The result of an [`UnpackOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport(pub Result<Unpacked, UnpackError>);

impl Message for UnpackReport {}

/// Tells a network device of another member of its segment, with the socket to it.
/// A member whose number is known has a new socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentNews {
    /// The number of the member, which no other one on the segment has.
    pub id: u64,
    /// The address of the member's device.
    pub mac: [u8; 6],
}

impl Message for SegmentNews {
    const DESCRIPTORS_MAX: usize = 1;

    fn descriptors(&self) -> RangeInclusive<usize> {
        1..=1
    }
}

/// What a network device says to the manager: nothing but hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SegmentReport {}

impl Message for SegmentReport {}

/// The order to a helper: to execute a program that is not mkvmm's, with three
/// descriptors: the one that the program is told by [`Self::link`], a file for its
/// standard output and error, and a pipe into which it writes its process ID by
/// [`Self::ready`]. There is an answer only if it cannot be executed; otherwise the
/// channel ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperOrder {
    /// The path of the program.
    pub program: String,
    /// The arguments of the program.
    pub arguments: Vec<String>,
    /// The option that is followed by the number of the first descriptor.
    pub link: String,
    /// The option that is followed by the path of the pipe.
    pub ready: String,
}

impl Message for HelperOrder {
    const DESCRIPTORS_MAX: usize = 3;

    fn descriptors(&self) -> RangeInclusive<usize> {
        3..=3
    }
}

/// The reason why a helper cannot execute its program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperFailure(pub String);

impl Message for HelperFailure {}
