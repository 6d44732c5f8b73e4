//! boot_params, the "zero page", and the `setup_data` list that follows it.
//!
//! Source: Documentation/arch/x86/boot.rst and zero-page.rst; the offsets are
//! those of linux-loader's `boot_params`. The page is composed as bytes,
//! because a bzImage's setup header is copied into it byte for byte.

use std::mem::offset_of;

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, SETUP_E820_EXT, XLF_CAN_BE_LOADED_ABOVE_4G, XLF_KERNEL_64,
    boot_e820_entry, boot_params, setup_header,
};
use mkpool::AddrRange;

use mkvmm_base::layout::{
    CMDLINE_START, KERNEL_ALIGN, PAGE_SIZE, SETUP_DATA_END, SETUP_DATA_START,
};
use mkvmm_base::setup_header::{BOOT_FLAG, HEADER_MAGIC, SETUP_HEADER_OFFSET};
use mkvmm_base::{Class, Diagnose};
use mkvmm_memory::e820::E820Entry;

/// The boot protocol version in the header of ELF kernels: 2.15.
const PROTOCOL_VERSION: u16 = 0x020f;
/// The `type_of_loader` of a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The size of a packed e820 row in bytes: address, size, type.
const E820_ROW: usize = size_of::<boot_e820_entry>();
/// The size of a setup_data node's header: next (8), type (4), length (4).
const SETUP_DATA_HEAD: usize = 16;

const _: () = assert!(size_of::<boot_params>() as u64 == PAGE_SIZE);

/// A reason why boot_params could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootParamsError {
    /// The setup_data does not fit into the low window.
    #[error(
        "setup_data needs {needed} bytes with the {entries} rows of the e820 map, \
         there is room for {room}"
    )]
    SetupDataFull {
        /// The number of rows of the e820 map.
        entries: usize,
        /// The number of bytes that the entries need.
        needed: u64,
        /// The number of bytes between `SETUP_DATA_START` and `SETUP_DATA_END`.
        room: u64,
    },
}

impl Diagnose for BootParamsError {
    fn class(&self) -> Class {
        Class::NoRoom
    }
}

/// The contents of the page.
#[derive(Debug, Clone, Copy)]
pub struct BootParamsFacts<'a> {
    /// A bzImage's setup header, from byte 0x1f1 on; `None` for an ELF kernel,
    /// for which a header is generated.
    pub setup_header: Option<&'a [u8]>,
    /// The whole memory map.
    pub e820: &'a [E820Entry],
    /// The length of the command line in bytes, without its NUL.
    pub cmdline_len: usize,
    /// The address and exact size of the initramfs, which need not be whole
    /// pages.
    pub initramfs: Option<AddrRange>,
    /// The guest-physical address of the RSDP.
    pub rsdp: u64,
    /// The nodes of the `setup_data` list, in this order; the data of the first
    /// is placed at [`FIRST_SETUP_DATA`].
    pub setup_data: &'a [SetupData],
}

/// A node of the `setup_data` list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupData {
    /// The type of the node: `SETUP_…` of the kernel, or a number outside its
    /// range.
    pub kind: u32,
    /// The bytes after the header.
    pub data: Vec<u8>,
}

/// The guest-physical address of the first node's data.
pub const FIRST_SETUP_DATA: u64 = SETUP_DATA_START + SETUP_DATA_HEAD as u64;

const _: () = assert!(FIRST_SETUP_DATA == mkvmm_base::layout::MANIFEST_START);

/// The page and its `setup_data` list, ready to be copied into the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootParams {
    /// The page, to be placed at [`mkvmm_base::layout::BOOT_PARAMS_START`].
    pub page: Vec<u8>,
    /// The setup_data nodes, to be placed at [`SETUP_DATA_START`]; may be
    /// empty.
    pub setup_data: Vec<u8>,
}

