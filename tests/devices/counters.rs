//! The counters of devices, as the metrics have them.

use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};

/// Returns how many requests a guest's devices have returned.
fn requests(server: &Server, name: &str) -> u64 {
    let metrics = server.ok("metrics");
    let start = format!("mkvmm_instance_device_requests_total{{name=\"{name}\"");
    let lines = metrics.lines().filter(|line| line.starts_with(&start));
    let counts = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// Fails unless the devices of a guest return more requests.
#[track_caller]
pub fn expect_more(server: &Server, name: &str) {
    let (before, end) = (requests(server, name), Instant::now() + EVENT_TIMEOUT);
    while requests(server, name) <= before + 10 {
        assert!(Instant::now() < end, "the devices of {name} stand still");
        thread::sleep(Duration::from_millis(10));
    }
}
