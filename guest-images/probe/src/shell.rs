//! `shell`: answers lines typed on the console, until `exit`.

use core::str;

use crate::Probe;
use crate::console::print_line;
use crate::pure::{cmdline, script};
use crate::service;

/// The maximum length of a line; further input is ignored.
const LINE: usize = 512;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
/// The byte of Ctrl-D: the end of the input.
const END_OF_INPUT: u8 = 0x04;

/// Prints one line with the line end that a raw terminal needs.
macro_rules! answer {
    ($($args:tt)*) => { print_line("", format_args!("{}\r", format_args!($($args)*))) };
}

impl Probe {
    pub fn serve_shell(&mut self) {
        answer!("probe: shell, try help");
        let mut buffer = [0; LINE];
        while let Some(line) = read_line(&mut buffer) {
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (command, cmdline::address(rest)) {
                ("", _) => {}
                ("help", _) => answer!("echo TEXT, name, map, touch 0xADDR, do STEP/..., exit"),
                ("echo", _) => answer!("{rest}"),
                ("name", _) => answer!("{}", self.name.unwrap_or_default()),
                ("map", _) => self.print_map(),
                ("touch", Some(addr)) => self.touch(addr),
                ("touch", None) => answer!("touch: which address? in hexadecimal with 0x"),
                ("do", _) if script::steps(rest).all(|step| step.is_some()) => {
                    self.do_script(rest);
                }
                ("exit", _) => return,
                _ => answer!("{command}: not known; try help"),
            }
        }
    }

    fn print_map(&self) {
        for entry in self.boot_params.e820() {
            if let Some(range) = entry.range() {
                answer!("{:#x}-{:#x} type {}", range.start, range.end, entry.kind);
            }
        }
    }
}

/// Prompts, and reads a line while echoing it. `None` after Ctrl-D.
fn read_line(buffer: &mut [u8; LINE]) -> Option<&str> {
    service::print(b"probe# ");
    let mut len = 0;
    loop {
        match service::read() {
            b'\r' | b'\n' => {
                service::print(b"\r\n");
                return str::from_utf8(&buffer[..len]).ok();
            }
            BACKSPACE | DELETE if len > 0 => {
                service::print(b"\x08 \x08");
                len -= 1;
            }
            END_OF_INPUT if len == 0 => {
                service::print(b"\r\n");
                return None;
            }
            byte @ b' '..=b'~' if len < LINE => {
                service::print(&[byte]);
                buffer[len] = byte;
                len += 1;
            }
            _ => {}
        }
    }
}
