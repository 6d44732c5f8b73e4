//! The CPUID of a vCPU: KVM's supported set, adapted to this vCPU.
//!
//! Sources: Intel SDM volume 2A, CPUID; Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Cap;

use crate::kvm::host::{Host, HostError};

/// Leaf 1, ECX: the TSC-deadline mode of the local APIC timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present. Without it Linux does not look for
/// kvm-clock and cannot calibrate its TSC.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: more than one logical processor per package (EBX 23:16).
const HTT: u32 = 1 << 28;
/// The first four letters of "AuthenticAMD" and "HygonGenuine".
const AMD: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];
/// Leaf 0x8000_0001, ECX, AMD: more than one core per package.
const CMP_LEGACY: u32 = 1 << 1;
/// The leaves of extended topology, first and second version.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// The level type in ECX 15:8 of those leaves.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The first leaf of mkvmm's own range: hypervisors use leaves 0x100 apart,
/// KVM's are at 0x4000_0000.
pub const MKVMM_LEAF: u32 = 0x4000_0100;
/// The EBX, ECX and EDX of that leaf.
pub const MKVMM_SIGNATURE: [u8; 12] = *b"mkvmmkvmmkvm";

/// The contents of mkvmm's leaves, which describe the guest's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MkvmmLeaves {
    /// The pool's first address.
    pub pool_start: u64,
    /// The pool's size in bytes.
    pub pool_size: u64,
    /// The guest-physical address of the manifest (an FDT).
    pub manifest_addr: u64,
    /// The size of the manifest in bytes.
    pub manifest_size: u32,
    /// The version of the manifest's format.
    pub manifest_version: u32,
}

/// The topology of one vCPU: `cpus` cores in one package, one thread each, with
/// APIC IDs from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The index of this vCPU, from 0.
    pub index: u8,
    /// The total number of vCPUs.
    pub cpus: u8,
}

/// The reason why no CPUID could be created.
#[derive(Debug, thiserror::Error)]
pub enum CpuidError {
    /// KVM's own entries already reach its limit.
    #[error("a CPUID of {entries} entries exceeds KVM's limit")]
    TooMany {
        /// The number of KVM's entries and ours together.
        entries: usize,
    },
    /// KVM does not report the CPUID leaves that it supports.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Returns the CPUID set for one vCPU.
///
/// # Errors
/// Returns a [`CpuidError`].
pub fn for_vcpu(host: &Host, topology: Topology, leaves: MkvmmLeaves) -> Result<CpuId, CpuidError> {
    let deadline = host.kvm().check_extension(Cap::TscDeadlineTimer);
    let mut entries = entries(host.supported_cpuid()?.as_slice(), topology, deadline);
    entries.extend(leaves.entries());
    // The only possible error is the number of entries.
    let refused = CpuidError::TooMany {
        entries: entries.len(),
    };
    CpuId::from_entries(&entries).ok().ok_or(refused)
}

impl MkvmmLeaves {
    fn entries(self) -> [kvm_cpuid_entry2; 3] {
        let word = |i: usize| {
            let bytes = MKVMM_SIGNATURE.iter().skip(4 * i).take(4).rev();
            bytes.fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
        };
        let leaf = |index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
            function: MKVMM_LEAF + index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        };
        let (start, size) = (halves(self.pool_start), halves(self.pool_size));
        let manifest = halves(self.manifest_addr);
        [
            leaf(0, [MKVMM_LEAF + 2, word(0), word(1), word(2)]),
            leaf(1, [start[0], start[1], size[0], size[1]]),
            leaf(
                2,
                [
                    manifest[0],
                    manifest[1],
                    self.manifest_size,
                    self.manifest_version,
                ],
            ),
        ]
    }
}

/// Returns KVM's supported set, adapted to this vCPU.
fn entries(
    supported: &[kvm_cpuid_entry2],
    topology: Topology,
    deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    // Leaf 0, EBX contains the first four letters of the vendor.
    let vendor = supported.iter().find(|e| e.function == 0).map(|e| e.ebx);
    let is_amd = AMD.map(Some).contains(&vendor);
    let mut entries = Vec::new();
    for entry in supported {
        if !TOPOLOGY_LEAVES.contains(&entry.function) {
            let mut entry = *entry;
            patch(&mut entry, topology, deadline);
            if is_amd {
                patch_amd(&mut entry, topology);
            }
            entries.push(entry);
        } else if entry.index == 0 {
            // Since Linux 6.2, KVM leaves the levels to user space.
            entries.extend(levels(entry.function, topology));
        }
    }
    entries
}

