//! Tests of leases, and of `run --on`, which holds one.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Running, Scratch};
use rustix::process::Signal;
use serde_json::Value;

use crate::server::{EVENT_TIMEOUT, Server};

/// Returns the command of a job in the pool of `server`.
fn job(server: &Server, guest: &str) -> Mkvmm {
    let guest = format!("name=job,kernel=probe,memory=8M,{guest}");
    Mkvmm::new(["run", "--on"])
        .arg(server.socket())
        .guest(guest)
}

/// Waits until its guest runs.
fn running(job: Mkvmm) -> Running {
    let mut job = job.spawn();
    job.wait_for_lines("job: probe: pass", 1);
    job
}

/// Waits until nothing is left of any job.
#[track_caller]
fn expect_gone(server: &Server) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while server.http("GET", "/v1/pool", "").1["instances"] != 0 {
        assert!(Instant::now() < end, "{}", server.ok("list"));
        std::thread::sleep(Duration::from_millis(10));
    }
    server.expect_audit();
    server.expect_empty();
}

#[test]
fn a_job_ends_as_its_guest_does() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    for (end, status, reason) in [
        ("poweroff", 0, "poweroff"),
        ("reset", 0, "reboot"),
        ("panic", 6, "panic"),
        ("crash", 6, "triple-fault"),
    ] {
        let file = scratch.path("result");
        let job = job(&server, &format!("cmdline=end={end}"))
            .arg("--result")
            .arg(&file);
        let job = job.finish();
        job.expect_code(status);
        assert!(job.stdout.contains("job: probe: pass\n"), "{job}");
        let result: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            (&result["status"], &result["reason"]),
            (&status.into(), &reason.into())
        );
        assert_eq!(result["boots"], 1);
        assert!(result["vcpu_seconds"].as_f64().unwrap() > 0.0, "{result:#}");
        let console = result["guests"][0]["console"].as_str().unwrap();
        assert!(console.contains("probe: pass"), "{console}");
        server.expect_empty();
    }
    let full = job(&server, "cpus=1").arg("--grace").arg("1s");
    server.ok("create other --memory 60M");
    full.finish().expect_refusal(5);
    server.tear_down();
    let two = job(&server, "cpus=1").guest("name=two,kernel=probe");
    two.finish().expect_refusal(2);
    job(&server, "cpus=1")
        .arg("--pool")
        .arg("1G")
        .finish()
        .expect_refusal(2);
}

#[test]
fn signals_to_a_job_are_for_its_guest() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let job = running(job(&server, "cmdline=spin").arg("--grace").arg("200ms"));
        job.signal(signal);
        job.wait().expect_code(code);
        server.expect_empty();
    }
    // A second one does not wait for the grace to be over.
    let patient = running(job(&server, "cmdline=spin").arg("--grace").arg("1h"));
    patient.signal(Signal::TERM);
    // So that it has seen the first one before the second.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.json("show job")["state"], "active");
    patient.signal(Signal::TERM);
    patient.wait().expect_code(143);
    server.expect_empty();

    let stopped = running(job(&server, "cmdline=spin"));
    stopped.signal(Signal::TSTP);
    server.wait_for_state("job", "paused");
    let process = stopped.pid().unwrap().as_raw_nonzero();
    let is_stopped = || {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.starts_with(" T"))
    };
    let end = Instant::now() + EVENT_TIMEOUT;
    while !is_stopped() {
        assert!(Instant::now() < end, "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
    stopped.signal(Signal::CONT);
    server.wait_for_state("job", "active");
    server.ok("kill job --force");
    stopped.wait().expect_code(143);
    server.expect_empty();
}

#[test]
fn nothing_is_left_of_a_job_that_is_killed() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let job = running(job(&server, "cmdline=spin"));
    assert_eq!(server.json("show job")["leased"], true);
    job.signal(Signal::KILL);
    expect_gone(&server);
    drop(job);
}

#[test]
fn a_job_whose_vmm_is_lost_may_be_run_again() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let lost = running(job(&server, "cmdline=spin"));
    let worker = server.worker_pid("job");
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    lost.wait().expect_code(75);
    server.expect_empty();
    let lost = running(job(&server, "cmdline=spin"));
    server.running.signal(Signal::KILL);
    lost.wait().expect_code(75);
    job(&server, "cmdline=spin").finish().expect_refusal(75);
}

#[test]
fn a_lease_that_is_not_renewed_ends_the_guest() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let reachable = scratch.file("reachable", b"");
    let renew = format!("test -e {}", reachable.display());
    let cut_off = job(&server, "cmdline=spin")
        .arg("--lease")
        .arg("5s")
        .arg("--renew")
        .arg(&renew);
    let cut_off = running(cut_off);
    // More than twice as long as its lease.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(server.json("show job")["state"], "active");
    fs::remove_file(&reachable).unwrap();
    cut_off.wait().expect_code(75);
    expect_gone(&server);
    // And so does one whose holder is stopped.
    let held = job(&server, "cmdline=spin").arg("--lease").arg("5s");
    let held = running(held);
    held.signal(Signal::STOP);
    expect_gone(&server);
    held.signal(Signal::CONT);
    held.wait().expect_code(75);
}

#[test]
fn a_leased_instance_without_a_holder_ends() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    let body = r#"{"name": "a", "memory": "8M", "kernel": "probe"}"#;
    assert_eq!(server.http("POST", "/v1/instances?lease=true", body).0, 201);
    let (status, refusal) = server.http("POST", "/v1/instances/a/lease", "");
    assert_eq!(status, 400, "{refusal}");
    // The second holder replaces the first.
    let take = || {
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        let request = "POST /v1/instances/a/lease HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
                       Upgrade: mkvmm-lease\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
        stream
    };
    let (first, second) = (take(), take());
    drop(first);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.json("show a")["state"], "loaded");
    drop(second);
    expect_gone(&server);
    server.ok("create b --memory 8M");
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let request = "POST /v1/instances/b/lease HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\n\
                   Upgrade: mkvmm-lease\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 422");
    server.tear_down();
}
