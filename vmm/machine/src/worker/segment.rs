//! How a network device learns of other guests on its segment.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use mkvmm_virtio::net::{Change, Changes, Mac, Member};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::{Channel, Receiver, Sender, VERSION};
use mkvmm_wire::messages::{SegmentNews, SegmentReport};

/// The channel over which the manager sends the sockets to other guests.
#[derive(Debug)]
pub struct News {
    sender: Sender<SegmentReport>,
    receiver: Receiver<SegmentNews>,
    /// How often another manager has taken over.
    restarts: u64,
}

impl News {
    /// Opens the channel.
    ///
    /// # Errors
    /// Returns the errors of [`Channel::open_unchecked`].
    pub fn open(socket: OwnedFd) -> Result<Self, WireError> {
        let (sender, mut receiver) = Channel::open_unchecked(socket)?.split();
        receiver.allow_restarts();
        Ok(Self {
            sender,
            receiver,
            restarts: 0,
        })
    }
}

impl Changes for News {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    fn next(&mut self) -> Option<Change> {
        let received = self.receiver.try_recv();
        if self.restarts != self.receiver.restarts() {
            self.restarts = self.receiver.restarts();
            // The manager learns nothing else from it, and needs no hello.
            let _ = self.sender.restart(VERSION, Some(Instant::now()));
        }
        match received {
            Ok(Some(mut received)) => {
                let SegmentNews { id, mac } = received.message;
                let socket = received.descriptors.pop()?;
                let mac = Mac(mac);
                Some(Change::Joined(Member { id, mac, socket }))
            }
            Err(WireError::WouldBlock) => None,
            // Nothing more can be learnt of others: those that are known stay.
            Ok(None) | Err(_) => Some(Change::Last),
        }
    }
}
