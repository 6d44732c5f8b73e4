//! Asking ring 0 for what ring 3 cannot do; `entry` has the other side.

// UNSAFETY: ring 0 is entered by an instruction.
#![expect(unsafe_code, reason = "the instruction that enters ring 0")]

use core::arch::asm;

use crate::entry;
use crate::pure::cmdline::End;

/// # Safety
///
/// The arguments must be what the service expects: for `SERVICE_PRINT` address
/// and length of readable bytes; for the others any.
unsafe fn request(service: u64, first: u64, second: u64) -> (u64, u64) {
    let (result, more);
    // SAFETY: the handler goes on behind the `ud2`, keeps the stack and every
    // register but those named here, and reads only what the caller vouches for.
    unsafe {
        asm!(
            "ud2",
            inout("rax") service => result,
            in("r8") u64::from(entry::MAGIC),
            inout("rdi") first => more,
            inout("rsi") second => _,
            out("rcx") _,
            out("rdx") _,
            out("r9") _,
            options(nostack),
        );
    }
    (result, more)
}

/// Writes the bytes to COM1.
pub fn print(bytes: &[u8]) {
    // SAFETY: a slice is readable for its length.
    unsafe {
        request(
            entry::SERVICE_PRINT,
            bytes.as_ptr() as u64,
            bytes.len() as u64,
        )
    };
}

/// Whether ring 0 can take the breakpoint exception of an `int3`.
pub fn int3() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_INT3, 0, 0).0 == 1 }
}

/// Whether ring 0 can exchange 16 bytes.
pub fn cmpxchg16b() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_CMPXCHG16B, 0, 0).0 == 1 }
}

/// Whether ring 0 can save and restore extended state.
pub fn xsave() -> bool {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_XSAVE, 0, 0).0 == 1 }
}

/// What the processor is said to have. In ring 3, `cpuid` itself may tell of the
/// host's processor, for a paravirtual KVM cannot intercept it there.
pub struct Cpuid {
    pub eax: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Executes `cpuid` for sub-leaf 0.
pub fn cpuid(leaf: u32) -> Cpuid {
    // SAFETY: no memory is named.
    let (low, ecx) = unsafe { request(entry::SERVICE_CPUID, u64::from(leaf), 0) };
    Cpuid {
        eax: low as u32,
        ecx: ecx as u32,
        edx: (low >> 32) as u32,
    }
}

/// Makes the processor forget translations that the tables no longer hold.
pub fn flush() {
    // SAFETY: no memory is named.
    unsafe { request(entry::SERVICE_FLUSH, 0, 0) };
}

/// Ends the guest.
pub fn end(how: End) -> ! {
    let service = match how {
        End::Reset => entry::SERVICE_RESET,
        End::Halt => entry::SERVICE_HALT,
        End::Crash => entry::SERVICE_CRASH,
    };
    loop {
        // SAFETY: no memory is named. None of the three comes back.
        unsafe { request(service, 0, 0) };
    }
}
