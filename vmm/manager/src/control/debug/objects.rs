//! Converts registers and page-table walks into objects of the API.

use std::collections::BTreeMap;

use mkvmm_api::Hex;
use mkvmm_api::debug::{CpuRegisters, Flags, KvmAnswer, Segment, Step, Table, Target, Translation};
use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_base::registers::{self, General, Special};

use crate::debug::bits;
use crate::debug::paging::{self, Walk, Walker};
use crate::guest::Guest;
use crate::questions::Reading;
use crate::registry::Registry;

/// The states of a vCPU, by KVM's numbers (`KVM_MP_STATE_*`).
const MP_STATES: [(u32, &str); 6] = [
    (0, "runnable"),
    (1, "uninitialized"),
    (2, "init-received"),
    (3, "halted"),
    (4, "sipi-received"),
    (5, "stopped"),
];

fn segment(segment: &registers::Segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: Hex(segment.base),
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

fn table(table: &registers::Table) -> Table {
    Table {
        base: Hex(table.base),
        limit: table.limit,
    }
}

/// Returns the API object for the registers of one vCPU.
pub fn cpu_registers(reading: &Reading) -> CpuRegisters {
    let (regs, sregs) = (&reading.registers.regs, &reading.registers.sregs);
    CpuRegisters {
        cpu: reading.cpu,
        mode: bits::mode(sregs, regs.rflags).to_owned(),
        cpl: bits::cpl(sregs, regs.rflags),
        // The address width and page sizes do not affect the mode.
        paging: Walker::new(sregs, 52, true).mode.name().to_owned(),
        mp_state: mp_state(reading.registers.mp_state).to_owned(),
        general: general(regs),
        rflags: flags(regs.rflags, &bits::RFLAGS),
        iopl: bits::iopl(regs.rflags),
        segments: segments(sregs),
        tables: [("gdt", &sregs.gdt), ("idt", &sregs.idt)]
            .map(|(name, table)| (name.to_owned(), self::table(table)))
            .into(),
        control: control(sregs),
    }
}

fn mp_state(state: Option<u32>) -> &'static str {
    let named = MP_STATES.iter().find(|(number, _)| Some(*number) == state);
    named.map_or("unknown", |(_, name)| name)
}

fn general(regs: &General) -> BTreeMap<String, Hex> {
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
        .map(|(name, value)| (name.to_owned(), Hex(value)))
        .into()
}

fn segments(sregs: &Special) -> BTreeMap<String, Segment> {
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
        .map(|(name, segment)| (name.to_owned(), self::segment(segment)))
        .into()
}

fn control(sregs: &Special) -> BTreeMap<String, Flags> {
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
        value: Hex(value),
        flags: bits::names(value, names),
    }
}

/// Returns the API object for the walk of `addr` with the registers of
/// `through`.
pub fn translation(
    registry: &Registry,
    guest: &Guest,
    addr: u64,
    through: &Reading,
    walk: &Walk,
) -> Translation {
    let sregs = &through.registers.sregs;
    let target = walk.end.as_ref().ok().map(|target| {
        let (pool_addr, own) = pool_addr(guest, target.addr);
        let path = pool_addr.map(|addr| registry.pool().tree().path(addr));
        let path = path.unwrap_or_default();
        Target {
            physical: target.addr,
            page_size: target.page_size,
            writable: target.writable,
            user: target.user,
            executable: target.executable,
            own,
            pool_addr: pool_addr.filter(|_| !path.is_empty()),
            place: path.iter().map(|entry| entry.name().to_owned()).collect(),
        }
    });
    Translation {
        name: guest.name().to_string(),
        cpu: through.cpu,
        addr: Hex(addr),
        paging: Walker::new(sregs, 52, true).mode.name().to_owned(),
        steps: walk.steps.iter().map(step).collect(),
        fault: walk.end.as_ref().err().map(ToString::to_string),
        target,
        kvm: through.translated.map(|physical| KvmAnswer { physical }),
    }
}

/// Returns the pool address of a guest-physical address, if it has one, and
/// whether the guest owns it.
fn pool_addr(guest: &Guest, addr: u64) -> (Option<u64>, bool) {
    if addr < LOW_WINDOW_SIZE {
        let window = guest.loaded().map(|loaded| loaded.plan.low_window);
        return (window.map(|w| w.start() + addr), window.is_some());
    }
    let own = guest.regions().iter().any(|region| region.contains(addr));
    (Some(addr), own)
}

fn step(step: &paging::Step) -> Step {
    Step {
        level: step.level.to_owned(),
        addr: step.addr,
        entry: step.entry.map(Hex),
        flags: step.flags(),
    }
}
