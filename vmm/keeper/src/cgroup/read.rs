//! The kernel's small files, read whole.

use std::path::PathBuf;

use super::error::CgroupError;

/// Reads a whole small file.
pub(super) fn read(path: PathBuf) -> Result<(PathBuf, String), CgroupError> {
    // Names of cgroups are bytes; what is no UTF-8 must not make the rest unreadable.
    match std::fs::read(&path) {
        Ok(bytes) => Ok((path, String::from_utf8_lossy(&bytes).into_owned())),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

/// Returns the error for content that no parser knows.
pub(super) fn unexpected(path: PathBuf, text: &str) -> CgroupError {
    let found = text.chars().take(80).collect();
    CgroupError::Content { path, found }
}
