//! The settings of the worker that `run` starts before it has read its arguments;
//! they are its first packet. Other workers have them in their environment.

use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};

use crate::channel::error::WireError;
use crate::channel::socket;

/// The environment variable that tells a worker that it has no instance yet.
pub const WAITS_VARIABLE: &str = "MKVMM_WAITS";

/// The parameters of a worker's confinement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The variables that it would have had in its environment.
    pub environment: Vec<(String, String)>,
}

impl Settings {
    /// Sends the settings as the first packet.
    ///
    /// # Errors
    /// Returns a [`WireError`].
    pub fn send(&self, socket: BorrowedFd<'_>) -> Result<(), WireError> {
        let packet = postcard::to_stdvec(self).map_err(WireError::Encode)?;
        socket::send(socket, &packet, &[])
    }

    /// Waits for the settings; returns `None` if the peer has closed the socket
    /// instead.
    ///
    /// # Errors
    /// Returns a [`WireError`].
    pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Self>, WireError> {
        socket::wait(socket, PollFlags::IN, None)?;
        let Some(packet) = socket::receive(socket, 0)? else {
            return Ok(None);
        };
        let bytes = packet.bytes.len();
        let undecodable = |source| WireError::Decode { bytes, source };
        postcard::from_bytes(&packet.bytes)
            .map(Some)
            .map_err(undecodable)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::channel::pair;

    #[test]
    fn settings_arrive_whole_or_not_at_all() {
        let (ours, theirs) = pair().unwrap();
        let settings = Settings {
            environment: vec![("A".to_owned(), "b".to_owned())],
        };
        settings.send(ours.as_fd()).unwrap();
        let received = Settings::receive(theirs.as_fd()).unwrap();
        assert_eq!(received, Some(settings));
        socket::send(ours.as_fd(), b"\x01\x09a", &[]).unwrap();
        let cut = Settings::receive(theirs.as_fd());
        assert!(matches!(cut, Err(WireError::Decode { .. })));
        drop(ours);
        assert_eq!(Settings::receive(theirs.as_fd()).unwrap(), None);
    }
}
