//! An open `/dev/kvm` that came from another process.
//!
//! UNSAFETY: kvm-ioctls takes over a raw descriptor.
#![expect(unsafe_code, reason = "hands a descriptor to kvm-ioctls")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;

/// Makes a `Kvm` of a descriptor. Whether it is `/dev/kvm` the first ioctl
/// tells.
pub fn from_device(device: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and owned, and ownership goes to `Kvm`,
    // which closes it. An ioctl on anything else than `/dev/kvm` fails with
    // ENOTTY and touches no memory.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}
