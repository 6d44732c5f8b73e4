//! Which module may name which: low ones cannot name high ones.
//!
//! Read from the source, so that a new edge against the arrows of
//! `docs/design.md` is seen when it is made. What a module's own tests import
//! does not count.

use std::fs;
use std::path::{Path, PathBuf};

/// Every module with its layer's others; a layer names itself and those before.
const LAYERS: [&[&str]; 11] = [
    &["layout", "error_chain", "replay", "debug"],
    &["machine", "reservation"],
    &["instance", "placement"],
    &["host_pool"],
    &["loader"],
    &["boot"],
    &["kvm", "vcpu"],
    &["devices", "event_loop"],
    &["builder", "guest"],
    &["event_log", "manager", "audit", "spec"],
    &["fleet", "control", "doctor"],
];

/// What runs against the arrows, and why.
const EXCEPTIONS: [(&str, &str); 2] = [
    // A vCPU's thread holds the sending end of the loop's channel.
    ("vcpu", "event_loop"),
    // Typed actions are what that channel carries from the control socket.
    ("event_loop", "control"),
];

fn layer(module: &str) -> usize {
    let of = |layer: &&[&str]| layer.contains(&module);
    let found = LAYERS.iter().position(of);
    found.unwrap_or_else(|| panic!("{module} has no layer yet: name it here"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            sources(&path, found);
        } else if !name.to_string_lossy().contains("tests") {
            found.push(path);
        }
    }
}

/// The modules that code, not comments, calls by `crate::NAME`.
fn named(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let code = code.lines().filter(|l| !l.trim_start().starts_with("//"));
    let after = code.flat_map(|line| line.split("crate::").skip(1));
    let name = |rest: &str| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    };
    after.map(name).collect()
}

#[test]
fn low_modules_do_not_name_high_ones() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    for file in &files {
        let inside = file.strip_prefix(&root).unwrap();
        let first = inside.components().next().unwrap().as_os_str();
        let module = first.to_str().unwrap().trim_end_matches(".rs");
        // The binary sees everything through the library's public face.
        if ["lib", "main", "cli", "error", "layers"].contains(&module) {
            continue;
        }
        for other in named(&fs::read_to_string(file).unwrap()) {
            let edge = (module, other.as_str());
            if let Some(known) = EXCEPTIONS.iter().find(|e| **e == edge) {
                used.push(*known);
            } else if layer(&other) > layer(module) {
                wrong.push(format!("{}: {module} names {other}", inside.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let unused = EXCEPTIONS.iter().find(|edge| !used.contains(edge));
    assert_eq!(unused, None, "is no exception any more");
}
