//! An instance's memory in the test's own process, without KVM: carved, placed,
//! loaded, read and returned, like a manager and its children do together.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mkpool::AddrRange;
use mkvmm_base::image_facts::{BootMode, KernelFacts};
use mkvmm_base::unpacking::{Facts, ImageRole, Job, Limits, UnpackError};
use mkvmm_image::unpack::unpack;
use mkvmm_machine::loading::{self, Piece};
use mkvmm_machine::memory::{GuestMemory, MemoryPart, PoolMapping};
use mkvmm_memory::cleaning::{self, Method, Part};
use mkvmm_memory::host_pool::{HostPool, HostPoolError, SubPool};
use mkvmm_memory::memory_file::MemoryFile;
use mkvmm_memory::placement::PlacementPlan;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::ReservationConfig;
use rustix::fs::{MemfdFlags, memfd_create};

/// The part of a kernel's file that is not loaded: at most 1 MiB, as with a
/// manager's unpackers.
const BESIDE: u64 = 1 << 20;

/// A kernel after unpacking.
#[derive(Debug)]
pub struct KernelFile {
    /// The file with the bytes that are loaded.
    pub file: OwnedFd,
    /// The size of the file.
    pub size: u64,
    /// The facts about it, checked as a manager checks them.
    pub facts: KernelFacts,
}

impl KernelFile {
    /// Unpacks `file`, to be started in mode `boot` in an instance of `memory`
    /// bytes.
    ///
    /// # Errors
    /// Returns an [`UnpackError`] for a file that is refused.
    pub fn unpack(file: &[u8], boot: BootMode, memory: u64) -> Result<Self, UnpackError> {
        let memfd = || {
            let fd = memfd_create("test-image", MemfdFlags::CLOEXEC);
            File::from(fd.expect("there are descriptors"))
        };
        let (image, output) = (memfd(), memfd());
        image.write_all_at(file, 0).expect("there is memory");
        let limits = Limits {
            input: file.len() as u64,
            output: memory + BESIDE,
            memory,
        };
        let role = ImageRole::Kernel(boot);
        let job = Job { role, limits };
        let content = unpack(&job, &image, &output)?;
        let size = output.metadata().expect("it is open").len();
        let checked = content.check(&job, size);
        checked.expect("an honest answer passes the check");
        let Facts::Kernel(facts) = content.facts else {
            panic!("a kernel was asked for");
        };
        Ok(Self {
            file: output.into(),
            size,
            facts,
        })
    }
}

/// A pool: its ledger and its memory.
#[derive(Debug)]
pub struct Pool {
    /// The ledger of the pool.
    pub ledger: HostPool,
    /// The memory of the pool.
    pub memory: PoolMemory,
}

/// An instance for one kernel.
#[derive(Debug)]
pub struct Instance {
    sub_pool: SubPool,
    files: Vec<MemoryFile>,
    parts: Vec<MemoryPart>,
    guest: GuestMemory,
    /// The places of the pieces.
    pub plan: PlacementPlan,
}

impl Pool {
    /// Reserves `size` bytes from 4 GiB on.
    pub fn new(size: u64, config: ReservationConfig) -> Self {
        let range = AddrRange::with_size(0x1_0000_0000, size).expect("a range");
        let order = config.backing.page_order();
        let memory = PoolMemory::new(range, config, &|_| (), &AtomicBool::new(false));
        Self {
            ledger: HostPool::new(range, order).expect("a good range"),
            memory: memory.expect("the host has it"),
        }
    }

    /// Creates an instance of `size` bytes for a kernel.
    ///
    /// # Errors
    /// Returns a [`HostPoolError`] if it does not fit; nothing is taken then.
    pub fn make(&mut self, size: u64, kernel: &KernelFacts) -> Result<Instance, HostPoolError> {
        let id = self.ledger.next_id();
        let name = "test".parse().expect("a name");
        let mut sub_pool = self.ledger.carve(id, &name, size)?;
        let plan = self.ledger.place(&mut sub_pool, &kernel.placement(None));
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => {
                self.ledger.release(sub_pool)?;
                return Err(error);
            }
        };
        let files = self.memory.take(sub_pool.regions());
        let files = files.expect("the host has it");
        let part = |file: &MemoryFile| MemoryPart {
            range: file.range(),
            file: file.as_fd().try_clone_to_owned().expect("a descriptor"),
        };
        let parts: Vec<MemoryPart> = files.iter().map(part).collect();
        let mapping = PoolMapping::new(&parts, 4096, false).expect("it can be mapped");
        let guest = GuestMemory::new(&Arc::new(mapping), Some(plan.low_window));
        Ok(Instance {
            sub_pool,
            files,
            parts,
            guest: guest.expect("it can be described"),
            plan,
        })
    }

    /// Releases an instance's memory, scrubbed.
    pub fn release(&mut self, instance: Instance) {
        instance.clean(Method::Zero);
        let Instance {
            sub_pool, files, ..
        } = instance;
        for file in files {
            self.memory.put_back(file).expect("it is the pool's");
        }
        let released = self.ledger.release(sub_pool);
        released.expect("the ledger is right");
    }
}

impl Instance {
    /// Copies the kernel with `file` and `facts` to its place.
    pub fn load(&self, file: &OwnedFd, facts: &KernelFacts) {
        for segment in &facts.segments {
            let start = self.plan.kernel.start() + segment.offset;
            let Ok(place) = AddrRange::with_size(start, segment.file_size) else {
                continue; // nothing to copy
            };
            let offset = segment.file_offset;
            let piece = Piece { offset, place };
            let copied = loading::copy(&self.guest, &self.parts, file, piece);
            copied.expect("what was checked can be loaded");
        }
    }

    /// Makes all of the memory read as zero.
    pub fn clean(&self, method: Method) {
        for part in &self.parts {
            let file = part.file.try_clone().expect("a descriptor");
            let whole = Part {
                offset: 0,
                len: part.range.size(),
            };
            let cleaned = cleaning::clean(&Arc::new(File::from(file)), whole, method);
            cleaned.expect("it can be cleaned");
        }
    }

    /// Reads `len` bytes, which must be in one region.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; len];
        let mut files = self.files.iter();
        let file = files.find(|file| file.range().contains(addr));
        let file = file.expect("the instance has memory there");
        file.read(addr, &mut bytes).expect("it is one region");
        bytes
    }

    /// Writes guest-physical memory.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        loading::write(&self.guest, addr, bytes).expect("the instance has memory there");
    }
}
