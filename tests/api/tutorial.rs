//! Runs docs/tutorial.md: its files are written, its commands are run in order, and
//! what they print is compared with what stands below them.

use std::fs;
use std::process::Command;

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Scratch, root};

/// What stands for anything, on one line or several.
const ANYTHING: char = '…';

/// A part of the tutorial.
#[derive(Debug)]
enum Part {
    /// A file to write: its name and its contents.
    File(String, String),
    /// A command, and what it prints.
    Command(String, String),
}

/// Returns the files (blocks `toml NAME`) and the commands (`$ ` in blocks `console`).
fn parts(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```").filter(|kind| !kind.is_empty()) else {
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = kind.strip_prefix("toml ") {
            parts.push(Part::File(name.to_owned(), block.join("\n") + "\n"));
        } else if kind == "console" {
            for line in block {
                match (line.strip_prefix("$ "), parts.last_mut()) {
                    (Some(command), _) => {
                        parts.push(Part::Command(command.to_owned(), String::new()));
                    }
                    (None, Some(Part::Command(_, output))) => {
                        output.push_str(line);
                        output.push('\n');
                    }
                    (None, _) => panic!("no command before `{line}`"),
                }
            }
        }
    }
    parts
}

/// Returns whether `text` is as `expected` says.
fn matches(expected: &str, text: &str) -> bool {
    let mut pieces = expected.split(ANYTHING);
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        if let Some(before) = last.replace(piece) {
            match rest.split_once(before) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
    match last {
        Some(piece) => rest.ends_with(piece),
        None => rest.is_empty(),
    }
}

#[test]
fn the_tutorial_prints_what_it_says() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let text = fs::read_to_string(root().join("docs/tutorial.md")).expect("it is there");
    let parts = parts(&text);
    assert!(parts.len() > 20, "{parts:#?}");
    // One shell for all, so that what runs in the background is its own.
    let mut script = "set -u\ntrap 'kill %1 2>/dev/null; wait' EXIT\n".to_owned();
    for (number, part) in parts.iter().enumerate() {
        match part {
            Part::File(name, contents) => {
                scratch.file(&format!("{number}.file"), contents.as_bytes());
                script += &format!("cp {number}.file {name}\n");
            }
            Part::Command(command, _) => {
                script += &format!("{{ {command}\n}} >{number}.out 2>&1\n");
                if command.ends_with('&') {
                    let ready = format!("grep -q ^ready {number}.out");
                    script += &format!("until {ready}; do sleep 0.05; done\n");
                }
            }
        }
    }
    let script = scratch.file("script", script.as_bytes());
    let program = binary();
    let directory = program.parent().expect("it is a file");
    let path = std::env::var("PATH").unwrap_or_default();
    let shell = Command::new("timeout")
        .args(["100", "bash"])
        .arg(script)
        .current_dir(scratch.dir())
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("XDG_RUNTIME_DIR", scratch.dir())
        .env_remove("MKVMM_SOCKET")
        .output()
        .expect("there is a shell");
    for (number, part) in parts.iter().enumerate() {
        let Part::Command(command, expected) = part else {
            continue;
        };
        let printed = fs::read_to_string(scratch.path(&format!("{number}.out")));
        let printed = printed.unwrap_or_else(|error| panic!("{command}: {error}\n{shell:?}"));
        let place = scratch.dir().display().to_string();
        let printed = printed.replace(&place, "/run/user/1000");
        assert!(
            matches(expected, &printed),
            "{command}\n--- it prints\n{printed}\n--- instead of\n{expected}"
        );
    }
}

#[test]
fn what_stands_for_anything_matches_anything() {
    for (expected, text, is_match) in [
        ("a\n", "a\n", true),
        ("a\n", "a\nb\n", false),
        ("a …\n", "a b c\n", true),
        ("a\n…\nz\n", "a\nb\nc\nz\n", true),
        ("a … c … e\n", "a b c d e\n", true),
        ("a … c … e\n", "a b e\n", false),
        ("…", "", true),
    ] {
        assert_eq!(matches(expected, text), is_match, "{expected:?} {text:?}");
    }
}
