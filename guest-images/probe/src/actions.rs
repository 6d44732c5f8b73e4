//! The actions that the user requests on the command line, in order.

use crate::Probe;
use crate::checks::last_page;
use crate::memory::{Memory, PAGE, tsc};
use crate::pure::cmdline::{self, Word};
use crate::pure::e820::USABLE;
use crate::pure::range::{List, Range, subtract};
use crate::pure::script::{self, Step};
use crate::service;

/// The pattern that `touch` writes, combined with each address.
const TOUCH: u64 = 0x6d6b_766d_6d00_0000;
/// The pattern that `hold` fills pages with, combined with each word.
const HOLD: u64 = 0x686f_6c64_0000_0000;
/// How long a step waits for a device, in TSC cycles.
const PATIENCE: u64 = 60_000_000_000;
/// The byte that `marks` writes to the POST port.
const POST_CODE: u8 = 0x6d;
/// The line that `marks` writes to the debug port.
const MARK: &[u8] = b"probe checked\n";

/// Writes a mark to each of the debug ports.
fn leave_marks() {
    service::write_port(0x80, POST_CODE);
    service::print_to(service::DEBUG_PORT, MARK);
}

impl Probe {
    pub fn act(&mut self) {
        for word in cmdline::words(self.cmdline) {
            match word {
                Word::Touch(value) => cmdline::addresses(value)
                    .flatten()
                    .for_each(|a| self.touch(a)),
                Word::Do(script) => self.do_script(script),
                Word::Loop(script) => loop {
                    self.do_script(script);
                },
                Word::Send(side) => self.send(side),
                Word::Receive(side) => self.receive(side),
                Word::Wreck(side) => self.wreck(side),
                Word::Endure(side) => self.endure(side),
                Word::Hold(millions) => self.hold(millions.saturating_mul(1_000_000)),
                Word::Caps => self.caps(),
                Word::Marks => leave_marks(),
                _ => {}
            }
        }
    }

    pub fn touch(&mut self, addr: u64) {
        let value = TOUCH ^ addr;
        let read = (self.memory.poke(addr, value)).and_then(|()| self.memory.peek(addr));
        match read {
            Some(read) => say!("touch {addr:#x} wrote {value:#018x} read {read:#018x}"),
            None => bad!(self, "touch {addr:#x} is out of reach"),
        }
    }

    /// Carries out the valid steps of a script.
    pub fn do_script(&mut self, script: &str) {
        let steps = script::steps(script).flatten();
        steps.for_each(|step| self.do_step(step));
    }

    /// Carries out a step of a script.
    fn do_step(&mut self, step: Step) {
        match step {
            Step::Read { width, addr } => match self.memory.read(addr, width) {
                Some(value) => say!("read {addr:#x} {value:#x}"),
                None => bad!(self, "read {addr:#x} is out of reach"),
            },
            Step::Write {
                width,
                addr,
                value,
                count,
            } => {
                for _ in 0..count {
                    if self.memory.write(addr, width, value).is_none() {
                        bad!(self, "write {addr:#x} is out of reach");
                        return;
                    }
                }
            }
            Step::Until {
                width,
                addr,
                mask,
                value,
            } => {
                let read = |memory: &mut Memory| memory.read(addr, width);
                let is_it = |read: Option<u64>| read.is_some_and(|read| read & mask == value);
                if !self.wait(|memory| is_it(read(memory))) {
                    let read = read(&mut self.memory).unwrap_or_default();
                    bad!(self, "until {addr:#x} {mask:#x} {value:#x} is {read:#x}");
                }
            }
            Step::Add { width, addr, value } => {
                let read = self.memory.read(addr, width);
                let sum = read.map(|read| read.wrapping_add(value));
                let wrote = sum.and_then(|sum| self.memory.write(addr, width, sum));
                if wrote.is_none() {
                    bad!(self, "add {addr:#x} is out of reach");
                }
            }
            Step::Same { width, addr, other } => {
                let are_same = |memory: &mut Memory| {
                    let one = memory.read(addr, width);
                    one.is_some() && one == memory.read(other, width)
                };
                if !self.wait(are_same) {
                    bad!(self, "same {addr:#x} {other:#x} are different");
                }
            }
            Step::ReadConfig { at } => say!("config {at:#x} {:#x}", service::read_config(at)),
            Step::WriteConfig { width, at, value } => service::write_config(at, width, value),
        }
    }

    /// Waits until `is_it`; returns whether it was soon enough.
    fn wait(&mut self, is_it: impl Fn(&mut Memory) -> bool) -> bool {
        let begin = tsc();
        while !is_it(&mut self.memory) {
            if tsc().wrapping_sub(begin) > PATIENCE {
                return false;
            }
        }
        true
    }

    /// Fills the end of all our RAM with a pattern and watches it. An initramfs
    /// at the end has been checked by now and is overwritten, so that the very
    /// last page is always watched.
    fn hold(&mut self, cycles: u64) {
        let mut pages = List::<512>::new();
        let image = [self.memory.image];
        for entry in self.boot_params.e820().filter(|entry| entry.kind == USABLE) {
            let high = entry
                .range()
                .and_then(|r| Range::new(r.start.max(1 << 20), r.end));
            let last = high.and_then(|range| subtract(range, &image).last());
            pages.push(last.map(last_page).filter(|page| page.size() == PAGE));
        }
        for page in pages.as_slice() {
            for addr in (page.start..page.end).step_by(8) {
                self.memory.poke(addr, HOLD ^ addr);
            }
        }
        let begin = tsc();
        let mut checks = 0u64;
        while {
            for page in pages.as_slice() {
                for addr in (page.start..page.end).step_by(8) {
                    if self.memory.peek(addr) != Some(HOLD ^ addr) {
                        say!("hold CHANGED at {addr:#x}");
                        self.problems += 1;
                        return;
                    }
                }
            }
            checks += 1;
            tsc().wrapping_sub(begin) < cycles
        } {}
        say!("hold ok {checks} checks");
    }

    /// Executes instructions that an unmodified Linux executes in ring 0 and
    /// that a paravirtual KVM may be unable to emulate. In that case KVM
    /// reports it to the VMM, and the probe prints nothing more.
    fn caps(&mut self) {
        let features = service::cpuid(1).ecx;
        let mut tell = |name, ok| match ok {
            true => say!("caps {name} ok"),
            false => bad!(self, "caps {name} has no effect"),
        };
        tell("int3", service::int3());
        if features & (1 << 13) != 0 {
            tell("cmpxchg16b", service::cmpxchg16b());
        }
        if features & (1 << 26) != 0 {
            tell("xsave", service::xsave());
        }
    }
}
