//! What a guest's serial port prints to and reads from.

use std::fmt::Debug;

/// The other end of a guest's serial line.
pub trait Console: Debug + Send + Sync {
    /// Takes what the guest prints, on the thread of the vCPU that prints it.
    /// An implementation may wait, and holds the guest back then; it gives up
    /// once [`crate::vcpu::is_stopping`] says so.
    fn print(&self, bytes: &[u8]);

    /// Returns at most `most` bytes of what was typed to the guest, oldest
    /// first, and forgets them. It does not wait.
    fn take_input(&self, most: usize) -> Vec<u8>;
}

#[cfg(test)]
pub mod tests {
    //! A console for the tests of whatever prints.

    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Keeps what is printed, and gives what was typed.
    #[derive(Debug, Default)]
    pub struct Recorder {
        printed: Mutex<Vec<u8>>,
        typed: Mutex<VecDeque<u8>>,
    }

    impl Recorder {
        /// Returns all that was printed.
        pub fn printed(&self) -> Vec<u8> {
            self.printed.lock().unwrap().clone()
        }

        /// Types `bytes`.
        pub fn type_in(&self, bytes: &[u8]) {
            self.typed.lock().unwrap().extend(bytes);
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
