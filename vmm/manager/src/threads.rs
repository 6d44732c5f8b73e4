//! Threads that wait for files, started before there is anything to lose.
//!
//! A thread that is started later may find no memory for itself, and the
//! process would end: tokio panics where it has no thread at all, and Rust's
//! library where a new one gets no stack for its signals. So a runtime starts
//! all that it may have at once, and keeps them.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::Builder as Thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Makes a runtime of this thread, with `threads` named `name` for what may
/// wait. They are there when this returns, or soon, and for as long as the
/// runtime.
///
/// # Errors
/// When the host gives no descriptor, or no thread.
pub fn runtime(name: &str, threads: usize) -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_name(name)
        .max_blocking_threads(threads)
        .thread_keep_alive(Duration::MAX)
        .build()?;
    // tokio would panic instead of saying so.
    let tried = Thread::new().spawn(|| ())?;
    tried
        .join()
        .map_err(|_panicked| io::Error::other("a thread failed"))?;
    // Each takes a thread until the gate opens, so each gets one of its own.
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..threads {
        let gate = Arc::clone(&gate);
        runtime.spawn_blocking(move || drop(gate.read()));
    }
    drop(closed);
    Ok(runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    fn named(name: &str) -> usize {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let names =
            tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|comm| comm.trim() == name).count()
    }

    #[test]
    fn all_threads_are_there_and_stay() {
        let runtime = runtime("threads-test", 3).unwrap();
        // The name of a thread is its own first deed.
        while named("threads-test") < 3 {
            std::thread::yield_now();
        }
        for _ in 0..10 {
            let done = runtime.spawn_blocking(|| ());
            runtime.block_on(done).unwrap();
        }
        assert_eq!(named("threads-test"), 3);
    }
}
