//! Reads sources from string literals.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::source::Files;

pub(crate) struct Texts(BTreeMap<PathBuf, String>);

impl Texts {
    pub(crate) fn new(files: &[(&str, &str)]) -> Texts {
        let owned = |&(path, text): &(&str, &str)| (PathBuf::from(path), text.to_owned());
        Texts(files.iter().map(owned).collect())
    }
}

impl Files for Texts {
    fn read(&self, file: &Path) -> io::Result<String> {
        let text = self.0.get(file).cloned();
        text.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
