//! Reads keys and values into any struct that implements `Deserialize`.
//!
//! The keys are the fields of the struct, and the types of the fields parse the
//! values. So a key that is added to the struct is known wherever pairs are
//! read.

use std::fmt::Display;

use serde::de::value::{
    Error as PlainError, MapAccessDeserializer, SeqDeserializer, StringDeserializer,
};
use serde::de::{
    Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, Expected,
    IntoDeserializer, MapAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use crate::spec_error::SpecError;

/// Returns the keys of a struct, in the order of its fields.
pub fn keys<T: Deserialize<'static>>() -> &'static [&'static str] {
    let mut keys: &'static [&'static str] = &[];
    // The deserialization always ends with this error.
    let _ = T::deserialize(FieldNames(&mut keys));
    keys
}

/// A deserializer that records the field names of a struct and then fails.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = PlainError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, PlainError> {
        Err(PlainError::custom("only structs have keys"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PlainError> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Returns the values that `key` of a struct may have; empty if they are not a
/// fixed set.
pub fn words<T: Deserialize<'static>>(key: &'static str) -> &'static [&'static str] {
    shape::<T>(key).words
}

/// Returns whether `key` of a struct is a flag, which needs no value.
pub fn is_flag<T: Deserialize<'static>>(key: &'static str) -> bool {
    shape::<T>(key).is_flag
}

/// The values that a key takes.
#[derive(Default)]
struct Shape {
    words: &'static [&'static str],
    is_flag: bool,
}

fn shape<T: Deserialize<'static>>(key: &'static str) -> Shape {
    let mut shape = Shape::default();
    // The deserialization always ends with this error.
    let _ = T::deserialize(MapAccessDeserializer::new(OneKey(key, &mut shape)));
    shape
}

/// A map with one key, whose value records what it is asked for.
struct OneKey<'a>(&'static str, &'a mut Shape);

impl<'de> MapAccess<'de> for OneKey<'_> {
    type Error = PlainError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, PlainError> {
        seed.deserialize(self.0.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, PlainError> {
        seed.deserialize(Asked(self.1))
    }
}

/// A deserializer that records the variant names of an enum, or that it is asked
/// for a Boolean, and then fails.
struct Asked<'a>(&'a mut Shape);

impl<'de> Deserializer<'de> for Asked<'_> {
    type Error = PlainError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, PlainError> {
        Err(PlainError::custom("only enums have variants"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PlainError> {
        self.0.words = variants;
        self.deserialize_any(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PlainError> {
        self.0.is_flag = true;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// Parses `KEY=VAL,…`; a comma inside a value is written `,,`. A flag may be
/// given by its key alone.
///
/// # Errors
/// Returns a [`SpecError`] for the first invalid key or value.
pub fn from_text<T: DeserializeOwned>(text: &str) -> Result<T, SpecError> {
    let pair = |part: String| match part.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None if keys::<T>()
            .iter()
            .any(|key| *key == part && is_flag::<T>(key)) =>
        {
            Ok((part, true.to_string()))
        }
        None => Err(SpecError::NoValue { text: part }),
    };
    let pairs = split_at_single_commas(text).into_iter().map(pair);
    from_pairs(pairs.collect::<Result<Vec<_>, _>>()?)
}

/// Reads pairs of keys and values.
///
/// # Errors
/// Returns a [`SpecError`] for the first invalid key or value.
pub fn from_pairs<T, K>(pairs: impl IntoIterator<Item = (K, String)>) -> Result<T, SpecError>
where
    T: DeserializeOwned,
    K: Into<String>,
{
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for (key, value) in pairs {
        let key = key.into();
        match all.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value),
            None => all.push((key, vec![value])),
        }
    }
    T::deserialize(Pairs {
        rest: all.into_iter(),
        next: None,
    })
}

/// Splits at single commas; `,,` stands for a comma in the value.
fn split_at_single_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// The pairs as a map, in which each key occurs once with all of its values.
struct Pairs {
    rest: std::vec::IntoIter<(String, Vec<String>)>,
    next: Option<(String, Vec<String>)>,
}

impl<'de> Deserializer<'de> for Pairs {
    type Error = SpecError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SpecError> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

impl<'de> MapAccess<'de> for Pairs {
    type Error = SpecError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, SpecError> {
        self.next = self.rest.next();
        match &self.next {
            Some((key, _)) => seed.deserialize(key.clone().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, SpecError> {
        let (key, values) = self.next.take().unwrap_or_default();
        let is_repeated = values.len() > 1;
        let text = values
            .first()
            .map_or_else(String::new, |text| shortened(text));
        let value = seed.deserialize(Values(values));
        value.map_err(|error| match error {
            _ if is_repeated => SpecError::Repeated { key },
            SpecError::Reason(reason) => SpecError::Value { key, text, reason },
            other => other,
        })
    }
}

/// Shortens `text` to its beginning if it is too long for an error message.
fn shortened(text: &str) -> String {
    const LENGTH: usize = 64;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// All values of one key.
struct Values(Vec<String>);

impl Values {
    fn text(self) -> String {
        self.0.into_iter().next().unwrap_or_default()
    }
}

/// Parses numbers with `FromStr`; other text is passed to the visitor, whose
/// error states what it expects.
macro_rules! parse {
    ($($method:ident $visit:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SpecError> {
            match self.0.as_slice() {
                [text] => match text.parse() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => visitor.visit_str(text),
                },
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Values {
    type Error = SpecError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SpecError> {
        match self.0.len() {
            1 => visitor.visit_string(self.text()),
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SpecError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, SpecError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SpecError> {
        let values = self.0.into_iter().map(|text| Self(vec![text]));
        visitor.visit_seq(SeqDeserializer::new(values))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SpecError> {
        match self.0.len() {
            1 => visitor.visit_enum(Word(self.text())),
            _ => self.deserialize_seq(visitor),
        }
    }

    parse! {
        deserialize_bool visit_bool
        deserialize_i8 visit_i8 deserialize_i16 visit_i16
        deserialize_i32 visit_i32 deserialize_i64 visit_i64
        deserialize_u8 visit_u8 deserialize_u16 visit_u16
        deserialize_u32 visit_u32 deserialize_u64 visit_u64
        deserialize_f32 visit_f32 deserialize_f64 visit_f64
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct
        identifier ignored_any
    }
}

impl IntoDeserializer<'_, SpecError> for Values {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The text of an enum's variant.
struct Word(String);

impl<'de> EnumAccess<'de> for Word {
    type Error = SpecError;
    type Variant = <StringDeserializer<SpecError> as EnumAccess<'de>>::Variant;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), SpecError> {
        let word: StringDeserializer<SpecError> = self.0.into_deserializer();
        word.variant_seed(seed)
    }
}

/// Errors of the types of fields; the reader adds the key and the value.
impl Error for SpecError {
    fn custom<T: Display>(message: T) -> Self {
        Self::Reason(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Reason(format!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Reason(format!("expected {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::Reason(format!("expected {}", expected.join(" or ")))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::UnknownKey {
            key: field.to_owned(),
            known: expected,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        match field {
            "kernel" => Self::NoKernel,
            _ => Self::Missing { key: field },
        }
    }
}
