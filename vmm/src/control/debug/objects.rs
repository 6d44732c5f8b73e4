//! Registers, memory and translations as JSON. Registers have 64 bits, which
//! JSON's numbers do not: they are text in hex.

use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_STOPPED, KVM_MP_STATE_UNINITIALIZED, kvm_dtable,
    kvm_regs, kvm_segment, kvm_sregs,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::debug::bits;
use crate::debug::paging::{Step, Walk, Walker};
use crate::guest::Guest;
use crate::guest::Reading;
use crate::instance::InstanceName;
use crate::layout::LOW_WINDOW_SIZE;
use crate::manager::Manager;

fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// A register as its vCPU has it.
fn hex64(value: u64) -> String {
    format!("{value:#018x}")
}

/// The registers of an instance's vCPUs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Registers {
    /// The instance.
    pub name: String,
    /// The state it was in.
    pub state: String,
    /// Why it ended; then the registers are those of its end.
    pub reason: Option<String>,
    /// By vCPU.
    pub cpus: Vec<CpuRegisters>,
    /// vCPUs that did not answer in time.
    pub missing: Vec<u8>,
}

/// The registers of one vCPU.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CpuRegisters {
    /// Which, from 0.
    pub cpu: u8,
    /// `real`, `protected`, `virtual-8086`, `compatibility` or `long`.
    pub mode: String,
    /// Current privilege level.
    pub cpl: u8,
    /// `off`, `32-bit`, `PAE`, `4-level` or `5-level`.
    pub paging: String,
    /// `runnable`, `halted`, `uninitialized` (never started), `init-received`,
    /// `sipi-received`, `stopped`, or `unknown`.
    pub mp_state: String,
    /// `rax` to `r15`, and `rip`, in hex.
    pub general: BTreeMap<String, String>,
    /// The flags.
    pub rflags: Flags,
    /// I/O privilege level, of the flags.
    pub iopl: u8,
    /// `cs`, `ds`, `es`, `fs`, `gs`, `ss`, `tr` and `ldt`.
    pub segments: BTreeMap<String, Segment>,
    /// `gdt` and `idt`.
    pub tables: BTreeMap<String, Table>,
    /// `cr0`, `cr2`, `cr3`, `cr4`, `cr8`, `efer` and `apic_base`.
    pub control: BTreeMap<String, Flags>,
}

/// A register and the names of its bits that are set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flags {
    /// The value in hex.
    pub hex: String,
    /// Names of bits that are set and have one.
    pub flags: Vec<String>,
}

/// A segment register with what the processor knows of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Segment {
    /// The selector in hex.
    pub selector_hex: String,
    /// The base in hex.
    pub base_hex: String,
    /// The last byte's offset.
    pub limit: u32,
    /// The descriptor's type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Whether it is a code or data segment.
    pub is_code_or_data: bool,
    /// Its privilege level.
    pub dpl: u8,
    /// Whether it is present.
    pub present: bool,
    /// Whether it holds 64-bit code.
    pub long: bool,
    /// Whether its operands have 32 bits.
    pub default_32: bool,
    /// Whether it must not be used.
    pub unusable: bool,
}

/// A descriptor table.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Table {
    /// The base in hex.
    pub base_hex: String,
    /// The last byte's offset.
    pub limit: u16,
}

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Self {
        Self {
            selector_hex: hex(segment.selector.into()),
            base_hex: hex(segment.base),
            limit: segment.limit,
            kind: segment.type_,
            is_code_or_data: segment.s != 0,
            dpl: segment.dpl,
            present: segment.present != 0,
            long: segment.l != 0,
            default_32: segment.db != 0,
            unusable: segment.unusable != 0,
        }
    }
}

impl From<&kvm_dtable> for Table {
    fn from(table: &kvm_dtable) -> Self {
        Self {
            base_hex: hex(table.base),
            limit: table.limit,
        }
    }
}