/// Composes the page and the setup_data list.
///
/// # Errors
/// Returns [`BootParamsError::SetupDataFull`] with the numbers; nothing is ever
/// truncated.
pub fn build(facts: &BootParamsFacts<'_>) -> Result<BootParams, BootParamsError> {
    let mut page = vec![0_u8; size_of::<boot_params>()];
    match facts.setup_header {
        Some(header) => put(&mut page, SETUP_HEADER_OFFSET, header),
        None => own_header(&mut page),
    }
    put_hdr(
        &mut page,
        offset_of!(setup_header, type_of_loader),
        &[LOADER_UNDEFINED],
    );
    put_split(
        &mut page,
        CMDLINE_START,
        offset_of!(setup_header, cmd_line_ptr),
        offset_of!(boot_params, ext_cmd_line_ptr),
    );
    if facts.setup_header.is_none() {
        let size = u32::try_from(facts.cmdline_len).unwrap_or(u32::MAX);
        put_hdr(
            &mut page,
            offset_of!(setup_header, cmdline_size),
            &size.to_le_bytes(),
        );
    }
    let (initrd, initrd_size) = facts.initramfs.map_or((0, 0), |r| (r.start(), r.size()));
    put_split(
        &mut page,
        initrd,
        offset_of!(setup_header, ramdisk_image),
        offset_of!(boot_params, ext_ramdisk_image),
    );
    put_split(
        &mut page,
        initrd_size,
        offset_of!(setup_header, ramdisk_size),
        offset_of!(boot_params, ext_ramdisk_size),
    );
    put(
        &mut page,
        offset_of!(boot_params, acpi_rsdp_addr),
        &facts.rsdp.to_le_bytes(),
    );
    let mut nodes = facts.setup_data.to_vec();
    nodes.extend(put_e820(&mut page, facts.e820));
    let setup_data = link(&nodes, facts.e820.len())?;
    let first = if setup_data.is_empty() {
        0
    } else {
        SETUP_DATA_START
    };
    put_hdr(
        &mut page,
        offset_of!(setup_header, setup_data),
        &first.to_le_bytes(),
    );
    Ok(BootParams { page, setup_data })
}

/// Writes a header for an ELF kernel, which has none: enough for Linux to trust
/// the page, and the limits that we keep.
fn own_header(page: &mut [u8]) {
    let alignment = u32::try_from(KERNEL_ALIGN).unwrap_or(u32::MAX);
    put_hdr(
        page,
        offset_of!(setup_header, boot_flag),
        &BOOT_FLAG.to_le_bytes(),
    );
    put_hdr(
        page,
        offset_of!(setup_header, header),
        &HEADER_MAGIC.to_le_bytes(),
    );
    put_hdr(
        page,
        offset_of!(setup_header, version),
        &PROTOCOL_VERSION.to_le_bytes(),
    );
    put_hdr(page, offset_of!(setup_header, loadflags), &[1]); // LOADED_HIGH
    put_hdr(
        page,
        offset_of!(setup_header, kernel_alignment),
        &alignment.to_le_bytes(),
    );
    put_hdr(page, offset_of!(setup_header, relocatable_kernel), &[1]);
    let flags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G;
    put_hdr(
        page,
        offset_of!(setup_header, xloadflags),
        &flags.to_le_bytes(),
    );
}

/// Fills the table of the page; rows beyond its 128 go into a `SETUP_E820_EXT`
/// node, which is returned. The count is that of the rows actually written.
fn put_e820(page: &mut [u8], entries: &[E820Entry]) -> Option<SetupData> {
    let (first, rest) = entries.split_at(entries.len().min(E820_MAX_ENTRIES_ZEROPAGE));
    let mut count: u8 = 0;
    for (i, entry) in first.iter().enumerate() {
        let at = offset_of!(boot_params, e820_table) + i * E820_ROW;
        put(page, at, &e820_row(entry));
        count += 1;
    }
    put(page, offset_of!(boot_params, e820_entries), &[count]);
    (!rest.is_empty()).then(|| SetupData {
        kind: SETUP_E820_EXT,
        data: rest.iter().flat_map(e820_row).collect(),
    })
}

/// Places nodes one after the other from [`SETUP_DATA_START`] on, each at a
/// multiple of 8 bytes and pointing to the next.
fn link(nodes: &[SetupData], entries: usize) -> Result<Vec<u8>, BootParamsError> {
    let mut list = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let end = (list.len() + SETUP_DATA_HEAD + node.data.len()).next_multiple_of(8);
        let next = if i + 1 == nodes.len() {
            0
        } else {
            SETUP_DATA_START + end as u64
        };
        // A length beyond 4 GiB does not fit the space either.
        let length = u32::try_from(node.data.len()).unwrap_or(u32::MAX);
        list.extend_from_slice(&next.to_le_bytes());
        list.extend_from_slice(&node.kind.to_le_bytes());
        list.extend_from_slice(&length.to_le_bytes());
        list.extend_from_slice(&node.data);
        list.resize(end, 0);
    }
    let (needed, room) = (list.len() as u64, SETUP_DATA_END - SETUP_DATA_START);
    if needed > room {
        return Err(BootParamsError::SetupDataFull {
            entries,
            needed,
            room,
        });
    }
    Ok(list)
}

fn e820_row(entry: &E820Entry) -> [u8; E820_ROW] {
    let mut row = [0; E820_ROW];
    row[..8].copy_from_slice(&entry.range.start().to_le_bytes());
    row[8..16].copy_from_slice(&entry.range.size().to_le_bytes());
    row[16..].copy_from_slice(&entry.kind.raw().to_le_bytes());
    row
}

/// Writes a 64-bit value in two halves, as the protocol defines: the low half
/// in the setup header, the high half in boot_params.
fn put_split(page: &mut [u8], value: u64, low_in_header: usize, high: usize) {
    let bytes = value.to_le_bytes();
    put_hdr(page, low_in_header, &bytes[..4]);
    put(page, high, &bytes[4..]);
}

