//! The runtime of a process that has guests.

use std::future::Future;
use std::io;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Threads for what may wait, such as opening files: far more than the images
/// that are read at once.
const BLOCKING_THREADS: usize = 64;

/// Runs `work` on this thread, which becomes the owner of the guests: their
/// processes live as long as it does.
///
/// # Errors
/// When the host gives no descriptor.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let output = LocalSet::new().block_on(&runtime, work);
    // What waits in a thread of its own, for a file on a dead server for
    // instance, must not keep the process.
    runtime.shutdown_background();
    Ok(output)
}
