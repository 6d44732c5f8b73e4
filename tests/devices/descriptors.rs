//! The descriptors of guests' processes: an exact list for each kind of guest, with
//! what each is for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::server::{EVENT_TIMEOUT, Server};
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch};
use rustix::process::Pid;

use crate::driver::{Driver, Queue};

/// The program of `net=passt`, which not every host has.
const PASST: &str = "/usr/bin/passt";

/// Kinds of descriptors.
const NULL: &str = "/dev/null";
const EVENT: &str = "anon_inode:[eventfd]";
const EPOLL: &str = "anon_inode:[eventpoll]";
const TIMER: &str = "anon_inode:[timerfd]";
const RING: &str = "anon_inode:[io_uring]";
const MESSAGES: &str = "a socket for messages";
const STREAM: &str = "a socket for bytes";
const NETWORK: &str = "a socket of the network";

/// A kind, how many there are, and what they are for.
type List<'a> = &'a [(&'a str, usize, &'a str)];

/// What each worker of a guest with one vCPU has. Its memory, console and board are
/// mapped, and `/dev/kvm` is closed.
const ALWAYS: List<'_> = &[
    (NULL, 3, "standard input, output and error"),
    (MESSAGES, 1, "orders and reports"),
    (STREAM, 1, "the doorbell of the console"),
    (EPOLL, 1, "the event loop"),
    (EVENT, 2, "the end of the guest, for vCPUs and for the loop"),
    (EVENT, 2, "interrupts of the serial port and of ACPI"),
    (EVENT, 1, "channels that come and go"),
    (TIMER, 1, "a look for guests that have halted"),
    ("anon_inode:kvm-vm", 1, "the virtual machine"),
    ("anon_inode:kvm-vcpu:0", 1, "its vCPU"),
];

/// The events of a virtio function: one for what only the loop can do, one for the
/// doorbell of each queue, one for each vector.
const fn events(queues: usize) -> (&'static str, usize, &'static str) {
    (EVENT, 1 + queues + (queues + 1), "turn, doorbells, vectors")
}

const NOTHING: List<'_> = &[];
const RNG: List<'_> = &[events(1), (TIMER, 1, "its rate")];
const CONSOLE: List<'_> = &[events(2), (STREAM, 1, "its doorbell")];
/// The ring has the file.
const DISK: List<'_> = &[
    events(4),
    (RING, 1, "its operations"),
    (EVENT, 1, "their end"),
];
const DIRECT: List<'_> = &[
    events(4),
    ("disk.img", 1, "the disk"),
    (EVENT, 1, "the end of its operations"),
];
const PASST_DEVICE: List<'_> = &[events(2), (STREAM, 1, "frames from and to passt")];
/// With one other guest on the segment, once the driver is ready.
const SEGMENT: List<'_> = &[
    events(2),
    (MESSAGES, 1, "news of other guests"),
    (MESSAGES, 1, "frames from and to the other guest"),
    (EPOLL, 1, "which of them has frames"),
];

/// What passt has, beside the sockets that it makes itself.
const HELPER: List<'_> = &[
    (NULL, 1, "standard input"),
    ("/memfd:passt", 2, "what it says: standard output and error"),
    (STREAM, 1, "frames from and to the worker"),
    ("pipe", 1, "by which it has said that it is ready"),
    (EPOLL, 1, "its own"),
];

