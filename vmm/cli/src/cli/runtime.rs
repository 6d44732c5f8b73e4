//! The runtime of a process that has guests.

use std::future::Future;
use std::io;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

/// Runs `work` on this thread, which becomes the owner of the guests: their
/// processes live as long as it does.
///
/// # Errors
/// When the host gives no descriptor.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let output = LocalSet::new().block_on(&runtime, work);
    // What waits in a thread of its own, for a file on a dead server for
    // instance, must not keep the process.
    runtime.shutdown_background();
    Ok(output)
}
