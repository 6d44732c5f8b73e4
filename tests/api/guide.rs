//! What docs/control.md shows is what happens: its `curl` examples are run as
//! they stand there, one after the other.

use std::fs;
use std::process::Command;

use mkvmm_test_harness::Scratch;
use mkvmm_test_harness::tier::{skips_without_kvm, skips_without_tool};

use crate::server::Server;

/// The socket that the guide's examples name.
const SOCKET: &str = "/tmp/mkvmm.sock";

/// The commands of the guide's fenced `sh` blocks that are `curl`'s; one that
/// goes on behind a backslash is one.
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
    // Refusals are failures, and what follows events ends at last.
    scratch.file(
        ".curlrc",
        b"silent\nshow-error\nfail-with-body\nmax-time = 5\n",
    );
    for example in examples {
        assert!(example.contains(SOCKET), "{example}");
        let command = example.replace(SOCKET, &server.socket().display().to_string());
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(scratch.dir())
            .env("CURL_HOME", scratch.dir())
            .output()
            .unwrap();
        // 28: the time is over, of an answer that has no end.
        let follows = example.contains("follow=true") && output.status.code() == Some(28);
        assert!(output.status.success() || follows, "{example}\n{output:?}");
        assert!(!output.stdout.is_empty(), "{example}");
    }
    server.expect_audit();
}
