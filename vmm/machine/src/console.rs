//! The interface between a guest's serial port and its console.

use std::fmt::Debug;

/// The other end of a guest's serial line.
pub trait Console: Debug + Send + Sync {
    /// Receives the guest's output, on the thread of the vCPU that prints it.
    /// An implementation may wait, which blocks the vCPU; it must give up once
    /// [`crate::vcpu::is_stopping`] returns true.
    fn print(&self, bytes: &[u8]);

    /// Removes and returns at most `most` bytes of the input typed to the
    /// guest, oldest first. It does not wait.
    fn take_input(&self, most: usize) -> Vec<u8>;
}

/// A console whose device is told when something is typed.
pub trait Terminal: Console {
    /// Requests a ring of the doorbell at the next typed byte. Returns whether
    /// there is input already.
    fn await_input(&self) -> bool;
}

#[cfg(test)]
pub mod tests {
    //! A console for tests of code that prints.

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Records output, and provides typed input.
    #[derive(Debug, Default)]
    pub struct Recorder {
        printed: Mutex<Vec<u8>>,
        typed: Mutex<VecDeque<u8>>,
    }

    impl Recorder {
        /// Returns all output so far.
        pub fn printed(&self) -> Vec<u8> {
            self.printed.lock().unwrap().clone()
        }

        /// Appends `bytes` to the typed input.
        pub fn type_in(&self, bytes: &[u8]) {
            self.typed.lock().unwrap().extend(bytes);
        }
    }

    impl Terminal for Recorder {
        fn await_input(&self) -> bool {
            !self.typed.lock().unwrap().is_empty()
        }
    }

    impl Console for Recorder {
        fn print(&self, bytes: &[u8]) {
            self.printed.lock().unwrap().extend(bytes);
        }

        fn take_input(&self, most: usize) -> Vec<u8> {
            let mut typed = self.typed.lock().unwrap();
            let count = most.min(typed.len());
            typed.drain(..count).collect()
        }
    }
}
