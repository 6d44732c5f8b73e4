//! Encoding of packets: the hello and the envelope. Pure functions without a
//! socket.

use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::WireError;
use super::message::MESSAGE_MAX;

/// The version of the protocol: the format that [`encode`] writes and the
/// messages inside. It is incremented whenever a message changes.
pub const VERSION: u32 = 6;
/// The oldest version that this program speaks to processes of an earlier one:
/// keepers, and workers of guests that run. What those send and are sent changes
/// from version to version only by new variants at the end of an enum, which an
/// older peer is not sent.
pub const OLDEST: u32 = 3;

/// The prefix of a hello, in all versions.
const HELLO: [u8; 8] = *b"mkvmm-w\n";
/// The length of a hello: the prefix and a little-endian version.
const HELLO_LEN: usize = HELLO.len() + size_of::<u32>();

/// Returns the hello of a program that speaks `version`. Its layout never changes,
/// so that any two versions can recognise each other.
pub fn hello(version: u32) -> [u8; HELLO_LEN] {
    let mut bytes = [0; HELLO_LEN];
    let (mark, number) = bytes.split_at_mut(HELLO.len());
    mark.copy_from_slice(&HELLO);
    number.copy_from_slice(&version.to_le_bytes());
    bytes
}

/// Returns whether a packet is a hello, of any version.
pub fn is_hello(packet: &[u8]) -> bool {
    packet.len() == HELLO_LEN && packet.starts_with(&HELLO)
}

/// Checks the peer's first packet, and returns the version that it speaks, one of
/// `versions`.
///
/// # Errors
/// Returns [`WireError::NoHello`], or [`WireError::Version`] with the newest
/// version that is due and the peer's.
pub fn check_hello(packet: &[u8], versions: &RangeInclusive<u32>) -> Result<u32, WireError> {
    let bytes = packet.len();
    let version = packet.strip_prefix(&HELLO).and_then(|v| v.first_chunk());
    let (Some(version), HELLO_LEN) = (version, bytes) else {
        return Err(WireError::NoHello { bytes });
    };
    let (ours, theirs) = (*versions.end(), u32::from_le_bytes(*version));
    match versions.contains(&theirs) {
        true => Ok(theirs),
        false => Err(WireError::Version { ours, theirs }),
    }
}

/// The header of a message in its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The position of the packet in its direction, from 0.
    pub sequence: u64,
    /// The number of notifications that the sender dropped since the previous
    /// packet.
    pub lost: u64,
}

/// Encodes an envelope around `message`.
///
/// # Errors
/// Returns [`WireError::Encode`], or [`WireError::TooLong`] beyond
/// [`MESSAGE_MAX`].
pub fn encode<M: Serialize>(sequence: u64, lost: u64, message: &M) -> Result<Vec<u8>, WireError> {
    let header = Header { sequence, lost };
    let packet = postcard::to_stdvec(&(header, message)).map_err(WireError::Encode)?;
    match packet.len() {
        0..=MESSAGE_MAX => Ok(packet),
        bytes => Err(WireError::TooLong { bytes }),
    }
}

/// Decodes the envelope with sequence number `expected`, and returns its
/// message and the count of dropped notifications. The bytes are untrusted:
/// decoding does not panic, recursion is bounded by the type, and allocations
/// are bounded by the packet's length.
///
/// # Errors
/// Returns a [`WireError`] that is a protocol violation.
pub fn decode<M: DeserializeOwned>(packet: &[u8], expected: u64) -> Result<(M, u64), WireError> {
    let (message, header) = decode_at(packet, Some(expected))?;
    Ok((message, header.lost))
}

/// Decodes an envelope like [`decode`], with any sequence number if none is
/// expected.
///
/// # Errors
/// Returns the errors of [`decode`].
pub fn decode_at<M: DeserializeOwned>(
    packet: &[u8],
    expected: Option<u64>,
) -> Result<(M, Header), WireError> {
    let bytes = packet.len();
    if bytes > MESSAGE_MAX {
        return Err(WireError::TooLong { bytes });
    }
    let undecodable = |source| WireError::Decode { bytes, source };
    let (header, body) = postcard::take_from_bytes::<Header>(packet).map_err(undecodable)?;
    // Check this before the body, so that a stray packet is reported as such
    // and not as malformed.
    if let Some(expected) = expected.filter(|expected| header.sequence != *expected) {
        let found = header.sequence;
        return Err(WireError::Sequence { expected, found });
    }
    let (message, rest) = postcard::take_from_bytes::<M>(body).map_err(undecodable)?;
    match rest.len() {
        0 => Ok((message, header)),
        bytes => Err(WireError::Trailing { bytes }),
    }
}
