//! Size and shape of a disk, and the device's configuration space.
//!
//! Source: virtio 1.2, section 5.2.4.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

/// The unit of positions and sizes in requests, in bytes, whatever the block
/// size is.
pub const SECTOR: u64 = 512;

/// The number of entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// The largest number of data segments of a request: with its header and its
/// status, it fits in a queue even without indirect tables.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// The largest size of a data segment in bytes.
pub const SIZE_MAX: u32 = 1 << 20;

/// The largest range of a discard or of a request for zeros, in sectors: 1 GiB.
pub const RANGE_MAX: u32 = 1 << 21;

/// The size of the configuration space in bytes.
const CONFIG_SIZE: usize = 72;

/// Size and shape of a disk, as the manager found them when it opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The size in bytes, a multiple of 512.
    pub bytes: u64,
    /// The smallest unit of the host in bytes, a power of two from 512 on.
    pub logical_block: u32,
    /// The unit that the host writes without reading first, in bytes; a power
    /// of two, and at least the logical block.
    pub physical_block: u32,
}

/// The text that identifies a disk to its guest, padded with zeros
/// (`/dev/disk/by-id` in Linux).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskId([u8; DiskId::SIZE]);

impl DiskId {
    /// The size in bytes (`VIRTIO_BLK_ID_BYTES`).
    pub const SIZE: usize = 20;

    /// Creates the identification from the first 20 bytes of `text`.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; Self::SIZE];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(bytes)
    }

    /// Returns the bytes as the driver reads them.
    pub fn bytes(&self) -> &[u8; Self::SIZE] {
        &self.0
    }
}

/// The properties of a disk.
#[derive(Debug, Clone, Copy)]
pub struct BlockSettings {
    /// Its size and shape.
    pub geometry: Geometry,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The number of queues, at least one.
    pub queues: u16,
    /// The text that identifies it to its guest.
    pub id: DiskId,
}

/// Returns the features of a disk with `queues` queues.
pub fn features(read_only: bool, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
    ];
    if queues > 1 {
        bits.push(VIRTIO_BLK_F_MQ);
    }
    if read_only {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    bits.into_iter().fold(0, |all, bit| all | 1 << bit)
}

/// Reads the configuration space of a disk from `offset` on; fills all of
/// `data`, with zeros beyond the end.
pub fn read(geometry: Geometry, queues: u16, offset: u64, data: &mut [u8]) {
    let space = space(geometry, queues);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut rest = space.iter().skip(start);
    data.fill_with(|| rest.next().copied().unwrap_or(0));
}

fn space(geometry: Geometry, queues: u16) -> [u8; CONFIG_SIZE] {
    let physical_exp = geometry.physical_block.trailing_zeros();
    let exp = physical_exp.saturating_sub(geometry.logical_block.trailing_zeros());
    let alignment = u64::from(geometry.logical_block) / SECTOR;
    let mut space = [0; CONFIG_SIZE];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (to, from) in space.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &(geometry.bytes / SECTOR).to_le_bytes()); // capacity
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &geometry.logical_block.to_le_bytes()); // blk_size
    // topology: an exponent, no offset, and sizes in logical blocks.
    put(24, &[u8::try_from(exp).unwrap_or(0), 0]);
    put(26, &1_u16.saturating_mul(1 << exp.min(15)).to_le_bytes()); // min_io_size
    put(34, &queues.to_le_bytes());
    put(36, &RANGE_MAX.to_le_bytes()); // max_discard_sectors
    put(40, &1_u32.to_le_bytes()); // max_discard_seg
    // discard_sector_alignment
    put(44, &u32::try_from(alignment).unwrap_or(1).to_le_bytes());
    put(48, &RANGE_MAX.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &1_u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Geometry = Geometry {
        bytes: 5 << 20,
        logical_block: 512,
        physical_block: 4096,
    };

    fn field(offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        read(DISK, 3, offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        assert_eq!(field(0, 8), 10240, "capacity");
        assert_eq!(field(8, 4), 1 << 20, "size_max");
        assert_eq!(field(12, 4), 254, "seg_max");
        assert_eq!(field(20, 4), 512, "blk_size");
        assert_eq!(field(24, 1), 3, "physical_block_exp");
        assert_eq!(field(26, 2), 8, "min_io_size");
        assert_eq!(field(34, 2), 3, "num_queues");
        assert_eq!(field(40, 4), 1, "max_discard_seg");
        assert_eq!(field(56, 1), 1, "write_zeroes_may_unmap");
    }

    #[test]
    fn reads_beyond_the_end_are_zeros() {
        let mut data = [0xff; 8];
        read(DISK, 1, u64::MAX, &mut data);
        assert_eq!(data, [0; 8]);
        data = [0xff; 8];
        read(DISK, 1, 70, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let writing = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        assert_eq!(features(true, 1) & writing, 0);
        assert_ne!(features(true, 1) & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(features(false, 1) & 1 << VIRTIO_BLK_F_RO, 0);
    }
}
