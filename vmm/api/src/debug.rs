//! Objects that describe the inside of guests.

use std::collections::BTreeMap;

use mkvmm_base::state::{EndReason, State};
use serde::{Deserialize, Serialize};

use crate::hex::Hex;

/// The registers of an instance's vCPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Registers {
    /// The name of the instance.
    pub name: String,
    /// The state of the instance when the registers were read.
    pub state: State,
    /// The reason of its end, if it has ended; then these are its last
    /// registers.
    pub reason: Option<EndReason>,
    /// The registers of each vCPU.
    pub cpus: Vec<CpuRegisters>,
    /// The numbers of vCPUs that did not respond in time.
    pub missing: Vec<u8>,
}

/// The registers of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CpuRegisters {
    /// The number of the vCPU, from 0.
    pub cpu: u8,
    /// The mode: `real`, `protected`, `virtual-8086`, `compatibility` or `long`.
    pub mode: String,
    /// The current privilege level.
    pub cpl: u8,
    /// The paging mode: `off`, `32-bit`, `PAE`, `4-level` or `5-level`.
    pub paging: String,
    /// The activity state of the vCPU: `runnable`, `halted`, `uninitialized`
    /// (never started), `init-received`, `sipi-received`, `stopped`, or
    /// `unknown`.
    pub mp_state: String,
    /// The registers `rax` to `r15`, and `rip`.
    pub general: BTreeMap<String, Hex>,
    /// The contents of the register `rflags`.
    pub rflags: Flags,
    /// The I/O privilege level in `rflags`.
    pub iopl: u8,
    /// The segments `cs`, `ds`, `es`, `fs`, `gs`, `ss`, `tr` and `ldt`.
    pub segments: BTreeMap<String, Segment>,
    /// The tables `gdt` and `idt`.
    pub tables: BTreeMap<String, Table>,
    /// The registers `cr0`, `cr2`, `cr3`, `cr4`, `cr8`, `efer` and `apic_base`.
    pub control: BTreeMap<String, Flags>,
}

/// A register and the names of its set bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Flags {
    /// The value of the register.
    pub value: Hex,
    /// The names of the set bits, as far as bits have names.
    pub flags: Vec<String>,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Segment {
    /// The selector that the guest loaded.
    pub selector: u16,
    /// The base address of the segment.
    pub base: Hex,
    /// The segment limit: the offset of its last byte.
    pub limit: u32,
    /// The type field of the segment's descriptor.
    #[serde(rename = "type")]
    pub kind: u8,
    /// True for a code or data segment, false for a system segment.
    pub is_code_or_data: bool,
    /// The descriptor privilege level.
    pub dpl: u8,
    /// True if the segment is present.
    pub present: bool,
    /// True for a 64-bit code segment.
    pub long: bool,
    /// True if the default operand size is 32 bits.
    pub default_32: bool,
    /// True if the segment is unusable.
    pub unusable: bool,
}

/// The contents of a descriptor-table register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Table {
    /// The base address of the table.
    pub base: Hex,
    /// The table limit: the offset of its last byte.
    pub limit: u16,
}

/// A range of an instance's memory with its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = MemoryObject))]
pub struct Memory {
    /// The name of the instance.
    pub name: String,
    /// The address of the first byte.
    pub addr: Hex,
    /// True if `addr` is a virtual address.
    #[serde(rename = "virtual")]
    pub is_virtual: bool,
    /// The number of bytes.
    pub len: u64,
    /// The contents: two hexadecimal digits per byte, without separators.
    pub hex: String,
}

impl Memory {
    /// Creates the object that holds `bytes` at `addr`.
    pub fn new(name: String, addr: u64, is_virtual: bool, bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
        let digits = bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]);
        Self {
            name,
            addr: Hex(addr),
            is_virtual,
            len: bytes.len() as u64,
            hex: digits.collect(),
        }
    }

    /// Decodes the contents; `None` if the text is not hexadecimal.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let digits = self.hex.as_bytes();
        let value = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            &[high, low] => u8::try_from(value(high)? << 4 | value(low)?).ok(),
            _ => None,
        };
        digits.chunks(2).map(byte).collect()
    }
}

/// The translation of a guest-virtual address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Translation {
    /// The name of the instance.
    pub name: String,
    /// The vCPU whose page tables were walked.
    pub cpu: u8,
    /// The virtual address that was translated.
    pub addr: Hex,
    /// The paging mode: `off`, `32-bit`, `PAE`, `4-level` or `5-level`.
    pub paging: String,
    /// The page-table entries of the walk, from the top level down.
    pub steps: Vec<Step>,
    /// The reason why the address is not mapped, if it is not.
    pub fault: Option<String>,
    /// The page to which the address is mapped, if it is.
    pub target: Option<Target>,
    /// KVM's own translation at the same moment; absent for a guest that has
    /// ended, and if KVM does not support it.
    pub kvm: Option<KvmAnswer>,
}

/// One page-table entry of a walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = StepObject))]
pub struct Step {
    /// The level: `PML5E`, `PML4E`, `PDPTE`, `PDE` or `PTE`.
    pub level: String,
    /// The guest-physical address of the entry.
    pub addr: u64,
    /// The value of the entry; absent if the guest has no memory there.
    pub entry: Option<Hex>,
    /// The names of the set flags of the entry.
    pub flags: Vec<String>,
}

/// The page to which an address is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = TargetObject))]
pub struct Target {
    /// The guest-physical address that the virtual address maps to.
    pub physical: u64,
    /// The number of bytes of the page.
    pub page_size: u64,
    /// True if the page is writable.
    pub writable: bool,
    /// True if user mode may access the page.
    pub user: bool,
    /// True if the page is executable.
    pub executable: bool,
    /// True if the page is the instance's own memory.
    pub own: bool,
    /// The pool address of that memory, which differs from `physical` in the
    /// low window; absent outside the pool.
    pub pool_addr: Option<u64>,
    /// The names of the enclosing resources in the resource tree, outermost
    /// first.
    pub place: Vec<String>,
}

/// The translation of an address by KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KvmAnswer {
    /// The guest-physical address; absent if the address is not mapped.
    pub physical: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_two_digits_a_byte() {
        let bytes = [0x00, 0x9f, 0xf0, 0xff];
        let object = Memory::new("a".to_owned(), 0x1000, false, &bytes);
        assert_eq!((object.hex.as_str(), object.len), ("009ff0ff", 4));
        assert_eq!(object.bytes().unwrap(), bytes);
        for bad in ["0", "0g", "000"] {
            let object = Memory {
                hex: bad.to_owned(),
                ..object.clone()
            };
            assert_eq!(object.bytes(), None, "{bad}");
        }
    }
}
