//! Values of options, parsed as the kernel parses them.

use mkpool::param::parse_size;

use crate::error::CliError;
use mkvmm_api::size::SizeError;
use mkvmm_base::{Class, Diagnose};

/// A reason why the value of an option was refused.
#[derive(Debug, thiserror::Error)]
#[error("--{option}")]
pub struct OptionError {
    /// The name of the option.
    option: &'static str,
    /// The error that the parser returned.
    #[source]
    source: SizeError,
}

impl OptionError {
    /// Returns a function that wraps an error of the value of `option`.
    pub fn of<E: Into<SizeError>>(option: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self {
            option,
            source: source.into(),
        }
    }
}

impl Diagnose for OptionError {
    fn class(&self) -> Class {
        Class::Invalid
    }
}

/// Parses a number of bytes, for example `32M`.
///
/// # Errors
/// Returns an [`OptionError`] that names the option.
pub fn size(option: &'static str, text: &str) -> Result<u64, CliError> {
    Ok(parse_size(text).map_err(OptionError::of(option))?)
}
