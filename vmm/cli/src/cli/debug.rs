//! `mkvmm debug`: registers, memory and page tables of a guest.

use std::fmt::Write as _;

use clap::Subcommand;
use mkpool::param::parse_addr;

use crate::cli::client::ClientArgs;
use crate::cli::exchange::{answer, get};
use crate::cli::hexdump::hexdump;
use crate::cli::options::{OptionError, size};
use crate::cli::output::print;
use crate::cli::tables;
use crate::error::{CliError, ExitStatus};
use mkvmm_api::Hex;
use mkvmm_api::debug::{CpuRegisters, Flags, Memory, Registers, Translation};
use mkvmm_client::{Call, ClientError, escape};

#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Print the vCPUs' registers; for a guest that has ended, its last ones
    Regs {
        /// The name of the instance
        name: String,
        /// The index of a vCPU, from 0; all vCPUs if absent
        #[arg(long, value_name = "N")]
        cpu: Option<u8>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print the guest's memory, in the format of hexdump -C
    Mem {
        /// The name of the instance
        name: String,
        /// The address of the first byte, for example 0x7000 or 4G
        addr: String,
        /// The number of bytes, at most 1M, for example 256 or 4K
        len: String,
        /// Take the address as virtual and translate it through the page tables
        #[arg(long = "virtual")]
        is_virtual: bool,
        /// Use the page tables of the vCPU with this index
        #[arg(long, value_name = "N", requires = "is_virtual")]
        cpu: Option<u8>,
        /// Write the raw bytes to standard output
        #[arg(long, conflicts_with = "json")]
        raw: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Print the page-table walk of a virtual address, entry by entry
    Translate {
        /// The name of the instance
        name: String,
        /// The virtual address to translate
        addr: String,
        /// Use the page tables of the vCPU with this index
        #[arg(long, value_name = "N")]
        cpu: Option<u8>,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// Carries out `command`.
///
/// # Errors
/// Returns a [`CliError`], which determines the exit status.
pub fn run(command: &DebugCommand) -> Result<ExitStatus, CliError> {
    match command {
        DebugCommand::Regs { name, cpu, client } => {
            let query = cpu.map_or_else(String::new, |cpu| format!("?cpu={cpu}"));
            let path = format!("/v1/instances/{}/regs{query}", escape(name));
            get(client, &path, registers)
        }
        DebugCommand::Mem {
            name,
            addr: text,
            len,
            is_virtual,
            cpu,
            raw,
            client,
        } => {
            let (addr, len) = (addr(text)?, size("len", len)?);
            let mut query = format!("addr={addr:#x}&len={len}&virtual={is_virtual}");
            if let Some(cpu) = cpu {
                query.push_str(&format!("&cpu={cpu}"));
            }
            let path = format!("/v1/instances/{}/memory?{query}", escape(name));
            let text = client.call(Call::get(path))?;
            if !raw {
                return answer(client.json, text, |memory: &Memory| {
                    hexdump(addr, &memory.bytes().unwrap_or_default())
                });
            }
            let memory: Memory = serde_json::from_str(&text).map_err(ClientError::Json)?;
            print(&memory.bytes().unwrap_or_default())
        }
        DebugCommand::Translate {
            name,
            addr: text,
            cpu,
            client,
        } => {
            let mut query = format!("addr={:#x}", addr(text)?);
            if let Some(cpu) = cpu {
                query.push_str(&format!("&cpu={cpu}"));
            }
            let path = format!("/v1/instances/{}/translate?{query}", escape(name));
            get(client, &path, translation)
        }
    }
}

/// Parses an address with the kernel's syntax; unlike a size, it may be 0.
fn addr(text: &str) -> Result<u64, CliError> {
    if let Some(digits) = text.strip_prefix("0x")
        && let Ok(addr) = u64::from_str_radix(digits, 16)
    {
        return Ok(addr);
    }
    if text == "0" {
        return Ok(0);
    }
    Ok(parse_addr(text).map_err(OptionError::of("addr"))?)
}

/// Formats registers for people, in the order of the processor manuals.
fn registers(all: &Registers) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    if let Some(reason) = &all.reason {
        let _ = writeln!(
            text,
            "{} is {} ({reason}); when it ended:",
            all.name, all.state
        );
    }
    for cpu in &all.cpus {
        one_cpu(&mut text, cpu);
    }
    for cpu in &all.missing {
        let _ = writeln!(text, "vCPU {cpu}: no response");
    }
    text
}

fn one_cpu(text: &mut String, cpu: &CpuRegisters) {
    const GENERAL: [[&str; 4]; 4] = [
        ["rax", "rbx", "rcx", "rdx"],
        ["rsi", "rdi", "rbp", "rsp"],
        ["r8", "r9", "r10", "r11"],
        ["r12", "r13", "r14", "r15"],
    ];
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "vCPU {}: {} mode, CPL {}, paging {}, {}",
        cpu.cpu, cpu.mode, cpu.cpl, cpu.paging, cpu.mp_state
    );
    let general = |name: &str| cpu.general.get(name).map_or_else(String::new, hex64);
    let _ = writeln!(
        text,
        "  rip {}  rflags {} IOPL {}",
        general("rip"),
        with_flags(&cpu.rflags),
        cpu.iopl
    );
    for row in GENERAL {
        let row = row.map(|name| format!("{name:<3} {}", general(name)));
        let _ = writeln!(text, "  {}", row.join("  "));
    }
    for name in ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"] {
        let Some(segment) = cpu.segments.get(name) else {
            continue;
        };
        let mut words = vec![format!("type {:#x}", segment.kind)];
        words.extend(segment.long.then(|| "64-bit".to_owned()));
        words.extend(segment.default_32.then(|| "32-bit".to_owned()));
        words.extend((!segment.present).then(|| "not present".to_owned()));
        words.extend(segment.unusable.then(|| "unusable".to_owned()));
        let _ = writeln!(
            text,
            "  {name:<3} {:<#6x} base {:<#18x} limit {:#010x}  dpl {}  {}",
            segment.selector,
            segment.base.0,
            segment.limit,
            segment.dpl,
            words.join(", ")
        );
    }
    for (name, table) in &cpu.tables {
        let _ = writeln!(
            text,
            "  {name} base {:<#18x} limit {:#x}",
            table.base.0, table.limit
        );
    }
    for (name, value) in &cpu.control {
        let _ = writeln!(text, "  {name:<9} {}", with_flags(value));
    }
}

