//! The names of the bits of x86 registers, and the modes they determine.
//!
//! Source: Intel SDM volume 3A, sections 2.2.1 (EFER), 2.3 (RFLAGS), 2.5
//! (control registers); volume 1, section 3.4.3 (RFLAGS).

use mkvmm_base::registers::Special;

/// The bit of CR0 that enables protection.
pub const CR0_PE: u64 = 1;
/// The bit of CR0 that enables paging.
pub const CR0_PG: u64 = 1 << 31;
/// The bit of CR4 that enables 4 MiB pages in 32-bit tables.
pub const CR4_PSE: u64 = 1 << 4;
/// The bit of CR4 that selects 64-bit entries.
pub const CR4_PAE: u64 = 1 << 5;
/// The bit of CR4 that selects five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// The bit of EFER that indicates active long mode.
pub const EFER_LMA: u64 = 1 << 10;
/// The bit of EFER that enables the no-execute bit.
pub const EFER_NXE: u64 = 1 << 11;
/// The bit of RFLAGS for virtual-8086 mode.
const RFLAGS_VM: u64 = 1 << 17;

/// The position of a bit, and its name.
pub type Bit = (u32, &'static str);

/// The named bits of RFLAGS except IOPL, which is a number.
pub const RFLAGS: [Bit; 16] = [
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (19, "VIF"),
    (20, "VIP"),
    (21, "ID"),
];

/// The named bits of CR0.
pub const CR0: [Bit; 11] = [
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];

/// The named bits of CR4.
pub const CR4: [Bit; 24] = [
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (13, "VMXE"),
    (14, "SMXE"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (19, "KL"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
    (23, "CET"),
    (24, "PKS"),
];

/// The named bits of EFER.
pub const EFER: [Bit; 7] = [
    (0, "SCE"),
    (8, "LME"),
    (10, "LMA"),
    (11, "NXE"),
    (12, "SVME"),
    (13, "LMSLE"),
    (14, "FFXSR"),
];

/// Returns the names of the bits that are set in `value`; bits without a name
/// are omitted.
pub fn names(value: u64, bits: &[Bit]) -> Vec<String> {
    let set = bits.iter().filter(|(bit, _)| value >> bit & 1 != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

/// Returns the I/O privilege level: bits 12 and 13 of RFLAGS.
pub fn iopl(rflags: u64) -> u8 {
    // Two bits always fit.
    u8::try_from(rflags >> 12 & 3).unwrap_or_default()
}

/// Returns the mode of a processor with these registers.
pub fn mode(sregs: &Special, rflags: u64) -> &'static str {
    if sregs.cr0 & CR0_PE == 0 {
        "real"
    } else if sregs.efer & EFER_LMA != 0 {
        if sregs.cs.l != 0 {
            "long"
        } else {
            "compatibility"
        }
    } else if rflags & RFLAGS_VM != 0 {
        "virtual-8086"
    } else {
        "protected"
    }
}

/// Returns the current privilege level, which is that of the stack segment in
/// modes that have one (SDM volume 3A, section 5.5).
pub fn cpl(sregs: &Special, rflags: u64) -> u8 {
    match mode(sregs, rflags) {
        "real" => 0,
        "virtual-8086" => 3,
        _ => sregs.ss.dpl,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_follow_from_control_registers_and_the_code_segment() {
        let mut sregs = Special::default();
        assert_eq!(mode(&sregs, 2), "real");
        sregs.cr0 = CR0_PE;
        sregs.ss.dpl = 3;
        assert_eq!((mode(&sregs, 2), cpl(&sregs, 2)), ("protected", 3));
        assert_eq!(mode(&sregs, 2 | RFLAGS_VM), "virtual-8086");
        sregs.efer = EFER_LMA;
        assert_eq!(mode(&sregs, 2), "compatibility");
        sregs.cs.l = 1;
        assert_eq!(mode(&sregs, 2), "long");
    }

    #[test]
    fn bits_have_their_names() {
        assert_eq!(names(0x246, &RFLAGS), ["PF", "ZF", "IF"]);
        assert_eq!(names(0x8000_0001, &CR0), ["PE", "PG"]);
        assert_eq!(names(0x500, &EFER), ["LME", "LMA"]);
        assert_eq!(iopl(0x3202), 3);
    }
}
