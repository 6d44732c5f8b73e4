//! Where images come from, as users write it.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A file with an image: a path, or `fd:N` for a descriptor that the VMM
/// inherited (`./fd:3` is a path).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Source {
    /// The path of a file or a pipe.
    Path(PathBuf),
    /// The number of a descriptor.
    Fd(i32),
}

/// A kernel: `probe` for the built-in test guest, or a [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum KernelSource {
    /// The built-in test guest.
    Probe,
    /// A file.
    File(Source),
}

/// The kernel that needs no file.
const PROBE: &str = "probe";

impl Source {
    /// Puts `base` before a path that is relative.
    pub fn rebase(&mut self, base: &Path) {
        if let Self::Path(path) = self {
            *path = base.join(&*path);
        }
    }
}

impl KernelSource {
    /// Puts `base` before a path that is relative.
    pub fn rebase(&mut self, base: &Path) {
        if let Self::File(source) = self {
            source.rebase(base);
        }
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        let number = text.strip_prefix("fd:").and_then(|n| n.parse().ok());
        match number {
            Some(fd) if fd >= 0 => Self::Fd(fd),
            _ => Self::Path(text.into()),
        }
    }
}

impl From<String> for KernelSource {
    fn from(text: String) -> Self {
        match text.as_str() {
            PROBE => Self::Probe,
            _ => Self::File(text.into()),
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

impl FromStr for KernelSource {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.to_owned().into())
    }
}

#[cfg(feature = "schema")]
mod schema {
    use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
    use utoipa::openapi::{Object, RefOr};

    use super::{KernelSource, Source};

    fn path(description: &str, example: &str) -> Object {
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
            path("The path of a file.", "/boot/initrd.img").into()
        }
    }

    impl utoipa::ToSchema for Source {
        fn name() -> std::borrow::Cow<'static, str> {
            "Path".into()
        }
    }

    impl utoipa::PartialSchema for KernelSource {
        fn schema() -> RefOr<Schema> {
            path(
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
