//! Packets over a socket: non-blocking sendmsg and recvmsg, and poll.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType,
};

use super::error::WireError;
use super::message::{DESCRIPTORS_MAX, MESSAGE_MAX};

/// The size of the control data of a message with the maximum number of
/// descriptors.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// A packet as it was received.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// Checks that the descriptor is a Unix socket that preserves packets.
pub fn check(socket: BorrowedFd<'_>) -> Result<(), WireError> {
    let is_unix = sockopt::socket_domain(socket).map(|domain| domain == AddressFamily::UNIX);
    let is_packet = sockopt::socket_type(socket).map(|kind| kind == SocketType::SEQPACKET);
    match (is_unix, is_packet) {
        (Ok(true), Ok(true)) => Ok(()),
        (Err(source), _) | (_, Err(source)) if source != Errno::NOTSOCK => {
            Err(WireError::Setup(source))
        }
        _ => Err(WireError::NotSeqpacket),
    }
}

/// Sends one packet completely, or not at all. Without descriptors this uses
/// `sendto`: a worker never sends descriptors, and its sandbox forbids
/// `sendmsg`.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let count = descriptors.len();
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if count > 0 && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let expected = 0..=DESCRIPTORS_MAX;
        return Err(WireError::Descriptors {
            found: count,
            expected,
        });
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let parts = [IoSlice::new(bytes)];
    let mut send = || match count {
        0 => rustix::net::send(socket, bytes, flags),
        _ => rustix::net::sendmsg(socket, &parts, &mut control, flags),
    };
    rustix::io::retry_on_intr(&mut send)
        .map(|_| ())
        .map_err(|errno| match errno {
            Errno::WOULDBLOCK => WireError::WouldBlock,
            Errno::PIPE | Errno::CONNRESET => WireError::Closed,
            Errno::TOOMANYREFS => WireError::DescriptorsInFlight { count },
            source => WireError::Send {
                bytes: bytes.len(),
                descriptors: count,
                source,
            },
        })
}

/// Receives the next packet; `None` if the peer has closed the socket.
///
/// The length is queried first, so that only as much memory is allocated as
/// this packet needs: a manager has a thousand of these sockets, most of them
/// idle. There is no other reader, so the packet received is the one queried;
/// otherwise it would be truncated, which is an error.
pub fn receive(
    socket: BorrowedFd<'_>,
    descriptors_max: usize,
) -> Result<Option<Packet>, WireError> {
    let length = next_length(socket)?;
    if length > MESSAGE_MAX {
        return Err(WireError::TooLong { bytes: length });
    }
    let mut bytes = vec![0; length];
    let mut descriptors = Vec::new();
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    // Without space for control data the kernel itself discards descriptors.
    let mut control = match descriptors_max {
        0 => RecvAncillaryBuffer::default(),
        _ => RecvAncillaryBuffer::new(&mut space),
    };
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, &mut parts, &mut control, flags)
    })
    .map_err(receive_error)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(owned) = message {
            descriptors.extend(owned);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(WireError::DescriptorsCut {
            expected: descriptors_max,
        });
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(WireError::TooLong { bytes: length });
    }
    bytes.truncate(received.bytes);
    // An empty packet looks like the end of the stream. An honest peer sends
    // none; from a dishonest one it amounts to closing the socket.
    let is_end = bytes.is_empty() && descriptors.is_empty();
    Ok((!is_end).then_some(Packet { bytes, descriptors }))
}

/// Returns the length of the next packet, or 0 at the end.
fn next_length(socket: BorrowedFd<'_>) -> Result<usize, WireError> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let peek = || rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut [0; 1][..], flags));
    let peeked = match peek() {
        // A peer that closes its socket with unread data resets the connection.
        // The kernel reports this once, before it delivers what the peer had
        // sent; those last messages matter more, so try again.
        Err(Errno::CONNRESET) => peek(),
        other => other,
    };
    match peeked {
        Ok((_, length)) => Ok(length),
        Err(Errno::CONNRESET) => Ok(0),
        Err(errno) => Err(receive_error(errno)),
    }
}

fn receive_error(errno: Errno) -> WireError {
    match errno {
        Errno::WOULDBLOCK => WireError::WouldBlock,
        source => WireError::Receive(source),
    }
}

/// Waits until the socket is ready for `events`, or closed, or until
/// `deadline`.
pub fn wait(
    socket: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<(), WireError> {
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        // A timeout too long for the kernel's clock is treated as unlimited.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled = [PollFd::from_borrowed_fd(socket, events)];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(0) => return Err(WireError::TimedOut),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(WireError::Poll(errno)),
        }
    }
}
