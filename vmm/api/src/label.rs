//! Labels of instances: what their users want to find them by. mkvmm keeps and shows
//! them, and does nothing else with them.

use std::fmt;
use std::str::FromStr;

use mkvmm_base::is_plain;
use serde::{Deserialize, Serialize};

/// The longest key, in bytes.
const KEY_MAX: usize = 63;
/// The longest value, in bytes.
const VALUE_MAX: usize = 255;

/// A label, `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label {
    /// The key: letters, digits, `.`, `_`, `-` and `/`.
    pub key: String,
    /// The value, which may be empty.
    pub value: String,
}

/// A reason why a text is not a label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// There is no `=`.
    #[error("`{text}` is not KEY=VALUE")]
    NoValue {
        /// The text as it was given.
        text: String,
    },
    /// The key is empty, too long, or has other characters.
    #[error("`{key}` is no key: 1 to {KEY_MAX} letters, digits, `.`, `_`, `-` or `/`")]
    Key {
        /// The key of the label.
        key: String,
    },
    /// The value is too long, or a terminal would obey it.
    #[error("the value of `{key}` is longer than {VALUE_MAX} bytes, or has control characters")]
    Value {
        /// The key of the label.
        key: String,
    },
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let no_value = || LabelError::NoValue {
            text: text.to_owned(),
        };
        let (key, value) = text.split_once('=').ok_or_else(no_value)?;
        let (key, value) = (key.to_owned(), value.to_owned());
        let is_known = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if !(1..=KEY_MAX).contains(&key.len()) || !key.chars().all(is_known) {
            return Err(LabelError::Key { key });
        }
        if value.len() > VALUE_MAX || !value.chars().all(is_plain) {
            return Err(LabelError::Value { key });
        }
        Ok(Self { key, value })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

impl TryFrom<String> for Label {
    type Error = LabelError;

    fn try_from(text: String) -> Result<Self, LabelError> {
        text.parse()
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_keys_with_values() {
        for text in ["job=17", "slurm.org/user=a", "x=", "x=a=b c"] {
            let label: Label = text.parse().unwrap();
            assert_eq!(label.to_string(), text);
        }
        let label: Label = "x=a=b".parse().unwrap();
        assert_eq!((label.key.as_str(), label.value.as_str()), ("x", "a=b"));
    }

    #[test]
    fn other_texts_are_refused() {
        assert!(matches!(
            "job".parse::<Label>(),
            Err(LabelError::NoValue { .. })
        ));
        for key in ["", "a b", "\u{e4}", &"k".repeat(64)] {
            let refused = format!("{key}=1").parse::<Label>();
            assert!(matches!(refused, Err(LabelError::Key { .. })), "{key}");
        }
        for value in ["\x1b[1m", "a\nb", &"v".repeat(256)] {
            let refused = format!("k={value}").parse::<Label>();
            assert!(matches!(refused, Err(LabelError::Value { .. })), "{value}");
        }
    }
}
