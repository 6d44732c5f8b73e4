//! KVM_RUN, with the width of port accesses.
//!
//! kvm-ioctls returns all bytes of a port access in one slice, which for string
//! instructions covers many accesses. The width and the count are beside it in
//! `kvm_run` (Documentation/virt/kvm/api.rst, 5, KVM_EXIT_IO).
//!
//! UNSAFETY: that part of `kvm_run` is a union, and it can be accessed only
//! while the slice is not borrowed.
#![expect(
    unsafe_code,
    reason = "reads a union of kvm_run, and borrows its data again"
)]

use std::ptr;

use kvm_bindings::{KVM_EXIT_IO, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// The reason of a VM exit.
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest executed `in`, `data.len() / width` times.
    PortRead {
        /// The number of the port.
        port: u16,
        /// The width of one access in bytes: 1, 2 or 4.
        width: usize,
        /// The buffer for the data that the guest reads, access by access.
        data: &'a mut [u8],
    },
    /// The guest executed `out`, `data.len() / width` times.
    PortWrite {
        /// The number of the port.
        port: u16,
        /// The width of one access in bytes: 1, 2 or 4.
        width: usize,
        /// The data that the guest writes, access by access.
        data: &'a [u8],
    },
    /// An exit for any other reason, as KVM describes it.
    Other(VcpuExit<'a>),
}

/// Enters the guest, and calls `handle` with the exit.
///
/// # Errors
/// Returns the error of KVM_RUN.
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
    // SAFETY: `data` is the slice that kvm-ioctls has just created from the
    // data page of this vCPU's kvm_run mapping. The mapping lives as long as
    // `vcpu`, which is borrowed until `handle` returns, so the kernel does not
    // write to it (no KVM_RUN) and no other slice of it is created.
    // `port_width` borrowed the structure, which ends before the data begins.
    let data = unsafe { &mut *data };
    Ok(handle(if is_read {
        Exit::PortRead { port, width, data }
    } else {
        Exit::PortWrite { port, width, data }
    }))
}

/// Returns the width in bytes of the accesses of the port exit in `run`.
fn port_width(run: &kvm_run) -> usize {
    debug_assert_eq!(run.exit_reason, KVM_EXIT_IO);
    // SAFETY: the exit reason is KVM_EXIT_IO, so KVM filled in `io`; and every
    // bit pattern of its integers is valid.
    let io = unsafe { run.__bindgen_anon_1.io };
    // KVM never reports 0; a width of 0 would cause infinitely many accesses.
    usize::from(io.size).max(1)
}
