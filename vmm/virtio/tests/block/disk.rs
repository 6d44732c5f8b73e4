//! A disk with its driver.

use std::env;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mkvmm_virtio::block::{
    Block, BlockSettings, DiskId, Engine, Geometry, PreparedRing, ThreadEngine,
};
use mkvmm_virtio::testing::{self, Interrupts};
use mkvmm_virtio::{Activation, Memory, Progress, VirtioDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use crate::driver::DiskDriver;

/// The feature `VIRTIO_BLK_F_FLUSH`, as a mask.
pub const FLUSH: u64 = 1 << 9;
/// The status bytes of requests.
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// The engine of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ring,
    Threads,
}

impl Kind {
    /// Returns the engines that this host has; `MKVMM_REQUIRE_IO_URING=1` makes
    /// it fail if it has no io_uring.
    pub fn all() -> Vec<Self> {
        let Err(error) = PreparedRing::new() else {
            return vec![Self::Ring, Self::Threads];
        };
        let is_required = env::var_os("MKVMM_REQUIRE_IO_URING").is_some_and(|it| it == "1");
        assert!(!is_required, "io_uring: {error}");
        eprintln!("io_uring: {error}; rings are not tested");
        vec![Self::Threads]
    }

    pub fn engine(self, file: File) -> Box<dyn Engine> {
        let file = OwnedFd::from(file);
        match self {
            Self::Ring => {
                let ring = PreparedRing::new().unwrap();
                Box::new(ring.with_file(file.as_fd()).unwrap())
            }
            Self::Threads => Box::new(ThreadEngine::new(file, None).unwrap()),
        }
    }
}

/// A file that is removed with this.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(contents: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mkvmm-block-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::write(&path, contents).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn contents(&self) -> Vec<u8> {
        fs::read(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A disk, its memory and a driver for each of its queues.
pub struct Disk {
    pub block: Block,
    pub drivers: Vec<DiskDriver>,
    pub memory: Arc<GuestMemoryMmap>,
    interrupts: Arc<Interrupts>,
    features: u64,
}

pub fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

impl Disk {
    /// Creates a disk over the file at `path` with two queues, and activates it
    /// with flushes agreed on.
    pub fn new(path: &Path, kind: Kind) -> Self {
        Self::with(path, kind, false, FLUSH)
    }

    pub fn with(path: &Path, kind: Kind, read_only: bool, features: u64) -> Self {
        let file = open(path);
        let bytes = file.metadata().unwrap().len();
        Self::over(kind.engine(file), bytes, read_only, features)
    }

    pub fn over(engine: Box<dyn Engine>, bytes: u64, read_only: bool, features: u64) -> Self {
        let settings = BlockSettings {
            geometry: Geometry {
                bytes,
                logical_block: 512,
                physical_block: 4096,
            },
            read_only,
            queues: 2,
            id: DiskId::new("a disk of the tests"),
        };
        let memory = testing::memory();
        let mut disk = Self {
            block: Block::new(settings, engine),
            drivers: Vec::new(),
            memory,
            interrupts: Arc::default(),
            features,
        };
        disk.activate();
        disk
    }

    /// Lays out the queues anew and activates the device.
    pub fn activate(&mut self) {
        self.drivers = (0..2)
            .map(|queue| DiskDriver::new(&self.memory, queue))
            .collect();
        let rings = self
            .drivers
            .iter()
            .map(|driver| driver.ring(&self.interrupts));
        let activation = Activation {
            features: self.features,
            memory: Arc::clone(&self.memory) as Memory,
            queues: rings.collect(),
        };
        self.block.activate(activation).unwrap();
    }

    /// Rings for `queue`.
    pub fn kick(&mut self, queue: u16) {
        while self.block.on_queue(queue).unwrap() == Progress::More {}
    }

    /// Waits until operations have ended, and has them handled.
    pub fn wait(&mut self) {
        assert!(
            self.wait_for(PATIENCE),
            "nothing has ended for {PATIENCE:?}"
        );
    }

    /// Waits at most `time`. Returns whether an operation has ended.
    pub fn wait_for(&mut self, time: Duration) -> bool {
        let time = Timespec::try_from(time).unwrap();
        let watches = self.block.descriptors();
        let mut events = [PollFd::from_borrowed_fd(
            watches[0].descriptor,
            PollFlags::IN,
        )];
        if poll(&mut events, Some(&time)).unwrap() == 0 {
            return false;
        }
        while self.block.on_descriptor(0, EventSet::IN).unwrap() == Progress::More {}
        true
    }

    /// Makes a request on queue 0 and returns its status.
    pub fn ask(&mut self, kind: u32, sector: u64, readable: &[u8], writable: u32) -> u8 {
        let slot = self.drivers[0].offer(kind, sector, readable, writable);
        self.kick(0);
        loop {
            if let Some(done) = self.drivers[0].done() {
                assert_eq!(done.slot, slot);
                return done.status;
            }
            self.wait();
        }
    }

    pub fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        let status = self.ask(0, sector, &[], len);
        (status, self.drivers[0].data(0, len))
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.ask(1, sector, data, 0)
    }

    pub fn flush(&mut self) -> u8 {
        self.ask(4, 0, &[], 0)
    }

    /// A discard (11) or a request for zeros (13).
    pub fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut data = sector.to_le_bytes().to_vec();
        data.extend(count.to_le_bytes());
        data.extend(flags.to_le_bytes());
        self.ask(kind, 0, &data, 0)
    }

    /// Returns the failures that queue 0 has counted.
    pub fn failures(&self) -> u64 {
        self.drivers[0].counts().failed
    }
}
