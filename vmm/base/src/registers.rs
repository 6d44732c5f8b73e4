//! The contents of a vCPU's registers, in a form that crosses between
//! processes.
//!
//! The fields have the names of the manuals and of KVM's structures (Intel SDM
//! volume 1, chapter 3; volume 3A, chapter 2), so that only the machine crate
//! needs KVM's own types.

use serde::{Deserialize, Serialize};

/// The number of words of a register block; see [`Registers::to_words`].
pub const WORDS: usize = 18 + 8 * 3 + 2 * 2 + 7 + 1;
/// The value of a register block's `mp_state` if KVM did not report it.
const NO_MP_STATE: u64 = u64::MAX;

/// The general registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct General {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The base address of the segment.
    pub base: u64,
    /// The limit of the segment in bytes.
    pub limit: u32,
    /// The selector that the guest loaded.
    pub selector: u16,
    /// The type field of the descriptor.
    pub type_: u8,
    /// Nonzero if the segment is present.
    pub present: u8,
    /// The descriptor privilege level.
    pub dpl: u8,
    /// Nonzero if the default operation size is 32 bits.
    pub db: u8,
    /// Nonzero for a code or data segment.
    pub s: u8,
    /// Nonzero for 64-bit code.
    pub l: u8,
    /// The granularity of the descriptor's limit: 0 for bytes, 1 for 4 KiB.
    pub g: u8,
    /// The bit that is available to software.
    pub avl: u8,
    /// Nonzero if the segment is unusable.
    pub unusable: u8,
}

/// The contents of a descriptor-table register.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The base address of the table.
    pub base: u64,
    /// The limit of the table in bytes.
    pub limit: u16,
}

/// Segments, descriptor tables, control registers and EFER.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Special {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// The registers of one vCPU at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The general registers, `rip` and `rflags`.
    pub regs: General,
    /// The segment, table and control registers.
    pub sregs: Special,
    /// A `KVM_MP_STATE_*` number; `None` if KVM does not report it.
    pub mp_state: Option<u32>,
}

impl Segment {
    fn to_words(self) -> [u64; 3] {
        let attributes = [
            self.type_,
            self.present,
            self.dpl,
            self.db,
            self.s,
            self.l,
            self.g,
            self.avl,
        ];
        let rest =
            u64::from(self.limit) | u64::from(self.selector) << 32 | u64::from(self.unusable) << 48;
        [self.base, rest, u64::from_le_bytes(attributes)]
    }

    fn from_words([base, rest, attributes]: [u64; 3]) -> Self {
        let [l0, l1, l2, l3, s0, s1, unusable, _] = rest.to_le_bytes();
        let [type_, present, dpl, db, s, l, g, avl] = attributes.to_le_bytes();
        Self {
            base,
            limit: u32::from_le_bytes([l0, l1, l2, l3]),
            selector: u16::from_le_bytes([s0, s1]),
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
        }
    }
}

impl Registers {
    /// Returns the registers as [`WORDS`] words, for memory that processes share.
    pub fn to_words(&self) -> Vec<u64> {
        let (r, s) = (&self.regs, &self.sregs);
        let mut words = vec![
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rsp, r.rbp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags,
        ];
        for segment in [s.cs, s.ds, s.es, s.fs, s.gs, s.ss, s.tr, s.ldt] {
            words.extend(segment.to_words());
        }
        for table in [s.gdt, s.idt] {
            words.extend([table.base, table.limit.into()]);
        }
        words.extend([s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base]);
        words.push(self.mp_state.map_or(NO_MP_STATE, u64::from));
        words
    }

    /// Reads what [`Self::to_words`] wrote, even if it was modified since: any
    /// sequence of words is a valid set of registers, and missing words read as
    /// zero.
    pub fn from_words(words: &[u64]) -> Self {
        let mut words = words.iter().copied();
        let mut next = || words.next().unwrap_or(0);
        let mut of = |fields: [&mut u64; 18]| fields.into_iter().for_each(|field| *field = next());
        let mut all = Self::default();
        let r = &mut all.regs;
        of([
            &mut r.rax,
            &mut r.rbx,
            &mut r.rcx,
            &mut r.rdx,
            &mut r.rsi,
            &mut r.rdi,
            &mut r.rsp,
            &mut r.rbp,
            &mut r.r8,
            &mut r.r9,
            &mut r.r10,
            &mut r.r11,
            &mut r.r12,
            &mut r.r13,
            &mut r.r14,
            &mut r.r15,
            &mut r.rip,
            &mut r.rflags,
        ]);
        let s = &mut all.sregs;
        for segment in [
            &mut s.cs, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss, &mut s.tr, &mut s.ldt,
        ] {
            *segment = Segment::from_words([next(), next(), next()]);
        }
        for table in [&mut s.gdt, &mut s.idt] {
            let (base, limit) = (next(), next());
            let limit = u16::try_from(limit).unwrap_or(u16::MAX);
            *table = Table { base, limit };
        }
        for field in [
            &mut s.cr0,
            &mut s.cr2,
            &mut s.cr3,
            &mut s.cr4,
            &mut s.cr8,
            &mut s.efer,
            &mut s.apic_base,
        ] {
            *field = next();
        }
        all.mp_state = u32::try_from(next()).ok();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_what_they_were_after_a_way_through_words() {
        let words: Vec<u64> = (1..=WORDS as u64).map(|n| n * 0x0001_0101_0101).collect();
        let all = Registers::from_words(&words);
        assert_eq!(all.to_words().len(), WORDS);
        assert_eq!(Registers::from_words(&all.to_words()), all);
        assert_eq!(all.regs.rbx, 2 * 0x0001_0101_0101);
        assert_ne!(all.sregs.ldt.selector, 0);
        let silent = Registers::default();
        assert_eq!(Registers::from_words(&silent.to_words()), silent);
        assert_eq!(silent.mp_state, None);
    }

    #[test]
    fn any_words_are_some_registers() {
        for len in 0..WORDS + 2 {
            Registers::from_words(&vec![u64::MAX; len]);
        }
        assert_eq!(Registers::from_words(&[]).regs, General::default());
    }
}
