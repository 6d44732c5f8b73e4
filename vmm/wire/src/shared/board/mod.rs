//! The board: what a worker leaves behind about its guest.
//!
//! ```text
//!   page 0     format │ ended │ violations │ stamps[64]
//!   slot 0     generation │ registers[128] │ exits[56]      one slot for each vCPU,
//!   slot 1     …                                            written by its thread only
//!   …
//!   slot 63
//! ```
//!
//! The worker's threads write; the manager reads, also when the worker is
//! dead. Nothing of it is ever read back by the worker, so a stray write costs
//! only the truth of what is shown. What the numbers mean (which register,
//! which kind of exit, which stage) is agreed between their writers and
//! readers elsewhere; here they are words.
//!
//! Pages that nobody wrote to take no memory: a guest of one vCPU has two.

mod file;
mod reader;
mod writer;

pub use file::{Board, EXIT_KINDS, REGISTER_WORDS, STAGES, VCPUS_MAX};
pub use reader::{BoardReader, Registers};
pub use writer::{BoardWriter, VcpuWriter};

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