impl From<&Reading> for CpuRegisters {
    fn from(reading: &Reading) -> Self {
        let (regs, sregs) = (&reading.registers.regs, &reading.registers.sregs);
        Self {
            cpu: reading.cpu,
            mode: bits::mode(sregs, regs.rflags).to_owned(),
            cpl: bits::cpl(sregs, regs.rflags),
            // Width and page sizes make no difference to the mode.
            paging: Walker::new(sregs, 52, true).mode.name().to_owned(),
            mp_state: mp_state(reading.registers.mp_state).to_owned(),
            general: general(regs),
            rflags: flags(regs.rflags, &bits::RFLAGS),
            iopl: bits::iopl(regs.rflags),
            segments: segments(sregs),
            tables: [("gdt", &sregs.gdt), ("idt", &sregs.idt)]
                .map(|(name, table)| (name.to_owned(), table.into()))
                .into(),
            control: control(sregs),
        }
    }
}

fn mp_state(state: Option<u32>) -> &'static str {
    match state {
        Some(KVM_MP_STATE_RUNNABLE) => "runnable",
        Some(KVM_MP_STATE_UNINITIALIZED) => "uninitialized",
        Some(KVM_MP_STATE_INIT_RECEIVED) => "init-received",
        Some(KVM_MP_STATE_HALTED) => "halted",
        Some(KVM_MP_STATE_SIPI_RECEIVED) => "sipi-received",
        Some(KVM_MP_STATE_STOPPED) => "stopped",
        _ => "unknown",
    }
}

fn general(regs: &kvm_regs) -> BTreeMap<String, String> {
    let named = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rsp", regs.rsp),
        ("rbp", regs.rbp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
    ];
    named
        .map(|(name, value)| (name.to_owned(), hex64(value)))
        .into()
}

fn segments(sregs: &kvm_sregs) -> BTreeMap<String, Segment> {
    let named = [
        ("cs", &sregs.cs),
        ("ds", &sregs.ds),
        ("es", &sregs.es),
        ("fs", &sregs.fs),
        ("gs", &sregs.gs),
        ("ss", &sregs.ss),
        ("tr", &sregs.tr),
        ("ldt", &sregs.ldt),
    ];
    named
        .map(|(name, segment)| (name.to_owned(), segment.into()))
        .into()
}

fn control(sregs: &kvm_sregs) -> BTreeMap<String, Flags> {
    let named: [(&str, u64, &[bits::Bit]); 7] = [
        ("cr0", sregs.cr0, &bits::CR0),
        ("cr2", sregs.cr2, &[]),
        ("cr3", sregs.cr3, &[]),
        ("cr4", sregs.cr4, &bits::CR4),
        ("cr8", sregs.cr8, &[]),
        ("efer", sregs.efer, &bits::EFER),
        ("apic_base", sregs.apic_base, &[]),
    ];
    named
        .map(|(name, value, bits)| (name.to_owned(), flags(value, bits)))
        .into()
}

fn flags(value: u64, names: &[bits::Bit]) -> Flags {
    Flags {
        hex: hex64(value),
        flags: bits::names(value, names),
    }
}

/// Bytes of an instance's memory.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MemoryObject {
    /// The instance.
    pub name: String,
    /// Where the bytes begin, in hex.
    pub addr_hex: String,
    /// Whether that is a virtual address.
    #[serde(rename = "virtual")]
    pub is_virtual: bool,
    /// How many there are.
    pub len: u64,
    /// The bytes: two hexadecimal digits each, nothing between them.
    pub hex: String,
}

impl MemoryObject {
    /// `bytes` at `addr`.
    pub fn new(name: &InstanceName, addr: u64, is_virtual: bool, bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
        let digits = bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]);
        Self {
            name: name.to_string(),
            addr_hex: hex(addr),
            is_virtual,
            len: bytes.len() as u64,
            hex: digits.collect(),
        }
    }

    /// The bytes; `None` where the text is no such text.
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
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Translation {
    /// The instance.
    pub name: String,
    /// The vCPU whose page tables were followed.
    pub cpu: u8,
    /// The virtual address in hex.
    pub addr_hex: String,
    /// `off`, `32-bit`, `PAE`, `4-level` or `5-level`.
    pub paging: String,
    /// Every entry on the way, from the top.
    pub steps: Vec<StepObject>,
    /// Why it leads nowhere, if so.
    pub fault: Option<String>,
    /// Where it leads.
    pub target: Option<TargetObject>,
    /// What KVM made of it at the same moment; absent for a guest that has
    /// ended, and where KVM does not say.
    pub kvm: Option<KvmAnswer>,
}

