//! Tests of commands for several instances, of waiting, and of output that is
//! printed again.

use std::time::Duration;

use mkvmm_test_harness::Mkvmm;
use mkvmm_test_harness::tier::skips_without_kvm;
use serde_json::Value;

use crate::server::Server;

/// Creates instances that run until they are killed, and does not start them.
fn create(server: &Server, names: &[&str]) {
    for name in names {
        server.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline spin"
        ));
    }
}

#[test]
fn a_verb_takes_several_names_and_reports_each() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    create(&server, &["a", "b", "c"]);
    assert_eq!(server.ok("start a b"), "a: active\nb: active\n");

    // The one that cannot be paused does not keep the others from it.
    let run = server.run("pause a c b");
    run.expect_code(4);
    assert_eq!(run.stdout, "a: paused\nb: paused\n");
    assert!(run.stderr.starts_with("error: c is loaded"), "{run}");
    assert_eq!(server.ok("list -q --state paused"), "a\nb\n");
    assert_eq!(server.ok("ps -q --state loaded,active"), "c\n");
    let of_state = server.json("list --state loaded");
    assert_eq!(of_state.as_array().map(Vec::len), Some(1), "{of_state}");
    assert_eq!(of_state[0]["name"], "c");

    server.ok("resume a b");
    let run = server.run("stop --force --all");
    // One that has never run has nothing to end.
    run.expect_code(4);
    assert_eq!(run.stdout, "a: stopped (killed)\nb: stopped (killed)\n");
    let deleted = server.ok("rm --all");
    assert_eq!(deleted, "a: deleted\nb: deleted\nc: deleted\n");
    assert_eq!(server.ok("delete --all"), "", "all of none");
    server.run("start").expect_code(2);
    server.run("start --all a").expect_code(2);
    server.expect_empty();
}

#[test]
fn a_restart_boots_again_whatever_the_state() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    create(&server, &["a"]);
    let pid = || server.json("show a")["pid"].as_i64().expect("it runs");
    assert_eq!(server.ok("restart a"), "a: active\n", "from `loaded`");
    let first = pid();
    let dry = server.ok("restart a --grace 0s --dry-run");
    assert_eq!((dry.as_str(), pid()), ("dry run; a: active\n", first));
    assert_eq!(server.ok("reboot a --grace-ms 0"), "a: active\n");
    let second = pid();
    server.ok("pause a");
    assert_eq!(server.ok("reset a"), "a: active\n", "from `paused`");
    let third = pid();
    assert!(first != second && second != third);
    server.run("reset nobody").expect_code(4);
    server.ok("create b --memory 8M");
    let run = server.run("restart b");
    run.expect_code(4);
    assert!(run.stderr.contains("ready"), "{run}");
    server.tear_down();
}

#[test]
fn waiting_ends_with_the_state_the_deletion_the_time_or_the_vmm() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    create(&server, &["a", "b"]);
    server.ok("start a b");
    assert_eq!(server.ok("wait a --state active"), "a: active\n", "at once");

    let late = server.run("wait a b --timeout 200ms");
    late.expect_code(4);
    assert!(late.stderr.contains("a, b not there after 200ms"), "{late}");

    let ends = server.command(["wait", "a", "b"]).spawn();
    let gone = server.command(["wait", "b", "--state", "ready"]).spawn();
    server.ok("kill --force a");
    server.ok("kill --force b");
    let ends = ends.wait();
    ends.expect_code(0);
    assert_eq!(ends.stdout, "a: stopped (killed)\nb: stopped (killed)\n");
    server.ok("delete b");
    let gone = gone.wait();
    gone.expect_code(4);
    assert!(gone.stderr.contains("no instance b"), "{gone}");

    let mut left = server.command(["wait", "a", "--state", "ready"]).spawn();
    let connected = |_: &mkvmm_test_harness::Running| server.ok("metrics").contains("mkvmm_");
    left.wait_until("a client", connected);
    server.running.signal(rustix::process::Signal::TERM);
    let left = left.wait();
    left.expect_code(75);
    assert!(!left.stderr.is_empty(), "{left}");
}

