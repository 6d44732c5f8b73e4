//! Addresses of network devices.

use std::fmt;
use std::str::FromStr;

/// The address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

/// A reason why a text or a number is not the address of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// It has not the form of an address.
    #[error("it is not six pairs of hexadecimal digits with colons between them")]
    Form,
    /// It is an address of several devices.
    #[error("the lowest bit of its first byte is set: that is the address of a group")]
    Group,
    /// It is zero.
    #[error("it is zero")]
    Zero,
}

impl Mac {
    /// Checks that `bytes` are the address of one device.
    ///
    /// # Errors
    /// Returns [`MacError::Group`] or [`MacError::Zero`].
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            [first, ..] if first & 1 != 0 => Err(MacError::Group),
            _ => Ok(Self(bytes)),
        }
    }

    /// Returns the address of device `device` of instance `id`: locally
    /// administered, and different for each pair.
    pub fn derived(id: u32, device: u8) -> Self {
        let [a, b, c, d] = id.to_be_bytes();
        Self([0x02, a, b, c, d, device])
    }

    /// Returns the six bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2);
            let is_hex = |word: &&str| word.bytes().all(|digit| digit.is_ascii_hexdigit());
            let word = word.filter(is_hex).ok_or(MacError::Form)?;
            *byte = u8::from_str_radix(word, 16).map_err(|_digits| MacError::Form)?;
        }
        match words.next() {
            None => Self::new(bytes),
            Some(_more) => Err(MacError::Form),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "02:00:ab:CD:ef:09".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:cd:ef:09");
        for (text, error) in [
            ("02:00:ab:cd:ef", MacError::Form),
            ("02:00:ab:cd:ef:09:01", MacError::Form),
            ("02:00:ab:cd:ef:+9", MacError::Form),
            ("2:0:ab:cd:ef:09", MacError::Form),
            ("", MacError::Form),
            ("03:00:ab:cd:ef:09", MacError::Group),
            ("ff:ff:ff:ff:ff:ff", MacError::Group),
            ("00:00:00:00:00:00", MacError::Zero),
        ] {
            assert_eq!(text.parse::<Mac>(), Err(error), "{text}");
        }
    }

    #[test]
    fn derived_addresses_differ_and_are_local() {
        let ids = [0, 1, 255, 256, u32::MAX];
        let all = ids.map(|id| [0, 1, 255].map(|device| Mac::derived(id, device)));
        let all = all.as_flattened();
        for (index, mac) in all.iter().enumerate() {
            assert_eq!(mac.bytes()[0] & 3, 2);
            assert_eq!(Mac::new(mac.bytes()), Ok(*mac));
            assert!(!all[..index].contains(mac), "{mac}");
        }
    }
}
