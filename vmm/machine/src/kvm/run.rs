//! KVM_RUN, with the width of port accesses.
//!
//! kvm-ioctls gives all bytes of a port access in one slice, which for string
//! instructions is that of many accesses. Width and number stand beside it in
//! `kvm_run` (Documentation/virt/kvm/api.rst, 5, KVM_EXIT_IO).
//!
//! UNSAFETY: that part of `kvm_run` is a union, and it can be looked at only
//! while the slice is not borrowed.
#![expect(
    unsafe_code,
    reason = "reads a union of kvm_run, and borrows its data again"
)]

use std::ptr;

use kvm_bindings::{KVM_EXIT_IO, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why a vCPU left its guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `in` from a port, `data.len() / width` times.
    PortRead {
        /// The number of the port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// What the guest is to read, access by access.
        data: &'a mut [u8],
    },
    /// `out` to a port, `data.len() / width` times.
    PortWrite {
        /// The number of the port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// What the guest writes, access by access.
        data: &'a [u8],
    },
    /// An exit for any other reason, as KVM describes it.
    Other(VcpuExit<'a>),
}

/// Enters the guest, and has `handle` deal with the exit.
///
/// # Errors
/// What KVM_RUN says.
pub fn run<T>(
    vcpu: &mut VcpuFd,
    handle: impl FnOnce(Exit<'_>) -> T,
) -> Result<T, kvm_ioctls::Error> {
    let (port, data, is_read) = match vcpu.run()? {
        VcpuExit::IoIn(port, data) => (port, ptr::from_mut(data), true),
        VcpuExit::IoOut(port, data) => (port, ptr::from_ref(data).cast_mut(), false),
        other => return Ok(handle(Exit::Other(other))),
    };
    let width = port_width(vcpu.get_kvm_run());
    // SAFETY: `data` is the slice that kvm-ioctls has just made of the data
    // page of this vCPU's kvm_run mapping. The mapping lives as long as
    // `vcpu`, which is borrowed until `handle` returns, so that the kernel
    // does not write to it (no KVM_RUN) and nobody makes another slice of it.
    // `port_width` borrowed the structure, which ends before the data begins.
    let data = unsafe { &mut *data };
    Ok(handle(if is_read {
        Exit::PortRead { port, width, data }
    } else {
        Exit::PortWrite { port, width, data }
    }))
}

/// Returns the bytes of one access of the port exit that `run` holds.
fn port_width(run: &kvm_run) -> usize {
    debug_assert_eq!(run.exit_reason, KVM_EXIT_IO);
    // SAFETY: the exit reason is KVM_EXIT_IO, so KVM filled in `io`; and every
    // bit pattern of its integers is valid.
    let io = unsafe { run.__bindgen_anon_1.io };
    // KVM never says 0; a width of 0 would make accesses without end.
    usize::from(io.size).max(1)
}
