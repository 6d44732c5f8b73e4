//! The async runtime of a process that has guests.

use std::future::Future;
use std::io;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// The number of threads for blocking work such as opening files: far more than
/// the number of images that are read at once.
const BLOCKING_THREADS: usize = 64;

/// Runs `work` on this thread, which owns the guests: their processes die with
/// it.
///
/// # Errors
/// Fails if the host has run out of file descriptors.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let output = LocalSet::new().block_on(&runtime, work);
    // A blocking thread may wait, for example for a file on a dead server; it
    // must not keep the process from exiting.
    runtime.shutdown_background();
    Ok(output)
}
