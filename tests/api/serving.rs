//! Tests of the configuration, the socket and signals.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{skip, skips_without_kvm, skips_without_tool};
use mkvmm_test_harness::{Mkvmm, Scratch};
use rustix::process::{Signal, geteuid};

use crate::server::{Server, http, serve};

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let scratch = Scratch::new();
    let file = scratch.file("serve.toml", b"pol = \"64M\"\n");
    let run = Mkvmm::new(["serve", "--config"]).arg(&file).finish();
    run.expect_refusal(2);
    assert!(run.stderr.contains("most similar key is `pool`"), "{run}");
    Mkvmm::new(["serve"]).finish().expect_refusal(2);
    for (text, why) in [
        (&b"pool = \"64M\"\nhold = ["[..], "line 2, column "),
        (b"pool = \"64M\"\ngrace = -1", "line 2, column 9: "),
        (b"hold = 3", "expected a sequence"),
    ] {
        let file = scratch.file("wrong.toml", text);
        let run = Mkvmm::new(["serve", "--config"]).arg(&file).finish();
        let error = run.expect_refusal(2);
        assert!(error.contains(why), "{run}");
    }
    let run = Mkvmm::new(["serve", "--config", "/no/such/file"]).finish();
    run.expect_refusal(3);
}

#[test]
fn every_command_has_a_page_of_the_manual() {
    let scratch = Scratch::new();
    Mkvmm::new(["man", "--out"])
        .arg(scratch.dir())
        .finish()
        .expect_code(0);
    for (page, words) in [
        ("mkvmm.1", "SUBCOMMANDS"),
        ("mkvmm-run.1", "cpus\\-affinity"),
        ("mkvmm-pool-map.1", "SVG"),
        ("mkvmm-debug-mem.1", "ADDR"),
    ] {
        let text = fs::read_to_string(scratch.path(page)).unwrap();
        assert!(text.contains(words), "{page}: {text}");
    }
    let nowhere = Mkvmm::new(["man", "--out", "/no/such/directory"]).finish();
    nowhere.expect_refusal(1);
}

#[test]
fn nobody_at_the_socket_is_said_plainly() {
    let run = Mkvmm::new(["list", "--socket", "/no/such/socket"]).finish();
    run.expect_refusal(75);
    assert!(run.stderr.contains("help: start `mkvmm serve`"), "{run}");
}

#[test]
fn a_file_configures_what_flags_do_not() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let text = format!(
        "pool = \"128M@4G\"\nsocket = {:?}\nhold = [\"1M@0x100100000\"]\nimage-dir = [{:?}]\n",
        socket.display().to_string(),
        scratch.dir().display().to_string()
    );
    let file = scratch.file("serve.toml", text.as_bytes());
    let mut running = Mkvmm::new(["serve", "--pool", "64M@4G", "--config"])
        .arg(&file)
        .spawn();
    running.wait_until("a ready line", |r| r.stdout().starts_with("ready: "));
    let (_, pool) = http(&socket, "GET", "/v1/pool", "");
    assert_eq!(pool["size"], 64 << 20);
    assert_eq!(pool["used"], 1 << 20);
    let body = r#"{"name": "a", "memory": 8388608, "kernel": "/proc/version"}"#;
    let (status, refusal) = http(&socket, "POST", "/v1/instances", body);
    assert_eq!(status, 422, "{refusal}");
    assert_eq!(refusal["error"]["code"], "file");
    running.signal(Signal::TERM);
    running.wait().expect_code(0);
    assert!(!socket.exists());
}

#[test]
fn a_live_socket_is_refused_and_a_stale_one_is_replaced() {
    if skips_without_kvm() {
        return;
    }
    let mut server = Server::start("16M@4G");
    let run = Mkvmm::new(["serve", "--pool", "16M@4G", "--socket"])
        .arg(server.socket())
        .finish();
    run.expect_refusal(1);
    assert!(run.stderr.contains("another mkvmm"), "{run}");
    server.ok("list");
    server.running.signal(Signal::KILL);
    server.running.wait_for_exit();
    assert!(server.socket().exists(), "SIGKILL leaves the socket");
    let again = serve("16M@4G", server.socket());
    assert_eq!(http(server.socket(), "GET", "/v1/version", "").0, 200);
    drop(again);
}

#[test]
fn sigterm_ends_all_guests_and_sighup_none() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    for name in ["a", "b"] {
        let create = [
            "create",
            name,
            "--memory",
            "8M",
            "--kernel",
            "probe",
            "--cmdline",
            "spin",
        ];
        server.run_words(create).expect_code(0);
        server.ok(&format!("start {name}"));
    }
    server.ok("pause b");
    server.running.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(50));
    server.expect_audit();
    server.running.signal(Signal::TERM);
    let end = server.running.wait();
    end.expect_code(0);
    assert_eq!(end.stderr.matches("stopped (killed)").count(), 2, "{end}");
}

