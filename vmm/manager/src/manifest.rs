//! The manifest: describes an instance to its guest, as a flattened device
//! tree.
//!
//! It is passed as a `setup_data` node, so that Linux shows it below
//! `/sys/kernel/boot_params/setup_data/` without any driver; other guests find
//! it through CPUID leaf 0x4000_0100. The format is described in
//! `docs/manifest.md`; [`MANIFEST_VERSION`] counts its changes.

use mkpool::AddrRange;
use mkvmm_base::layout::{MANIFEST_UNIT, MANIFEST_VERSION};
use vm_fdt::FdtWriter;

use mkvmm_memory::placement::PlacementPlan;

/// The bytes of a device tree's header with its length, big-endian.
const TOTALSIZE: std::ops::Range<usize> = 4..8;

/// The contents of the manifest.
#[derive(Debug, Clone, Copy)]
pub struct ManifestFacts<'a> {
    /// The guest-physical address of the manifest itself.
    pub addr: u64,
    /// The range of the whole pool.
    pub pool: AddrRange,
    /// The number of the instance.
    pub id: u32,
    /// The name of the instance.
    pub name: &'a str,
    /// Its chunks, in ascending order, with adjacent ones merged.
    pub chunks: &'a [AddrRange],
    /// The places of its pieces.
    pub plan: &'a PlacementPlan,
    /// Allocations outside the control block from before the start, in
    /// ascending order; they are not the guest's RAM.
    pub allocations: &'a [AddrRange],
    /// The part of the pool that all channels are in, if there is one.
    pub channel_area: Option<AddrRange>,
    /// The memory of its channels, in ascending order.
    pub channels: &'a [AddrRange],
    /// The exact size of the initramfs in bytes.
    pub initramfs_size: u64,
    /// The address of the kernel's 64-bit entry point.
    pub entry: u64,
    /// The number of vCPUs.
    pub cpus: u8,
    /// The command line, without its NUL.
    pub cmdline: &'a str,
    /// The address of the command line.
    pub cmdline_addr: u64,
}

/// Writes the manifest.
///
/// # Errors
/// Returns the error of the writer; names and command lines have been
/// validated, so this would be a bug.
pub fn build(facts: &ManifestFacts<'_>) -> Result<Vec<u8>, vm_fdt::Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "mkvmm,manifest")?;
    fdt.property_u32("version", MANIFEST_VERSION)?;
    fdt.property_u64("address", facts.addr)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;

    let pool = fdt.begin_node("pool")?;
    fdt.property_array_u64("reg", &reg(&[facts.pool]))?;
    fdt.end_node(pool)?;

    let instance = fdt.begin_node("instance")?;
    fdt.property_u32("id", facts.id)?;
    // dtc refuses a property `name` unless it is the node's own name.
    fdt.property_string("label", facts.name)?;
    fdt.property_u32("cpus", facts.cpus.into())?;
    fdt.property_array_u64("reg", &reg(facts.chunks))?;
    fdt.end_node(instance)?;

    for (name, range) in facts.plan.pieces() {
        let node = fdt.begin_node(&name.replace(' ', "-"))?;
        fdt.property_array_u64("reg", &reg(&[range]))?;
        match name {
            "kernel" => fdt.property_u64("entry", facts.entry)?,
            "initramfs" => fdt.property_u64("size", facts.initramfs_size)?,
            _ => {}
        }
        fdt.end_node(node)?;
    }

    if !facts.allocations.is_empty() {
        let allocations = fdt.begin_node("allocations")?;
        fdt.property_array_u64("reg", &reg(facts.allocations))?;
        fdt.end_node(allocations)?;
    }

    if let Some(area) = facts.channel_area {
        let node = fdt.begin_node("channel-area")?;
        fdt.property_array_u64("reg", &reg(&[area]))?;
        fdt.end_node(node)?;
    }

    if !facts.channels.is_empty() {
        let channels = fdt.begin_node("channels")?;
        fdt.property_array_u64("reg", &reg(facts.channels))?;
        fdt.end_node(channels)?;
    }

    let cmdline = fdt.begin_node("cmdline")?;
    fdt.property_u64("address", facts.cmdline_addr)?;
    fdt.property_string("text", facts.cmdline)?;
    fdt.end_node(cmdline)?;
    fdt.end_node(root)?;
    Ok(padded(fdt.finish()?))
}

/// Adds zeros to a device tree up to a multiple of [`MANIFEST_UNIT`], which belong to
/// it: its header may name more bytes than its blocks occupy (Devicetree
/// Specification, 5.2, `totalsize`).
fn padded(mut fdt: Vec<u8>) -> Vec<u8> {
    fdt.resize(fdt.len().next_multiple_of(MANIFEST_UNIT), 0);
    let size = u32::try_from(fdt.len()).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(field) = fdt.get_mut(TOTALSIZE) {
        field.copy_from_slice(&size);
    }
    fdt
}

/// Returns start and size of each range, in the format of `reg`.
fn reg(ranges: &[AddrRange]) -> Vec<u64> {
    ranges.iter().flat_map(|r| [r.start(), r.size()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_a_device_tree_that_states_the_ranges() {
        let range = |start, size| AddrRange::with_size(start, size).unwrap();
        let plan = PlacementPlan {
            low_window: range(0x1_0000_0000, 0x10_0000),
            control_block: range(0x1_0010_0000, 0x10_0000),
            kernel: range(0x1_0020_0000, 0x20_0000),
            initramfs: None,
        };
        let chunks = [range(0x1_0000_0000, 0x100_0000)];
        let facts = ManifestFacts {
            addr: 0x3_0010,
            pool: range(0x1_0000_0000, 1 << 30),
            id: 7,
            name: "web",
            chunks: &chunks,
            plan: &plan,
            allocations: &[],
            channel_area: Some(range(0x1_4000_0000, 0x10_0000)),
            channels: &[],
            initramfs_size: 0,
            entry: 0x1_0020_0000,
            cpus: 2,
            cmdline: "console=ttyS0",
            cmdline_addr: 0x2_0000,
        };
        let fdt = build(&facts).unwrap();
        assert_eq!(fdt[..4], 0xd00d_feed_u32.to_be_bytes());
        assert_eq!((fdt.len(), &fdt[4..8]), (1024, &[0, 0, 4, 0][..]));
        let contains = |needle: &[u8]| fdt.windows(needle.len()).any(|w| w == needle);
        assert!(contains(b"mkvmm,manifest\0"));
        assert!(contains(b"console=ttyS0\0"));
        assert!(contains(b"\0label\0") && !contains(b"\0name\0"));
        let pool = [0x1_0000_0000_u64.to_be_bytes(), (1_u64 << 30).to_be_bytes()].concat();
        assert!(contains(&pool));
        assert!(!contains(b"initramfs") && !contains(b"allocations"));

        let allocations = [range(0x1_0080_0000, 0x2000)];
        let fdt = build(&ManifestFacts {
            allocations: &allocations,
            ..facts
        })
        .unwrap();
        let reg = [0x1_0080_0000_u64.to_be_bytes(), 0x2000_u64.to_be_bytes()].concat();
        assert!(fdt.windows(reg.len()).any(|w| w == reg));
    }
}
