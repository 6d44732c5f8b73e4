//! Everything at once, for as long as one likes: random instances with guests
//! that reset, panic, crash and touch what is not theirs, processes killed from
//! outside, a pool in pieces, and clients that mean no good. In calms between,
//! all is taken down: every byte is back, and nothing has grown.
//!
//! In a second test, managers are killed as well, one after the other.
//!
//! `MKVMM_STORM_SECONDS` says for how long; 20 when it is not set. With
//! `MKVMM_SOAK_CSV` what was measured in each calm goes to that file:
//! `scripts/soak --minutes` draws it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::try_http;
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Kept, Process, Random, Scratch, Server};
use rustix::process::Pid;
use serde_json::Value;

const CLIENTS: u64 = 6;
const INSTANCES: u64 = 12;
/// How long a storm lasts before the next calm.
const STORM: Duration = Duration::from_secs(9);
/// Descriptors and threads that come and go, as in `soak`.
const NOISE: u64 = 2;
/// KiB that the manager may grow by, from the calm after the first fifth on: in
/// a short storm the event log is still filling then.
const GROWTH_KIB: u64 = 8192;
/// How long it may take until all that is being taken down is gone.
const SETTLING: Duration = Duration::from_secs(60);

/// How guests end, or do not.
const CMDLINES: [&str; 10] = [
    "",
    "end=panic",
    "end=crash",
    "end=poweroff",
    "end=acpi-reset",
    "end=halt",
    "spin",
    "hold=1 spin",
    // Of the pool, and mostly somebody else's.
    "touch=0x100200000,0x104000000,0x10fff0000 end=panic",
    "shell",
];

/// What was counted during the storms.
#[derive(Debug, Default)]
struct Counts {
    answers: Mutex<BTreeMap<u16, u64>>,
    kills: AtomicU64,
    managers: AtomicU64,
    hostile: AtomicU64,
    /// The longest answer to `GET /v1/pool` of a storm, milliseconds.
    slowest_ms: AtomicU64,
}

/// What is stormed.
enum House {
    /// A manager, and its children.
    Server(Server),
    /// A keeper with its children, and one manager after the other.
    Kept(Mutex<Kept>, PathBuf),
}

impl House {
    fn kept(pool: &str, timeout: Duration) -> Self {
        let mut kept = Kept::new(pool, &[], timeout);
        kept.serve();
        let socket = kept.socket().to_owned();
        Self::Kept(Mutex::new(kept), socket)
    }

    fn socket(&self) -> &Path {
        match self {
            Self::Server(server) => server.socket(),
            Self::Kept(_, socket) => socket,
        }
    }

    /// Sends a request; returns `None` if the manager was killed meanwhile.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        match self {
            Self::Server(server) => Some(server.http(method, path, body)),
            Self::Kept(_, socket) => try_http(socket, method, path, body),
        }
    }

    /// Uses the manager that there is now, which stays meanwhile.
    fn with<T>(&self, using: impl FnOnce(&Server) -> T) -> T {
        match self {
            Self::Server(server) => using(server),
            Self::Kept(kept, _) => using(&kept.lock().expect("nobody has failed")),
        }
    }

    /// Returns the children that can be killed.
    fn children(&self) -> Vec<Process> {
        match self {
            Self::Server(server) => server.running.processes(""),
            Self::Kept(kept, _) => kept.lock().expect("nobody has failed").processes(),
        }
    }

    /// Returns the processes that must not grow.
    fn processes(&self) -> Vec<Pid> {
        match self {
            Self::Server(server) => vec![server.running.pid().expect("it runs")],
            Self::Kept(kept, _) => {
                let kept = kept.lock().expect("nobody has failed");
                vec![kept.manager(), kept.keeper()]
            }
        }
    }
}

/// What was measured in a calm, of all processes that must not grow.
struct Sample {
    second: u64,
    requests: u64,
    kills: u64,
    managers: u64,
    hostile: u64,
    slowest_ms: u64,
    descriptors: u64,
    threads: u64,
    rss_kib: u64,
}

