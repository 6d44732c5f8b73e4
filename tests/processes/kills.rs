//! Kills workers from outside while a crowd of clients uses them.
//!
//! `MKVMM_CROWD_SECONDS` sets the duration; the default is 5.

use std::collections::BTreeMap;
use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, http};
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Random, Server};
use serde_json::Value;

const CLIENTS: u64 = 16;
const INSTANCES: u64 = 8;
/// Workers that are killed at least, one of a running guest among them.
const ENOUGH: u32 = 20;

/// Returns a random request: method, path, body.
fn request(random: &mut Random) -> (&'static str, String, String) {
    let name = format!("g{}", random.below(INSTANCES));
    let path = |rest: &str| format!("/v1/instances/{name}{rest}");
    match random.below(9) {
        0 | 1 => {
            // `hold` marks the end of its memory.
            let what = ["spin", "hold=1", "hold=1 spin"];
            let cmdline = random.pick(&what);
            let body = format!(
                r#"{{"name":"{name}","memory":4194304,"kernel":"probe","cmdline":"{cmdline}"}}"#
            );
            ("POST", "/v1/instances".to_owned(), body)
        }
        2 => ("POST", path("/load"), r#"{"kernel":"probe"}"#.to_owned()),
        3..=5 => ("POST", path("/start"), String::new()),
        6 => ("POST", path("/pause"), String::new()),
        7 => ("POST", path("/kill"), r#"{"force":true}"#.to_owned()),
        _ => ("DELETE", path(""), String::new()),
    }
}

/// Fails unless the response is valid for a client whose instance's worker may
/// disappear at any moment.
fn check(asked: &str, status: u16, answer: &Value) {
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    let is_expected = match status {
        200 | 201 | 404 | 409 | 507 => true,
        500 => message.contains("worker"),
        _ => false,
    };
    assert!(is_expected, "{asked}: {status} {answer}");
}

/// Kills workers at random until `stop`, and says when it has killed enough of
/// them. Returns how many, by the state of their instances.
fn hunt(server: &Server, stop: &AtomicBool, enough: &AtomicBool) -> BTreeMap<String, u32> {
    let (mut random, mut kills) = (Random(99), BTreeMap::new());
    while !stop.load(Ordering::Relaxed) {
        let workers = server.running.processes("worker");
        if !workers.is_empty() {
            let worker = random.pick(&workers);
            let path = format!("/v1/instances/{}", worker.label);
            let (_, instance) = server.http("GET", &path, "");
            if worker.kill() {
                let state = instance["state"].as_str().unwrap_or("none");
                *kills.entry(state.to_owned()).or_default() += 1;
                let all: u32 = kills.values().sum();
                let is_enough = all >= ENOUGH && kills.contains_key("active");
                enough.store(is_enough, Ordering::Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(random.below(20)));
    }
    kills
}

/// Uses `server` for a while with workers being killed.
fn crowd(server: &Server) -> BTreeMap<String, u32> {
    let seconds = env::var("MKVMM_CROWD_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(5);
    let (stop, enough) = (AtomicBool::new(false), AtomicBool::new(false));
    let answers = Mutex::new(BTreeMap::<u16, u32>::new());
    let kills = thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, answers, socket) = (&stop, &answers, server.socket());
            scope.spawn(move || {
                let mut random = Random(client);
                while !stop.load(Ordering::Relaxed) {
                    let (method, path, body) = request(&mut random);
                    let (status, answer) = http(socket, method, &path, &body);
                    check(&format!("{method} {path} {body}"), status, &answer);
                    let mut answers = answers.lock().expect("nobody has failed");
                    *answers.entry(status).or_default() += 1;
                }
            });
        }
        let hunter = scope.spawn(|| hunt(server, &stop, &enough));
        let end = Instant::now() + Duration::from_secs(seconds);
        // On a busy machine it takes longer.
        let last = end + EVENT_TIMEOUT;
        while Instant::now() < end || !enough.load(Ordering::Relaxed) && Instant::now() < last {
            server.expect_audit();
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        hunter.join().expect("it has not failed")
    });
    let answers = answers.into_inner().expect("nobody has failed");
    eprintln!("answers {answers:?}, kills by state {kills:?}");
    assert!(
        answers.get(&200).is_some_and(|count| *count > 20),
        "{answers:?}"
    );
    kills
}

fn killed_workers_take_nobody_along(backing: &[&str]) {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start_with("40M@4G", backing);
    let kills = crowd(&server);
    let all: u32 = kills.values().sum();
    assert!(all >= ENOUGH && kills.contains_key("active"), "{kills:?}");
    server.tear_down();
    assert!(
        server.running.processes("").is_empty(),
        "processes are left"
    );
    // The next owner of the memory finds no data in it.
    server.ok("create next --memory 40M");
    for (addr, hex) in server.memory("next") {
        assert!(
            hex.bytes().all(|digit| digit == b'0'),
            "the MiB at {addr:#x}"
        );
    }
    server.tear_down();
}

#[test]
fn killed_workers_take_nobody_along_in_lazy_memory() {
    killed_workers_take_nobody_along(&[]);
}

#[test]
fn killed_workers_take_nobody_along_in_populated_memory() {
    killed_workers_take_nobody_along(&["--prealloc"]);
}
