//! Errors of headers of any format: the header is truncated, or a field has an
//! invalid value.

/// A reason why a header was refused, with the field's name and value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The file is shorter than the header states.
    #[error("the file is truncated: {what} ends at byte {end}, but the file at {len}")]
    Truncated {
        /// The name of the missing part.
        what: &'static str,
        /// The end of that part in bytes.
        end: u64,
        /// The length of the file in bytes.
        len: u64,
    },
    /// A field has an invalid value.
    #[error("{field} is {value:#x}, expected {expected}")]
    Value {
        /// The name of the field in its specification.
        field: &'static str,
        /// The value of the field.
        value: u64,
        /// The values that are valid.
        expected: &'static str,
    },
}

/// Returns an error for `value` of `field` unless `ok` is true.
///
/// # Errors
/// Returns [`FieldError::Value`] with the field and its value.
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
