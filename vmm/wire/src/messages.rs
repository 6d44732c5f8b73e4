//! What a manager orders and what its children report.
//!
//! ```text
//!   manager                                   worker
//!     Identity [kvm, console …]      ────────►
//!     Memory   [a file per extent]   ────────►  (as often as needed)
//!     Load     [kernel, archives …]  ────────►
//!                                    ◄──────── Done(Ok(Loaded))
//!     Boot                           ────────►
//!                                    ◄──────── Done(Ok(Booted))
//!     Run                            ────────►
//!                                    ◄──────── Reached, Mark, Violation, …
//!     Pause                          ────────►
//!                                    ◄──────── Done(Ok(Paused))
//!                                    ◄──────── Ended, and the process exits
//! ```
//!
//! [`Order::Load`], [`Order::Boot`] and [`Order::Pause`] are each answered by
//! one [`Report::Done`], in the order in which they were sent. Everything else
//! that a worker says is news: it may be dropped when the socket is full, and
//! nothing depends on it but what people are told.

use std::ops::RangeInclusive;

use mkvmm_base::registers::Registers;
use mkvmm_base::state::EndReason;
use mkvmm_base::timeline::Stage;
use mkvmm_base::unpacking::{Job, UnpackError, Unpacked};
use mkvmm_base::violation::{Violation, ViolationPolicy};
use serde::{Deserialize, Serialize};

use crate::channel::{DESCRIPTORS_MAX, Message};

/// Most archives of an initramfs that one instance may have.
pub const ARCHIVES_MAX: usize = 64;
/// Descriptors of [`Order::Identity`]: `/dev/kvm`, the console, its bell, the
/// board.
const IDENTITY_DESCRIPTORS: usize = 4;

/// A part of an address space, or of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The first address or offset.
    pub start: u64,
    /// The length in bytes.
    pub len: u64,
}

/// Who a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The number of its instance.
    pub id: u32,
    /// The name of its instance, for what it logs.
    pub name: String,
    /// The size of a page of its memory files, bytes.
    pub page: u64,
    /// Whether its memory is to ask for transparent huge pages.
    pub huge_pages: bool,
}

/// A part of a kernel: bytes of the sealed file and where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Where the bytes lie in the file.
    pub file: Extent,
    /// The guest-physical address of the first one.
    pub addr: u64,
}

/// Which bytes go where. The memory is zero before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// The parts of the kernel, out of the first descriptor.
    pub kernel: Vec<Copy>,
    /// The archives of the initramfs, each whole out of a descriptor of its own.
    pub archives: Vec<Copy>,
}

/// A row of the memory map that the guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRow {
    /// The guest-physical addresses of the row.
    pub extent: Extent,
    /// The type, as the e820 numbers them.
    pub kind: u32,
}

/// All that a machine is made from. Everything in it was computed from the
/// ledger when the guest was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootOrder {
    /// The number of vCPUs.
    pub cpus: u8,
    /// Host processors that the vCPUs may use, as a list such as `2-5,7`.
    pub affinity: Option<String>,
    /// What follows when the guest accesses memory it does not own.
    pub violation: ViolationPolicy,
    /// The range of the whole pool.
    pub pool: Extent,
    /// The pool addresses that the guest also sees from address 0.
    pub low_window: Extent,
    /// The kernel's place.
    pub kernel: Extent,
    /// The initramfs with its exact size, if there is one.
    pub initramfs: Option<Extent>,
    /// The address of the kernel's 64-bit entry.
    pub entry: u64,
    /// The setup header of a bzImage.
    pub setup_header: Option<Vec<u8>>,
    /// The memory map, ascending.
    pub e820: Vec<MapRow>,
    /// The manifest, a flattened device tree.
    pub manifest: Vec<u8>,
    /// The command line without its NUL.
    pub cmdline: Vec<u8>,
}

