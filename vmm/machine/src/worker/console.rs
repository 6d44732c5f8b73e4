//! The worker's end of the guest's console.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mkvmm_wire::shared::console::{Input, Printer};

use crate::console::{Console, Terminal};
use crate::vcpu;

/// A console in memory shared with the manager.
#[derive(Debug)]
pub struct SharedConsole {
    printer: Mutex<Printer>,
    input: Mutex<Input>,
}

/// Positions in a ring are valid even if the lock is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedConsole {
    /// Creates a console from its two rings.
    pub fn new(printer: Printer, input: Input) -> Self {
        Self {
            printer: Mutex::new(printer),
            input: Mutex::new(input),
        }
    }

    /// Requests a ring of the doorbell at the next typed byte. Returns whether
    /// there is input already.
    pub fn await_input(&self) -> bool {
        !lock(&self.input).will_wait()
    }
}

impl Terminal for SharedConsole {
    fn await_input(&self) -> bool {
        Self::await_input(self)
    }
}

impl Console for SharedConsole {
    fn print(&self, bytes: &[u8]) {
        lock(&self.printer).print(bytes, &vcpu::is_stopping);
    }

    fn take_input(&self, most: usize) -> Vec<u8> {
        lock(&self.input).take(most)
    }
}
