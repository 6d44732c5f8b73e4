//! The async runtime of a process that has guests.

use std::future::Future;
use std::io;

use mkvmm_manager::threads;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

/// Threads for what may wait, such as opening files: as many as images are read
/// at once.
const BLOCKING_THREADS: usize = 16;

/// Runs `work` on this thread, which owns the guests: their processes die with
/// it. Threads for blocking work are started when they are needed: guests of one
/// launch belong to one user, who waits for the first of them.
///
/// # Errors
/// Fails if the host has run out of file descriptors.
pub fn block_on<F: Future>(work: F) -> io::Result<F::Output> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    Ok(run(runtime, work))
}

/// Runs `work` like [`block_on`], with all threads started at the beginning: a
/// service of many users must not fail for want of one later.
///
/// # Errors
/// Fails if the host has run out of file descriptors or threads.
pub fn serve_on<F: Future>(work: F) -> io::Result<F::Output> {
    Ok(run(threads::runtime("files", BLOCKING_THREADS)?, work))
}

fn run<F: Future>(runtime: Runtime, work: F) -> F::Output {
    let output = LocalSet::new().block_on(&runtime, work);
    // A blocking thread may wait, for example for a file on a dead server; it
    // must not keep the process from exiting.
    runtime.shutdown_background();
    output
}
