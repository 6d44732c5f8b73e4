//! Tests of the workers that wait for a guest (`serve --warm`): they are like any
//! other, each is used once, and nobody notices what happens to them.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::kept::expect_gone;
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Kept, Mkvmm, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const POOL: &str = "64M@4G";

/// Returns a server that keeps `count` workers ready.
fn with_stock(count: &str) -> Server {
    Server::start_with(POOL, &["--warm", count])
}

fn pids(server: &Server) -> Vec<i32> {
    let (_, version) = server.http("GET", "/v1/version", "");
    let pids = version["warm"]["pids"].as_array().cloned();
    let pids = pids.unwrap_or_default();
    assert_eq!(version["warm"]["ready"], pids.len(), "{version}");
    let number = |pid: &Value| i32::try_from(pid.as_i64().expect("a number"));
    pids.iter().map(|p| number(p).expect("a pid")).collect()
}

#[track_caller]
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while !is_there() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until as many as that are ready; returns their process IDs.
#[track_caller]
fn wait_for_stock(server: &Server, count: usize) -> Vec<i32> {
    wait_for("the stock is not full", || pids(server).len() == count);
    pids(server)
}

/// Makes a guest that runs until it is killed; returns the process ID of its worker.
#[track_caller]
fn start(server: &Server, name: &str) -> i32 {
    server.ok(&format!(
        "create {name} --memory 8M --kernel probe --cmdline spin"
    ));
    server.ok(&format!("start {name}"));
    server.worker_pid(name).as_raw_pid()
}

fn send(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a process");
    kill_process(pid, signal).expect("it lives");
}