/// One request: method, path, body.
fn request(random: &mut Random) -> (&'static str, String, String) {
    let name = format!("g{}", random.below(INSTANCES));
    let path = |rest: &str| format!("/v1/instances/{name}{rest}");
    let post = |rest: &str| ("POST", path(rest), String::new());
    let cmdline = *random.pick(&CMDLINES);
    match random.below(18) {
        0..=2 => {
            let size = (4 + random.below(16)) << 20;
            let order = random.pick(&[12, 12, 12, 16, 20, 21]);
            let policy = random.pick(&["log", "stop"]);
            let (reboot, panic) = (
                random.pick(&["stop", "restart"]),
                random.pick(&["stop", "restart"]),
            );
            let cpus = 1 + random.below(3);
            let body = format!(
                r#"{{"name":"{name}","memory":{size},"order":{order},"cpus":{cpus},"violation":"{policy}","on-reboot":"{reboot}","on-panic":"{panic}","kernel":"probe","cmdline":"{cmdline}"}}"#
            );
            ("POST", "/v1/instances".to_owned(), body)
        }
        3 => {
            let body = format!(r#"{{"kernel":"probe","cmdline":"{cmdline}"}}"#);
            ("POST", path("/load"), body)
        }
        4..=7 => post("/start"),
        8 => post("/pause"),
        9 => post("/resume"),
        10 => ("POST", path("/kill"), r#"{"grace_ms":20}"#.to_owned()),
        11 => ("POST", path("/kill"), r#"{"force":true}"#.to_owned()),
        12 => post("/unload"),
        13 => ("DELETE", path(""), String::new()),
        14 => {
            let (size, align) = (4096 << random.below(9), 4096 << random.below(5));
            let body = format!(r#"{{"size":{size},"align":{align}}}"#);
            ("POST", "/v1/pool/allocations".to_owned(), body)
        }
        15 => {
            // Where it may have been allocated, or not.
            let addr = (4_u64 << 30) + 4096 * random.below(40_000);
            (
                "DELETE",
                format!("/v1/pool/allocations/{addr}"),
                String::new(),
            )
        }
        16 => ("GET", path("/regs"), String::new()),
        _ => ("GET", "/v1/iomem".to_owned(), String::new()),
    }
}

/// A client that does what is allowed, as far as it can know.
fn client(house: &House, seed: u64, stop: &AtomicBool, counts: &Counts) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let (method, path, body) = request(&mut random);
        let Some((status, answer)) = house.ask(method, &path, &body) else {
            continue;
        };
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        let is_expected = match status {
            200 | 201 | 404 | 409 | 422 | 503 | 507 => true,
            // Its process may be gone at any moment.
            500 => ["worker", "unpacker", "cleaner"]
                .iter()
                .any(|who| message.contains(who)),
            _ => false,
        };
        assert!(is_expected, "{method} {path} {body}: {status} {answer}");
        let mut answers = counts.answers.lock().expect("nobody has failed");
        *answers.entry(status).or_default() += 1;
    }
}

/// Kills children of the manager, whatever they are doing.
fn hunter(house: &House, seed: u64, stop: &AtomicBool, counts: &Counts) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let children = house.children();
        if !children.is_empty() && random.pick(&children).kill() {
            counts.kills.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(20 + random.below(200)));
    }
}

/// Kills managers, if there are to be several, and starts the next one each time.
fn reaper(house: &House, seed: u64, stop: &AtomicBool, counts: &Counts) {
    let House::Kept(kept, _) = house else {
        return;
    };
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(300 + random.below(1500)));
        kept.lock().expect("nobody has failed").replace_manager();
        counts.managers.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client that sends what it likes, says nothing, or leaves in the middle.
