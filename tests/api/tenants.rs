//! Tests of owners: what the members of `--socket-group` may do, and what not. And of
//! requests that are repeated, labels, and events of one instance.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use rustix::process::geteuid;
use serde_json::Value;

use crate::server::Server;

/// A group that no file of the host belongs to.
const GROUP: &str = "65533";
/// Two users that no process of the host belongs to.
const USERS: [&str; 2] = ["65531", "65532"];

/// Runs a command of mkvmm as a user of the group.
fn as_user(server: &Server, user: &str, words: &str) -> Output {
    Command::new("setpriv")
        .args(["--reuid", user, "--regid", GROUP, "--clear-groups"])
        .arg(binary())
        .args(words.split_whitespace())
        .arg("--socket")
        .arg(server.socket())
        .output()
        .expect("it is a program")
}

#[track_caller]
fn allowed(server: &Server, user: &str, words: &str) -> String {
    let output = as_user(server, user, words);
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn forbidden(server: &Server, user: &str, words: &str) {
    let output = as_user(server, user, words);
    assert_eq!(output.status.code(), Some(4), "{words}: {output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let is_said = ["another user", "only the user"]
        .iter()
        .any(|text| said.contains(text));
    assert!(is_said, "{words}: {said}");
}

/// Starts a VMM with two tenants, unless that is impossible here.
fn shared() -> Option<Server> {
    if skips_without_kvm() {
        return None;
    }
    if !geteuid().is_root() {
        skip("only root has users for this");
        return None;
    }
    let server = Server::start_with("64M@4G", &["--socket-group", GROUP]);
    // The directory of the socket is this test's own.
    let dir = server.socket().parent().expect("a directory");
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("it is ours");
    Some(server)
}

#[test]
fn tenants_have_their_own_instances_and_no_others() {
    let Some(server) = shared() else {
        return;
    };
    let [one, two] = USERS;
    server.ok("create root --memory 8M --kernel probe --cmdline spin");
    server.ok("start root");
    allowed(
        &server,
        one,
        "create web --memory 8M --kernel probe --cmdline spin --start",
    );
    assert_eq!(server.json("show web")["owner"], 65531);
    assert_eq!(allowed(&server, one, "list -q"), "web\n");
    assert_eq!(allowed(&server, two, "list -q"), "");
    for words in [
        "show web",
        "show web --e820",
        "pause web",
        "resume web",
        "kill web --force",
        "load web --kernel probe",
        "start web",
        "unload web",
        "delete web",
        "logs web",
        "console web",
        "debug regs web",
        "debug mem web 0x7000 16",
        "pool alloc 4096 --instance web",
        "show root",
        "kill root",
    ] {
        forbidden(&server, two, words);
    }
    // The name is taken, and nothing of it changes.
    let taken = as_user(&server, two, "create web --memory 8M");
    assert_eq!(taken.status.code(), Some(4));
    assert_eq!(server.json("show web")["state"], "active");
    allowed(&server, one, "pause web");
    allowed(&server, one, "resume web");
    allowed(&server, one, "kill web --force");
    let told = allowed(&server, one, "events");
    assert!(told.lines().all(|line| line.contains("\"web\"")), "{told}");
    assert_eq!(allowed(&server, two, "events"), "");
    allowed(&server, one, "delete web");
    // Nobody gets into a channel by its member's name.
    server.ok("channel create secret --size 64K --between web,db");
    for name in ["web", "db"] {
        forbidden(&server, two, &format!("create {name} --memory 8M"));
    }
    server.ok("channel delete secret");
    // Whoever gets the name has nothing of who had it.
    allowed(&server, two, "create web --memory 8M");
    forbidden(&server, one, "show web");
    let told = allowed(&server, one, "events --name web");
    assert!(told.trim_end().ends_with("\"deleted\"}"), "{told}");
    server.tear_down();
}

#[test]
fn tenants_use_nothing_with_the_rights_of_the_vmm() {
    let Some(server) = shared() else {
        return;
    };
    let [one, _] = USERS;
    for words in [
        "create a --kernel /etc/hostname",
        "create a --kernel probe --initrd /etc/shadow",
        "create a --console-log /tmp/mkvmm-tenant-log",
        "create a --disk /etc/shadow,ro",
        "create a --net passt",
        "create a --net pool:lan",
        "create a --cgroup /other",
        "upgrade /bin/true",
        "pool alloc 4096",
        "pool map",
        "pool log",
        "iomem",
        "audit",
        "metrics",
        "channel list",
    ] {
        forbidden(&server, one, words);
    }
    assert!(!std::path::Path::new("/tmp/mkvmm-tenant-log").exists());
    for words in ["capacity", "health", "pool show", "list"] {
        allowed(&server, one, words);
    }
    allowed(&server, one, "create a --memory 8M");
    forbidden(&server, one, "load a --kernel /etc/hostname");
    server.tear_down();
}

#[test]
fn a_creation_can_be_repeated() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let create = "create web --memory 8M --kernel probe --label job=17 --label user=ada";
    let first = server.json(&format!("{create} --if-absent"));
    assert_eq!(
        first["spec"]["label"],
        Value::from(vec!["job=17", "user=ada"])
    );
    let again = server.json(&format!("{create} --if-absent"));
    assert_eq!(
        (&again["id"], &again["chunks"]),
        (&first["id"], &first["chunks"])
    );
    server.ok("start web");
    server.ok(&format!("{create} --if-absent"));
    // Not by other options, and not by default.
    server
        .run("create web --memory 16M --if-absent")
        .expect_refusal(4);
    server.run(create).expect_refusal(4);
    let twice = server.run("create b --memory 8M --label a=1 --label a=2");
    twice.expect_refusal(2);
    assert!(server.ok("show web").contains("job=17"));
    server.tear_down();
}

#[test]
fn events_of_one_instance_from_now_on() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create a --memory 8M");
    server.ok("create b --memory 8M");
    assert_eq!(server.ok("events --since now"), "");
    let told = server.ok("events --name b");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("\"b\""), "{told}");
    let (status, _) = server.http("GET", "/v1/events?since=soon", "");
    assert_eq!(status, 400);
    server.tear_down();
}
