//! Lets 64 concurrent clients issue random legal and illegal verbs on 16
//! instances.
//!
//! `MKVMM_CROWD_SECONDS` sets the duration; the default is 5.

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::Random;
use mkvmm_test_harness::tier::skips_without_kvm;

use crate::server::{Server, http};

const CLIENTS: u64 = 64;
const STATES: [&str; 7] = [
    "ready", "loaded", "active", "paused", "stopped", "failed", "cleaning",
];

/// Returns a random request: method, path, body.
fn request(random: &mut Random) -> (&'static str, String, String) {
    let name = format!("g{}", random.below(16));
    let path = |rest: &str| format!("/v1/instances/{name}{rest}");
    let post = |rest: &str| ("POST", path(rest), String::new());
    match random.below(12) {
        0 | 1 => {
            let size = (4 + random.below(3) * 2) << 20;
            let kernel = match random.below(3) {
                0 => "",
                1 => r#","kernel":"probe""#,
                _ => r#","kernel":"probe","cmdline":"spin""#,
            };
            let body = format!(r#"{{"name":"{name}","memory":{size}{kernel}}}"#);
            ("POST", "/v1/instances".to_owned(), body)
        }
        2 => ("POST", path("/load"), r#"{"kernel":"probe"}"#.to_owned()),
        3 | 4 => post("/start"),
        5 => post("/pause"),
        6 => post("/resume"),
        7 => ("POST", path("/kill"), r#"{"force":true}"#.to_owned()),
        8 => post("/unload"),
        9 => ("DELETE", path(""), String::new()),
        10 => ("POST", path("/allocations"), r#"{"size":4096}"#.to_owned()),
        _ => ("GET", path(""), String::new()),
    }
}

#[test]
fn a_crowd_of_clients_leaves_the_books_right() {
    if skips_without_kvm() {
        return;
    }
    let seconds = env::var("MKVMM_CROWD_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(5);
    let server = Server::start("96M@4G");
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, answers, socket) = (&stop, &answers, server.socket());
            scope.spawn(move || {
                let mut random = Random(client);
                while !stop.load(Ordering::Relaxed) {
                    let (method, path, body) = request(&mut random);
                    let (status, answer) = http(socket, method, &path, &body);
                    let expected = matches!(status, 200 | 201 | 404 | 409 | 507);
                    assert!(expected, "{method} {path} {body}: {status} {answer}");
                    if let Some(state) = answer["state"].as_str() {
                        assert!(STATES.contains(&state), "{state}");
                    }
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut audits = 0;
        while Instant::now() < end {
            server.expect_audit();
            audits += 1;
            thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(audits > 0);
    });
    let answers = answers.into_inner();
    assert!(answers > CLIENTS, "only {answers} answers");
    server.expect_audit();
    // All remaining instances can be deleted.
    let (_, all) = server.http("GET", "/v1/instances", "");
    for instance in all.as_array().unwrap() {
        let name = instance["name"].as_str().unwrap();
        server.http(
            "POST",
            &format!("/v1/instances/{name}/kill"),
            r#"{"force":true}"#,
        );
        let (status, answer) = server.http("DELETE", &format!("/v1/instances/{name}"), "");
        assert_eq!(status, 200, "{answer}");
    }
    let (_, pool) = server.http("GET", "/v1/pool", "");
    assert_eq!(pool["used"], 0, "{pool}");
}
