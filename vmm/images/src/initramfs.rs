//! The initramfs: one or several archives, concatenated.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst. The
//! kernel unpacks one archive after the other and skips zeros between them; a
//! plain cpio header must start at a multiple of 4 bytes (`init/initramfs.c`).

use std::sync::Arc;

use crate::stored::StoredImage;

/// The alignment of the start of each archive.
const ALIGN: u64 = 4;

/// The archives of a guest, in order. Their content is shared, not copied.
#[derive(Debug, Clone)]
pub struct Initramfs {
    parts: Vec<Arc<StoredImage>>,
}

impl Initramfs {
    /// Concatenates `parts`; `None` if there are none.
    pub fn new(parts: Vec<Arc<StoredImage>>) -> Option<Self> {
        (!parts.is_empty()).then_some(Self { parts })
    }

    /// Returns the archives, each with its offset in bytes. Between them are up
    /// to three zero bytes.
    pub fn parts(&self) -> impl Iterator<Item = (u64, &Arc<StoredImage>)> {
        self.parts.iter().scan(0, |next: &mut u64, part| {
            let offset = next.next_multiple_of(ALIGN);
            *next = offset + part.size();
            Some((offset, part))
        })
    }

    /// Returns the total size, from the first byte to the last.
    pub fn size(&self) -> u64 {
        let end = |(offset, part): (u64, &Arc<StoredImage>)| offset + part.size();
        self.parts().last().map_or(0, end)
    }

    /// Computes the CRC-32 of the whole, including the zero bytes between the
    /// parts, from those of the parts, without reading any data.
    pub fn crc32(&self) -> u32 {
        let mut whole = crc32fast::Hasher::new();
        let mut end = 0;
        for (offset, part) in self.parts() {
            for _ in end..offset {
                whole.update(&[0]);
            }
            let part_of_it = crc32fast::Hasher::new_with_initial_len(part.crc32(), part.size());
            whole.combine(&part_of_it);
            end = offset + part.size();
        }
        whole.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_base::unpacking::{ContentHash, Facts, ImageRole, Unpacked};

    fn initramfs(parts: &[&[u8]]) -> Option<Initramfs> {
        let stored = |part: &&[u8]| {
            let content = Unpacked {
                facts: Facts::Initramfs {
                    crc32: crc32fast::hash(part),
                },
                sha256: ContentHash([0; 32]),
                input_size: part.len() as u64,
                output_size: part.len() as u64,
            };
            let file = std::fs::File::open("/dev/null").unwrap().into();
            Arc::new(StoredImage::new(file, ImageRole::Initramfs, content))
        };
        Initramfs::new(parts.iter().map(stored).collect())
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
        assert_eq!(one.crc32(), crc32fast::hash(b"abcde"));
        assert!(initramfs(&[]).is_none());
    }
}
