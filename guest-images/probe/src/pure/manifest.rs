//! Parses mkvmm's description of an instance; `docs/manifest.md` specifies the
//! format.

use super::fdt::Fdt;
use super::range::Range;

/// The first leaf of the CPUID range in which hypervisors announce themselves.
pub const FIRST_LEAF: u32 = 0x4000_0000;
/// The first leaf after that range.
pub const END_LEAF: u32 = 0x4001_0000;
/// The distance between two hypervisors in that range.
pub const LEAF_STEP: usize = 0x100;
/// The EBX, ECX and EDX of mkvmm's first leaf.
pub const SIGNATURE: [u8; 12] = *b"mkvmmkvmmkvm";
/// The type of the `setup_data` node.
pub const SETUP_DATA_TYPE: u32 = 0x6d6b_766d;
/// The version that is supported.
pub const VERSION: u32 = 1;

/// A parsed manifest. Lists are parsed on access: see [`Manifest::chunks`].
#[derive(Clone, Copy, Debug)]
pub struct Manifest<'a> {
    fdt: Fdt<'a>,
    /// The version of the format.
    pub version: u32,
    /// The address that the manifest states for itself.
    pub address: u64,
    /// The range of the whole pool.
    pub pool: Range,
    /// The number of the instance.
    pub id: u32,
    /// The name of the instance.
    pub name: &'a str,
    /// The number of vCPUs.
    pub cpus: u32,
    /// The backing of guest addresses below 1 MiB.
    pub low_window: Range,
    /// The range that the VMM keeps for itself.
    pub control_block: Range,
    /// The range of the kernel.
    pub kernel: Range,
    /// The entry point of the kernel.
    pub entry: u64,
    /// The range of the initramfs and its exact size.
    pub initramfs: Option<(Range, u64)>,
    /// The address of the command line.
    pub cmdline_address: u64,
    /// The text of the command line.
    pub cmdline: &'a str,
}

