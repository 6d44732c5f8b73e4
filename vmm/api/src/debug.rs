//! What is told of the inside of guests.

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
    /// The state that it was in.
    pub state: State,
    /// Why it ended; then the registers are those of its end.
    pub reason: Option<EndReason>,
    /// The registers by vCPU.
    pub cpus: Vec<CpuRegisters>,
    /// The numbers of vCPUs that did not answer in time.
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
    /// What the vCPU does: `runnable`, `halted`, `uninitialized` (never started),
    /// `init-received`, `sipi-received`, `stopped`, or `unknown`.
    pub mp_state: String,
    /// The registers `rax` to `r15`, and `rip`.
    pub general: BTreeMap<String, Hex>,
    /// The flags register.
    pub rflags: Flags,
    /// The I/O privilege level, of the flags register.
    pub iopl: u8,
    /// The segments `cs`, `ds`, `es`, `fs`, `gs`, `ss`, `tr` and `ldt`.
    pub segments: BTreeMap<String, Segment>,
    /// The tables `gdt` and `idt`.
    pub tables: BTreeMap<String, Table>,
    /// The registers `cr0`, `cr2`, `cr3`, `cr4`, `cr8`, `efer` and `apic_base`.
    pub control: BTreeMap<String, Flags>,
}

/// A register and the names of its bits that are set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Flags {
    /// The value of the register.
    pub value: Hex,
    /// The names of bits that are set and have one.
    pub flags: Vec<String>,
}

/// A segment register with what the processor knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Segment {
    /// The selector that the guest loaded.
    pub selector: u16,
    /// The base address.
    pub base: Hex,
    /// The offset of the last byte.
    pub limit: u32,
    /// The type of the descriptor.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Whether it is a code or data segment.
    pub is_code_or_data: bool,
    /// The privilege level.
    pub dpl: u8,
    /// Whether the segment is present.
    pub present: bool,
    /// Whether the segment holds 64-bit code.
    pub long: bool,
    /// Whether its operands have 32 bits.
    pub default_32: bool,
    /// Whether the segment must not be used.
    pub unusable: bool,
}

/// A descriptor table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Table {
    /// The base address.
    pub base: Hex,
    /// The offset of the last byte.
    pub limit: u16,
}

/// Bytes of an instance's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = MemoryObject))]
pub struct Memory {
    /// The name of the instance.
    pub name: String,
    /// The address of the first byte.
    pub addr: Hex,
    /// Whether that is a virtual address.
    #[serde(rename = "virtual")]
    pub is_virtual: bool,
    /// The number of bytes.
    pub len: u64,
    /// The bytes: two hexadecimal digits each, nothing between them.
    pub hex: String,
}

impl Memory {
    /// Returns the object that holds `bytes` at `addr`.
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

    /// Returns the bytes; `None` where the text is not such digits.
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

/// Where a guest-virtual address leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Translation {
    /// The name of the instance.
    pub name: String,
    /// The vCPU whose page tables were followed.
    pub cpu: u8,
    /// The virtual address.
    pub addr: Hex,
    /// The paging mode: `off`, `32-bit`, `PAE`, `4-level` or `5-level`.
    pub paging: String,
    /// Every entry on the way, from the top.
    pub steps: Vec<Step>,
    /// Why the address is mapped to nothing, if so.
    pub fault: Option<String>,
    /// What the address is mapped to.
    pub target: Option<Target>,
    /// What KVM made of it at the same moment; absent for a guest that has ended, and where
    /// KVM does not say.
    pub kvm: Option<KvmAnswer>,
}

/// A page-table entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = StepObject))]
pub struct Step {
    /// The level: `PML5E`, `PML4E`, `PDPTE`, `PDE` or `PTE`.
    pub level: String,
    /// The guest-physical address of the entry.
    pub addr: u64,
    /// The value of the entry; absent where the guest has no memory.
    pub entry: Option<Hex>,
    /// The names of its flags.
    pub flags: Vec<String>,
}

/// The end of a translation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = TargetObject))]
pub struct Target {
    /// The guest-physical address.
    pub physical: u64,
    /// The number of bytes of the page.
    pub page_size: u64,
    /// Whether the page can be written.
    pub writable: bool,
    /// Whether user mode can use the page.
    pub user: bool,
    /// Whether the page can be executed.
    pub executable: bool,
    /// Whether the page is the instance's own memory.
    pub own: bool,
    /// The pool's address of that memory, which differs in the low window; absent outside
    /// the pool.
    pub pool_addr: Option<u64>,
    /// The names in the resource tree, outermost first.
    pub place: Vec<String>,
}

/// What KVM made of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KvmAnswer {
    /// The guest-physical address; absent where nothing is mapped.
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