#[test]
fn output_is_printed_again_whole_in_part_and_as_it_comes() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create a --memory 8M --kernel probe --start");
    server.ok("wait a");
    let whole = server.ok("logs a");
    assert!(whole.starts_with("probe: name a\n"), "{whole}");
    assert!(whole.ends_with("probe: pass\n"), "{whole}");
    assert_eq!(server.ok("logs a --tail 1"), "probe: pass\n");
    assert_eq!(server.ok("logs a -n 0"), "");
    server.run("logs nobody").expect_code(4);

    let mut following = server.command(["logs", "a", "-f", "-n", "1"]).spawn();
    following.wait_until("the last line", |f| f.stdout() == "probe: pass\n");
    server.ok("start a");
    server.ok("wait a");
    following.wait_until("the second boot", |f| {
        f.stdout().matches("probe: pass\n").count() == 2
    });
    server.ok("delete a");
    let following = following.wait();
    following.expect_code(0);
    assert_eq!(following.stdout, format!("probe: pass\n{whole}"));
    server.expect_empty();
}

#[test]
fn create_can_boot_and_attach() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let create = ["create", "a", "--memory", "8M", "--kernel", "probe"];
    let shell = ["--cmdline", "shell", "--start", "--console"];
    let mut console = server
        .command([&create[..], &shell].concat())
        .typed()
        .spawn();
    console.wait_until("a prompt", |c| c.stdout().ends_with("probe# "));
    console.type_in("exit\n");
    server.ok("wait a --timeout 30s");
    server.ok("delete a");
    console.wait().expect_code(0);

    for wrong in [
        "create b --memory 8M --start",
        "create b --memory 8M --kernel probe --console",
        "create b --memory 8M --kernel probe --start --dry-run",
    ] {
        server.run(wrong).expect_code(2);
    }
    server.ok("create b --memory 8M --kernel probe");
    server.run("start b b --console").expect_code(2);
    assert_eq!(server.json("show b")["state"], "loaded");
    server.tear_down();
}

#[test]
fn a_mistyped_command_never_suggests_one_that_destroys() {
    for word in ["kil", "delet", "rest", "unlod", "restar"] {
        let run = Mkvmm::new([word]).timeout(Duration::from_secs(10)).finish();
        run.expect_code(2);
        assert!(!run.stderr.contains("similar"), "{run}");
    }
    let run = Mkvmm::new(["lis"]).finish();
    assert!(run.stderr.contains("'list'"), "{run}");
}

#[test]
fn every_refusal_is_json_where_json_is_wanted() {
    let server = Server::start("64M@4G");
    for (line, code) in [
        ("start no", "no-instance"),
        ("pause no", "no-instance"),
        ("kill no", "no-instance"),
        ("restart no", "no-instance"),
        ("reset no", "no-instance"),
        ("delete no", "no-instance"),
        ("wait no", "no-instance"),
        ("wait no --timeout 5s", "no-instance"),
        ("show no", "no-instance"),
        ("show no --e820", "no-instance"),
        ("logs no", "no-instance"),
        ("logs no --follow", "no-instance"),
        ("debug regs no", "no-instance"),
        ("debug mem no 0 16", "no-instance"),
        ("debug translate no 0", "no-instance"),
        ("channel show no", "no-channel"),
        ("pool free 4G", "no-allocation"),
        ("pool alloc 128M", "no-room"),
        ("create no --memory 128M", "no-room"),
    ] {
        let refused = server.run(&format!("{line} --json"));
        let mut lines = refused.stdout.lines();
        let body: Option<Value> = lines.next().and_then(|l| serde_json::from_str(l).ok());
        let body = body.unwrap_or_else(|| panic!("{line}: {refused}"));
        assert_eq!(body["error"]["code"], code, "{line}: {refused}");
        assert_eq!(lines.next(), None, "{line}: {refused}");
        // People read the same on the other stream.
        let message = body["error"]["message"].as_str().unwrap_or_default();
        let said = refused.stderr.starts_with(&format!("error: {message}"));
        assert!(said, "{line}: {refused}");
    }
    server.tear_down();
}
