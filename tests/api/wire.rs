//! Tests of the HTTP interface.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Command;

use mkvmm_test_harness::root;
use mkvmm_test_harness::tier::{skips_without_kvm, skips_without_tool};
use serde_json::Value;

use crate::server::{EVENT_TIMEOUT, Server};

#[test]
fn the_description_in_the_repository_is_the_one_that_is_served() {
    let path = root().join("docs/openapi.json");
    let served = mkvmm_manager::control::http::openapi();
    let mut served = serde_json::to_string_pretty(&served).unwrap();
    served.push('\n');
    // UPDATE=1 regenerates it.
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &served).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap();
    assert!(
        kept == served,
        "docs/openapi.json is old: run this with UPDATE=1"
    );
}

#[test]
fn curl_is_a_debugger() {
    if skips_without_kvm() || skips_without_tool("curl") {
        return;
    }
    let server = Server::start("64M@4G");
    let curl = |args: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "--unix-socket"])
            .arg(server.socket())
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |args: &[&str]| serde_json::from_str::<Value>(&curl(args)).unwrap();
    assert_eq!(json(&["http://mkvmm/v1/version"])["name"], "mkvmm");
    let body = r#"{"name": "web", "memory": 8388608, "kernel": "probe"}"#;
    assert_eq!(
        json(&["http://mkvmm/v1/instances", "-d", body])["state"],
        "loaded"
    );
    let exec = json(&["-X", "POST", "http://mkvmm/v1/instances/web/start"]);
    assert_eq!(exec["state"], "active");
    server.wait_for_state("web", "stopped");
    let refused = json(&["-X", "POST", "http://mkvmm/v1/instances/web/pause"]);
    assert_eq!(refused["error"]["code"], "wrong-state");
    assert_eq!(refused["error"]["state"], "stopped");
    assert!(curl(&["http://mkvmm/v1/metrics"]).ends_with("# EOF\n"));
    assert!(curl(&["http://mkvmm/v1/events?since=2"]).contains("\"seq\":3,"));
    assert!(json(&["http://mkvmm/v1/openapi.json"])["paths"]["/v1/pool"].is_object());
}

#[test]
fn a_body_that_comes_late_breaks_no_connection() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    // Some clients send head and body separately; this route does not use the
    // body.
    let head = "POST /v1/instances/a/start HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    stream.write_all(b"{}").unwrap();
    assert!(read_until(&mut stream, "}}").starts_with("HTTP/1.1 404 "));
    stream
        .write_all(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    assert!(read_until(&mut stream, "}").starts_with("HTTP/1.1 200 "));
}

#[test]
fn what_cannot_be_read_is_refused_in_json() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let long = "x".repeat(100 << 10);
    for (method, path, body, status) in [
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/v1/instances/no%2fname", "", 422),
        ("GET", "/v1/instances/nobody", "", 404),
        ("GET", "/v1/instances/nobody/console", "", 404),
        ("POST", "/v1/instances", "{", 400),
        ("POST", "/v1/instances", "[]", 422),
        (
            "POST",
            "/v1/instances",
            r#"{"name":"a","memory":1,"x":2}"#,
            422,
        ),
        ("POST", "/v1/instances", r#"{"name":"a","memory":-1}"#, 422),
        ("POST", "/v1/instances", &long, 413),
        ("POST", "/v1/instances?dry=1", "{}", 400),
        ("DELETE", "/v1/pool/allocations/here", "", 400),
        ("GET", "/v1/events?since=x", "", 400),
    ] {
        let (got, answer) = server.http(method, path, body);
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(
            answer["error"]["message"].is_string(),
            "{method} {path}: {answer}"
        );
    }
    server.expect_audit();
}

/// Opens a console connection and performs the upgrade.
fn attach(server: &Server, name: &str) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).expect("the console is there");
    stream
        .set_read_timeout(Some(EVENT_TIMEOUT))
        .expect("the console is there");
    write!(
        stream,
        "GET /v1/instances/{name}/console HTTP/1.1\r\nHost: x\r\n\
         Connection: upgrade\r\nUpgrade: mkvmm-console\r\n\r\n"
    )
    .expect("the console is there");
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// Reads byte by byte, so that nothing after `end` is consumed.
fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).expect("the console is there");
        text.push(byte[0]);
    }
    String::from_utf8(text).expect("the console is there")
}

#[test]
fn consoles_replay_from_the_first_byte_to_many_viewers() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M --kernel probe");
    let mut early = attach(&server, "web");
    // Pasted input that the guest does not read blocks only its sender.
    let mut typist = attach(&server, "web").try_clone().unwrap();
    typist.set_nonblocking(true).unwrap();
    let paste = vec![b'x'; 1 << 20];
    while typist.write(&paste).is_ok() {}
    server.ok("start web");
    let seen = read_until(&mut early, "probe: pass\n");
    assert!(seen.starts_with("probe: name web\n"), "{seen}");
    server.wait_for_state("web", "stopped");
    let mut late = attach(&server, "web");
    assert_eq!(read_until(&mut late, "probe: pass\n"), seen);
    server.expect_audit();
}

