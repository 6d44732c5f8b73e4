//! An open `/dev/kvm` received from another process.
//!
//! UNSAFETY: kvm-ioctls takes ownership of a raw descriptor.
#![expect(unsafe_code, reason = "hands a descriptor to kvm-ioctls")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;

/// Creates a `Kvm` from a descriptor. The first ioctl shows whether it is
/// `/dev/kvm`.
pub fn from_device(device: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and owned, and ownership passes to `Kvm`,
    // which closes it. An ioctl on any file other than `/dev/kvm` fails with
    // ENOTTY and accesses no memory.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}
