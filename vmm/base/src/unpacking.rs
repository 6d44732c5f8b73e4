//! What a manager and an unpacker tell each other of one image.
//!
//! The unpacker is a confined, short-lived process: it is given a [`Job`], the
//! image and an empty memory file, and answers with [`Unpacked`] or an
//! [`UnpackError`]. It reads what hostile people wrote, so its answer is
//! checked: [`Unpacked::check`] refuses what cannot be true, and an error's
//! text is bounded and printable from the moment that it is decoded.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::chain;
use crate::image_facts::{BootMode, FactsError, KernelFacts};

/// Longest text of an error, bytes.
const MAX_TEXT: usize = 1024;

/// The SHA-256 of a file's content; printed, and in JSON, in lowercase hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

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

/// Reads a hash out of 64 hex digits.
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

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageRole {
    /// A kernel, started in this way.
    Kernel(BootMode),
    /// An initramfs, which is not looked into.
    Initramfs,
}

/// What an unpacker may use. Each is a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest image that is read.
    pub input: u64,
    /// Largest output that is written.
    pub output: u64,
    /// Most memory that a kernel may ask for when it runs.
    pub memory: u64,
}

/// What an unpacker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What the image is for.
    pub role: ImageRole,
    /// What the work may use.
    pub limits: Limits,
}

/// What is known of an image by its role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Facts {
    /// Of a kernel.
    Kernel(KernelFacts),
    /// Of an initramfs.
    Initramfs {
        /// CRC-32 of the output, which the probe verifies.
        crc32: u32,
    },
}

/// An image that was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// What is known of it.
    pub facts: Facts,
    /// SHA-256 of the image as it was read.
    pub sha256: ContentHash,
    /// Bytes that were read.
    pub input_size: u64,
    /// Bytes of output.
    pub output_size: u64,
}

/// Why an unpacker's answer cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// What it says of the kernel cannot be.
    #[error("the facts about the kernel cannot be true")]
    Facts(#[from] FactsError),
    /// The answer is about something else than was asked for.
    #[error("the answer does not belong to the job {asked:?}")]
    Role {
        /// What was asked for.
        asked: ImageRole,
    },
    /// A size is above the job's limit, or is not the file's.
    #[error("{what} is {value} bytes, and can be {min} to {max}")]
    Size {
        /// The name of the value that is out of range.
        what: &'static str,
        /// What was said, bytes.
        value: u64,
        /// Least that can be, bytes.
        min: u64,
        /// Most that can be, bytes.
        max: u64,
    },
}

impl Unpacked {
    /// Checks the answer to `job` against the output's real length.
    ///
    /// # Errors
    /// [`AnswerError`] for the first thing that cannot be true.
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

/// The kinds of reasons why an image could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnpackErrorClass {
    /// It is not what it is meant to be, or is damaged.
    Invalid,
    /// It is larger than the job's limits.
    TooLarge,
    /// It could not be read to its end.
    Unreadable,
    /// It changed while it was being read.
    Changing,
    /// The unpacker was short of memory, or its output could not be written.
    Resources,
}

/// Why an image could not be unpacked, in a form that crosses between
/// processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
#[serde(from = "RawUnpackError")]
pub struct UnpackError {
    class: UnpackErrorClass,
    text: String,
}

/// An error as it arrives: its text may be anything.
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
    /// Makes an error of `class` with the words of `error` and its causes.
    pub fn new(class: UnpackErrorClass, error: &dyn std::error::Error) -> Self {
        Self::with_text(class, &chain(error))
    }

    /// What is not printable ASCII, and could act on a terminal, becomes `?`;
    /// what is longer than [`MAX_TEXT`] is cut off.
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

    /// Returns the kind of the error.
    pub fn class(&self) -> UnpackErrorClass {
        self.class
    }
}

#[cfg(test)]
#[path = "unpacking_tests.rs"]
mod tests;
