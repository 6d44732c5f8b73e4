//! What a Linux says of its own end on its console.
//!
//! A kernel that panics resets the machine, at once with `panic=-1`, and so
//! does one that is told to reboot. The reset looks the same unless the driver
//! of pvpanic is loaded, and most of what kills a kernel early comes before
//! its modules. What differs is what it printed last:
//!
//! | line | what it means |
//! |---|---|
//! | `Kernel panic - not syncing: …` | what ends the guest now is that panic |
//! | `Linux version …`, after that | a crash kernel runs, and its end is still that panic's |
//! | `---[ end Kernel panic - not syncing: …` | with `panic=0`: it loops forever, and prints nothing more |
//! | `reboot: Restarting system`, `Power down`, `System halted` | somebody asked for the end |
//!
//! All of it is printed whatever the log level is, except for level 0. It is
//! the guest's own word, and decides about the guest alone: a guest can end
//! itself in any of these ways. A console that shows an old log with a panic
//! in it changes nothing, since an orderly end has its own line after that.
//!
//! Source: Linux's `kernel/panic.c` and `kernel/reboot.c`, 6.1 and 6.12.

use std::sync::{Mutex, MutexGuard, PoisonError};

use mkvmm_base::state::EndReason;

/// Bytes of a line that are looked at; the last ones of a longer line. What is
/// looked for may stand behind something that was printed without a newline.
const LINE_MAX: usize = 512;

const PANIC: &[u8] = b"Kernel panic - not syncing";
const STANDS: &[u8] = b"---[ end Kernel panic - not syncing";
const BOOT: &[u8] = b"Linux version ";
const ORDERLY: [&[u8]; 3] = [
    b"reboot: Restarting system",
    b"reboot: Power down",
    b"reboot: System halted",
];

/// What is known of a guest's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Said {
    /// Nothing, or that it was long ago.
    #[default]
    Nothing,
    /// The kernel panics.
    Panic,
    /// It has panicked, will print nothing more, and has printed nothing more.
    Stands,
    /// It has panicked, and its crash kernel runs.
    CrashKernel,
    /// Somebody asked for the end.
    Orderly,
}

#[derive(Debug, Default)]
struct Inner {
    line: Vec<u8>,
    said: Said,
}

/// The console of one run of a guest, read for what it says of its end.
#[derive(Debug, Default)]
pub struct KernelLog(Mutex<Inner>);

impl KernelLog {
    /// Reads what the guest prints, in pieces of any size.
    pub fn read(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        for &byte in bytes {
            inner.read(byte);
        }
    }

    /// Hears that the guest has panicked, and that its crash kernel takes over.
    pub fn crash_kernel(&self) {
        self.lock().said = Said::CrashKernel;
    }

    /// Returns the reason of an end that looks like `reason` from outside.
    pub fn judge(&self, reason: EndReason) -> EndReason {
        let looks_like_an_end_of_its_own = matches!(
            reason,
            EndReason::Reboot | EndReason::Poweroff | EndReason::Halt | EndReason::TripleFault
        );
        match self.lock().said {
            Said::Panic | Said::Stands | Said::CrashKernel if looks_like_an_end_of_its_own => {
                EndReason::Panic
            }
            // `reboot=triple`: a fault on purpose.
            Said::Orderly if reason == EndReason::TripleFault => EndReason::Reboot,
            _ => reason,
        }
    }

    /// Returns whether the last that the guest printed is that it has panicked
    /// and loops.
    pub fn stands(&self) -> bool {
        self.lock().said == Said::Stands
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A line and a state: valid even if the lock is poisoned.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn read(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                self.said = self.said.then(&self.line);
                self.line.clear();
            }
            b'\r' => {}
            _ => {
                if self.said == Said::Stands {
                    self.said = Said::Panic;
                }
                if self.line.len() >= LINE_MAX {
                    self.line.drain(..LINE_MAX / 2);
                }
                self.line.push(byte);
            }
        }
    }
}

impl Said {
    /// Returns what is known after one more line.
    fn then(self, line: &[u8]) -> Self {
        let has = |text: &[u8]| line.windows(text.len()).any(|part| part == text);
        let is_panic = matches!(self, Self::Panic | Self::Stands | Self::CrashKernel);
        if has(STANDS) {
            Self::Stands
        } else if has(PANIC) {
            Self::Panic
        } else if is_panic && has(BOOT) {
            Self::CrashKernel
        } else if self != Self::CrashKernel && ORDERLY.iter().any(|text| has(text)) {
            Self::Orderly
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EndReason::{Halt, Killed, Panic, Poweroff, Reboot, TripleFault, Violation};

    const DIES: &str = "[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
    const STANDS: &str = "[    1.6] ---[ end Kernel panic - not syncing: VFS ]---\r\n";

    fn after(text: &str) -> KernelLog {
        let log = KernelLog::default();
        // As a serial port prints.
        text.bytes().for_each(|byte| log.read(&[byte]));
        log
    }

    #[test]
    fn an_end_is_what_the_kernel_said_last() {
        let late = format!("login: {DIES}");
        let long = format!("{}{DIES}", "x".repeat(5 * LINE_MAX));
        let shown = format!("{DIES}{STANDS}# reboot\n[ 9.9] reboot: Restarting system\n");
        let crash = format!("{DIES}[ 0.0] Linux version 6.1.0\n[ 5.0] reboot: Restarting system\n");
        let again = format!("[ 1.0] reboot: Restarting system\n{DIES}");
        for (text, looks, is) in [
            ("", Reboot, Reboot),
            ("", TripleFault, TripleFault),
            (DIES, Reboot, Panic),
            (DIES, TripleFault, Panic),
            (DIES, Halt, Panic),
            (DIES, Poweroff, Panic),
            (DIES, Killed, Killed),
            (DIES, Violation, Violation),
            (&late, Reboot, Panic),
            (&long, Reboot, Panic),
            (&shown, Reboot, Reboot),
            (&crash, Reboot, Panic),
            (&again, Reboot, Panic),
            ("[ 1.0] reboot: Restarting system\n", TripleFault, Reboot),
            ("reboot: Power down\n", Poweroff, Poweroff),
            ("Kernel panic - not sinking: x\n", Reboot, Reboot),
            (
                "Kernel panic - not syncing: a line without an end",
                Reboot,
                Reboot,
            ),
        ] {
            assert_eq!(after(text).judge(looks), is, "{text}");
        }
    }

    #[test]
    fn a_guest_stands_only_while_it_prints_nothing_more() {
        assert!(!after(DIES).stands());
        let log = after(&format!("{DIES}{STANDS}"));
        assert!(log.stands());
        log.read(b"\r\n");
        assert!(log.stands());
        log.read(b"# ");
        assert!(!log.stands(), "somebody looked at an old log");
    }

    #[test]
    fn a_crash_kernel_that_is_told_of_is_believed() {
        let log = after("Linux version 6.1.0\n");
        assert_eq!(log.judge(Reboot), Reboot);
        log.crash_kernel();
        log.read(b"reboot: Restarting system\n");
        assert_eq!(log.judge(Reboot), Panic);
    }
}
