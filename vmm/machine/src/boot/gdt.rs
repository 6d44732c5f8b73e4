//! The boot GDT: flat 64-bit code and data segments.
//!
//! Sources: Intel SDM volume 3A, section 3.4.5 (segment descriptors); the
//! selectors are those of the Linux/x86 64-bit boot protocol, `__BOOT_CS`
//! 0x10 and `__BOOT_DS` 0x18.

use kvm_bindings::kvm_segment;

/// The selector of the code segment, `__BOOT_CS`.
pub const BOOT_CS: u16 = 0x10;
/// The selector of the data segments, `__BOOT_DS`.
pub const BOOT_DS: u16 = 0x18;

/// The type field of a code segment: execute/read, accessed.
const TYPE_CODE: u8 = 0xb;
/// The type field of a data segment: read/write, accessed.
const TYPE_DATA: u8 = 0x3;
/// The type field of a busy 64-bit TSS, which VM entry requires in TR.
const TYPE_TSS: u8 = 0xb;

/// Returns the table as stored in guest memory: null, unused, code, data.
pub fn table() -> [u64; 4] {
    [
        0,
        0,
        descriptor(&code_segment()),
        descriptor(&data_segment()),
    ]
}

/// Returns CS at entry: 64-bit, base 0, 4 GiB limit, ring 0.
pub fn code_segment() -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: BOOT_CS,
        type_: TYPE_CODE,
        present: 1,
        dpl: 0,
        db: 0,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Returns DS, ES, FS, GS and SS at entry: flat, read and write.
pub fn data_segment() -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector: BOOT_DS,
        type_: TYPE_DATA,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

/// Returns TR at entry: an empty TSS, which long mode requires but nothing
/// uses.
pub fn task_segment() -> kvm_segment {
    kvm_segment {
        limit: 0x67,
        selector: 0,
        type_: TYPE_TSS,
        present: 1,
        ..kvm_segment::default()
    }
}

/// Packs a segment into a descriptor as the processor reads it.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let flags = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7
        | u64::from(segment.l) << 13
        | u64::from(segment.db) << 14
        | u64::from(segment.g) << 15;
    let base = segment.base;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | flags << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_boot_protocol() {
        // Flat 4 GiB code with L, and flat 4 GiB data, as in every 64-bit Linux
        // boot loader.
        assert_eq!(
            table(),
            [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
        );
    }
}
