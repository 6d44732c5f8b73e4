//! Tests that the examples in docs/control.md work: the `curl` commands are run
//! unchanged, one after the other.

use std::fs;
use std::process::Command;

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::{skips_without_kvm, skips_without_tool};

use crate::server::Server;

/// The socket that the guide's examples use.
const SOCKET: &str = "/tmp/mkvmm.sock";

/// Returns the `curl` commands in the guide's fenced `sh` blocks; lines that
/// end with a backslash are joined.
fn examples(guide: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let (mut in_block, mut goes_on) = (false, false);
    for line in guide.lines() {
        if line.starts_with("```") {
            in_block = line == "```sh";
            continue;
        }
        match commands.last_mut() {
            Some(command) if goes_on => {
                command.push('\n');
                command.push_str(line);
            }
            _ if in_block && line.starts_with("curl ") => commands.push(line.to_owned()),
            _ => continue,
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

#[test]
fn the_guides_examples_work() {
    if skips_without_kvm() || skips_without_tool("curl") {
        return;
    }
    let path = mkvmm_test_harness::root().join("docs/control.md");
    let examples = examples(&fs::read_to_string(path).unwrap());
    assert!(examples.len() >= 8, "{examples:#?}");
    let (server, scratch) = (Server::start("256M@4G"), Scratch::new());
    for example in examples {
        assert!(example.contains(SOCKET), "{example}");
        // Errors fail the test, and following events must end.
        let is_endless = example.contains("follow=true");
        let limit = if is_endless { 5 } else { 60 };
        let settings = format!("silent\nshow-error\nfail-with-body\nmax-time = {limit}\n");
        scratch.file(".curlrc", settings.as_bytes());
        let command = example.replace(SOCKET, &server.socket().display().to_string());
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(scratch.dir())
            .env("CURL_HOME", scratch.dir())
            .output()
            .unwrap();
        // Status 28 means that the time limit for an endless response was
        // reached.
        let follows = is_endless && output.status.code() == Some(28);
        assert!(output.status.success() || follows, "{example}\n{output:?}");
        assert!(!output.stdout.is_empty(), "{example}");
    }
    server.expect_audit();
}
