//! The async runtime of a process that has guests.

use std::future::Future;
use std::io;

use mkvmm_manager::threads;
use tokio::task::LocalSet;

/// Threads for what may wait, such as opening files: as many as images are read
/// at once.
const BLOCKING_THREADS: usize = 16;

/// Runs `work` on this thread, which owns the guests: their processes die with
/// it.
///
/// # Errors
/// Fails if the host has run out of file descriptors.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    let runtime = threads::runtime("files", BLOCKING_THREADS)?;
    let output = LocalSet::new().block_on(&runtime, work);
    // A blocking thread may wait, for example for a file on a dead server; it
    // must not keep the process from exiting.
    runtime.shutdown_background();
    Ok(output)
}
