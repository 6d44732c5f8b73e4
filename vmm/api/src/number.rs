//! JSON integers. `8388608.0` is one according to JSON Schema, and some
//! clients' languages have only one type of number.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// The largest integer that every JSON implementation represents exactly: 2^53
/// - 1.
pub const EXACT_MAX: u64 = (1 << 53) - 1;

/// Returns `value` as an integer, if it is one that is exact.
pub(crate) fn exact(value: f64) -> Option<u64> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within these bounds every whole number is exact"
    )]
    match value {
        0.0.. if value.fract() == 0.0 && value <= EXACT_MAX as f64 => Some(value as u64),
        _ => None,
    }
}

struct Whole<T> {
    min: u64,
    max: u64,
    kind: PhantomData<T>,
}

impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from {} to {}", self.min, self.max)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        let wrong = || E::invalid_value(Unexpected::Unsigned(value), &self);
        if !(self.min..=self.max).contains(&value) {
            return Err(wrong());
        }
        T::try_from(value).map_err(|_too_large| wrong())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_negative) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        match exact(value) {
            Some(value) => self.visit_u64(value),
            None => Err(E::invalid_value(Unexpected::Float(value), &self)),
        }
    }
}

/// Reads an integer from `MIN` to `MAX`, for `deserialize_with`.
///
/// # Errors
/// Returns the deserializer's error for anything else.
pub fn bounded<'de, T, const MIN: u64, const MAX: u64, D>(deserializer: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_u64(Whole {
        min: MIN,
        max: MAX,
        kind: PhantomData,
    })
}

struct Optional<T, const MIN: u64, const MAX: u64>(PhantomData<T>);

impl<'de, T, const MIN: u64, const MAX: u64> Visitor<'de> for Optional<T, MIN, MAX>
where
    T: TryFrom<u64>,
{
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from {MIN} to {MAX}, or null")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        bounded::<T, MIN, MAX, D>(deserializer).map(Some)
    }
}

/// Reads an integer from `MIN` to `MAX`, or null, for `deserialize_with`.
///
/// # Errors
/// Returns the deserializer's error for anything else.
pub fn optional<'de, T, const MIN: u64, const MAX: u64, D>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_option(Optional::<T, MIN, MAX>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Body {
        #[serde(deserialize_with = "bounded::<_, 0, { u64::MAX }, _>")]
        size: u64,
        #[serde(default, deserialize_with = "optional::<_, 1, 64, _>")]
        cpus: Option<u8>,
    }

    #[test]
    fn whole_numbers_are_integers_however_they_are_written() {
        let read = |text: &str| serde_json::from_str::<Body>(text).ok();
        let body = |size, cpus| Some(Body { size, cpus });
        assert_eq!(read(r#"{"size": 3}"#), body(3, None));
        assert_eq!(read(r#"{"size": 3.0, "cpus": 4e0}"#), body(3, Some(4)));
        assert_eq!(read(r#"{"size": 0, "cpus": null}"#), body(0, None));
        let largest = r#"{"size": 18446744073709551615}"#;
        assert_eq!(read(largest), body(u64::MAX, None));
        for bad in [
            r#"{"size": 3.5}"#,
            r#"{"size": -1}"#,
            r#"{"size": -1.0}"#,
            r#"{"size": 1e300}"#,
            r#"{"size": "3"}"#,
            r#"{"size": null}"#,
            r#"{"size": 1, "cpus": 0}"#,
            r#"{"size": 1, "cpus": 65}"#,
            r#"{"size": 1, "cpus": 256}"#,
            r#"{"size": 1, "cpus": true}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
