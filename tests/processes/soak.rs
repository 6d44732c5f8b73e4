//! Tests that nothing grows while instances are created, run and deleted
//! repeatedly.
//!
//! `MKVMM_SOAK_CYCLES` sets the number of cycles; the default is 200. With
//! `MKVMM_SOAK_CSV` the measurements are written to that file, which
//! `scripts/soak` plots.

use std::env;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::{Scratch, Server};

/// The number of cycles after whose first tenth the manager's event log is
/// full.
const MANY: usize = 10_000;
/// The KiB by which the manager may grow from the first tenth to the last, with
/// a full event log and with one that fills up.
const GROWTH_KIB: (u64, u64) = (256, 2048);

/// The number of temporary descriptors and threads: of connections being
/// closed, and of pool threads that end when they are idle.
const NOISE: u64 = 2;

/// The measurements after a cycle.
struct Sample {
    /// The duration of the cycle in milliseconds.
    ms: u128,
    descriptors: u64,
    /// The number of children of the manager.
    processes: u64,
    threads: u64,
    rss_kib: u64,
    free_extents: u64,
}

impl Sample {
    fn take(server: &Server, began: Instant) -> Self {
        let ms = began.elapsed().as_millis();
        let (_, pool) = server.http("GET", "/v1/pool", "");
        assert_eq!(pool["used"], 0, "{pool}");
        let process = server.running.pid().expect("it runs").as_raw_pid();
        let entries = |of: &str| {
            let entries = fs::read_dir(format!("/proc/{process}/{of}"));
            entries.expect("it runs").count() as u64
        };
        Self {
            ms,
            descriptors: entries("fd"),
            processes: server.running.processes("").len() as u64,
            threads: entries("task"),
            rss_kib: server.running.status_kib("VmRSS"),
            free_extents: pool["free_extents"].as_u64().expect("a number"),
        }
    }
}

/// Runs one life cycle: created, loaded, started, ended and deleted.
fn cycle(server: &Server, number: usize) {
    let post = |path: &str, body: &str| {
        let (status, answer) = server.http("POST", path, body);
        assert!(
            matches!(status, 200 | 201),
            "cycle {number}, {path}: {status} {answer}"
        );
    };
    post("/v1/instances", r#"{"name":"a","memory":8388608}"#);
    let ends_itself = number.is_multiple_of(2);
    let cmdline = if ends_itself { "" } else { "spin" };
    let images = format!(r#"{{"kernel":"probe","cmdline":"{cmdline}"}}"#);
    post("/v1/instances/a/load", &images);
    post("/v1/instances/a/start", "");
    if ends_itself {
        let ended = server.wait_for_state("a", "stopped");
        assert_eq!(ended["reason"], "reboot", "cycle {number}: {ended}");
    } else {
        post("/v1/instances/a/kill", r#"{"force":true}"#);
    }
    let (status, answer) = server.http("DELETE", "/v1/instances/a", "");
    assert_eq!(status, 200, "cycle {number}: {answer}");
}

fn write_csv(samples: &[Sample]) {
    let Some(path) = env::var_os("MKVMM_SOAK_CSV") else {
        return;
    };
    let mut text = "cycle,ms,descriptors,processes,threads,rss_kib,free_extents\n".to_owned();
    for (number, sample) in samples.iter().enumerate() {
        let Sample {
            ms,
            descriptors,
            processes,
            threads,
            rss_kib,
            free_extents,
        } = sample;
        let row =
            format!("{number},{ms},{descriptors},{processes},{threads},{rss_kib},{free_extents}");
        writeln!(text, "{row}").expect("a string takes it");
    }
    fs::write(path, text).expect("the file can be written");
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[test]
fn nothing_grows_with_the_number_of_instances_that_were() {
    if skips_without_kvm() {
        return;
    }
    let cycles = env::var("MKVMM_SOAK_CYCLES").ok();
    let cycles: usize = cycles.map_or(200, |text| text.parse().expect("a number"));
    assert!(cycles >= 20, "a tenth of {cycles} says nothing");
    let timeout =
        Duration::from_secs(60) + Duration::from_secs(5) * cycles.try_into().expect("few");
    let server = Server::start_in(Scratch::new(), |serve| serve, "32M@4G", timeout);
    let mut samples = Vec::with_capacity(cycles);
    for number in 0..cycles {
        let began = Instant::now();
        cycle(&server, number);
        samples.push(Sample::take(&server, began));
    }
    write_csv(&samples);
    let tenth = cycles / 10;
    let (first, last) = (&samples[..tenth], &samples[cycles - tenth..]);
    let both = |of: fn(&Sample) -> u64| (median(first, of), median(last, of));
    let descriptors = both(|s| s.descriptors);
    let threads = both(|s| s.threads);
    // Compare the maxima, since the event log fills up during the first tenth.
    let most = |samples: &[Sample]| samples.iter().map(|s| s.rss_kib).max().unwrap_or(0);
    let memory = (most(first), most(last));
    announce(&format!(
        "{cycles} cycles, first and last tenth: descriptors {descriptors:?}, \
         threads {threads:?}, KiB {memory:?}"
    ));
    assert!(
        samples.iter().all(|s| s.free_extents == 1),
        "the pool is in pieces"
    );
    assert!(
        samples.iter().all(|s| s.processes == 0),
        "processes are left"
    );
    assert!(
        descriptors.1 <= descriptors.0 + NOISE,
        "descriptors {descriptors:?}"
    );
    assert!(threads.1 <= threads.0 + NOISE, "threads {threads:?}");
    let growth = if cycles >= MANY {
        GROWTH_KIB.0
    } else {
        GROWTH_KIB.1
    };
    assert!(memory.1 <= memory.0 + growth, "KiB {memory:?}");
    server.expect_audit();
}
