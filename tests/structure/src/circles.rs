//! Groups of files that import each other.

use std::fmt::Write;

use crate::imports::Import;
use crate::source::{Crate, FileId};

/// A set of files each of which is reachable from each other one through
/// imports.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle {
    /// The files, in ascending order.
    pub files: Vec<FileId>,
    /// The imports between them.
    pub imports: Vec<Import>,
}

/// Returns all circles among `imports` between `files` files.
#[must_use]
pub fn circles(files: usize, imports: &[Import]) -> Vec<Circle> {
    let reached: Vec<Vec<bool>> = (0..files).map(|from| reach(from, files, imports)).collect();
    let mut circles = Vec::new();
    let mut placed = vec![false; files];
    for file in 0..files {
        if placed[file] || !reached[file][file] {
            continue;
        }
        let members: Vec<FileId> = (file..files)
            .filter(|&other| reached[file][other] && reached[other][file])
            .collect();
        for &member in &members {
            placed[member] = true;
        }
        let is_inside = |it: &&Import| members.contains(&it.from) && members.contains(&it.to);
        circles.push(Circle {
            imports: imports.iter().filter(is_inside).cloned().collect(),
            files: members,
        });
    }
    circles
}

/// Returns which files are reached from `from` by one import or more.
fn reach(from: FileId, files: usize, imports: &[Import]) -> Vec<bool> {
    let mut reached = vec![false; files];
    let mut left = vec![from];
    while let Some(at) = left.pop() {
        for import in imports.iter().filter(|it| it.from == at) {
            if !reached[import.to] {
                reached[import.to] = true;
                left.push(import.to);
            }
        }
    }
    reached
}

impl Circle {
    /// Returns text for people: the files, and below each what it imports
    /// from the others, with the line.
    #[must_use]
    pub fn describe(&self, tree: &Crate, relative_to: &std::path::Path) -> String {
        let name = |file: FileId| {
            let path = &tree.files[file];
            path.strip_prefix(relative_to)
                .unwrap_or(path)
                .display()
                .to_string()
        };
        let mut text = format!("circle of {} files\n", self.files.len());
        for &file in &self.files {
            for import in self.imports.iter().filter(|it| it.from == file) {
                let _ = writeln!(
                    text,
                    "  {}:{} uses {} of {}",
                    name(file),
                    import.line,
                    import.what,
                    name(import.to)
                );
            }
        }
        text
    }
}
