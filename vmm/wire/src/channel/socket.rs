//! Packets over a socket: sendmsg, recvmsg and poll, without a wait of their own.

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

/// Room for the control data of a message with the most descriptors.
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// A packet as it came.
#[derive(Debug)]
pub struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// Checks that the descriptor is a Unix socket that keeps packets apart.
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

/// Sends one packet whole, or not at all. Without descriptors this is
/// `sendto`: a worker, which has none to send, is not allowed `sendmsg`.
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

/// Takes the next packet; `None` when the peer has closed.
///
/// The length is asked for first, so that memory is taken for this packet
/// only: a manager has a thousand of these, most of them silent. Nobody else
/// reads this socket, so the packet taken is the one asked about; if somebody
/// did, it would be cut, which is an error.
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
    // Without room for control data the kernel drops descriptors itself.
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
    // A packet of no bytes reads like the end. An honest peer sends none, so a
    // dishonest one has merely hung up.
    let is_end = bytes.is_empty() && descriptors.is_empty();
    Ok((!is_end).then_some(Packet { bytes, descriptors }))
}

/// Returns the length of the packet that waits, 0 at the end.
fn next_length(socket: BorrowedFd<'_>) -> Result<usize, WireError> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let peek = || rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut [0; 1][..], flags));
    let peeked = match peek() {
        // A peer that closes without having read everything resets the
        // connection. The kernel says so once, and before it hands out what
        // the peer had sent: its last words are worth more.
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

/// Waits until the socket is ready as `events` say, or closed, or until
/// `deadline`.
pub fn wait(
    socket: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<(), WireError> {
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        // A wait too long for the kernel's clock is one without an end.
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
