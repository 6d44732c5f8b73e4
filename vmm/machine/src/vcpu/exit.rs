//! Handles VM exits: the guest's accesses are passed to a bus, all other exits
//! end the guest.

use std::fmt::Debug;

use kvm_ioctls::VcpuExit;

use crate::kvm::run::Exit;
use mkvmm_base::state::EndReason;
use mkvmm_base::{ExitKind, InstanceName};

/// The result of an access: `Some` if it ended the guest.
pub type ExitOutcome = Option<EndReason>;

/// The interface of an instance's devices to its vCPUs. Every method may be
/// called by several vCPUs at once, and handles one access of exactly
/// `data.len()` bytes.
pub trait ExitBus: Debug + Send + Sync {
    /// Handles an `in` from `port`; unclaimed ports read as all ones.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// Handles an `out` to `port`; `Some` if that ends the guest.
    fn pio_write(&self, port: u16, data: &[u8]) -> ExitOutcome;
    /// Handles a read of memory that is not in a slot.
    fn mmio_read(&self, addr: u64, data: &mut [u8]) -> ExitOutcome;
    /// Handles a write to memory that is not in a slot.
    fn mmio_write(&self, addr: u64, data: &[u8]) -> ExitOutcome;
    /// Is notified when a vCPU leaves its guest for the first time.
    fn first_exit(&self);
}

/// Returns the kind under which `exit` is counted.
pub fn kind(exit: &Exit<'_>) -> ExitKind {
    match exit {
        Exit::PortRead { .. } => ExitKind::IoIn,
        Exit::PortWrite { .. } => ExitKind::IoOut,
        Exit::Other(VcpuExit::MmioRead(..)) => ExitKind::MmioRead,
        Exit::Other(VcpuExit::MmioWrite(..)) => ExitKind::MmioWrite,
        Exit::Other(VcpuExit::Hlt) => ExitKind::Hlt,
        Exit::Other(VcpuExit::Shutdown) => ExitKind::Shutdown,
        Exit::Other(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => ExitKind::Interrupted,
        Exit::Other(VcpuExit::FailEntry(..) | VcpuExit::InternalError) => ExitKind::Failed,
        Exit::Other(_) => ExitKind::Other,
    }
}

/// Handles one exit of guest `name`; `Some` if it was the guest's last.
pub fn handle(exit: Exit<'_>, bus: &dyn ExitBus, name: &InstanceName) -> ExitOutcome {
    match exit {
        // Each access of a string instruction is handled separately.
        Exit::PortRead { port, width, data } => {
            for one in data.chunks_exact_mut(width) {
                bus.pio_read(port, one);
            }
            None
        }
        Exit::PortWrite { port, width, data } => data
            .chunks_exact(width)
            .find_map(|one| bus.pio_write(port, one)),
        Exit::Other(VcpuExit::MmioRead(addr, data)) => bus.mmio_read(addr, data),
        Exit::Other(VcpuExit::MmioWrite(addr, data)) => bus.mmio_write(addr, data),
        // With an in-kernel irqchip, HLT is handled in the kernel; these two
        // are wake-ups without consequences.
        Exit::Other(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => None,
        Exit::Other(VcpuExit::Shutdown) => Some(EndReason::TripleFault),
        Exit::Other(other) => {
            log::error!("{name}: this KVM cannot run what the guest did: {other:?}");
            Some(EndReason::KvmError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Answers each read with the number of the access, and ends the guest at
    /// 0xff.
    #[derive(Debug, Default)]
    struct Counting(Mutex<Vec<Vec<u8>>>);

    impl ExitBus for Counting {
        fn pio_read(&self, _port: u16, data: &mut [u8]) {
            let mut seen = self.0.lock().unwrap();
            data.fill(u8::try_from(seen.len()).unwrap());
            seen.push(data.to_vec());
        }

        fn pio_write(&self, _port: u16, data: &[u8]) -> ExitOutcome {
            self.0.lock().unwrap().push(data.to_vec());
            (data == [0xff]).then_some(EndReason::Panic)
        }

        fn mmio_read(&self, _addr: u64, _data: &mut [u8]) -> ExitOutcome {
            None
        }

        fn mmio_write(&self, _addr: u64, _data: &[u8]) -> ExitOutcome {
            None
        }

        fn first_exit(&self) {}
    }

    #[test]
    fn every_repetition_of_a_string_instruction_is_an_access() {
        let (bus, name) = (Counting::default(), "a".parse().unwrap());
        let mut data = [0xaa; 6];
        let exit = Exit::PortRead {
            port: 0x608,
            width: 2,
            data: &mut data,
        };
        assert_eq!(handle(exit, &bus, &name), None);
        assert_eq!(data, [0, 0, 1, 1, 2, 2]);
    }

    #[test]
    fn after_the_end_nothing_is_written() {
        let (bus, name) = (Counting::default(), "a".parse().unwrap());
        let exit = Exit::PortWrite {
            port: 0x505,
            width: 1,
            data: &[1, 0xff, 2],
        };
        assert_eq!(handle(exit, &bus, &name), Some(EndReason::Panic));
        assert_eq!(bus.0.lock().unwrap().len(), 2);
    }
}
