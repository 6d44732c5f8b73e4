//! Requests to ring 0 for what ring 3 cannot do; `entry` has the other side.

// UNSAFETY: ring 0 is entered by an instruction.
#![expect(unsafe_code, reason = "the instruction that enters ring 0")]

use core::arch::asm;

use crate::entry;
use crate::pure::cmdline::End;

/// The data register of COM1.
const COM1_PORT: u16 = 0x3f8;
/// The address register of PCI configuration, and its bit that enables it.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_ENABLE: u32 = 1 << 31;
/// The port for debug text, one byte at a time.
pub const DEBUG_PORT: u16 = 0xe9;

/// # Safety
///
/// The arguments must be valid for the service: for `SERVICE_PRINT` the address
/// and length of readable bytes, and a port; for the others any.
unsafe fn request(service: u64, [first, second, third]: [u64; 3]) -> (u64, u64) {
    let (result, more);
    // SAFETY: the handler continues after the `ud2`, preserves the stack and
    // every register except those named here, and reads only memory that the
    // caller guarantees.
    unsafe {
        asm!(
            "ud2",
            inout("rax") service => result,
            in("r8") u64::from(entry::MAGIC),
            inout("rdi") first => more,
            inout("rsi") second => _,
            out("rcx") _,
            inout("rdx") third => _,
            out("r9") _,
            options(nostack),
        );
    }
    (result, more)
}

/// Writes the bytes to COM1.
pub fn print(bytes: &[u8]) {
    print_to(COM1_PORT, bytes);
}

/// Writes the bytes to a port, one after the other.
pub fn print_to(port: u16, bytes: &[u8]) {
    let arguments = [bytes.as_ptr() as u64, bytes.len() as u64, port.into()];
    // SAFETY: a slice is readable for its length.
    unsafe { request(entry::SERVICE_PRINT, arguments) };
}

/// Returns the next byte that arrives at COM1; the processor sleeps until then.
pub fn read() -> u8 {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_READ, [0; 3]).0 as u8 }
}

/// Writes a byte to a port.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_OUT8, [port.into(), value.into(), 0]) };
}

/// Writes 16 bits to a port.
fn write_port16(port: u16, value: u16) {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_OUT16, [port.into(), value.into(), 0]) };
}

/// Writes 32 bits to a port.
fn write_port32(port: u16, value: u32) {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_OUT32, [port.into(), value.into(), 0]) };
}

/// Reads 32 bits of PCI configuration space at the slot and offset in `at`
/// (bits 15:11 and 7:0).
pub fn read_config(at: u32) -> u32 {
    write_port32(CONFIG_ADDRESS, CONFIG_ENABLE | at & !3);
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_IN32, [(CONFIG_ADDRESS + 4).into(), 0, 0]).0 as u32 }
}

/// Writes `width` bytes of PCI configuration space.
pub fn write_config(at: u32, width: u8, value: u32) {
    write_port32(CONFIG_ADDRESS, CONFIG_ENABLE | at & !3);
    let port = CONFIG_ADDRESS + 4 + (at & 3) as u16;
    match width {
        1 => write_port(port, value as u8),
        2 => write_port16(port, value as u16),
        _ => write_port32(port, value),
    }
}

/// Returns whether ring 0 can handle the breakpoint exception of an `int3`.
pub fn int3() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_INT3, [0; 3]).0 == 1 }
}

/// Returns whether ring 0 can exchange 16 bytes.
pub fn cmpxchg16b() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_CMPXCHG16B, [0; 3]).0 == 1 }
}

/// Returns whether ring 0 can save and restore extended state.
pub fn xsave() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_XSAVE, [0; 3]).0 == 1 }
}

/// The result of `cpuid`. In ring 3, `cpuid` itself may describe the host's
/// processor, since a paravirtual KVM cannot intercept it there.
pub struct Cpuid {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Executes `cpuid` for sub-leaf 0.
pub fn cpuid(leaf: u32) -> Cpuid {
    // SAFETY: no memory is named.
    let (first, second) = unsafe { request(entry::SERVICE_CPUID, [leaf.into(), 0, 0]) };
    Cpuid {
        eax: first as u32,
        ebx: (second >> 32) as u32,
        ecx: second as u32,
        edx: (first >> 32) as u32,
    }
}

/// Flushes translations that the tables no longer contain from the TLB.
pub fn flush() {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_FLUSH, [0; 3]) };
}

/// Ends the guest; if the machine does not support that way, it halts.
pub fn end(how: End) -> ! {
    match how {
        // The keyboard controller pulses the reset line.
        End::Reset => write_port(0x64, 0xfe),
        // The reset register that the FADT names.
        End::AcpiReset => write_port(0xcf9, 6),
        // PM1a control: SLP_TYP of S5, SLP_EN.
        End::Poweroff => write_port16(0x604, 5 << 10 | 1 << 13),
        // pvpanic: panicked.
        End::Panic => write_port(0x505, 1),
        End::Crash => {
            // SAFETY: no memory is named. It does not return.
            unsafe { request(entry::SERVICE_CRASH, [0; 3]) };
        }
        End::Halt => {}
    }
    loop {
        // SAFETY: no memory is named. It does not return.
        unsafe { request(entry::SERVICE_HALT, [0; 3]) };
    }
}
