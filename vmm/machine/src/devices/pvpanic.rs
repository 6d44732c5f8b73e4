//! pvpanic: a port through which a guest says that it panics.
//!
//! Source: QEMU's docs/specs/pvpanic.rst; Linux's `drivers/misc/pvpanic`.

/// A panic has happened (bit 0), and the kernel ends after it.
const PANICKED: u8 = 1;
/// A crash kernel is loaded and takes over (bit 1): not the end.
const CRASH_LOADED: u8 = 2;

/// What a read answers: the events that can be told.
pub const CAPABILITIES: u8 = PANICKED | CRASH_LOADED;

/// Whether writing `value` says that the guest is at its end.
pub const fn is_panic(value: u8) -> bool {
    value & PANICKED != 0
}
