//! The loader's data: the zero page of the Linux boot protocol.
//!
//! Offsets are those of `struct boot_params` in Linux'
//! `arch/x86/include/uapi/asm/bootparam.h`.

use crate::memory::Memory;
use crate::pure::e820::{ENTRY_LEN, Entry};
use crate::pure::manifest::SETUP_DATA_TYPE;
use crate::pure::range::Range;

const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const EXT_CMD_LINE_PTR: usize = 0x0c8;
const E820_ENTRIES: usize = 0x1e8;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_TABLE_LEN: usize = 128;

const SETUP_E820_EXT: u32 = 1;
/// The size of `next`, `type` and `len` before each node's data.
const NODE_HEADER: u64 = 16;
/// The maximum number of nodes; more are considered a loop.
const MAX_NODES: usize = 64;
const MAX_CMDLINE: u64 = 64 << 10;

pub struct BootParams {
    zero_page: &'static [u8],
    /// The data of the `SETUP_E820_EXT` nodes, usually none.
    extensions: [&'static [u8]; 8],
    /// The range of the manifest in the chain of `setup_data`.
    pub manifest: Option<Range>,
    /// The first error in the chain.
    pub complaint: Option<&'static str>,
}

impl BootParams {
    pub fn new(memory: &mut Memory, addr: u64) -> Self {
        let zero_page = Range::sized(addr, 4096).and_then(|range| memory.bytes(range));
        let mut this = Self {
            zero_page: zero_page.unwrap_or(&[0; 4096]),
            extensions: [&[]; 8],
            manifest: None,
            complaint: zero_page.is_none().then_some("no boot_params"),
        };
        if let Err(complaint) = this.follow_setup_data(memory) {
            this.complaint = Some(complaint);
        }
        this
    }

    fn follow_setup_data(&mut self, memory: &mut Memory) -> Result<(), &'static str> {
        let mut node = u64::from(self.u32(SETUP_DATA)) | u64::from(self.u32(SETUP_DATA + 4)) << 32;
        let mut found = 0;
        for _ in 0..MAX_NODES {
            if node == 0 {
                return Ok(());
            }
            let next = memory.peek(node).ok_or("setup_data out of reach")?;
            let word = memory.peek(node + 8).ok_or("setup_data out of reach")?;
            let (kind, len) = (word as u32, word >> 32);
            let data = Range::sized(node + NODE_HEADER, len);
            match (kind, data) {
                (SETUP_E820_EXT, Some(range)) => {
                    let place = self.extensions.get_mut(found);
                    let place = place.ok_or("too many SETUP_E820_EXT")?;
                    *place = memory.bytes(range).ok_or("SETUP_E820_EXT out of reach")?;
                    found += 1;
                }
                (SETUP_DATA_TYPE, _) if self.manifest.is_some() => {
                    return Err("setup_data has two manifests");
                }
                (SETUP_DATA_TYPE, range) => self.manifest = range,
                _ => {}
            }
            node = next;
        }
        Err("setup_data does not end")
    }

    fn u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.zero_page[offset..offset + 4]);
        u32::from_le_bytes(bytes)
    }

    fn split_u64(&self, low: usize, high: usize) -> u64 {
        u64::from(self.u32(low)) | u64::from(self.u32(high)) << 32
    }

    /// Returns the address of the command line.
    pub fn cmdline_addr(&self) -> u64 {
        self.split_u64(CMD_LINE_PTR, EXT_CMD_LINE_PTR)
    }

    /// Returns the command line, if it is accessible and is text.
    pub fn cmdline(&self, memory: &mut Memory) -> Option<&'static str> {
        let addr = self.cmdline_addr();
        // If it is in the first 1 MiB, read no further: what follows need not
        // be RAM.
        let end = addr.saturating_add(MAX_CMDLINE);
        let end = if addr < 1 << 20 {
            end.min(1 << 20)
        } else {
            end
        };
        let bytes = memory.bytes(Range::new(addr, end)?)?;
        let len = bytes.iter().position(|&b| b == 0)?;
        core::str::from_utf8(&bytes[..len]).ok()
    }

    /// Returns the range of the initramfs, if there is one.
    pub fn initramfs(&self) -> Option<Range> {
        let addr = self.split_u64(RAMDISK_IMAGE, EXT_RAMDISK_IMAGE);
        Range::sized(addr, self.split_u64(RAMDISK_SIZE, EXT_RAMDISK_SIZE))
    }

    /// Returns the entries of the memory map, in its own order.
    pub fn e820(&self) -> impl Iterator<Item = Entry> + use<> {
        let len = usize::from(self.zero_page[E820_ENTRIES]).min(E820_TABLE_LEN);
        let table = &self.zero_page[E820_TABLE..E820_TABLE + len * ENTRY_LEN];
        let extensions = self.extensions;
        core::iter::once(table)
            .chain(extensions)
            .flat_map(|bytes| bytes.as_chunks::<ENTRY_LEN>().0)
            .map(Entry::from_bytes)
    }
}
