//! The places that images are read from, as users write them.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// The longest path that Linux accepts, in bytes without the NUL.
const PATH_MAX: usize = 4095;

/// A path is empty, or longer than Linux accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a path of {len} bytes is out of range (1..={PATH_MAX})")]
pub struct PathError {
    /// The length of the path in bytes.
    len: usize,
}

/// A file with an image: a path, or `fd:N` for a descriptor that the VMM
/// inherited (`./fd:3` is a path).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// The path of a file or a pipe.
    Path(PathBuf),
    /// The number of an inherited descriptor.
    Fd(i32),
}

/// A kernel: `probe` for the built-in test guest, or a [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KernelSource {
    /// The built-in test guest.
    Probe,
    /// A kernel image that is read from a file.
    File(Source),
}

/// The name of the built-in kernel.
const PROBE: &str = "probe";

impl Source {
    /// Prepends `base` to a relative path.
    pub fn rebase(&mut self, base: &Path) {
        if let Self::Path(path) = self {
            *path = base.join(&*path);
        }
    }
}

impl KernelSource {
    /// Prepends `base` to a relative path.
    pub fn rebase(&mut self, base: &Path) {
        if let Self::File(source) = self {
            source.rebase(base);
        }
    }
}

/// Returns `text` as a path, unless it is empty or too long.
pub(crate) fn path(text: String) -> Result<PathBuf, PathError> {
    match text.len() {
        1..=PATH_MAX => Ok(text.into()),
        len => Err(PathError { len }),
    }
}

/// Reads an optional path, for `deserialize_with`.
///
/// # Errors
/// Returns the deserializer's error, which may be a [`PathError`].
pub fn optional_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    text.map(path).transpose().map_err(D::Error::custom)
}

impl TryFrom<String> for Source {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        let number = text.strip_prefix("fd:").and_then(|n| n.parse().ok());
        match number {
            Some(fd) if fd >= 0 => Ok(Self::Fd(fd)),
            _ => path(text).map(Self::Path),
        }
    }
}

impl TryFrom<String> for KernelSource {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        match text.as_str() {
            PROBE => Ok(Self::Probe),
            _ => text.try_into().map(Self::File),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

impl fmt::Display for KernelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Probe => f.write_str(PROBE),
            Self::File(source) => source.fmt(f),
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl From<KernelSource> for String {
    fn from(source: KernelSource) -> Self {
        source.to_string()
    }
}

#[cfg(feature = "schema")]
mod schema {
    use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
    use utoipa::openapi::{Object, RefOr};

    use super::{KernelSource, Source};

    fn described(description: &str, example: &str) -> Object {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(description))
            .min_length(Some(1))
            .max_length(Some(4095))
            .examples([Some(example)])
            .build()
    }

    impl utoipa::PartialSchema for Source {
        fn schema() -> RefOr<Schema> {
            described("The path of a file.", "/boot/initrd.img").into()
        }
    }

    impl utoipa::ToSchema for Source {
        fn name() -> std::borrow::Cow<'static, str> {
            "Path".into()
        }
    }

    impl utoipa::PartialSchema for KernelSource {
        fn schema() -> RefOr<Schema> {
            described(
                "The path of a kernel, or `probe` for the built-in test guest.",
                "probe",
            )
            .into()
        }
    }

    impl utoipa::ToSchema for KernelSource {
        fn name() -> std::borrow::Cow<'static, str> {
            "KernelPath".into()
        }
    }
}
