//! What tells one state of a file from every other.

use std::io;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

/// A file that changed less than this ago may change again without a new
/// time stamp: 2 s, the coarsest clock of a file system (FAT).
const SETTLED_S: i64 = 2;

/// The identity of a file's content, as far as its file system tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    dev: u64,
    inode: u64,
    size: u64,
    /// Time of the last change of content: seconds, nanoseconds.
    mtime: (i64, u64),
    /// Time of the last change of anything.
    ctime: (i64, u64),
}

impl FileId {
    /// Returns the identity of what `file` refers to now.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }

    /// Returns the identity that `stat` tells.
    pub fn from_stat(stat: &rustix::fs::Stat) -> Self {
        Self {
            dev: stat.st_dev,
            inode: stat.st_ino,
            // A regular file has no negative size.
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Returns the size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the file's times are old enough at `now` to tell its next
    /// change. What counts is the ctime, which nobody can set.
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
