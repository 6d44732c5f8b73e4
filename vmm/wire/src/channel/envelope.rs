//! Packets as bytes: the hello and the envelope. Pure; knows no socket.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::WireError;
use super::message::MESSAGE_MAX;

/// The version of the wire: what [`encode`] writes and the messages inside.
/// It changes whenever a message does.
pub const VERSION: u32 = 1;

/// How a hello begins, in every version there will ever be.
const HELLO: [u8; 8] = *b"mkvmm-w\n";
/// The length of a hello: the mark and a little-endian version.
const HELLO_LEN: usize = HELLO.len() + size_of::<u32>();

/// Returns this program's hello. Its layout never changes, so that the
/// versions of any two programs can be compared.
pub fn hello() -> [u8; HELLO_LEN] {
    let mut bytes = [0; HELLO_LEN];
    let (mark, version) = bytes.split_at_mut(HELLO.len());
    mark.copy_from_slice(&HELLO);
    version.copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// Checks the peer's first packet.
///
/// # Errors
/// [`WireError::NoHello`], or [`WireError::Version`] with both versions.
pub fn check_hello(packet: &[u8]) -> Result<(), WireError> {
    let bytes = packet.len();
    let version = packet.strip_prefix(&HELLO).and_then(|v| v.first_chunk());
    let (Some(version), HELLO_LEN) = (version, bytes) else {
        return Err(WireError::NoHello { bytes });
    };
    let (ours, theirs) = (VERSION, u32::from_le_bytes(*version));
    if ours == theirs {
        Ok(())
    } else {
        Err(WireError::Version { ours, theirs })
    }
}

/// What precedes a message in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The position of the packet in its direction, from 0.
    pub sequence: u64,
    /// How many news the sender dropped since the packet before.
    pub lost: u64,
}

/// Encodes an envelope around `message`.
///
/// # Errors
/// [`WireError::Encode`], or [`WireError::TooLong`] beyond [`MESSAGE_MAX`].
pub fn encode<M: Serialize>(sequence: u64, lost: u64, message: &M) -> Result<Vec<u8>, WireError> {
    let header = Header { sequence, lost };
    let packet = postcard::to_stdvec(&(header, message)).map_err(WireError::Encode)?;
    match packet.len() {
        0..=MESSAGE_MAX => Ok(packet),
        bytes => Err(WireError::TooLong { bytes }),
    }
}

/// Decodes the envelope that must have number `expected`, and returns its
/// message and the count of dropped news. Any bytes may be given: decoding
/// does not panic, recursion is bounded by the type, and what it allocates is
/// bounded by the packet's length.
///
/// # Errors
/// A [`WireError`] that is a violation of the protocol.
pub fn decode<M: DeserializeOwned>(packet: &[u8], expected: u64) -> Result<(M, u64), WireError> {
    let bytes = packet.len();
    if bytes > MESSAGE_MAX {
        return Err(WireError::TooLong { bytes });
    }
    let undecodable = |source| WireError::Decode { bytes, source };
    let (header, body) = postcard::take_from_bytes::<Header>(packet).map_err(undecodable)?;
    // Before the body: a stray packet is reported as one, not as nonsense.
    if header.sequence != expected {
        let found = header.sequence;
        return Err(WireError::Sequence { expected, found });
    }
    let (message, rest) = postcard::take_from_bytes::<M>(body).map_err(undecodable)?;
    match rest.len() {
        0 => Ok((message, header.lost)),
        bytes => Err(WireError::Trailing { bytes }),
    }
}