fn place(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

fn title(pid: i32) -> String {
    let line = fs::read(place(pid).join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    line.trim_end_matches('\0').to_owned()
}

/// Returns a sample of a series in the metrics.
#[track_caller]
fn metric(server: &Server, series: &str) -> u64 {
    let text = server.ok("metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.trim().parse().expect("a number")
}

#[test]
fn workers_wait_serve_one_boot_and_are_replaced() {
    if skips_without_kvm() {
        return;
    }
    let server = with_stock("2");
    let waiting = wait_for_stock(&server, 2);
    for pid in &waiting {
        assert_eq!(title(*pid), "mkvmm-worker: (waits)");
    }
    let (_, pool) = server.http("GET", "/v1/pool", "");
    assert_eq!((&pool["used"], &pool["instances"]), (&0.into(), &0.into()));
    let worker = start(&server, "web");
    assert_eq!(worker, waiting[0], "the oldest one was taken");
    assert_eq!(title(worker), "mkvmm-worker: web");
    let now = wait_for_stock(&server, 2);
    assert!(!now.contains(&worker) && now.contains(&waiting[1]));
    server.ok("kill web --force");
    assert!(!place(worker).exists(), "it was used once");
    // Also for a second boot of the same instance.
    server.ok("start web");
    assert_eq!(server.worker_pid("web").as_raw_pid(), now[0]);
    assert_eq!(metric(&server, "mkvmm_warm_workers_wanted "), 2);
    let taken = r#"mkvmm_warm_workers_ended_total{result="taken"} "#;
    assert_eq!(metric(&server, taken), 2);
    server.ok("kill web --force");
    server.ok("delete web");
    server.expect_audit();
    server.running.signal(Signal::TERM);
    server.running.wait().expect_code(0);
    // It has ended with the manager.
    for pid in now {
        expect_gone(Pid::from_raw(pid).expect("a process"));
    }
}

#[test]
fn a_worker_that_waited_is_confined_like_one_that_did_not() {
    if skips_without_kvm() {
        return;
    }
    let (cold, warm) = (Server::start(POOL), with_stock("1"));
    let waiting = wait_for_stock(&warm, 1)[0];
    let status = |pid: i32, key: &str| {
        let text = fs::read_to_string(place(pid).join("status")).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim().to_owned()
    };
    let keys = [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapEff:",
        "CapBnd:",
        "NoNewPrivs:",
        "Seccomp:",
        "Seccomp_filters:",
        "SigBlk:",
        "SigIgn:",
        "Cpus_allowed:",
    ];
    // Before it has an instance, and when it has one.
    let before: Vec<String> = keys.iter().map(|key| status(waiting, key)).collect();
    let [one, other] = [start(&cold, "a"), start(&warm, "a")];
    assert_eq!(other, waiting);
    for (key, before) in keys.iter().zip(before) {
        assert_eq!(status(one, key), before, "{key}");
        assert_eq!(status(other, key), before, "{key}");
    }
    let limits = |pid: i32| fs::read_to_string(place(pid).join("limits")).expect("it lives");
    assert_eq!(limits(one), limits(other));
    // Both have the same kinds of descriptors: nothing is left of the wait.
    let kinds = |pid: i32| {
        let files = fs::read_dir(place(pid).join("fd")).expect("the owner may look");
        let kinds = files
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok());
        let kind = |path: PathBuf| {
            let name = path.to_string_lossy().into_owned();
            name.split([':', '[']).next().map(str::to_owned)
        };
        let mut kinds: Vec<String> = kinds.filter_map(kind).collect();
        kinds.sort();
        kinds
    };
    if rustix::process::geteuid().is_root() {
        assert_eq!(kinds(one), kinds(other));
    }
}

#[test]
fn a_worker_that_dies_while_it_waits_is_replaced() {
    if skips_without_kvm() {
        return;
    }
    let server = with_stock("2");
    let waiting = wait_for_stock(&server, 2);
    send(waiting[0], Signal::KILL);
    wait_for("its death is noticed", || {
        !pids(&server).contains(&waiting[0])
    });
    let worker = start(&server, "web");
    assert_eq!(worker, waiting[1]);
    wait_for_stock(&server, 2);
    let lost = r#"mkvmm_warm_workers_ended_total{result="lost"} "#;
    assert_eq!(metric(&server, lost), 1);
}

#[test]
fn a_stopped_worker_is_nobodys() {
    if skips_without_kvm() {
        return;
    }
    let server = with_stock("2");
    let waiting = wait_for_stock(&server, 2);
    send(waiting[0], Signal::STOP);
    wait_for("it is stopped", || {
        let stat = fs::read_to_string(place(waiting[0]).join("stat")).unwrap_or_default();
        stat.contains(") T ")
    });
    assert_eq!(start(&server, "web"), waiting[1]);
    wait_for("it is ended", || !place(waiting[0]).exists());
    // With none left that goes on, a new one is started.
    for pid in wait_for_stock(&server, 2) {
        send(pid, Signal::STOP);
    }
    let stopped = pids(&server);
    let worker = start(&server, "db");
    assert!(!stopped.contains(&worker));
    server.expect_audit();
}

#[test]
fn a_stock_gives_way_to_instances_that_need_its_place() {
    if skips_without_kvm() {
        return;
    }
    // Few descriptors, of which the stock takes some.
    let server = Server::start_as("1G@4G", |serve| {
        serve.arg("--warm").arg("4").after("ulimit -n 200")
    });
    wait_for("the stock has some", || !pids(&server).is_empty());
    let mut refused = String::new();
    for number in 0..100 {
        let run = server.run(&format!("create g{number} --memory 3M"));
        if run.code() != Some(0) {
            refused = run.stderr.clone();
            break;
        }
    }
    // Only the descriptors of instances are short in the end.
    assert!(refused.contains("descriptors"), "{refused}");
    assert_eq!(pids(&server), Vec::<i32>::new(), "the stock has given way");
    let given = r#"mkvmm_warm_workers_ended_total{result="given-back"} "#;
    assert!(metric(&server, given) > 0);
    server.expect_audit();
}

#[test]
fn a_guest_that_is_to_be_limited_is_started_in_its_cgroup() {
    if skips_without_kvm() {
        return;
    }
    let server = with_stock("1");
    let waiting = wait_for_stock(&server, 1);
    let body = r#"{"name":"web","memory":8388608,"kernel":"probe","thread-limit":40}"#;
    // It may be that nobody is allowed to limit anything here.
    server.http("POST", "/v1/instances", body);
    server.http("POST", "/v1/instances/web/start", "");
    assert_eq!(
        pids(&server),
        waiting,
        "not even then one is used that waited"
    );
}

#[test]
fn the_next_manager_has_a_stock_of_its_own() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &["--warm", "2"]);
    let waiting = wait_for_stock(&kept, 2);
    assert_eq!(start(&kept, "web"), waiting[0]);
    let waiting = wait_for_stock(&kept, 2);
    kept.replace_manager();
    for pid in &waiting {
        assert!(!place(*pid).exists(), "an earlier manager's is not used");
    }
    let now = wait_for_stock(&kept, 2);
    assert!(now.iter().all(|pid| !waiting.contains(pid)));
    assert_eq!(start(&kept, "db"), now[0]);
    assert_eq!(title(now[0]), "mkvmm-worker: db");
    for name in ["web", "db"] {
        kept.ok(&format!("kill {name} --force"));
        kept.ok(&format!("delete {name}"));
    }
    kept.expect_audit();
    kept.end();
}

#[test]
fn more_than_may_wait_are_refused() {
    let run = Mkvmm::new(["serve", "--pool", POOL, "--warm", "65"]).finish();
    let said = run.expect_refusal(2);
    assert!(said.contains("--warm 65: at most 64"), "{said}");
}
