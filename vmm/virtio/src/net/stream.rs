//! A link to a process behind a stream socket. Each frame follows its length, four
//! bytes in network order: the protocol of passt(1) and of QEMU's stream sockets.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use vmm_sys_util::epoll::EventSet;

use super::frame::{ETHERNET, FRAME_MAX};
use super::link::{Drops, Front, HEADROOM, Link, Sent};

/// The number of bytes of a length.
const LENGTH: usize = 4;
/// The buffer for what arrives: two of the largest frames.
const BUFFER: usize = 2 * (LENGTH + FRAME_MAX);
/// How often a call looks for more bytes of a frame.
const READS: usize = 16;

/// A link over a stream socket. It is down permanently once the other end has closed
/// it, or violates the protocol.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    is_up: bool,
    /// What was received: the bytes from `begin` to `end`.
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
    /// What is left of the last frame that was sent.
    rest: Vec<u8>,
    drops: Arc<Drops>,
}

impl Stream {
    /// Creates a link over a connected stream socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            is_up: true,
            buffer: vec![0; BUFFER].into(),
            begin: 0,
            end: 0,
            rest: Vec::new(),
            drops: Arc::default(),
        }
    }

    fn fail(&mut self) {
        self.is_up = false;
        self.rest = Vec::new();
        (self.begin, self.end) = (0, 0);
    }

    fn put(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, bytes, flags))
    }

    /// Sends what is left of a frame. Returns whether there is nothing left.
    fn flush(&mut self) -> bool {
        if !self.rest.is_empty() {
            match self.put(&self.rest) {
                Ok(count) => drop(self.rest.drain(..count)),
                Err(Errno::WOULDBLOCK | Errno::NOBUFS | Errno::NOMEM) => {}
                Err(_gone) => self.fail(),
            }
        }
        self.rest.is_empty()
    }

    /// Returns the length of the next frame if all of it has arrived.
    fn next(&mut self) -> Option<usize> {
        let arrived = self.buffer.get(self.begin..self.end)?;
        let length = u32::from_be_bytes(arrived.first_chunk().copied()?);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if !(ETHERNET..=FRAME_MAX).contains(&length) {
            self.drops.malformed();
            self.fail();
            return None;
        }
        (arrived.len() - LENGTH >= length).then_some(length)
    }

    /// Receives bytes. Returns whether there were any.
    fn fill(&mut self) -> bool {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
        if BUFFER - self.begin < LENGTH + FRAME_MAX {
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        let Some(space) = self.buffer.get_mut(self.end..) else {
            return false;
        };
        let flags = RecvFlags::DONTWAIT;
        let socket = &self.socket;
        match rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *space, flags)) {
            Ok((_, 0)) => self.fail(),
            Ok((_, count)) => {
                self.end += count;
                return true;
            }
            Err(Errno::WOULDBLOCK | Errno::NOBUFS | Errno::NOMEM) => {}
            Err(_gone) => self.fail(),
        }
        false
    }
}

impl Link for Stream {
    fn descriptor(&self) -> (BorrowedFd<'_>, EventSet) {
        let events =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        (self.socket.as_fd(), events)
    }

    fn on_event(&mut self) {
        self.flush();
    }

    fn send(&mut self, packet: &mut [u8]) -> Sent {
        if self.is_up && !self.flush() {
            return Sent::Full;
        }
        let length = packet.len().saturating_sub(HEADROOM);
        let begin = HEADROOM - LENGTH;
        let (Ok(length), Some(packet)) = (u32::try_from(length), packet.get_mut(begin..)) else {
            self.drops.malformed();
            return Sent::Dropped;
        };
        if let Some(prefix) = packet.first_chunk_mut() {
            *prefix = length.to_be_bytes();
        }
        if !self.is_up {
            self.drops.down();
            return Sent::Dropped;
        }
        match self.put(packet) {
            Ok(count) => {
                let rest = packet.get(count..).unwrap_or_default();
                self.rest.extend_from_slice(rest);
                return Sent::Done;
            }
            Err(Errno::WOULDBLOCK) => return Sent::Full,
            // The host has no memory, and nothing will say when it has.
            Err(Errno::NOBUFS | Errno::NOMEM) => self.drops.full(),
            Err(_gone) => {
                self.fail();
                self.drops.down();
            }
        }
        Sent::Dropped
    }

    fn front(&mut self) -> Front<'_> {
        for _ in 0..READS {
            if let Some(length) = self.next() {
                let begin = self.begin + LENGTH;
                let frame = self.buffer.get(begin..begin + length);
                return Front::Frame(frame.unwrap_or_default());
            }
            if !self.is_up || !self.fill() {
                return Front::Empty;
            }
        }
        Front::Busy
    }

    fn pop(&mut self) {
        if let Some(length) = self.next() {
            self.begin += LENGTH + length;
        }
    }

    fn is_up(&self) -> bool {
        self.is_up
    }

    fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }
}
