//! What PCI functions need of KVM, as an interface, so that they can be tested
//! without it.

use std::fmt::Debug;
use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::kvm::wires::{Message, Wires};

/// The connections of functions to the guest's processors.
pub trait Wiring: Debug + Send + Sync {
    /// Makes writes to `addr` signal `event` without an exit.
    ///
    /// # Errors
    /// Fails if another doorbell is there, or there are too many.
    fn connect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()>;

    /// Ends the effect of [`Self::connect_doorbell`].
    ///
    /// # Errors
    /// Fails if there is no such doorbell.
    fn disconnect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()>;

    /// Makes writes of the 32-bit number `value` to `addr` signal `event` without
    /// an exit; writes of other numbers are not affected.
    ///
    /// # Errors
    /// Fails if there is such a doorbell, or there are too many.
    fn connect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()>;

    /// Ends the effect of [`Self::connect_number`].
    ///
    /// # Errors
    /// Fails if there is no such doorbell.
    fn disconnect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()>;

    /// Makes `event` send `message`, and returns the number of the connection.
    ///
    /// # Errors
    /// Fails if there are too many.
    fn connect_message(&self, event: &EventFd, message: Message) -> io::Result<u32>;

    /// Replaces the message of a connection.
    ///
    /// # Errors
    /// Fails if the host has no memory.
    fn change_message(&self, number: u32, message: Message) -> io::Result<()>;

    /// Ends the effect of `event` on a connection, which keeps its number.
    ///
    /// # Errors
    /// Fails if `event` has no effect on it.
    fn mute(&self, event: &EventFd, number: u32) -> io::Result<()>;

    /// Ends the effect of [`Self::mute`]. If `event` was signalled meanwhile, its
    /// message is sent at once.
    ///
    /// # Errors
    /// Fails if the host has no memory.
    fn unmute(&self, event: &EventFd, number: u32) -> io::Result<()>;

    /// Sets the level of an interrupt line.
    ///
    /// # Errors
    /// Fails if there is no such line.
    fn set_level(&self, line: u32, high: bool) -> io::Result<()>;
}

impl Wiring for Wires {
    fn connect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
        Self::connect_doorbell(self, event, addr)
    }

    fn disconnect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
        Self::disconnect_doorbell(self, event, addr)
    }

    fn connect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
        Self::connect_number(self, event, addr, value)
    }

    fn disconnect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
        Self::disconnect_number(self, event, addr, value)
    }

    fn mute(&self, event: &EventFd, number: u32) -> io::Result<()> {
        Self::mute(self, event, number)
    }

    fn unmute(&self, event: &EventFd, number: u32) -> io::Result<()> {
        Self::unmute(self, event, number)
    }

    fn connect_message(&self, event: &EventFd, message: Message) -> io::Result<u32> {
        Self::connect_message(self, event, message)
    }

    fn change_message(&self, number: u32, message: Message) -> io::Result<()> {
        Self::change_message(self, number, message)
    }

    fn set_level(&self, line: u32, high: bool) -> io::Result<()> {
        Self::set_level(self, line, high)
    }
}

#[cfg(test)]
pub mod tests {
    //! Connections that are only recorded.

    use std::collections::{BTreeMap, BTreeSet};
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    use super::*;

    /// Records the connections of functions under test.
    #[derive(Debug, Default)]
    pub struct Recorded {
        /// Addresses with a doorbell.
        pub doorbells: Mutex<BTreeMap<u64, i32>>,
        /// Addresses and numbers with a doorbell.
        pub numbers: Mutex<BTreeMap<(u64, u32), i32>>,
        /// The messages that are not sent at present.
        pub muted: Mutex<BTreeSet<u32>>,
        /// The messages by number.
        pub messages: Mutex<Vec<Message>>,
        /// The levels of lines.
        pub levels: Mutex<BTreeMap<u32, bool>>,
    }

    impl Recorded {
        /// Returns the addresses with a doorbell.
        pub fn doorbells(&self) -> Vec<u64> {
            self.doorbells.lock().unwrap().keys().copied().collect()
        }

        /// Returns whether a line is high.
        pub fn level(&self, line: u32) -> bool {
            self.levels
                .lock()
                .unwrap()
                .get(&line)
                .copied()
                .unwrap_or(false)
        }
    }

    impl Wiring for Recorded {
        fn connect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
            let mut doorbells = self.doorbells.lock().unwrap();
            if doorbells.contains_key(&addr) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            doorbells.insert(addr, event.as_raw_fd());
            Ok(())
        }

        fn disconnect_doorbell(&self, event: &EventFd, addr: u64) -> io::Result<()> {
            let mut doorbells = self.doorbells.lock().unwrap();
            assert_eq!(doorbells.remove(&addr), Some(event.as_raw_fd()));
            Ok(())
        }

        fn connect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
            let mut numbers = self.numbers.lock().unwrap();
            let before = numbers.insert((addr, value), event.as_raw_fd());
            assert_eq!(before, None);
            Ok(())
        }

        fn disconnect_number(&self, event: &EventFd, addr: u64, value: u32) -> io::Result<()> {
            let mut numbers = self.numbers.lock().unwrap();
            assert_eq!(numbers.remove(&(addr, value)), Some(event.as_raw_fd()));
            Ok(())
        }

        fn mute(&self, _event: &EventFd, number: u32) -> io::Result<()> {
            assert!(self.muted.lock().unwrap().insert(number));
            Ok(())
        }

        fn unmute(&self, _event: &EventFd, number: u32) -> io::Result<()> {
            assert!(self.muted.lock().unwrap().remove(&number));
            Ok(())
        }

        fn connect_message(&self, _event: &EventFd, message: Message) -> io::Result<u32> {
            let mut messages = self.messages.lock().unwrap();
            messages.push(message);
            Ok(u32::try_from(messages.len()).unwrap() - 1)
        }

        fn change_message(&self, number: u32, message: Message) -> io::Result<()> {
            self.messages.lock().unwrap()[usize::try_from(number).unwrap()] = message;
            Ok(())
        }

        fn set_level(&self, line: u32, high: bool) -> io::Result<()> {
            self.levels.lock().unwrap().insert(line, high);
            Ok(())
        }
    }
}
