//! Addresses and sizes of Ethernet frames.

/// The number of bytes of the largest frame: what fits the 16-bit lengths of IP,
/// and what passt takes.
pub const FRAME_MAX: usize = 65535;
/// The number of bytes of an Ethernet header: destination, source and type.
pub const ETHERNET: usize = 14;
/// The number of bytes by which an 802.1Q tag makes a frame longer than its MTU
/// and header.
pub const TAG: usize = 4;

/// The address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns whether it is the source of `frame`.
    pub(crate) fn is_source_of(self, frame: &[u8]) -> bool {
        frame.get(6..12) == Some(&self.0)
    }
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The device with this address.
    One([u8; 6]),
    /// All devices, or a group of them.
    Many,
}

/// Returns where `frame` goes; `None` if it has no whole header.
pub(crate) fn destination(frame: &[u8]) -> Option<Destination> {
    if frame.len() < ETHERNET {
        return None;
    }
    let to: [u8; 6] = frame.first_chunk().copied()?;
    Some(match to[0] & 1 {
        0 => Destination::One(to),
        _ => Destination::Many,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_needs_a_whole_header() {
        let mut frame = [0; ETHERNET];
        assert_eq!(destination(&frame), Some(Destination::One([0; 6])));
        frame[0] = 0x33;
        assert_eq!(destination(&frame), Some(Destination::Many));
        assert_eq!(destination(&frame[1..]), None);
    }
}