impl<'a> Manifest<'a> {
    /// Parses the manifest in `bytes`.
    ///
    /// # Errors
    /// Returns a description of the problem.
    pub fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let fdt = Fdt::new(bytes)?;
        if fdt.text("", "compatible") != Some("mkvmm,manifest") {
            return Err("is no manifest");
        }
        let version = fdt.u32("", "version").ok_or("has no version")?;
        if version != VERSION {
            return Err("is of another version");
        }
        let one = |node| fdt.reg(node)?.next()?;
        let initramfs = match fdt.property("initramfs", "reg") {
            None => None,
            Some(_) => one("initramfs").zip(fdt.u64("initramfs", "size")),
        };
        if initramfs.is_none() && fdt.property("initramfs", "reg").is_some() {
            return Err("has a wrong initramfs");
        }
        Ok(Self {
            fdt,
            version,
            address: fdt.u64("", "address").ok_or("has no address")?,
            pool: one("pool").ok_or("has no pool")?,
            id: fdt.u32("instance", "id").ok_or("has no id")?,
            name: fdt.text("instance", "label").ok_or("has no name")?,
            cpus: fdt.u32("instance", "cpus").ok_or("has no cpus")?,
            low_window: one("low-window").ok_or("has no low window")?,
            control_block: one("control-block").ok_or("has no control block")?,
            kernel: one("kernel").ok_or("has no kernel")?,
            entry: fdt.u64("kernel", "entry").ok_or("has no entry")?,
            initramfs,
            cmdline_address: fdt.u64("cmdline", "address").ok_or("has no cmdline")?,
            cmdline: fdt.text("cmdline", "text").ok_or("has no cmdline")?,
        })
    }

    /// Returns the allocations from before the start, which are not RAM.
    pub fn allocations(&self) -> impl Iterator<Item = Option<Range>> + use<'a> {
        self.fdt.reg("allocations").into_iter().flatten()
    }

    /// Returns the memory of the instance's channels, which is outside of its
    /// chunks.
    pub fn channels(&self) -> impl Iterator<Item = Option<Range>> + use<'a> {
        self.fdt.reg("channels").into_iter().flatten()
    }

    /// Returns the instance's chunks; `None` for one that is empty or wraps.
    pub fn chunks(&self) -> impl Iterator<Item = Option<Range>> + use<'a> {
        self.fdt.reg("instance").into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_fdt::FdtWriter;

    /// Returns a manifest as mkvmm writes it, with the given version and
    /// initramfs.
    fn written(version: u32, initramfs: Option<[u64; 2]>) -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        fdt.property_string("compatible", "mkvmm,manifest").unwrap();
        fdt.property_u32("version", version).unwrap();
        fdt.property_u64("address", 0x3_0010).unwrap();
        let mut node = |name: &str, reg: &[u64], more: &dyn Fn(&mut FdtWriter)| {
            let node = fdt.begin_node(name).unwrap();
            if !reg.is_empty() {
                fdt.property_array_u64("reg", reg).unwrap();
            }
            more(&mut fdt);
            fdt.end_node(node).unwrap();
        };
        node("pool", &[0x1_0000_0000, 0x4000_0000], &|_| {});
        let chunks = [0x1_0000_0000, 0x100_0000, 0x1_1000_0000, 0x100_0000];
        node("instance", &chunks, &|fdt| {
            fdt.property_u32("id", 7).unwrap();
            fdt.property_string("label", "web").unwrap();
            fdt.property_u32("cpus", 2).unwrap();
        });
        node("low-window", &[0x1_0000_0000, 0x10_0000], &|_| {});
        node("control-block", &[0x1_0010_0000, 0x10_0000], &|_| {});
        node("kernel", &[0x1_0020_0000, 0x20_0000], &|fdt| {
            fdt.property_u64("entry", 0x1_0020_0000).unwrap();
        });
        if let Some(reg) = initramfs {
            node("initramfs", &reg, &|fdt| {
                fdt.property_u64("size", 1234).unwrap();
            });
            node("allocations", &[0x1_0080_0000, 0x2000], &|_| {});
            node("channels", &[0x1_3000_0000, 0x20_0000], &|_| {});
        }
        node("cmdline", &[], &|fdt| {
            fdt.property_u64("address", 0x2_0000).unwrap();
            fdt.property_string("text", "name=web spin").unwrap();
        });
        fdt.end_node(root).unwrap();
        fdt.finish().unwrap()
    }

    #[test]
    fn a_manifest_is_taken_apart() {
        let bytes = written(1, Some([0x1_0060_0000, 0x1000]));
        let manifest = Manifest::new(&bytes).unwrap();
        let range = |start, size| Range::sized(start, size).unwrap();
        assert_eq!((manifest.id, manifest.name, manifest.cpus), (7, "web", 2));
        assert_eq!(manifest.pool, range(0x1_0000_0000, 0x4000_0000));
        assert_eq!(manifest.kernel, range(0x1_0020_0000, 0x20_0000));
        assert_eq!(
            manifest.initramfs,
            Some((range(0x1_0060_0000, 0x1000), 1234))
        );
        assert_eq!(manifest.cmdline, "name=web spin");
        let chunks: Vec<_> = manifest.chunks().flatten().map(|c| c.start).collect();
        assert_eq!(chunks, [0x1_0000_0000, 0x1_1000_0000]);
        let allocations: Vec<_> = manifest.allocations().collect();
        assert_eq!(allocations, [Some(range(0x1_0080_0000, 0x2000))]);
        let channels: Vec<_> = manifest.channels().collect();
        assert_eq!(channels, [Some(range(0x1_3000_0000, 0x20_0000))]);
    }

    #[test]
    fn an_initramfs_may_be_missing_but_not_be_wrong() {
        let bytes = written(1, None);
        let without = Manifest::new(&bytes).unwrap();
        assert_eq!(without.initramfs, None);
        assert_eq!(without.allocations().next(), None);
        assert_eq!(without.channels().next(), None);
        let empty = written(1, Some([0x1_0060_0000, 0]));
        assert_eq!(Manifest::new(&empty).unwrap_err(), "has a wrong initramfs");
    }

    #[test]
    fn other_versions_and_other_trees_are_refused() {
        let other = Manifest::new(&written(2, None)).unwrap_err();
        assert_eq!(other, "is of another version");
        let nothing = Manifest::new(b"").unwrap_err();
        assert_eq!(nothing, "is shorter than its header");
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        fdt.end_node(root).unwrap();
        let bytes = fdt.finish().unwrap();
        assert_eq!(Manifest::new(&bytes).unwrap_err(), "is no manifest");
    }
}
