//! Any contents of guest memory, any rings and any requests on a disk whose
//! contents are in memory and whose operations end in any order, with any
//! result: every operation stays on the disk, a read-only disk is never
//! written, and after a reset the disk serves again.
#![no_main]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mkvmm_virtio::block::engine::{Completion, DEPTH, Operation};
use mkvmm_virtio::block::{Block, BlockSettings, DiskId, Engine, Geometry};
use mkvmm_virtio::ring::RingContext;
use mkvmm_virtio::{
    Activation, Interrupt, Memory, Progress, QueueCounters, Ring, RingSetup, VirtioDevice,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

const MEMORY: usize = 1 << 16;
const DISK: usize = 1 << 14;
const QUEUES: u16 = 2;
/// The places of the parts of the first queue; those of the second follow.
const RINGS: u64 = 0x1000;
const STEP: u64 = 0x800;
const ENTRIES: u16 = 16;

#[derive(Debug)]
struct Nobody;

impl Interrupt for Nobody {
    fn used(&self, _queue: u16) {}
    fn config_changed(&self) {}
}

/// How operations end.
#[derive(Debug, Default)]
struct Fate {
    /// Which of those in flight end next, and how; others wait.
    ends: Vec<(u8, u8)>,
}

/// A disk in memory.
#[derive(Debug)]
struct InMemory {
    contents: Arc<Mutex<Vec<u8>>>,
    is_read_only: bool,
    begun: Vec<(u16, Operation)>,
    fate: Arc<Mutex<Fate>>,
    event: File,
}

impl InMemory {
    fn carry_out(&mut self, operation: &Operation, short: bool) -> u32 {
        let mut contents = self.contents.lock().expect("one thread");
        let range = |at: u64, len: u64| {
            let (start, end) = (at as usize, (at + len) as usize);
            assert!(contents.get(start..end).is_some(), "it is on the disk");
            start..end
        };
        let done = |len: u64| {
            if short {
                (len / 2 / 512 * 512).max(512)
            } else {
                len
            }
        };
        match operation {
            Operation::Read { at, buffers } => {
                let range = range(*at, buffers.len());
                let done = done(buffers.len());
                buffers.copy_from(&contents[range][..done as usize]);
                done as u32
            }
            Operation::Write { at, buffers, .. } => {
                assert!(!self.is_read_only, "written though read-only");
                let range = range(*at, buffers.len());
                let done = done(buffers.len());
                let end = range.start + done as usize;
                buffers.copy_to(&mut contents[range.start..end]);
                done as u32
            }
            Operation::Deallocate { at, len } | Operation::Zero { at, len } => {
                assert!(!self.is_read_only, "written though read-only");
                let range = range(*at, *len);
                contents[range].fill(0);
                0
            }
            Operation::Sync => 0,
        }
    }
}

impl Engine for InMemory {
    fn begin(&mut self, tag: u16, operation: Operation) {
        assert!(tag < DEPTH);
        assert!(
            self.begun.iter().all(|(other, _)| *other != tag),
            "a tag twice"
        );
        self.begun.push((tag, operation));
    }

    fn submit(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn reap(&mut self, ended: &mut Vec<Completion>) {
        let ends = std::mem::take(&mut self.fate.lock().expect("one thread").ends);
        for (which, how) in ends {
            if self.begun.is_empty() {
                return;
            }
            let (tag, operation) = self
                .begun
                .swap_remove(usize::from(which) % self.begun.len());
            // EIO, EAGAIN, EOPNOTSUPP, ENOSPC, EINVAL, EINTR.
            let errors = [5, 11, 95, 28, 22, 4];
            let result = match how % 8 {
                0 | 1 => Ok(self.carry_out(&operation, false)),
                2 => Ok(self.carry_out(&operation, true)),
                3 => Ok(0),
                _ => {
                    let error = errors[usize::from(how / 8) % errors.len()];
                    Err(io::Error::from_raw_os_error(error))
                }
            };
            ended.push(Completion {
                tag,
                operation,
                result,
            });
        }
    }

    fn in_flight(&self) -> usize {
        self.begun.len()
    }
}

struct Guest {
    block: Block,
    memory: Arc<GuestMemoryMmap>,
    fate: Arc<Mutex<Fate>>,
    is_active: bool,
    features: u64,
}

impl Guest {
    fn activate(&mut self) {
        let ring = |queue: u16| {
            let base = RINGS + u64::from(queue) * 3 * STEP;
            let setup = RingSetup {
                size: ENTRIES,
                descriptors: base,
                available: base + STEP,
                used: base + 2 * STEP,
            };
            let context = RingContext {
                memory: Arc::clone(&self.memory) as Memory,
                interrupt: Arc::new(Nobody),
                counters: Arc::new(QueueCounters::default()),
                event_index: false,
            };
            Ring::new(queue, 256, Some(setup), context).expect("in memory")
        };
        let activation = Activation {
            features: self.features,
            memory: Arc::clone(&self.memory) as Memory,
            queues: (0..QUEUES).map(ring).collect(),
        };
        self.block.activate(activation).expect("nothing to refuse");
        self.is_active = true;
    }

    /// Notes how a call has gone: an error means a reset.
    fn after<E>(&mut self, result: std::result::Result<Progress, E>) {
        if result.is_err() {
            self.reset();
        }
    }

    fn reset(&mut self) {
        let mut patience = 2 * usize::from(DEPTH);
        while self.block.reset() == Progress::More {
            self.fate.lock().expect("one thread").ends = vec![(0, 0)];
            let handled = self.block.on_descriptor(0, EventSet::IN);
            let _ = handled.expect("nothing is answered any more");
            patience -= 1;
            assert!(patience > 0, "a reset has no end");
        }
        self.is_active = false;
    }
}

/// Writes a chain of up to four descriptors, most of them sensible, and a header
/// that means something, most of the time.
fn offer(input: &mut Unstructured<'_>, memory: &GuestMemoryMmap, queue: u16) -> Result<()> {
    let base = RINGS + u64::from(queue) * 3 * STEP;
    let slot: u16 = input.int_in_range(0..=3)?;
    let header = 0x8000 + u64::from(slot) * 0x1000;
    let kind = [0_u32, 1, 4, 8, 11, 13, 14][input.int_in_range(0..=6)?];
    let sector = u64::from(input.int_in_range(0_u16..=40)?);
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    // A range, for those that have one.
    bytes.extend(u64::from(input.arbitrary::<u8>()?).to_le_bytes());
    bytes.extend(u32::from(input.arbitrary::<u8>()?).to_le_bytes());
    bytes.extend(u32::from(input.int_in_range(0_u8..=2)?).to_le_bytes());
    memory
        .write_slice(&bytes, GuestAddress(header))
        .expect("in memory");
    let count: u16 = input.int_in_range(1..=4)?;
    for index in 0..count {
        let first = if kind >= 11 { 32 } else { 16 };
        let (addr, len) = match index {
            0 => (header, first),
            _ => (
                header + 0x200,
                u32::from(input.int_in_range(0_u16..=0x401)?),
            ),
        };
        let is_writable = index > 0 && (input.arbitrary::<u8>()? % 4 > 0) == (kind != 1);
        let is_writable = is_writable || index + 1 == count && index > 0;
        let next = u16::from(index + 1 < count) | u16::from(is_writable) << 1;
        let at = base + u64::from(slot * 4 + index) * 16;
        let mut descriptor = addr.to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        descriptor.extend((slot * 4 + index + 1).to_le_bytes());
        memory
            .write_slice(&descriptor, GuestAddress(at))
            .expect("in memory");
    }
    let available = base + STEP;
    let index: u16 = memory
        .read_obj(GuestAddress(available + 2))
        .expect("in memory");
    let entry = available + 4 + 2 * u64::from(index % ENTRIES);
    memory
        .write_obj(slot * 4, GuestAddress(entry))
        .expect("in memory");
    let index = GuestAddress(available + 2);
    let next: u16 = memory
        .read_obj::<u16>(index)
        .expect("in memory")
        .wrapping_add(1);
    memory.write_obj(next, index).expect("in memory");
    Ok(())
}

fn play(input: &mut Unstructured<'_>) -> Result<()> {
    let is_read_only = input.arbitrary()?;
    let features = if input.arbitrary()? { 1 << 9 } else { 0 };
    let contents = Arc::new(Mutex::new(vec![0x5a; DISK]));
    let fate = Arc::new(Mutex::new(Fate::default()));
    let engine = InMemory {
        contents: Arc::clone(&contents),
        is_read_only,
        begun: Vec::new(),
        fate: Arc::clone(&fate),
        event: File::open("/dev/null").expect("always there"),
    };
    let settings = BlockSettings {
        geometry: Geometry {
            bytes: DISK as u64,
            logical_block: 512,
            physical_block: 512,
        },
        read_only: is_read_only,
        queues: QUEUES,
        id: DiskId::new("fuzz"),
    };
    let ranges = [(GuestAddress(0), MEMORY)];
    let mut guest = Guest {
        block: Block::new(settings, Box::new(engine)),
        memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")),
        fate,
        is_active: false,
        features,
    };
    guest.activate();
    while !input.is_empty() {
        let queue = input.int_in_range(0..=QUEUES - 1)?;
        match input.int_in_range(0_u8..=9)? {
            0..=3 => offer(input, &guest.memory, queue)?,
            4 => {
                // Anything anywhere, rings included.
                let at = input.int_in_range(0..=MEMORY as u64 - 16)?;
                let bytes: [u8; 16] = input.arbitrary()?;
                guest
                    .memory
                    .write_slice(&bytes, GuestAddress(at))
                    .expect("in memory");
            }
            5 | 6 => {
                let result = guest.block.on_queue(queue);
                guest.after(result);
            }
            7 | 8 => {
                let ends = input.arbitrary()?;
                guest.fate.lock().expect("one thread").ends = ends;
                let result = guest.block.on_descriptor(0, EventSet::IN);
                guest.after(result);
            }
            _ => guest.reset(),
        }
        if !guest.is_active {
            for queue in 0..QUEUES {
                let base = RINGS + u64::from(queue) * 3 * STEP;
                for index in [base + STEP + 2, base + 2 * STEP + 2] {
                    let index = GuestAddress(index);
                    guest.memory.write_obj(0_u16, index).expect("in memory");
                }
            }
            guest.activate();
        }
    }
    guest.reset();
    if is_read_only {
        let contents = contents.lock().expect("one thread");
        assert!(contents.iter().all(|byte| *byte == 0x5a));
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // Too little input is no error.
    let _ = play(&mut Unstructured::new(data));
});
