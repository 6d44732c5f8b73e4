//! The kernel command line.

use crate::{Class, Diagnose};
use std::ffi::{CString, NulError};

/// What Linux guests get when nothing is given: a console from the first line
/// on, so that a kernel that dies early says so, and an end when the kernel
/// panics. Reboot and poweroff go through ACPI. No device does DMA, and a pool
/// above 4 GiB has no memory for bounce buffers.
pub const DEFAULT_LINUX: &str = "console=ttyS0 earlyprintk=ttyS0 panic=-1 swiotlb=noforce";

/// A reason why a command line was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// The command line is longer than the kernel's limit.
    #[error("the command line has {len} bytes, this kernel takes at most {max} (its cmdline_size)")]
    TooLong {
        /// The length without the NUL.
        len: u64,
        /// The kernel's limit without the NUL.
        max: u64,
    },
    /// The command line contains a NUL, which would truncate it.
    #[error("the command line contains a NUL byte")]
    Nul(#[from] NulError),
}

impl Diagnose for CmdlineError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Checks `text` against a kernel's limit.
///
/// # Errors
/// Returns a [`CmdlineError`]; a command line is never truncated.
pub fn check(text: &str, max: u64) -> Result<CString, CmdlineError> {
    let len = text.len() as u64;
    if len > max {
        return Err(CmdlineError::TooLong { len, max });
    }
    Ok(CString::new(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_just_the_limit_passes_and_one_more_byte_does_not() {
        let line = "x".repeat(2047);
        assert_eq!(check(&line, 2047).unwrap().as_bytes().len(), 2047);
        assert_eq!(
            check(&format!("{line}x"), 2047),
            Err(CmdlineError::TooLong {
                len: 2048,
                max: 2047
            })
        );
        assert!(matches!(check("a\0b", 2047), Err(CmdlineError::Nul(_))));
    }
}