fn with_flags(value: &Flags) -> String {
    if value.flags.is_empty() {
        return hex64(&value.value);
    }
    format!("{} [{}]", hex64(&value.value), value.flags.join(" "))
}

/// Formats a register with all its digits.
fn hex64(value: &Hex) -> String {
    format!("{:#018x}", value.0)
}

/// Formats a page-table walk for people.
fn translation(walk: &Translation) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} on vCPU {} of {}, paging {}",
        walk.addr, walk.cpu, walk.name, walk.paging
    );
    for step in &walk.steps {
        let entry = step.entry.as_ref();
        let entry = entry.map_or_else(|| "no memory".to_owned(), hex64);
        let _ = writeln!(
            text,
            "  {:<5} at {:<#14x} {entry}  {}",
            step.level,
            step.addr,
            step.flags.join(" ")
        );
    }
    if let Some(target) = &walk.target {
        let may = |yes: bool, word: &'static str, no: &'static str| if yes { word } else { no };
        let _ = writeln!(
            text,
            "  page of {}: {}, {}, {}",
            tables::size(target.page_size),
            may(target.writable, "writable", "read-only"),
            may(target.user, "user", "supervisor"),
            may(target.executable, "executable", "no-execute"),
        );
        let owner = may(target.own, "its own memory", "not its memory");
        let _ = writeln!(text, "physical {:#x}: {owner}", target.physical);
        if let Some(addr) = target.pool_addr {
            let _ = writeln!(text, "in the pool {addr:#x}: {}", target.place.join(", "));
        }
    }
    if let Some(fault) = &walk.fault {
        let _ = writeln!(text, "not mapped: {fault}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_zero_to_the_last() {
        assert_eq!(addr("0").unwrap(), 0);
        assert_eq!(addr("0x0").unwrap(), 0);
        assert_eq!(addr("0xffffffffffffffff").unwrap(), u64::MAX);
        assert_eq!(addr("4G").unwrap(), 4 << 30);
        addr("here").unwrap_err();
    }
}