/// A page-table entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepObject {
    /// `PML5E`, `PML4E`, `PDPTE`, `PDE` or `PTE`.
    pub level: String,
    /// Its guest-physical address in hex.
    pub addr_hex: String,
    /// What it holds in hex; absent where the guest has no memory.
    pub entry_hex: Option<String>,
    /// Names of its flags.
    pub flags: Vec<String>,
}

/// The end of a translation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TargetObject {
    /// Guest-physical address.
    pub physical: u64,
    /// The same in hex.
    pub physical_hex: String,
    /// Bytes of the page.
    pub page_size: u64,
    /// Whether it can be written.
    pub writable: bool,
    /// Whether user mode can use it.
    pub user: bool,
    /// Whether it can be executed.
    pub executable: bool,
    /// Whether it is the instance's own memory.
    pub own: bool,
    /// The pool's address of that memory, which differs in the low window; in
    /// hex, absent outside the pool.
    pub pool_addr_hex: Option<String>,
    /// What the resource tree calls it, outermost first.
    pub place: Vec<String>,
}

/// What KVM made of an address.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KvmAnswer {
    /// Guest-physical address in hex; absent where nothing is mapped.
    pub physical_hex: Option<String>,
}

impl Translation {
    /// The walk of `addr` that `through`'s registers led.
    pub fn new(
        manager: &Manager,
        guest: &Guest,
        addr: u64,
        through: &Reading,
        walk: &Walk,
    ) -> Self {
        let sregs = &through.registers.sregs;
        let target = walk.end.as_ref().ok().map(|target| {
            let (pool_addr, own) = pool_addr(guest, target.addr);
            let path = pool_addr.map(|addr| manager.pool().tree().path(addr));
            let path = path.unwrap_or_default();
            TargetObject {
                physical: target.addr,
                physical_hex: hex(target.addr),
                page_size: target.page_size,
                writable: target.writable,
                user: target.user,
                executable: target.executable,
                own,
                pool_addr_hex: pool_addr.filter(|_| !path.is_empty()).map(hex),
                place: path.iter().map(|entry| entry.name().to_owned()).collect(),
            }
        });
        Self {
            name: guest.name().to_string(),
            cpu: through.cpu,
            addr_hex: hex(addr),
            paging: Walker::new(sregs, 52, true).mode.name().to_owned(),
            steps: walk.steps.iter().map(StepObject::from).collect(),
            fault: walk.end.as_ref().err().map(ToString::to_string),
            target,
            kvm: through.translated.map(|physical| KvmAnswer {
                physical_hex: physical.map(hex),
            }),
        }
    }
}

/// Which byte of the pool is behind a guest-physical address, if one is; and
/// whether the guest has it.
fn pool_addr(guest: &Guest, addr: u64) -> (Option<u64>, bool) {
    if addr < LOW_WINDOW_SIZE {
        let window = guest.images().map(|images| images.plan.low_window);
        return (window.map(|w| w.start() + addr), window.is_some());
    }
    let own = guest.regions().iter().any(|region| region.contains(addr));
    (Some(addr), own)
}

impl From<&Step> for StepObject {
    fn from(step: &Step) -> Self {
        Self {
            level: step.level.to_owned(),
            addr_hex: hex(step.addr),
            entry_hex: step.entry.map(hex64),
            flags: step.flags(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_two_digits_a_byte() {
        let name = "a".parse().unwrap();
        let bytes = [0x00, 0x9f, 0xf0, 0xff];
        let object = MemoryObject::new(&name, 0x1000, false, &bytes);
        assert_eq!((object.hex.as_str(), object.len), ("009ff0ff", 4));
        assert_eq!(object.bytes().unwrap(), bytes);
        for bad in ["0", "0g", "000"] {
            let object = MemoryObject {
                hex: bad.to_owned(),
                ..object.clone()
            };
            assert_eq!(object.bytes(), None, "{bad}");
        }
    }
}
