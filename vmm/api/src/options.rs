//! Options, as users write them after a value, with commas between them.

use std::fmt;
use std::str::Split;

/// The options of a kind of value.
#[derive(Debug)]
pub(crate) struct Options {
    /// What they belong to, with its article.
    pub of: &'static str,
    /// Each of them.
    pub known: &'static [Known],
}

/// An option that a value may have.
#[derive(Debug)]
pub(crate) struct Known {
    /// What it is called.
    pub key: &'static str,
    /// Whether `=` and a value follow.
    pub has_value: bool,
    /// Whether it may be given several times.
    pub repeats: bool,
}

impl Known {
    /// Describes an option without a value.
    pub const fn flag(key: &'static str) -> Self {
        Self {
            key,
            has_value: false,
            repeats: false,
        }
    }

    /// Describes an option with a value.
    pub const fn value(key: &'static str) -> Self {
        Self {
            key,
            has_value: true,
            repeats: false,
        }
    }

    /// Describes an option with a value that may be given several times.
    pub const fn repeated(key: &'static str) -> Self {
        Self {
            key,
            has_value: true,
            repeats: true,
        }
    }
}

/// A reason why a word is no option here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such option.
    #[error("`{text}` is not an option of {of}: {known}")]
    Unknown {
        /// The option as it was written.
        text: String,
        /// What it was to belong to, with its article.
        of: &'static str,
        /// The options that there are.
        known: String,
    },
    /// An option is given twice.
    #[error("`{key}` is given twice")]
    Twice {
        /// The name of the option.
        key: &'static str,
    },
}

/// Returns what stands before the first comma, and the words after it.
pub(crate) fn split(text: &str) -> (&str, Words<'_>) {
    let mut words = text.split(',');
    (words.next().unwrap_or_default(), Words(words))
}

/// The words after a value.
#[derive(Debug)]
pub(crate) struct Words<'a>(Split<'a, char>);

impl<'a> Words<'a> {
    /// Returns the keys of the options, each with its value, which is empty for a
    /// flag; at most one for each key that may not repeat.
    ///
    /// # Errors
    /// Each item may be an [`OptionError`].
    pub fn read(
        self,
        options: &'static Options,
    ) -> impl Iterator<Item = Result<(&'static str, &'a str), OptionError>> {
        let mut given: Vec<&str> = Vec::new();
        self.0.map(move |word| {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word, None),
            };
            let fits = |known: &&Known| known.key == key && known.has_value == value.is_some();
            let Some(known) = options.known.iter().find(fits) else {
                return Err(OptionError::Unknown {
                    text: word.to_owned(),
                    of: options.of,
                    known: options.to_string(),
                });
            };
            if !known.repeats && given.contains(&known.key) {
                return Err(OptionError::Twice { key: known.key });
            }
            given.push(known.key);
            Ok((known.key, value.unwrap_or_default()))
        })
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, known) in self.known.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let sign = if known.has_value { "=" } else { "" };
            write!(f, "{comma}{}{sign}", known.key)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        of: "a thing",
        known: &[
            Known::flag("fast"),
            Known::value("size"),
            Known::repeated("also"),
        ],
    };

    fn read(text: &str) -> Result<Vec<(&str, &str)>, String> {
        let (head, words) = split(text);
        assert_eq!(head, "x");
        let read: Result<Vec<_>, _> = words.read(&OPTIONS).collect();
        read.map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read_in_any_order() {
        assert_eq!(read("x"), Ok(Vec::new()));
        let all = [("also", "a=b"), ("fast", ""), ("also", ""), ("size", "1")];
        assert_eq!(read("x,also=a=b,fast,also=,size=1"), Ok(all.to_vec()));
    }

    #[test]
    fn others_and_repeated_ones_are_refused() {
        for text in ["x,", "x,slow", "x,fast=", "x,size", "x,Fast"] {
            let word = text.strip_prefix("x,").unwrap();
            let message = format!("`{word}` is not an option of a thing: fast, size=, also=");
            assert_eq!(read(text), Err(message));
        }
        assert_eq!(read("x,fast,fast"), Err("`fast` is given twice".to_owned()));
        assert_eq!(
            read("x,size=1,size=1"),
            Err("`size` is given twice".to_owned())
        );
    }
}