#[test]
fn a_grace_beyond_all_clocks_is_no_limit() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("sock");
    let grace = u64::MAX.to_string();
    let mut running = Mkvmm::new(["serve", "--pool", "64M@4G", "--grace", &grace, "--socket"])
        .arg(&socket)
        .spawn();
    running.wait_until("a ready line", |r| r.stdout().starts_with("ready: "));
    let body = r#"{"name": "a", "memory": 8388608, "kernel": "probe", "cmdline": "spin"}"#;
    assert_eq!(http(&socket, "POST", "/v1/instances", body).0, 201);
    assert_eq!(http(&socket, "POST", "/v1/instances/a/start", "").0, 200);
    running.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(50));
    // It ignores its power button, and nothing else ends it.
    let (status, guest) = http(&socket, "GET", "/v1/instances/a", "");
    assert_eq!((status, &guest["state"]), (200, &"active".into()));
    running.signal(Signal::TERM);
    running.wait().expect_code(143);
}

/// Runs a command of mkvmm with these variables, and without others of its own.
fn with_variables(args: &[&str], variables: &[(&str, &Path)]) -> Output {
    Command::new(binary())
        .args(args)
        .env_remove("MKVMM_SOCKET")
        .env_remove("XDG_RUNTIME_DIR")
        .envs(variables.iter().copied())
        .output()
        .expect("it is a program")
}

#[test]
fn the_socket_is_found_in_the_documented_order() {
    if skips_without_kvm() {
        return;
    }
    let (mut server, scratch) = (Server::start("16M@4G"), Scratch::new());
    let socket = server.socket().to_owned();
    let socket = socket.as_path();
    let text = socket.display().to_string();
    let wrong = scratch.path("wrong");
    let directory = socket.parent().expect("it is in a directory");
    // What is on the command line comes first, before or after the command.
    for args in [
        &["list", "--socket", &text][..],
        &["--socket", &text, "list"],
        &["--socket", "/wrong", "list", "--socket", &text],
    ] {
        let run = with_variables(args, &[("MKVMM_SOCKET", &wrong)]);
        assert!(run.status.success(), "{args:?}: {run:?}");
    }
    let run = with_variables(&["list"], &[("MKVMM_SOCKET", socket)]);
    assert!(run.status.success(), "{run:?}");
    // Its name there is another one.
    let link = scratch.path("mkvmm.sock");
    std::os::unix::fs::symlink(socket, link).expect("the directory is ours");
    let run = with_variables(&["list"], &[("XDG_RUNTIME_DIR", scratch.dir())]);
    assert!(run.status.success(), "{run:?}");

    let run = with_variables(&["list"], &[("XDG_RUNTIME_DIR", directory)]);
    if !Path::new("/run/mkvmm.sock").exists() {
        let said = String::from_utf8_lossy(&run.stderr);
        let looked = format!(
            "there is none at {}/mkvmm.sock and /run/mkvmm.sock",
            directory.display()
        );
        assert!(said.contains(&looked), "{said}");
    }
    let run = with_variables(&["list"], &[("MKVMM_SOCKET", &wrong)]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("MKVMM_SOCKET"), "{said}");
    // One whose owner was killed is there, and nobody listens.
    server.running.signal(Signal::KILL);
    server.running.wait_for_exit();
    let run = with_variables(&["list"], &[("MKVMM_SOCKET", socket)]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("its `mkvmm serve` has ended"), "{said}");
}

#[test]
fn a_group_may_use_the_socket_and_nobody_else() {
    const GROUP: &str = "54321";
    if skips_without_kvm() || skips_without_tool("setpriv") {
        return;
    }
    if !geteuid().is_root() {
        return skip("only root has users for this");
    }
    let run = Mkvmm::new([
        "serve",
        "--pool",
        "16M@4G",
        "--socket-group",
        "nobody-knows",
    ]);
    run.finish().expect_refusal(2);
    let server = Server::start_with("16M@4G", &["--socket-group", GROUP]);
    let metadata = fs::metadata(server.socket()).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(metadata.gid().to_string(), GROUP);
    let list = |group: &str| {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", group, "--clear-groups"])
            .arg(binary())
            .args(["list", "--socket"])
            .arg(server.socket())
            .output()
            .expect("it is a program")
    };
    let member = list(GROUP);
    assert!(member.status.success(), "{member:?}");
    let other = list("65534");
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    let said = String::from_utf8_lossy(&other.stderr);
    assert!(said.contains("--socket-group"), "{said}");
    server.tear_down();
}
