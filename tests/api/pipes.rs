//! Standard output whose reader has gone, as behind `| head`.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch, Stdout, root};
use rustix::process::Signal;

use crate::server::{Server, http};

/// Every command that prints something.
const PRINTING: [&str; 24] = [
    "list",
    "list --json",
    "show",
    "show a",
    "list -q",
    "logs a",
    "wait a --state active",
    "show a --e820",
    "iomem",
    "pool show",
    "pool map",
    "pool map --svg -",
    "pool log",
    "pool alloc 4096",
    "audit",
    "events",
    "metrics",
    "debug regs a",
    "debug mem a 0x100000000 16",
    "console a",
    "create b --memory 8M",
    "load b --kernel probe",
    "unload b",
    "delete b",
];

#[test]
fn a_reader_that_has_gone_is_no_error_of_any_command() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let spin = [
        "create",
        "a",
        "--memory",
        "8M",
        "--kernel",
        "probe",
        "--cmdline",
        "spin",
    ];
    server.run_words(spin).expect_code(0);
    server.ok("start a");
    let silent = |command: Mkvmm, what: &str| {
        let run = command.stdout(Stdout::Closed).finish();
        assert_eq!(
            (run.code(), run.stderr.as_str()),
            (Some(0), ""),
            "{what}\n{run}"
        );
    };
    for args in PRINTING {
        silent(server.command(args.split(' ')), args);
    }
    for args in [
        "doctor",
        "man",
        "completions bash",
        "--help",
        "help run",
        "--version",
    ] {
        silent(Mkvmm::new(args.split(' ')), args);
    }
    let trace = root().join("tests/traces/04_fixed.jsonl.gz");
    silent(Mkvmm::new(["replay"]).arg(trace), "replay");
    // What was asked for was done.
    assert_eq!(server.http("GET", "/v1/instances/b", "").0, 404);
    let taken = server.http("GET", "/v1/pool", "").1["used"].as_u64();
    assert_eq!(taken, Some((8 << 20) + 4096));
}

#[test]
fn a_server_whose_ready_line_nobody_reads_serves() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let mut running = Mkvmm::new(["serve", "--pool", "16M@4G", "--socket"])
        .arg(&socket)
        .stdout(Stdout::Closed)
        .spawn();
    running.wait_until("a socket", |_| socket.exists());
    assert_eq!(http(&socket, "GET", "/v1/version", "").0, 200);
    running.signal(Signal::TERM);
    let run = running.wait();
    run.expect_code(0);
    assert_eq!(run.stderr, "", "{run}");
}
