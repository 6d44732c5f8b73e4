//! The probe: the guest kernel that is built into mkvmm.
//!
//! It prints the information it was given and checks it: its memory map, the
//! ends of each usable range, its initramfs, and that the rest of the pool does
//! not exist in its address space. The README of `guest-images` describes the
//! lines that it prints and the words that it accepts.
//!
//! - [`entry`]: ring 0, in assembly: page tables, GDT, IDT, services
//! - [`service`]: requests from ring 3 to ring 0
//! - [`mem_functions`]: functions that the compiler expects
//! - [`console`]: prints whole lines to COM1
//! - [`memory`]: access to any physical address
//! - [`boot_params`]: the loader's data
//! - [`checks`]: the checks; [`manifest`]: those of the manifest
//! - [`actions`]: the actions that the user requested; [`shell`]: typed
//!   commands; [`ring`]: messages over a channel
//! - [`pure`]: pure computations, tested on the host
//!
//! Everything except `entry` runs in ring 3, at full speed on every kind of
//! KVM.

#![no_std]
#![no_main]
#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]

#[macro_use]
mod console;
mod actions;
mod boot_params;
mod checks;
mod entry;
mod manifest;
mod mem_functions;
mod memory;
mod pure;
mod ring;
mod service;
mod shell;

use boot_params::BootParams;
use memory::Memory;
use pure::cmdline::{self, End, Word};
use pure::range::{List, Range};

/// The contents of the command line, and the problems found so far.
struct Probe {
    memory: Memory,
    boot_params: BootParams,
    cmdline: &'static str,
    name: Option<&'static str>,
    pool: Option<Range>,
    /// The instance's own chunks, in ascending order.
    chunks: List<512>,
    /// The memory of the instance's channels, in ascending order.
    channels: List<8>,
    /// The size and checksum of the initramfs.
    initrd: Option<(u64, u32)>,
    problems: u32,
}

/// Called by `entry` in ring 3, relocated, with the low window and the image
/// mapped.
#[expect(unsafe_code, reason = "entry.rs calls it by its name")]
#[unsafe(no_mangle)]
extern "C" fn probe_main(
    boot_params: u64,
    page_tables: u64,
    image_start: u64,
    image_len: u64,
    next_table: u64,
) -> ! {
    let image = Range {
        start: image_start,
        end: image_start + image_len,
    };
    let mut memory = Memory::new(page_tables, next_table, image);
    let boot_params = BootParams::new(&mut memory, boot_params);
    let cmdline = boot_params.cmdline(&mut memory);
    memory.keep();
    let mut probe = Probe {
        memory,
        boot_params,
        cmdline: cmdline.unwrap_or_default(),
        name: None,
        pool: None,
        chunks: List::new(),
        channels: List::new(),
        initrd: None,
        problems: 0,
    };
    let wanted = probe.read_words();
    if cmdline.is_none() {
        bad!(probe, "command line is not text or not there");
    }
    probe.check();
    probe.act();

    if probe.problems > 0 {
        say!("FAIL {} problems", probe.problems);
        service::end(End::Crash);
    }
    say!("pass");
    if wanted.shell {
        probe.serve_shell();
    }
    while wanted.spin {
        core::hint::spin_loop();
    }
    service::end(wanted.end);
}

/// The actions after the checks.
struct Wanted {
    shell: bool,
    spin: bool,
    end: End,
}

impl Probe {
    /// Parses the command line and reports the words that are not for the
    /// probe.
    fn read_words(&mut self) -> Wanted {
        let mut wanted = Wanted {
            shell: false,
            spin: false,
            end: End::Reset,
        };
        for word in cmdline::words(self.cmdline) {
            match word {
                Word::Name(value) => self.name = Some(value),
                Word::Pool(range) => self.pool = Some(range),
                Word::Chunks(value) => {
                    for range in cmdline::ranges(value) {
                        self.chunks.push(range);
                    }
                    self.chunks.sort();
                }
                Word::Initrd { size, crc32 } => self.initrd = Some((size, crc32)),
                Word::Shell => wanted.shell = true,
                Word::Spin => wanted.spin = true,
                Word::End(value) => wanted.end = value,
                // `act` handles them, in their own order.
                Word::Touch(_) | Word::Do(_) | Word::Loop(_) => {}
                Word::Send(_) | Word::Receive(_) | Word::Wreck(_) | Word::Endure(_) => {}
                Word::Hold(_) | Word::Caps | Word::Marks => {}
                Word::Malformed(_) | Word::Unknown(_) => {}
            }
        }
        match self.name {
            Some(name) => say!("name {name}"),
            None => bad!(self, "no name"),
        }
        self.name_strange_words();
        wanted
    }

    fn name_strange_words(&mut self) {
        let mut line = console::Line::new("probe: ignored");
        let mut any = false;
        for word in cmdline::words(self.cmdline) {
            match word {
                Word::Unknown(text) => {
                    line.add(format_args!(" {text}"));
                    any = true;
                }
                Word::Malformed(text) => bad!(self, "cannot read {text}"),
                _ => {}
            }
        }
        if any {
            line.print();
        }
    }
}

/// Called by `entry` after an unexpected exception.
#[expect(unsafe_code, reason = "entry.rs calls it by its name")]
#[unsafe(no_mangle)]
extern "C" fn fault_main(vector: u64, rip: u64, cr2: u64, error: u64, cs: u64) -> ! {
    say!(
        "BAD exception {vector} error {error:#x} at {rip:#x} ring {} cr2 {cr2:#x}",
        cs & 3
    );
    say!("FAIL 1 problems");
    service::end(End::Crash)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("BAD {info}");
    say!("FAIL 1 problems");
    service::end(End::Crash)
}
