//! Checks of the house's structure, read from its source text.
//!
//! The compiler holds the walls between crates; nothing in Rust holds an order
//! between the files of one crate. This package does, and prints the numbers
//! that the project watches. Modules, lowest first:
//!
//! | module | what it does |
//! |---|---|
//! | `attributes` | recognises tests, and finds paths in attributes and macros |
//! | `source` | reads the files of one crate into a tree of modules |
//! | `names` | follows a path through modules, imports and re-exports to its definition |
//! | `imports` | lists which file uses what of which other file |
//! | `circles` | finds the groups of files that import each other |
//! | `counts` | counts public items and methods |
//! | `walls` | compares the dependencies of each crate with the table of allowed ones |
//! | `passages` | splits files into comments, string literals and paragraphs |
//! | `prose` | finds doc comments of one or two words, and unusual idioms |

mod attributes;
pub mod circles;
pub mod counts;
pub mod imports;
mod names;
pub mod passages;
pub mod prose;
pub mod source;
pub mod walls;

#[cfg(test)]
mod testing;
