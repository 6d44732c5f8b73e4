//! Values of options, read as the kernel reads them.

use mkpool::param::parse_size;

use crate::error::CliError;
use mkvmm_api::size::SizeError;
use mkvmm_base::{Class, Diagnose};

/// Why the value of an option was refused.
#[derive(Debug, thiserror::Error)]
#[error("--{option}")]
pub struct OptionError {
    /// The name of the option.
    option: &'static str,
    /// What is wrong with its value.
    #[source]
    source: SizeError,
}

impl OptionError {
    /// Returns how to say that the value of `option` is wrong.
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

/// Reads a number of bytes, for instance `32M`.
///
/// # Errors
/// [`OptionError`] names the option.
pub fn size(option: &'static str, text: &str) -> Result<u64, CliError> {
    Ok(parse_size(text).map_err(OptionError::of(option))?)
}