fn hostile(house: &House, seed: u64, stop: &AtomicBool, counts: &Counts) {
    let mut random = Random(seed);
    let mut kept = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = UnixStream::connect(house.socket()) else {
            // Its manager was killed, and the next one does not listen yet.
            assert!(matches!(house, House::Kept(..)), "nobody listens");
            continue;
        };
        let name = format!("g{}", random.below(INSTANCES));
        let text = match random.below(7) {
            0 => format!(
                "GET /v1/instances/{name}/console HTTP/1.1\r\nHost: x\r\n\
                 Connection: upgrade\r\nUpgrade: mkvmm-console\r\n\r\ntyped"
            ),
            1 => "GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            2 => "POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{"
                .to_owned(),
            3 => "POST /v1/plan HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
                .to_owned(),
            4 => "GET /v1/pool HTTP/1.1\r\nHost: ".to_owned(),
            5 => (0..200)
                .map(|_| char::from(b' ' + u8::try_from(random.below(90)).expect("small")))
                .collect(),
            _ => String::new(),
        };
        // It may have hung up on this one already.
        let _ = stream.write_all(text.as_bytes());
        if random.below(2) == 0 {
            let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
            let _ = stream.read(&mut [0; 512]);
        }
        if random.below(3) == 0 {
            kept.push(stream);
        }
        if kept.len() > 30 {
            kept.clear();
        }
        counts.hostile.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(random.below(20)));
    }
}

/// Asks a question that takes no time, and looks at the books.
fn watcher(house: &House, stop: &AtomicBool, counts: &Counts) {
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if let Some((status, _)) = house.ask("GET", "/v1/pool", "") {
            assert_eq!(status, 200);
            let ms = u64::try_from(asked.elapsed().as_millis()).expect("small");
            counts.slowest_ms.fetch_max(ms, Ordering::Relaxed);
        }
        if let Some((status, audit)) = house.ask("GET", "/v1/audit", "") {
            assert_eq!((status, &audit["ok"]), (200, &true.into()), "{audit:#}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Runs everybody for a while.
fn storm(house: &House, round: u64, length: Duration, counts: &Counts) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        for number in 0..CLIENTS {
            scope.spawn(move || client(house, 1000 * round + number, stop, counts));
        }
        scope.spawn(move || hunter(house, round, stop, counts));
        scope.spawn(move || reaper(house, round, stop, counts));
        scope.spawn(move || hostile(house, round, stop, counts));
        scope.spawn(move || watcher(house, stop, counts));
        thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
    });
}

