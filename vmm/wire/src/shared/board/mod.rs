//! The board: a shared-memory page of a guest's status, which outlives its
//! worker.
//!
//! ```text
//!   page 0     format │ ended │ violations │ stamps[64]
//!   slot 0     generation │ registers[128] │ exits[56]      one slot for each vCPU,
//!   slot 1     …                                            written by its thread only
//!   …
//!   slot 63
//!   device 0   faults │ own[7] │ queues[16]                 one for each device, written
//!   …                                                       by the event loop only
//!   device 31
//! ```
//!
//! The worker's threads write; the manager reads, even after the worker has
//! died. The worker never reads anything back, so a stray write only falsifies
//! what is displayed. The meaning of the numbers (which register, which kind of
//! exit, which stage) is defined by their writers and readers elsewhere; here
//! they are words.
//!
//! Pages that were never written to use no memory: a guest with one vCPU has
//! two.

mod file;
mod reader;
mod writer;

pub use file::{
    Board, DEVICES_MAX, EXIT_KINDS, OWN_COUNTERS, QUEUE_COUNTERS, QUEUES_MAX, REGISTER_WORDS,
    STAGES, VCPUS_MAX,
};
pub use reader::{BoardReader, DeviceCounts, Registers};
pub use writer::{BoardWriter, DeviceWriter, VcpuWriter};

impl Board {
    /// Returns the worker's side.
    pub fn writer(&self) -> BoardWriter {
        BoardWriter::new(self.clone())
    }

    /// Returns the manager's side.
    pub fn reader(&self) -> BoardReader {
        BoardReader::new(self.clone())
    }
}

#[cfg(test)]
mod tests;