/// Sends `request` as it is and returns the whole answer. The server closes the
/// connection of a request that it cannot read; one that it can read must ask
/// for that, or it would be given up: whoever says that no more comes has left.
fn answer_to(server: &Server, request: &str) -> String {
    let mut stream = UnixStream::connect(server.socket()).expect("the server listens");
    stream
        .set_read_timeout(Some(EVENT_TIMEOUT))
        .expect("the server listens");
    stream
        .write_all(request.as_bytes())
        .expect("the server listens");
    if !request.contains("Connection: close") {
        stream
            .shutdown(Shutdown::Write)
            .expect("the server listens");
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server listens");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_body_that_is_broken_is_a_bad_request_and_not_a_long_one() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let post = "POST /v1/instances HTTP/1.1\r\nHost: x\r\n";
    let body = r#"{"name":"a","memory":8388608}"#;
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    let long = "x".repeat(70 << 10);
    for (what, rest, status) in [
        (
            "no number",
            format!("{chunked}ZZ\r\n{body}\r\n0\r\n\r\n"),
            "400",
        ),
        (
            "a negative one",
            format!("{chunked}-1\r\n{body}\r\n0\r\n\r\n"),
            "400",
        ),
        (
            "one too large",
            format!("{chunked}fffffffffffffffff\r\n{body}"),
            "400",
        ),
        (
            "no end of line",
            format!("{chunked}1d\r\n{body}0\r\n\r\n"),
            "400",
        ),
        ("no last chunk", format!("{chunked}1d\r\n{body}\r\n"), "400"),
        ("a cut chunk", format!("{chunked}ff\r\n{body}"), "400"),
        (
            "a cut body",
            format!("Content-Length: 100\r\n\r\n{body}"),
            "400",
        ),
        (
            "two lengths",
            "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_owned(),
            "400",
        ),
        ("no length", "Content-Length: x\r\n\r\n{}".to_owned(), "400"),
        (
            "too long",
            format!("Content-Length: 71680\r\n\r\n{long}"),
            "413",
        ),
        (
            "too long in a chunk",
            format!("{chunked}11800\r\n{long}\r\n0\r\n\r\n"),
            "413",
        ),
        (
            "whole",
            format!("Connection: close\r\n{chunked}1d\r\n{body}\r\n0\r\n\r\n"),
            "201",
        ),
    ] {
        let answer = answer_to(&server, &format!("{post}{rest}"));
        let start = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&start), "{what}: {answer}");
    }
    server.expect_audit();
}

#[test]
fn a_console_is_an_upgrade_as_rfc_9110_has_them() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create a --memory 8M");
    for (method, version, headers, status) in [
        (
            "GET",
            "1.1",
            "Connection: upgrade\r\nUpgrade: mkvmm-console",
            "101",
        ),
        (
            "GET",
            "1.1",
            "Connection: upgrade\r\nUpgrade: mkvmm-console, h2c",
            "101",
        ),
        (
            "GET",
            "1.1",
            "Connection: close, Upgrade\r\nUpgrade: h2c,MKVMM-console",
            "101",
        ),
        (
            "GET",
            "1.1",
            "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: mkvmm-console",
            "101",
        ),
        ("GET", "1.1", "Connection: upgrade\r\nUpgrade: h2c", "400"),
        (
            "GET",
            "1.1",
            "Connection: upgrade\r\nUpgrade: mkvmm-console/2",
            "400",
        ),
        ("GET", "1.1", "Upgrade: mkvmm-console", "400"),
        ("GET", "1.1", "Connection: upgrade", "400"),
        (
            "GET",
            "1.0",
            "Connection: upgrade\r\nUpgrade: mkvmm-console",
            "400",
        ),
        (
            "HEAD",
            "1.1",
            "Connection: upgrade\r\nUpgrade: mkvmm-console",
            "400",
        ),
        ("HEAD", "1.1", "Connection: close", "400"),
        (
            "POST",
            "1.1",
            "Connection: upgrade\r\nUpgrade: mkvmm-console",
            "405",
        ),
    ] {
        let path = "/v1/instances/a/console";
        let request = format!("{method} {path} HTTP/{version}\r\nHost: x\r\n{headers}\r\n\r\n");
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_until(&mut stream, "\r\n\r\n");
        let got = head.split(' ').nth(1);
        assert_eq!(got, Some(status), "{request}{head}");
    }
    // Asking about a stream that never ends is answered, and has no body.
    let ask = "HEAD /v1/events?follow=true HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = answer_to(&server, ask);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    server.expect_audit();
}
