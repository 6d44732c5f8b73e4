//! Integers of JSON: `8388608.0` is one, as JSON Schema has it and as clients
//! send it whose language has one kind of number only.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Largest integer that every reader of JSON keeps: 2^53 - 1.
pub const EXACT_MAX: u64 = (1 << 53) - 1;

struct Whole<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = size_of::<T>() * 8;
        write!(f, "an integer of {bits} bits without a sign")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(value), &self);
        T::try_from(value).map_err(wrong)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        let is_whole = value.fract() == 0.0;
        // Within these bounds every whole number is exact.
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the bounds are what makes it exact"
        )]
        match value {
            0.0.. if is_whole && value <= EXACT_MAX as f64 => self.visit_u64(value as u64),
            _ => Err(E::invalid_value(Unexpected::Float(value), &self)),
        }
    }
}

/// An integer, for `deserialize_with`.
pub fn whole<'de, T: TryFrom<u64>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(Whole(PhantomData))
}

struct Optional<T>(PhantomData<T>);

impl<'de, T: TryFrom<u64>> Visitor<'de> for Optional<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer without a sign, or null")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        whole(deserializer).map(Some)
    }
}

/// The same, or nothing.
pub fn optional<'de, T: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    deserializer.deserialize_option(Optional(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Body {
        #[serde(deserialize_with = "whole")]
        size: u64,
        #[serde(default, deserialize_with = "optional")]
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
            r#"{"size": 1, "cpus": 256}"#,
            r#"{"size": 1, "cpus": true}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