/// Takes everything down, allocations too, and waits until it is gone.
fn calm(house: &House) {
    let end = Instant::now() + SETTLING;
    loop {
        let pool = house.with(take_down);
        let is_empty = pool["used"] == 0 && pool["instances"] == 0;
        if is_empty && house.children().is_empty() {
            return house.with(Server::expect_empty);
        }
        assert!(
            Instant::now() < end,
            "not all is back: {pool}\n{}",
            house.with(|server| server.ok("iomem"))
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Deletes what can be deleted now; returns the pool.
fn take_down(server: &Server) -> Value {
    let (_, all) = server.http("GET", "/v1/instances", "");
    let all = all.as_array().expect("a list").clone();
    for name in all.iter().filter_map(|instance| instance["name"].as_str()) {
        let path = format!("/v1/instances/{name}");
        server.http("POST", &format!("{path}/kill"), r#"{"force":true}"#);
        server.http("DELETE", &path, "");
    }
    let (_, map) = server.http("GET", "/v1/iomem", "");
    for row in map.as_array().expect("rows") {
        if row["name"]
            .as_str()
            .is_some_and(|name| name.contains("allocation"))
        {
            let addr = row["start"].as_u64().expect("a row is a range");
            server.http("DELETE", &format!("/v1/pool/allocations/{addr}"), "");
        }
    }
    server.expect_audit();
    server.http("GET", "/v1/pool", "").1
}

impl Sample {
    fn take(house: &House, began: Instant, counts: &Counts) -> Self {
        // Connections of clients that have left are being closed, those of refused ones
        // after a second.
        thread::sleep(Duration::from_millis(1500));
        let processes = house.processes();
        let entries = |of: &str| {
            let count = |process: &Pid| {
                let entries = fs::read_dir(format!("/proc/{}/{of}", process.as_raw_pid()));
                entries.expect("it runs").count() as u64
            };
            processes.iter().map(count).sum()
        };
        let answers = counts.answers.lock().expect("nobody has failed");
        Self {
            second: began.elapsed().as_secs(),
            requests: answers.values().sum(),
            kills: counts.kills.load(Ordering::Relaxed),
            managers: counts.managers.load(Ordering::Relaxed),
            hostile: counts.hostile.load(Ordering::Relaxed),
            slowest_ms: counts.slowest_ms.swap(0, Ordering::Relaxed),
            descriptors: entries("fd"),
            threads: entries("task"),
            rss_kib: processes.iter().copied().map(rss_kib).sum(),
        }
    }
}

/// Returns the resident memory of a process in KiB.
fn rss_kib(process: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_pid()));
    let status = status.expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("a number of KiB")
}

fn write_csv(samples: &[Sample]) {
    let Some(path) = env::var_os("MKVMM_SOAK_CSV") else {
        return;
    };
    let mut text =
        "second,requests,kills,managers,hostile,slowest_ms,descriptors,threads,rss_kib\n"
            .to_owned();
    for s in samples {
        let row = [
            s.second,
            s.requests,
            s.kills,
            s.managers,
            s.hostile,
            s.slowest_ms,
            s.descriptors,
            s.threads,
            s.rss_kib,
        ];
        let row: Vec<String> = row.iter().map(u64::to_string).collect();
        writeln!(text, "{}", row.join(",")).expect("a string takes it");
    }
    fs::write(path, text).expect("the file can be written");
}

/// Returns how long it storms, and the time that everything may take: the calms
/// may be as long as the storms.
fn length() -> (Duration, Duration) {
    let seconds = env::var("MKVMM_STORM_SECONDS").ok();
    let seconds = seconds.map_or(20, |text| text.parse().expect("a number"));
    let length = Duration::from_secs(seconds);
    (length, 4 * length + Duration::from_secs(300))
}

#[test]
fn after_every_storm_all_is_back_and_nothing_has_grown() {
    if skips_without_kvm() {
        return;
    }
    let (length, timeout) = length();
    let server = Server::start_in(Scratch::new(), |serve| serve, "160M@4G", timeout);
    let counts = weather(&House::Server(server), length);
    assert_eq!(counts.managers.into_inner(), 0);
}

#[test]
fn so_it_is_where_managers_are_killed_in_the_storm() {
    if skips_without_kvm() {
        return;
    }
    let (length, timeout) = length();
    let counts = weather(&House::kept("160M@4G", timeout), length);
    let managers = counts.managers.into_inner();
    announce(&format!("{managers} managers"));
    assert!(managers > 2, "{managers} managers");
}

/// Storms and calms for `length`; fails unless all is back after each, and
/// nothing has grown in the end.
fn weather(house: &House, length: Duration) -> Counts {
    let (began, counts) = (Instant::now(), Counts::default());
    let mut samples = Vec::new();
    for round in 1.. {
        storm(house, round, STORM.min(length), &counts);
        calm(house);
        samples.push(Sample::take(house, began, &counts));
        write_csv(&samples);
        if began.elapsed() >= length {
            break;
        }
    }
    expect_all_happened(&counts);
    expect_no_growth(&samples);
    counts
}

fn expect_all_happened(counts: &Counts) {
    let answers = counts.answers.lock().expect("nobody has failed");
    let (kills, hostile) = (
        counts.kills.load(Ordering::Relaxed),
        counts.hostile.load(Ordering::Relaxed),
    );
    announce(&format!(
        "answers {answers:?}, {kills} kills, {hostile} hostile clients"
    ));
    assert!(
        answers.get(&200).is_some_and(|count| *count > 20),
        "{answers:?}"
    );
    assert!(
        kills > 5 && hostile > 50,
        "{kills} kills, {hostile} hostile clients"
    );
}

fn expect_no_growth(samples: &[Sample]) {
    // Of the first fifth, everything that fills up once may be full.
    let settled = &samples[samples.len() / 5];
    let last = samples.last().expect("there was a storm");
    let grown = |of: fn(&Sample) -> u64| (of(settled), of(last));
    let (descriptors, threads) = (grown(|s| s.descriptors), grown(|s| s.threads));
    let memory = grown(|s| s.rss_kib);
    announce(&format!(
        "descriptors {descriptors:?}, threads {threads:?}, KiB {memory:?}"
    ));
    assert!(
        descriptors.1 <= descriptors.0 + NOISE,
        "descriptors {descriptors:?}"
    );
    assert!(threads.1 <= threads.0 + NOISE, "threads {threads:?}");
    assert!(memory.1 <= memory.0 + GROWTH_KIB, "KiB {memory:?}");
}
