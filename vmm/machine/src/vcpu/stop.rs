//! Stops a vCPU thread while a device makes it wait, when it does not read
//! commands.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// The flag of the vCPU that this thread runs.
    static CURRENT: RefCell<Option<StopFlag>> = const { RefCell::new(None) };
}

/// A flag that is set once, by the vCPU's handle.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Requests the thread to stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Makes this the current thread's flag.
    pub fn enter(self) {
        CURRENT.set(Some(self));
    }
}

/// Returns whether the vCPU that this thread runs was requested to stop. A
/// device that waits on a vCPU's thread must give up then.
pub fn is_stopping() -> bool {
    CURRENT.with_borrow(|flag| flag.as_ref().is_some_and(|f| f.0.load(Ordering::Relaxed)))
}