/// What a manager tells a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Says who the worker is; the first order.
    Identity(Identity),
    /// Gives memory: the extents, in pool addresses, of as many files, each of
    /// which is exactly as long as its extent.
    Memory(Vec<Extent>),
    /// Copies images. Answered.
    Load(LoadOrder),
    /// Writes the boot data, makes the VM, its devices and vCPUs, and runs
    /// nothing. Answered.
    Boot(Box<BootOrder>),
    /// Lets the vCPUs go, or go on after a pause.
    Run,
    /// Has the vCPUs leave the guest until [`Order::Run`]. Answered.
    Pause,
    /// Presses the ACPI power button.
    PowerButton,
    /// Asks vCPUs for their registers.
    Registers {
        /// Comes back with each answer.
        ticket: u64,
        /// The vCPU; all of them when `None`.
        cpu: Option<u8>,
        /// A guest-virtual address that KVM is to translate as well.
        translate: Option<u64>,
    },
}

impl Message for Order {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        let count = match self {
            Self::Identity(_) => IDENTITY_DESCRIPTORS,
            Self::Memory(extents) => extents.len(),
            Self::Load(order) => 1 + order.archives.len(),
            _ => 0,
        };
        count..=count
    }
}

/// What an answered order came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// The images are in the guest's memory.
    Loaded,
    /// The machine is there, with these memory slots.
    Booted {
        /// Guest-physical ranges of the slots, ascending.
        slots: Vec<Extent>,
    },
    /// No vCPU is in the guest.
    Paused,
}

/// Why an order was not carried out.
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

/// How loud a line of a child's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// An operation failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Something worth knowing.
    Info,
    /// Something for developers.
    Debug,
}

/// What a worker tells its manager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Answers the oldest order that was not answered yet.
    Done(Result<Done, Refusal>),
    /// The guest has ended; the process exits now. The manager believes it
    /// once the process is gone.
    Ended(EndReason),
    /// The guest accessed memory it does not own.
    Violation {
        /// The access that the guest made.
        violation: Violation,
        /// Whether later ones are only counted.
        last_reported: bool,
    },
    /// A stage of the boot was reached.
    Reached {
        /// The stage that was reached.
        stage: Stage,
        /// When: nanoseconds of CLOCK_MONOTONIC.
        at: u64,
    },
    /// The guest left a mark at a debug port.
    Mark {
        /// When: nanoseconds of CLOCK_MONOTONIC.
        at: u64,
        /// What it said.
        text: String,
    },
    /// A vCPU's registers.
    Registers {
        /// From the question.
        ticket: u64,
        /// The number of the vCPU, from 0.
        cpu: u8,
        /// What they hold.
        registers: Box<Registers>,
        /// The answer to `translate`; the inner `None` means not mapped.
        translated: Option<Option<u64>>,
    },
    /// A line for the log.
    Log {
        /// How loud it is.
        level: LogLevel,
        /// The text, one line without its end.
        text: String,
    },
}

impl Message for Report {}

/// A part of one of the files that came with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePart {
    /// The number of the descriptor, from 0.
    pub file: u32,
    /// The bytes of that file.
    pub extent: Extent,
}

/// What a cleaner is to do: make parts of the files that come with it read as
/// zero. The answer is one [`Cleaned`], and the process exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanOrder {
    /// Whether pages stay and are overwritten; otherwise the host gets them.
    pub keep_pages: bool,
    /// How many files there are.
    pub files: u32,
    /// What is to be cleaned.
    pub parts: Vec<FilePart>,
}

impl Message for CleanOrder {
    const DESCRIPTORS_MAX: usize = DESCRIPTORS_MAX;

    fn descriptors(&self) -> RangeInclusive<usize> {
        let count = self.files as usize;
        count..=count
    }
}

/// What came of a [`CleanOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned(pub Result<(), String>);

impl Message for Cleaned {}

/// What an unpacker is to do, with two descriptors: the image, and the file
/// that it goes to. The answer is one [`UnpackReport`], and the process exits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackOrder(pub Job);

impl Message for UnpackOrder {
    const DESCRIPTORS_MAX: usize = 2;

    fn descriptors(&self) -> RangeInclusive<usize> {
        2..=2
    }
}

/// What came of an [`UnpackOrder`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport(pub Result<Unpacked, UnpackError>);

impl Message for UnpackReport {}
