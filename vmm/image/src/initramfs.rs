//! The initramfs: one or several archives, concatenated.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst. The
//! kernel unpacks one archive after the other and skips zeros between them; a
//! plain cpio header must start at a multiple of 4 bytes (`init/initramfs.c`).

use std::sync::Arc;

/// Each archive starts at a multiple of this.
const ALIGN: u64 = 4;

/// The archives of a guest, in order. Content is shared, not copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Initramfs {
    parts: Vec<Arc<Vec<u8>>>,
}

impl Initramfs {
    /// Puts `parts` one behind the other; `None` when there is none.
    pub fn new(parts: Vec<Arc<Vec<u8>>>) -> Option<Self> {
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// The archives, each with its distance from the start in bytes. Between
    /// them are up to three zeros.
    pub fn parts(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.parts.iter().scan(0, |next: &mut u64, part| {
            let offset = next.next_multiple_of(ALIGN);
            *next = offset + part.len() as u64;
            Some((offset, part.as_slice()))
        })
    }

    /// Bytes from the first to the last.
    pub fn size(&self) -> u64 {
        let end = |(offset, part): (u64, &[u8])| offset + part.len() as u64;
        self.parts().last().map_or(0, end)
    }

    /// CRC-32 of the whole, with the zeros between the parts.
    pub fn crc32(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut end = 0;
        for (offset, part) in self.parts() {
            for _ in end..offset {
                hasher.update(&[0]);
            }
            hasher.update(part);
            end = offset + part.len() as u64;
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initramfs(parts: &[&[u8]]) -> Option<Initramfs> {
        Initramfs::new(parts.iter().map(|p| Arc::new(p.to_vec())).collect())
    }

    #[test]
    fn each_archive_starts_at_a_multiple_of_four() {
        let three = initramfs(&[b"abcde", b"fghi", b"j"]).unwrap();
        let offsets: Vec<u64> = three.parts().map(|(at, _)| at).collect();
        assert_eq!(offsets, [0, 8, 12]);
        assert_eq!(three.size(), 13);
        assert_eq!(three.crc32(), crc32fast::hash(b"abcde\0\0\0fghij"));
    }

    #[test]
    fn one_archive_is_not_padded_and_none_is_none() {
        let one = initramfs(&[b"abcde"]).unwrap();
        assert_eq!(one.size(), 5);
        assert_eq!(initramfs(&[]), None);
    }
}