/// Returns how many of each kind several lists have.
fn sum(lists: &[List<'_>]) -> BTreeMap<String, usize> {
    let mut sum = BTreeMap::new();
    for (kind, count, _) in lists.iter().copied().flatten() {
        *sum.entry((*kind).to_owned()).or_default() += count;
    }
    sum
}

/// Returns how many descriptors of each kind a process has.
fn kinds(pid: Pid) -> BTreeMap<String, usize> {
    let sockets = fs::read_to_string("/proc/net/unix").expect("procfs is there");
    let directory = format!("/proc/{}/fd", pid.as_raw_pid());
    let entries = fs::read_dir(directory).expect("it runs").flatten();
    let mut kinds = BTreeMap::new();
    // One may be closed between two steps.
    for target in entries.filter_map(|entry| fs::read_link(entry.path()).ok()) {
        *kinds.entry(kind(&target, &sockets)).or_default() += 1;
    }
    kinds
}

/// Returns the kind of what a descriptor refers to, given the kernel's list of local
/// sockets.
fn kind(target: &Path, sockets: &str) -> String {
    let text = target.display().to_string();
    if let Some(number) = text.strip_prefix("socket:[") {
        let number = number.trim_end_matches(']');
        let mut fields = sockets.lines().map(|line| line.split_whitespace());
        // The type and the number are the fields 5 and 7.
        let of_it = fields.find(|fields| fields.clone().nth(6) == Some(number));
        return match of_it.and_then(|mut fields| fields.nth(4)) {
            Some("0001") => STREAM.to_owned(),
            Some("0005") => MESSAGES.to_owned(),
            Some(other) => format!("a local socket of type {other}"),
            None => NETWORK.to_owned(),
        };
    }
    let name = target.file_name().map(|name| name.display().to_string());
    match name {
        _ if text.starts_with("pipe:") => "pipe".to_owned(),
        _ if text.starts_with("/memfd:") => text.trim_end_matches(" (deleted)").to_owned(),
        Some(name) if text.starts_with('/') && !text.starts_with("/dev/") => name,
        _ => text,
    }
}

/// Fails unless a process has soon what the lists say, and nothing else.
#[track_caller]
fn expect(who: &str, pid: Pid, lists: &[List<'_>]) {
    let (expected, end) = (sum(lists), Instant::now() + EVENT_TIMEOUT);
    loop {
        let mut found = kinds(pid);
        if lists.contains(&HELPER) {
            found.remove(NETWORK);
        }
        if found == expected {
            return;
        }
        let is_late = Instant::now() > end;
        assert!(!is_late, "{who} has {found:#?}, expected {expected:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A script by which the driver of a network device gets ready.
fn ready(guest: u64) -> String {
    let mut driver = Driver::of(guest, 1);
    driver.start(Queue { index: 1, size: 8 });
    driver.word()
}

#[test]
fn workers_have_what_their_devices_need() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.file("disk.img", &[0; 1 << 20]);
    let disk = disk.display();
    let server = Server::start("128M@0x100000000");
    let (first, second) = (ready(0), ready(1));
    let create = |name: &str, options: &str, script: &str| {
        let create = format!("create {name} --memory 8M --kernel probe{options} --cmdline");
        let cmdline = format!("{script} spin");
        let words = create.split(' ').chain([cmdline.as_str()]);
        server.run_words(words).expect_code(0);
        server.ok(&format!("start {name}"));
    };
    create("first", " --net pool:lan", &first);
    create("second", " --net pool:lan", &second);
    for name in ["first", "second"] {
        expect(name, server.worker_pid(name), &[ALWAYS, SEGMENT]);
        server.ok(&format!("pause {name}"));
    }
    for (options, lists) in [
        ("", &[ALWAYS, NOTHING][..]),
        (" --rng", &[ALWAYS, RNG]),
        (" --consoles 2", &[ALWAYS, CONSOLE, CONSOLE]),
        (&format!(" --disk {disk}"), &[ALWAYS, DISK]),
        (&format!(" --disk {disk},direct"), &[ALWAYS, DIRECT]),
        (" --net passt", &[ALWAYS, PASST_DEVICE]),
    ] {
        let has_passt = options.contains("passt");
        if has_passt && !Path::new(PASST).exists() {
            continue;
        }
        create("one", options, "");
        expect(options, server.worker_pid("one"), lists);
        if has_passt {
            let helpers = server.running.children_named(PASST);
            assert_eq!(helpers.len(), 1);
            expect("passt", helpers[0], &[HELPER]);
        }
        server.ok("kill one --force");
        server.ok("delete one");
    }
}

#[test]
fn workers_that_were_there_before_their_guests_have_no_more() {
    if skips_without_kvm() {
        return;
    }
    let mut run = Mkvmm::run("16M@0x100000000")
        .guest("name=a,kernel=probe,memory=8M,rng,cmdline=spin")
        .spawn();
    run.wait_until("a guest", |run| run.stdout().contains("probe: "));
    let workers = run.children_named("mkvmm-worker: a");
    expect("the copy", workers[0], &[ALWAYS, RNG]);
    drop(run);

    let server = Server::start_with("16M@0x100000000", &["--warm", "1"]);
    let end = Instant::now() + EVENT_TIMEOUT;
    while server.http("GET", "/v1/version", "").1["warm"]["pids"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        assert!(Instant::now() < end, "no worker waits");
        thread::sleep(Duration::from_millis(10));
    }
    server.ok("create a --memory 8M --kernel probe --cmdline spin --rng");
    server.ok("start a");
    expect("one that waited", server.worker_pid("a"), &[ALWAYS, RNG]);
}
