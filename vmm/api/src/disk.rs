//! Disks, as users write them: a path, followed by options with commas between
//! them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::{Known, OptionError, Options, split};
use crate::source::{PathError, path};

/// The format of a disk's contents. It is never guessed: a guest could write
/// the header of another format to its disk, and be given other files with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the file are those of the disk.
    #[default]
    Raw,
}

/// A disk: a regular file, or a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskSpec {
    /// The path of the file or device.
    pub path: PathBuf,
    /// Whether it is only read; others may read it as well then.
    pub read_only: bool,
    /// The format of the contents.
    pub format: DiskFormat,
    /// Whether it is accessed without the page cache of the host (O_DIRECT).
    pub direct: bool,
}

/// A reason why a text is not a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The path is empty or too long.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An option is invalid.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// There is no such format.
    #[error("format={text}: the format of disks is raw")]
    Format {
        /// The name of the format.
        text: String,
    },
}

const OPTIONS: Options = Options {
    of: "a disk",
    known: &[
        Known::flag("ro"),
        Known::flag("direct"),
        Known::value("format"),
    ],
};

impl DiskSpec {
    /// Prepends `base` to a relative path.
    pub fn rebase(&mut self, base: &Path) {
        self.path = base.join(&self.path);
    }
}

impl FromStr for DiskSpec {
    type Err = DiskError;

    fn from_str(text: &str) -> Result<Self, DiskError> {
        let (head, words) = split(text);
        let mut disk = Self {
            path: path(head.to_owned())?,
            read_only: false,
            format: DiskFormat::Raw,
            direct: false,
        };
        for option in words.read(&OPTIONS) {
            match option? {
                ("ro", _) => disk.read_only = true,
                ("direct", _) => disk.direct = true,
                (_format, "raw") => {}
                (_format, other) => {
                    let text = other.to_owned();
                    return Err(DiskError::Format { text });
                }
            }
        }
        Ok(disk)
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)?;
        for (is_set, word) in [(self.read_only, "ro"), (self.direct, "direct")] {
            if is_set {
                write!(f, ",{word}")?;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for DiskSpec {
    type Error = DiskError;

    fn try_from(text: String) -> Result<Self, DiskError> {
        text.parse()
    }
}

impl From<DiskSpec> for String {
    fn from(disk: DiskSpec) -> Self {
        disk.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_path() {
        let disk: DiskSpec = "/a.img".parse().unwrap();
        assert!(!disk.read_only && !disk.direct);
        assert_eq!(disk.path, Path::new("/a.img"));
        let disk: DiskSpec = "/a.img,direct,format=raw,ro".parse().unwrap();
        assert!(disk.read_only && disk.direct);
        assert_eq!(disk.to_string(), "/a.img,ro,direct");
        assert_eq!(disk.to_string().parse(), Ok(disk));
    }

    #[test]
    fn each_wrong_text_has_its_error() {
        for (text, message) in [
            ("", "a path of 0 bytes is out of range (1..=4095)"),
            (
                "/a,rw",
                "`rw` is not an option of a disk: ro, direct, format=",
            ),
            ("/a,", "`` is not an option of a disk: ro, direct, format="),
            (
                "/a,format=qcow2",
                "format=qcow2: the format of disks is raw",
            ),
            ("/a,format=", "format=: the format of disks is raw"),
            ("/a,ro,ro", "`ro` is given twice"),
            ("/a,format=raw,format=raw", "`format` is given twice"),
        ] {
            let error = text.parse::<DiskSpec>().unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }
}