/// Returns the levels of extended topology: threads, cores, and the end. EDX is
/// the x2APIC ID on every level.
fn levels(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let (apic_id, cpus) = (u32::from(topology.index), u32::from(topology.cpus));
    let level = |index, eax, ebx, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind | index,
        edx: apic_id,
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, core_bits(cpus), cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

/// Returns the number of APIC ID bits that distinguish the cores of a package.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Returns the low and the high 32 bits.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

fn patch(entry: &mut kvm_cpuid_entry2, topology: Topology, deadline: bool) {
    let (apic_id, cpus) = (u32::from(topology.index), u32::from(topology.cpus));
    let core_bits = core_bits(cpus);
    match entry.function {
        1 => {
            // EBX: initial APIC ID (31:24), logical processors (23:16), and
            // below them the CLFLUSH size, which is kept.
            entry.ebx = (entry.ebx & 0xffff) | cpus << 16 | apic_id << 24;
            entry.ecx |= HYPERVISOR;
            entry.edx = if cpus > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
        }
        // Deterministic cache parameters: up to level 2 the caches belong to a
        // core, above it to the package. EAX: cores in the package (31:26),
        // processors that share this cache (25:14), level (7:5).
        4 if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 > 2 {
                (1 << core_bits) - 1
            } else {
                0
            };
            let cores = (1_u32 << core_bits).min(64) - 1;
            entry.eax = (entry.eax & 0x3fff) | shared << 14 | cores << 26;
        }
        _ => {}
    }
}

/// Adapts leaves of AMD's processors (and Hygon's), which are reserved
/// elsewhere.
fn patch_amd(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let (apic_id, cpus) = (u32::from(topology.index), u32::from(topology.cpus));
    let core_bits = cpus.next_power_of_two().trailing_zeros();
    match entry.function {
        0x8000_0001 if cpus > 1 => entry.ecx |= CMP_LEGACY,
        // AMD: number of cores minus one (7:0), bits of the APIC ID (15:12).
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | core_bits << 12 | (cpus - 1),
        // AMD cache topology: EAX 25:14 as in leaf 4.
        0x8000_001d => {
            let shared = if entry.eax >> 5 & 7 > 2 { cpus - 1 } else { 0 };
            entry.eax = (entry.eax & !(0xfff << 14)) | shared << 14;
        }
        // AMD: extended APIC ID, core ID with one thread, node 0 of 1.
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = apic_id;
            entry.ecx = 0;
        }
        // AMD's extended topology would describe the host's; leaf 0xb has the
        // guest's.
        0x8000_0026 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(
        function: u32,
        index: u32,
        entry: kvm_cpuid_entry2,
        topology: (u8, u8),
    ) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            ..entry
        };
        let (index, cpus) = topology;
        patch(&mut entry, Topology { index, cpus }, true);
        entry
    }

    #[test]
    fn leaf_1_names_the_vcpu_and_the_hypervisor() {
        let entry = kvm_cpuid_entry2 {
            ebx: 0x0710_0800,
            edx: HTT | 1,
            ..kvm_cpuid_entry2::default()
        };
        let single = patched(1, 0, entry, (0, 1));
        assert_eq!((single.ebx, single.edx), (0x0001_0800, 1));
        let fourth = patched(1, 0, entry, (3, 4));
        assert_eq!((fourth.ebx, fourth.edx), (0x0304_0800, HTT | 1));
        assert_eq!(fourth.ecx, HYPERVISOR | TSC_DEADLINE);
    }

    #[test]
    fn the_topology_is_cores_of_one_package() {
        let [thread, core, beyond] = levels(0xb, Topology { index: 5, cpus: 6 });
        assert_eq!(
            (thread.eax, thread.ebx, thread.ecx, thread.edx),
            (0, 1, 0x100, 5)
        );
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 5));
        assert_eq!((beyond.ebx, beyond.ecx, beyond.edx), (0, 2, 5));
    }

    #[test]
    fn the_levels_are_there_however_many_of_them_kvm_supports() {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ..kvm_cpuid_entry2::default()
        };
        let topology = Topology { index: 1, cpus: 4 };
        let of = |supported: &[kvm_cpuid_entry2]| -> Vec<_> {
            let entries = entries(supported, topology, false);
            entries
                .iter()
                .map(|e| (e.function, e.index, e.ebx))
                .collect()
        };
        let levels = [(0xb, 0, 1), (0xb, 1, 4), (0xb, 2, 0), (0xd, 0, 0)];
        assert_eq!(of(&[entry(0xb, 0), entry(0xd, 0)]), levels);
        let host = [entry(0xb, 0), entry(0xb, 1), entry(0xb, 2), entry(0xd, 0)];
        assert_eq!(of(&host), levels);
        assert_eq!(of(&[entry(0xd, 0)]), [(0xd, 0, 0)]);
    }

    #[test]
    fn mkvmms_leaves_carry_its_name_and_64_bit_numbers() {
        let [first, pool, manifest] = MkvmmLeaves {
            pool_start: 0x1_2000_0000,
            pool_size: 0x2_4000_0000,
            manifest_addr: 0x3_0000,
            manifest_size: 800,
            manifest_version: 1,
        }
        .entries();
        let name: Vec<u8> = [first.ebx, first.ecx, first.edx]
            .iter()
            .flat_map(|r| r.to_le_bytes())
            .collect();
        assert_eq!(name, MKVMM_SIGNATURE);
        assert_eq!(first.eax, 0x4000_0102);
        assert_eq!(
            (pool.eax, pool.ebx, pool.ecx, pool.edx),
            (0x2000_0000, 1, 0x4000_0000, 2)
        );
        assert_eq!(
            (manifest.eax, manifest.ecx, manifest.edx),
            (0x3_0000, 800, 1)
        );
    }
}
