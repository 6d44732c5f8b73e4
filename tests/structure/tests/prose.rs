//! Checks the English of the whole repository, tests and fuzz targets included.

#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use mkvmm_structure::passages::{Kind, Passage, of_markdown, of_rust, of_script};
use mkvmm_structure::prose::{idioms, is_short_doc};

/// The files that may contain a phrase of the list, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// This package names the phrases and short comments that it rejects.
const OWN: &str = "tests/structure/";

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = std::env::var_os("MKVMM_STRUCTURE_ROOT").map_or(here, PathBuf::from);
    root.canonicalize().unwrap()
}

/// Returns the paths of all files of the repository, relative to its root and
/// in their order, except built and hidden ones.
fn files() -> Vec<String> {
    let mut left = vec![root()];
    let mut files = Vec::new();
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            let is_hidden = name.starts_with('.') && name != ".ci";
            if is_hidden || ["target", "corpus", "artifacts"].contains(&&*name) {
                continue;
            } else if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let file = path.strip_prefix(root()).unwrap();
                files.push(file.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Returns the passages of `file`, or none if its format is not known.
fn passages(file: &str) -> Vec<Passage> {
    let of = match Path::new(file).extension().and_then(|it| it.to_str()) {
        Some("rs") => of_rust,
        Some("md") => of_markdown,
        Some("c" | "h" | "S" | "py" | "toml") => of_script,
        None if [".ci/", "scripts/", "guest-images/linux/"]
            .iter()
            .any(|it| file.starts_with(it)) =>
        {
            of_script
        }
        _ => return Vec::new(),
    };
    of(&fs::read_to_string(root().join(file)).unwrap())
}

#[test]
fn no_doc_comment_has_one_or_two_words() {
    let rust = files().into_iter().filter(|file| file.ends_with(".rs"));
    let (mut docs, mut short) = (0, Vec::new());
    for file in rust {
        for passage in passages(&file) {
            docs += usize::from(passage.kind == Kind::Doc);
            if is_short_doc(&passage) {
                short.push(format!("{file}:{}: {}", passage.line, passage.text));
            }
        }
    }
    println!(
        "doc comments of one or two words: {} of {docs}",
        short.len()
    );
    assert!(docs > 1000, "the comments of the repository");
    assert!(short.is_empty(), "one or two words:\n{}", short.join("\n"));
}

#[test]
fn comments_documents_and_messages_use_the_words_of_the_field() {
    let mut found = Vec::new();
    let mut used = Vec::new();
    for file in files().iter().filter(|file| !file.starts_with(OWN)) {
        for passage in passages(file) {
            for idiom in idioms(&passage) {
                let is_allowed = |it: &&(&str, &str, &str)| (it.0, it.1) == (file, idiom.phrase);
                if let Some(exception) = EXCEPTIONS.iter().find(is_allowed) {
                    used.push(exception);
                    continue;
                }
                let (line, phrase, write) = (passage.line, idiom.phrase, idiom.write);
                found.push(format!("{file}:{line}: “{phrase}”: write {write}"));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    let idle = EXCEPTIONS.iter().filter(|it| !used.contains(it));
    let idle: Vec<_> = idle.collect();
    assert!(idle.is_empty(), "not needed: {idle:?}");
}
