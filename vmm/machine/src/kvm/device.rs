//! Descriptors received from another process: an open `/dev/kvm`, and eventfds.
//!
//! UNSAFETY: kvm-ioctls and vmm-sys-util take ownership of raw descriptors.
#![expect(
    unsafe_code,
    reason = "hands descriptors to kvm-ioctls and vmm-sys-util"
)]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{ReadWriteFlags, preadv2};
use vmm_sys_util::eventfd::EventFd;

/// Creates a `Kvm` from a descriptor. The first ioctl shows whether it is
/// `/dev/kvm`.
pub fn from_device(device: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and owned, and ownership passes to `Kvm`,
    // which closes it. An ioctl on any file other than `/dev/kvm` fails with
    // ENOTTY and accesses no memory.
    unsafe { Kvm::from_raw_fd(device.into_raw_fd()) }
}

/// Creates an `EventFd` from a descriptor. If it is not an eventfd, KVM refuses
/// to connect it.
pub fn from_event(event: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open and owned, and ownership passes to
    // `EventFd`, which closes it. Reads and writes go to the file that it is,
    // and access only the 8 bytes that they are given.
    unsafe { EventFd::from_raw_fd(event.into_raw_fd()) }
}

/// Returns whether an eventfd is signalled, and leaves it as it is. One that cannot
/// be asked is not.
pub fn is_signalled(event: &EventFd) -> bool {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut poll = [PollFd::new(&descriptor, PollFlags::IN)];
    let without_waiting = Timespec::default();
    rustix::event::poll(&mut poll, Some(&without_waiting)).is_ok_and(|ready| ready > 0)
}

/// The offset that stands for no offset: eventfds have none.
const NO_OFFSET: u64 = u64::MAX;

/// Takes what is signalled of an eventfd, and never waits: whoever has it as well may
/// have made its reads wait.
///
/// # Errors
/// Fails if nothing is signalled.
pub fn take_signal(event: &EventFd) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `event` is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut counter = [0; 8];
    let mut slices = [IoSliceMut::new(&mut counter)];
    preadv2(descriptor, &mut slices, NO_OFFSET, ReadWriteFlags::NOWAIT)?;
    Ok(())
}
