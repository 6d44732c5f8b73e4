//! Reads TOML files and reports what is wrong with them.

use std::io;
use std::path::{Path, PathBuf};

use mkvmm_base::{Class, Diagnose};
use serde::de::DeserializeOwned;

/// A reason why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}", .path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or a value is wrong.
    #[error("{}", .path.display())]
    Toml {
        /// The path of the file.
        path: PathBuf,
        /// The parser's error, with its position.
        #[source]
        source: TomlError,
    },
    /// The file has a key that does not exist.
    #[error("{}: unknown key `{key}`", .path.display())]
    UnknownKey {
        /// The path of the file.
        path: PathBuf,
        /// The key that is unknown.
        key: String,
        /// The most similar key that exists.
        nearest: &'static str,
    },
    /// The file has no instance.
    #[error("{}: `instance` is missing", .path.display())]
    NoInstance {
        /// The path of the file.
        path: PathBuf,
    },
}

impl Diagnose for ConfigError {
    fn class(&self) -> Class {
        match self {
            Self::Read { .. } => Class::File,
            _ => Class::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { nearest, .. } => {
                Some(format!("the most similar key is `{nearest}`"))
            }
            _ => None,
        }
    }
}

/// The error of a TOML file on one line; the library's own text spans several.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}{message}")]
pub struct TomlError {
    /// The prefix `line L, column C: ` if the position is known.
    place: String,
    message: String,
}

impl TomlError {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let place = |before: &str| {
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("line {line}, column {column}: ")
        };
        Self {
            place: before.map(place).unwrap_or_default(),
            message: error.message().trim().replace('\n', ", "),
        }
    }
}

/// A TOML file that has been read.
#[derive(Debug)]
pub struct ConfigFile<'a> {
    path: &'a Path,
    text: String,
}

impl<'a> ConfigFile<'a> {
    /// Reads the file.
    ///
    /// # Errors
    /// Returns [`ConfigError::Read`] if the file cannot be read.
    pub fn read(path: &'a Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { path, text })
    }

    /// Parses the values. `T` may also be a table, to examine the keys.
    ///
    /// # Errors
    /// Returns [`ConfigError::Toml`], with line and column.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        // Always parse the text: a table does not know its line numbers.
        toml::from_str(&self.text).map_err(|error| ConfigError::Toml {
            path: self.path.to_owned(),
            source: TomlError::new(&self.text, &error),
        })
    }

    /// Checks that all keys of `table` are known.
    ///
    /// # Errors
    /// Returns [`ConfigError::UnknownKey`] with the most similar known key.
    pub fn check_keys(
        &self,
        table: &toml::Table,
        known: &[&'static str],
    ) -> Result<(), ConfigError> {
        let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) else {
            return Ok(());
        };
        Err(ConfigError::UnknownKey {
            path: self.path.to_owned(),
            key: key.clone(),
            nearest: nearest(key, known).unwrap_or_default(),
        })
    }
}

/// Returns the key of `known` that is most similar to `word`.
fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |key: &&&str| strsim::damerau_levenshtein(word, key);
    known.iter().min_by_key(distance).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_its_place_on_one_line() {
        let text = "a = 1\nb = [1";
        let error = text.parse::<toml::Table>().unwrap_err();
        let told = TomlError::new(text, &error).to_string();
        assert!(told.starts_with("line 2, column "), "{told}");
        assert!(!told.contains('\n'), "{told}");
    }

    #[test]
    fn the_nearest_key_is_found() {
        assert_eq!(nearest("pol", &["socket", "pool"]), Some("pool"));
        assert_eq!(
            nearest("image_dir", &["image-dir", "grace"]),
            Some("image-dir")
        );
    }
}
