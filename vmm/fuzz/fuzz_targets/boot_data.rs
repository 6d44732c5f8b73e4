//! Any memory map, command line and nodes, composed for a kernel and read back
//! as a kernel reads it: `boot_params`, the table of the e820 and what goes on
//! behind it, the list of `setup_data`.
#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use mkpool::AddrRange;
use mkvmm_base::layout::{CMDLINE_START, SETUP_DATA_END, SETUP_DATA_START};
use mkvmm_machine::boot::acpi;
use mkvmm_machine::boot::boot_params::{BootParams, BootParamsFacts, SetupData, build};
use mkvmm_memory::e820::{E820Entry, E820Type};

/// Rows of the table in the page, and bytes of a row.
const ROWS: usize = 128;
const ROW: usize = 20;
/// The type of a node with further rows: `SETUP_E820_EXT`.
const E820_EXT: u32 = 1;

fuzz_target!(|data: &[u8]| {
    // Bytes that ran out make a smaller input, never an error.
    let _ = run(&mut Unstructured::new(data));
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let range = |input: &mut Unstructured<'_>| -> Result<Option<AddrRange>> {
        Ok(AddrRange::with_size(input.arbitrary()?, input.arbitrary()?).ok())
    };
    let header: Option<Vec<u8>> = match input.arbitrary()? {
        true => Some(input.bytes(input.len().min(0x77))?.to_vec()),
        false => None,
    };
    let initramfs = range(input)?;
    let rsdp = input.arbitrary()?;
    let cmdline_len = input.int_in_range(0..=4096)?;
    let mut e820 = Vec::new();
    for _ in 0..input.int_in_range(0..=400)? {
        let kind = E820Type::from_raw(input.arbitrary()?);
        e820.extend(range(input)?.map(|range| E820Entry { range, kind }));
    }
    let mut nodes = Vec::new();
    for _ in 0..input.int_in_range(0..=4)? {
        let len = input.int_in_range(0..=20_000_usize)?.min(input.len());
        // Type 1 is the map's own.
        let kind = input.int_in_range(2..=u32::MAX)?;
        let data = input.bytes(len)?.to_vec();
        nodes.push(SetupData { kind, data });
    }
    let facts = BootParamsFacts {
        setup_header: header.as_deref(),
        e820: &e820,
        cmdline_len,
        initramfs,
        rsdp,
        setup_data: &nodes,
    };
    match build(&facts) {
        Ok(params) => check(&params, &facts, &e820),
        Err(error) => {
            let needed: usize = nodes.iter().map(|node| 16 + node.data.len()).sum();
            let room = (SETUP_DATA_END - SETUP_DATA_START) as usize;
            assert!(needed + 20 * e820.len() + 64 > room, "{error}");
        }
    }
    let cpus = input.arbitrary()?;
    // The bridge's second window, and the pool's channel area.
    let windows: Vec<AddrRange> = [range(input)?, range(input)?]
        .into_iter()
        .flatten()
        .collect();
    assert!(acpi::build(cpus, &windows).is_ok_and(|tables| tables.starts_with(b"RSD PTR ")));
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A value whose low half is in the header and whose high half is not.
fn split(page: &[u8], low: usize, high: usize) -> u64 {
    u64::from(u32_at(page, low)) | u64::from(u32_at(page, high)) << 32
}

/// Reads it as a kernel does (Documentation/arch/x86/zero-page.rst).
fn check(params: &BootParams, facts: &BootParamsFacts<'_>, e820: &[E820Entry]) {
    let page = &params.page;
    assert_eq!(page.len(), 4096);
    assert_eq!(split(page, 0x228, 0xc8), CMDLINE_START);
    let initramfs = facts.initramfs.map_or((0, 0), |r| (r.start(), r.size()));
    let read = (split(page, 0x218, 0xc0), split(page, 0x21c, 0xc4));
    assert_eq!(read, initramfs);
    assert_eq!(u64_at(page, 0x70), facts.rsdp);
    assert_eq!(page[0x210], 0xff, "type_of_loader");
    // The list, with what it says of itself.
    let mut nodes = Vec::new();
    let mut at = u64_at(page, 0x250);
    assert!(at == 0 || at == SETUP_DATA_START);
    while at != 0 {
        let from = usize::try_from(at - SETUP_DATA_START).expect("it is small");
        let (next, kind) = (
            u64_at(&params.setup_data, from),
            u32_at(&params.setup_data, from + 8),
        );
        let len = u32_at(&params.setup_data, from + 12) as usize;
        let data = &params.setup_data[from + 16..from + 16 + len];
        assert!(next == 0 || next >= at + 16 + len as u64, "nodes ascend");
        nodes.push((kind, data));
        at = next;
    }
    let count = usize::from(page[0x1e8]);
    let mut rows: Vec<&[u8]> = page[0x2d0..].chunks_exact(ROW).take(count).collect();
    if e820.len() > ROWS {
        let (kind, data) = nodes.pop().expect("the map goes on");
        assert_eq!(kind, E820_EXT);
        rows.extend(data.chunks_exact(ROW));
    }
    let row = |row: &&[u8]| (u64_at(row, 0), u64_at(row, 8), u32_at(row, 16));
    let read: Vec<_> = rows.iter().map(row).collect();
    let given = e820
        .iter()
        .map(|e| (e.range.start(), e.range.size(), e.kind.raw()));
    assert_eq!(read, given.collect::<Vec<_>>());
    let given = facts
        .setup_data
        .iter()
        .map(|node| (node.kind, node.data.as_slice()));
    assert_eq!(nodes, given.collect::<Vec<_>>());
}
