//! The disks of a guest.
//!
//! Their rings have to be made before the process confines itself, which is
//! before it knows its guest: the manager says how many by a variable of the
//! environment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use mkvmm_virtio::block::{
    Block, BlockSettings, DiskId, Engine, Geometry, PreparedRing, ThreadEngine,
};
use mkvmm_wire::devices::Disk;

/// Rings that no disk has yet.
#[derive(Debug, Default)]
pub struct Rings(Vec<PreparedRing>);

impl Rings {
    /// Makes `count` rings, or as many as the host gives: there are none if it
    /// has no io_uring, or forbids it.
    pub fn prepare(count: usize) -> Self {
        let rings = (0..count).map_while(|_| PreparedRing::new().ok());
        Self(rings.collect())
    }

    /// Returns the number of rings.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Creates a disk over `file`, with one of the rings if it can use that.
    ///
    /// # Errors
    /// Returns the error of a system call.
    pub fn disk(&mut self, disk: &Disk, file: OwnedFd) -> io::Result<Block> {
        let ring = match disk.direct_alignment {
            // A ring's direct reads may outlive this process.
            Some(_) => None,
            None => self.0.pop(),
        };
        let engine: Box<dyn Engine> = match ring {
            Some(ring) => Box::new(ring.with_file(file.as_fd())?),
            None => Box::new(ThreadEngine::new(file, disk.direct_alignment)?),
        };
        let settings = BlockSettings {
            geometry: Geometry {
                bytes: disk.bytes,
                logical_block: disk.logical_block,
                physical_block: disk.physical_block,
            },
            read_only: disk.read_only,
            queues: disk.queues,
            id: DiskId::new(&disk.id),
        };
        Ok(Block::new(settings, engine))
    }
}
