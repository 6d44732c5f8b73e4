//! The identity of a file's content, which changes with every modification.

use std::io;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// The age in seconds below which a file may change again without a new
/// timestamp: 2 s, the coarsest timestamps of any file system (FAT).
const SETTLED_S: i64 = 2;

/// The identity of a file's content, as far as its file system tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    dev: u64,
    inode: u64,
    size: u64,
    /// The time of the last change of the content, in seconds and nanoseconds.
    mtime: (i64, u64),
    /// The time of the last change of the inode, in seconds and nanoseconds.
    ctime: (i64, u64),
}

impl FileId {
    /// Returns the identity of the file that `file` refers to now.
    ///
    /// # Errors
    /// Returns the error of fstat(2).
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }

    /// Creates the identity from the result of fstat.
    pub fn from_stat(stat: &rustix::fs::Stat) -> Self {
        Self {
            dev: stat.st_dev,
            inode: stat.st_ino,
            // The size of a regular file is never negative.
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns whether the file's timestamps are old enough at `now` that its
    /// next change will alter them. The ctime decides, since users cannot set
    /// it.
    pub fn has_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let (changed, _) = self.ctime;
        changed.saturating_add(SETTLED_S) < i64::try_from(now).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_change_settles_after_two_seconds() {
        let id = FileId::of(std::fs::File::open("/proc/self/exe").unwrap()).unwrap();
        let changed = u64::try_from(id.ctime.0).unwrap();
        let at = |s| UNIX_EPOCH + Duration::from_secs(changed + s);
        assert!(!id.has_settled(at(2)));
        assert!(id.has_settled(at(3)));
    }
}
