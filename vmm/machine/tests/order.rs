//! Tests that the crate's files import in the order of the table in `lib.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Finds all modules with a file, and their source text without tests.
fn modules(dir: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            modules(&path, &format!("{prefix}{stem}::"), found);
        } else if stem != "lib" && !stem.ends_with("tests") {
            let text = fs::read_to_string(&path).unwrap();
            let module = match stem.as_str() {
                "mod" => prefix.trim_end_matches("::").to_owned(),
                _ => format!("{prefix}{stem}"),
            };
            found.insert(module, without_tests_and_comments(&text));
        }
    }
}

fn without_tests_and_comments(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().map(str::trim);
    lines.filter(|line| !line.starts_with("//")).collect()
}

/// Returns every path after `crate::` in `code`, with groups expanded.
fn paths(code: &str) -> Vec<String> {
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| expand(rest).0)
        .collect()
}

/// Returns the paths at the beginning of a text, and the length they occupy.
fn expand(text: &str) -> (Vec<String>, usize) {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_path(c)).unwrap_or(text.len());
    let head = &text[..end];
    if !text[end..].starts_with('{') {
        return (vec![head.to_owned()], end);
    }
    let (mut all, mut at) = (Vec::new(), end + 1);
    while !text[at..].starts_with('}') {
        let (tails, used) = expand(&text[at..]);
        all.extend(tails.iter().map(|tail| format!("{head}{tail}")));
        at += used.max(1);
    }
    (all, at + 1)
}

/// Returns the module that a path leads to: its longest prefix that is one.
fn target<'a>(path: &str, order: &'a [String]) -> Option<&'a String> {
    let is_head = |module: &&String| {
        let rest = path.strip_prefix(module.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    order
        .iter()
        .filter(is_head)
        .max_by_key(|module| module.len())
}

#[test]
fn files_import_from_files_above_them_in_the_table() {
    let lib = fs::read_to_string(format!("{SOURCES}/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let names = rows.flat_map(|row| row.split(" | ").next().unwrap().split('`'));
    let is_name = |name: &&str| !name.is_empty() && *name != ", ";
    let order: Vec<String> = names.filter(is_name).map(str::to_owned).collect();

    let mut found = BTreeMap::new();
    modules(Path::new(SOURCES), "", &mut found);
    let mut listed = order.clone();
    listed.sort();
    let existing: Vec<String> = found.keys().cloned().collect();
    assert_eq!(listed, existing, "the table lists each file once");

    let place = |module: &String| order.iter().position(|other| other == module);
    for (module, code) in &found {
        for path in paths(code) {
            let Some(imported) = target(&path, &order) else {
                panic!("{module} imports {path}, which no file has");
            };
            assert!(
                place(imported) < place(module),
                "{module} imports {path}, which is not above it"
            );
        }
    }
}

#[test]
fn groups_are_written_out() {
    let code = "use crate::a::b;use crate::kvm::{self, clock, vm::{Vm, VmError}};";
    let want = [
        "a::b",
        "kvm::self",
        "kvm::clock",
        "kvm::vm::Vm",
        "kvm::vm::VmError",
    ];
    let seen: Vec<String> = paths(code)
        .into_iter()
        .filter(|p| !p.ends_with("::"))
        .collect();
    assert_eq!(seen, want);
}
