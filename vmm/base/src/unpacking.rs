//! The messages between the manager and an unpacker about one image.
//!
//! The unpacker is a confined, short-lived process: it receives a [`Job`], the
//! image and an empty memory file, and answers with [`Unpacked`] or an
//! [`UnpackError`]. It reads hostile input, so its answer is checked:
//! [`Unpacked::check`] refuses impossible values, and an error's text is
//! bounded and printable as soon as it is decoded.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::chain;
use crate::image_facts::{BootMode, FactsError, KernelFacts};

/// The maximum length of an error's text in bytes.
const MAX_TEXT: usize = 1024;

/// The SHA-256 of a file's content; printed, and in JSON, in lowercase hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// Stands for a hash that is not known yet. Nobody knows a content with this one.
    pub const UNKNOWN: Self = Self([0; 32]);

    /// Returns whether the hash is known.
    pub fn is_known(&self) -> bool {
        *self != Self::UNKNOWN
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(HexVisitor)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Parses a hash from 64 hex digits.
struct HexVisitor;

impl Visitor<'_> for HexVisitor {
    type Value = ContentHash;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("64 hex digits")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ContentHash, E> {
        let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err(wrong());
        }
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(wrong());
            };
            *byte = high << 4 | low;
        }
        Ok(ContentHash(hash))
    }
}

/// The purpose of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageRole {
    /// A kernel, started in this mode.
    Kernel(BootMode),
    /// An initramfs, whose content is not parsed.
    Initramfs,
}

/// The limits of an unpacker, each a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The maximum size of the image that is read.
    pub input: u64,
    /// The maximum size of the output that is written.
    pub output: u64,
    /// The maximum memory that a kernel may request at run time.
    pub memory: u64,
}

/// The job of an unpacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The purpose of the image.
    pub role: ImageRole,
    /// The limits of the job.
    pub limits: Limits,
}

/// The facts about an image, by its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Facts {
    /// The facts about a kernel.
    Kernel(KernelFacts),
    /// The facts about an initramfs.
    Initramfs {
        /// The CRC-32 of the output, which the probe verifies.
        crc32: u32,
    },
}

/// The result of unpacking an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// The facts about the image.
    pub facts: Facts,
    /// The SHA-256 of the image as it was read. An unpacker may answer before it has
    /// [computed](ContentHash::is_known) it, and once more when it has.
    pub sha256: ContentHash,
    /// The number of bytes of the image.
    pub input_size: u64,
    /// The number of bytes of output.
    pub output_size: u64,
}

/// A reason why an unpacker's answer is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The reported facts about the kernel are invalid.
    #[error("the facts about the kernel are invalid")]
    Facts(#[from] FactsError),
    /// The answer is about another kind of image than requested.
    #[error("the answer does not belong to the job {asked:?}")]
    Role {
        /// The role that was requested.
        asked: ImageRole,
    },
    /// A size exceeds the job's limit, or is not that of the file.
    #[error("{what} is {value} bytes, out of range ({min}..={max})")]
    Size {
        /// The name of the value that is out of range.
        what: &'static str,
        /// The reported number of bytes.
        value: u64,
        /// The smallest valid number of bytes.
        min: u64,
        /// The largest valid number of bytes.
        max: u64,
    },
}

impl Unpacked {
    /// Checks the answer to `job` against the actual length of the output.
    ///
    /// # Errors
    /// Returns an [`AnswerError`] for the first invalid value.
    pub fn check(&self, job: &Job, output_len: u64) -> Result<(), AnswerError> {
        let size = |what, value, min, max| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(AnswerError::Size {
                what,
                value,
                min,
                max,
            })
        };
        let Limits {
            input,
            output,
            memory,
        } = job.limits;
        size("the image", self.input_size, 1, input)?;
        size("the output", self.output_size, 1, output)?;
        size(
            "the stated output",
            self.output_size,
            output_len,
            output_len,
        )?;
        match (job.role, &self.facts) {
            (ImageRole::Kernel(boot), Facts::Kernel(facts)) if facts.boot == boot => {
                facts.check(output_len)?;
                size("the kernel's memory", facts.mem_size, 1, memory)
            }
            (ImageRole::Initramfs, Facts::Initramfs { .. }) => size(
                "the output",
                self.output_size,
                self.input_size,
                self.input_size,
            ),
            (asked, _) => Err(AnswerError::Role { asked }),
        }
    }
}

/// The class of the error of an image that could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnpackErrorClass {
    /// The image has the wrong format, or is damaged.
    Invalid,
    /// The image exceeds the job's limits.
    TooLarge,
    /// The image could not be read completely.
    Unreadable,
    /// The image changed while it was being read.
    Changing,
    /// The unpacker ran out of memory, or its output could not be written.
    Resources,
}

/// An error of unpacking an image, in a form that crosses between processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
#[serde(from = "RawUnpackError")]
pub struct UnpackError {
    class: UnpackErrorClass,
    text: String,
}

/// An error as it arrives; its text is untrusted.
#[derive(Deserialize)]
struct RawUnpackError {
    class: UnpackErrorClass,
    text: String,
}

impl From<RawUnpackError> for UnpackError {
    fn from(raw: RawUnpackError) -> Self {
        Self::with_text(raw.class, &raw.text)
    }
}

impl UnpackError {
    /// Creates an error of `class` from the text of `error` and its causes.
    pub fn new(class: UnpackErrorClass, error: &dyn std::error::Error) -> Self {
        Self::with_text(class, &chain(error))
    }

    /// Replaces everything that is not printable ASCII, and could affect a
    /// terminal, by `?`, and truncates the text to [`MAX_TEXT`].
    fn with_text(class: UnpackErrorClass, text: &str) -> Self {
        let end = text.floor_char_boundary(MAX_TEXT);
        let text = text.get(..end).unwrap_or_default();
        let printable = |c: char| c == ' ' || c.is_ascii_graphic();
        let clean = |c| if printable(c) { c } else { '?' };
        Self {
            class,
            text: text.chars().map(clean).collect(),
        }
    }

    /// Returns the class of the error.
    pub fn class(&self) -> UnpackErrorClass {
        self.class
    }
}

#[cfg(test)]
#[path = "unpacking_tests.rs"]
mod tests;
