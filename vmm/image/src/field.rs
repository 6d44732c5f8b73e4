//! What a header can get wrong, whatever its format: it ends too early, or a
//! field holds what cannot be.

/// Why a header was refused. Names the field and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The file ends before what the header promises.
    #[error("the file is truncated: {what} ends at byte {end}, the file at {len}")]
    Truncated {
        /// What should have been there.
        what: &'static str,
        /// End of it, bytes.
        end: u64,
        /// Length of the file, bytes.
        len: u64,
    },
    /// A field has a value that cannot be.
    #[error("{field} is {value:#x}, expected {expected}")]
    Value {
        /// The field's name in its specification.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        expected: &'static str,
    },
}

/// Refuses `value` of `field` unless `ok`.
///
/// # Errors
/// [`FieldError::Value`].
pub fn expect(
    ok: bool,
    field: &'static str,
    value: impl Into<u64>,
    expected: &'static str,
) -> Result<(), FieldError> {
    if ok {
        return Ok(());
    }
    Err(FieldError::Value {
        field,
        value: value.into(),
        expected,
    })
}