fn put_hdr(page: &mut [u8], offset: usize, bytes: &[u8]) {
    put(page, SETUP_HEADER_OFFSET + offset, bytes);
}

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_memory::e820::E820Type;

    fn entries(n: u64) -> Vec<E820Entry> {
        (0..n)
            .map(|i| E820Entry {
                range: AddrRange::with_size(0x1_0000_0000 + i * 0x2000, 0x1000).unwrap(),
                kind: if i % 2 == 0 {
                    E820Type::Usable
                } else {
                    E820Type::Reserved
                },
            })
            .collect()
    }

    fn facts(e820: &[E820Entry]) -> BootParamsFacts<'_> {
        BootParamsFacts {
            setup_header: None,
            e820,
            cmdline_len: 7,
            initramfs: Some(AddrRange::with_size(0x12_3456_7000, 0x1_0000_0001).unwrap()),
            rsdp: 0xe_0000,
            setup_data: &[],
        }
    }

    fn u32_at(page: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn offsets_are_those_of_the_boot_protocol() {
        let built = build(&facts(&entries(3))).unwrap();
        let page = &built.page;
        assert_eq!(&page[0x1fe..0x200], &[0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff); // type_of_loader
        assert_eq!(page[0x1e8], 3); // e820_entries
        assert_eq!(u32_at(page, 0x228), 0x2_0000); // cmd_line_ptr
        assert_eq!(u32_at(page, 0x218), 0x3456_7000); // ramdisk_image
        assert_eq!(u32_at(page, 0x0c0), 0x12); // ext_ramdisk_image
        assert_eq!(u32_at(page, 0x21c), 1); // ramdisk_size
        assert_eq!(u32_at(page, 0x0c4), 1); // ext_ramdisk_size
        assert_eq!(u32_at(page, 0x2d0), 0); // first row: 0x1_0000_0000
        assert_eq!(u32_at(page, 0x2d4), 1);
        assert_eq!(u32_at(page, 0x2d0 + 16), 1); // usable
        assert_eq!(u32_at(page, 0x070), 0xe_0000); // acpi_rsdp_addr
        assert_eq!(page[0x1ef], 0); // sentinel
        assert!(built.setup_data.is_empty());
        assert_eq!(u32_at(page, 0x250), 0); // setup_data
    }

    #[test]
    fn rows_beyond_128_go_into_an_ext_node() {
        let rows = entries(130);
        let built = build(&facts(&rows)).unwrap();
        assert_eq!(built.page[0x1e8], 128);
        assert_eq!(u64::from(u32_at(&built.page, 0x250)), SETUP_DATA_START);
        assert_eq!(u32_at(&built.setup_data, 8), SETUP_E820_EXT);
        assert_eq!(u32_at(&built.setup_data, 12), 40);
        assert_eq!(built.setup_data.len(), 16 + 40);
        assert_eq!(u32_at(&built.setup_data, 0), 0);
        assert_eq!(built.setup_data[16..36], e820_row(&rows[128]));
    }

    #[test]
    fn nodes_are_linked_and_the_first_ones_data_is_where_promised() {
        let node = |kind, data: &[u8]| SetupData {
            kind,
            data: data.to_vec(),
        };
        let nodes = [node(0x77, b"manifest!"), node(9, &[1; 32])];
        let rows = entries(1);
        let mut facts = facts(&rows);
        facts.setup_data = &nodes;
        let list = build(&facts).unwrap().setup_data;
        assert_eq!(u64::from(u32_at(&list, 0)), SETUP_DATA_START + 32);
        let data = usize::try_from(FIRST_SETUP_DATA - SETUP_DATA_START).unwrap();
        assert_eq!(&list[data..data + 9], b"manifest!");
        assert_eq!(
            (u32_at(&list, 32), u32_at(&list, 40), u32_at(&list, 44)),
            (0, 9, 32)
        );
        assert_eq!(list.len(), 32 + 48);
    }

    #[test]
    fn more_rows_than_fit_are_refused() {
        let rows = entries(20_000);
        assert!(matches!(
            build(&facts(&rows)),
            Err(BootParamsError::SetupDataFull {
                entries: 20_000,
                ..
            })
        ));
    }

    #[test]
    fn a_setup_header_is_copied_byte_for_byte() {
        let mut header = vec![0_u8; 0x7b];
        header[0x202 - 0x1f1..0x206 - 0x1f1].copy_from_slice(b"HdrS");
        header[0x230 - 0x1f1] = 0x77; // kernel_alignment
        let rows = entries(1);
        let mut facts = facts(&rows);
        facts.setup_header = Some(&header);
        let page = build(&facts).unwrap().page;
        assert_eq!(page[0x230], 0x77);
        assert_eq!(&page[0x202..0x206], b"HdrS");
    }
}
