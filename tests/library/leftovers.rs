//! Descriptors, threads, memory and books return to where they were.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use mkpool::AddrRange;
use mkvmm::event_loop::{EventReceiver, Supervisor};
use mkvmm::fleet::{Fleet, LaunchError};
use mkvmm::host_pool::HostPool;
use mkvmm::kvm::{Host, kick};
use mkvmm::reservation::ReservationConfig;
use mkvmm::spec::{InstanceSpec, resolve};

const MIB: u64 = 1 << 20;
const POOL: u64 = 128 * MIB;
/// How long what goes by itself (the kernel's workers of a VM) may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings_of_pools: usize,
}

impl Holdings {
    fn now() -> Self {
        let count = |path| fs::read_dir(path).expect("procfs is there").count();
        let maps = fs::read_to_string("/proc/self/maps").expect("procfs is there");
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            mappings_of_pools: maps.matches("memfd:").count(),
        }
    }

    /// Waits until the process holds this again.
    #[track_caller]
    fn expect_again(self) {
        let end = Instant::now() + PATIENCE;
        while Self::now() != self {
            assert!(
                Instant::now() < end,
                "{:?} instead of {self:?}",
                Self::now()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Bytes of memory behind the one pool of this process.
fn resident() -> u64 {
    let descriptors = fs::read_dir("/proc/self/fd").expect("procfs is there");
    let pools = descriptors.filter_map(|entry| {
        let path = entry.expect("procfs can be listed").path();
        let target = fs::read_link(&path).ok()?;
        let is_pool = target.to_string_lossy().starts_with("/memfd:");
        is_pool.then(|| fs::metadata(&path).expect("it is open").blocks() * 512)
    });
    pools.max().expect("there is a pool")
}

fn pool() -> HostPool {
    let range = AddrRange::with_size(0x1_0000_0000, POOL).expect("a range");
    HostPool::new(range, ReservationConfig::default(), &|_| ()).expect("128 MiB are there")
}

fn build(pool: HostPool, specs: &[String]) -> Result<(Fleet, EventReceiver), LaunchError> {
    kick::install().expect("there is a signal left");
    let parse = |text: &String| text.parse::<InstanceSpec>().expect("a good spec");
    let specs: Vec<InstanceSpec> = specs.iter().map(parse).collect();
    let configs = resolve(&specs).expect("good specs");
    Fleet::build(Host::open().expect("doctor found KVM"), pool, &configs)
}

fn specs(count: usize, cmdline: &str) -> Vec<String> {
    let spec = |i| format!("name=g{i},kernel=probe,memory=4M,cmdline={cmdline}");
    (0..count).map(spec).collect()
}

/// Handles events until all guests have ended; meanwhile the most memory that
/// the pool had behind it.
fn run_to_end(fleet: &mut Fleet, receiver: &EventReceiver) -> u64 {
    let end = Instant::now() + PATIENCE;
    let mut most = 0;
    while !fleet.is_done() {
        most = most.max(resident());
        let event = receiver.recv_until(end).expect("guests end in time");
        fleet.on_event(event);
    }
    most
}

/// The books of a pool from which nothing is taken.
#[track_caller]
fn expect_full(pool: &HostPool) {
    assert_eq!(pool.avail(), POOL);
    let tree = pool.to_string();
    assert_eq!(tree.lines().count(), 1, "{tree}");
    assert_eq!(resident(), 0, "the pool still has memory behind it");
}

/// Launches guests, lets them end, and looks what is left.
fn launch(count: usize) {
    let (mut fleet, receiver) = build(pool(), &specs(count, "")).expect("it fits");
    let before = resident();
    fleet.console().close();
    fleet.start().expect("they start");
    let most = run_to_end(&mut fleet, &receiver);
    // Otherwise the zero below would say nothing.
    assert!(before > 0 && most >= before, "{before} {most}");
    assert_eq!(fleet.outcomes().len(), count);
    expect_full(fleet.pool());
}

pub fn a_launch_leaves_nothing_behind() {
    launch(1); // whatever is made once is made now
    let holdings = Holdings::now();
    launch(24);
    holdings.expect_again();
    launch(1);
    holdings.expect_again();
}

pub fn a_failed_launch_leaves_nothing_behind() {
    launch(1);
    let holdings = Holdings::now();
    // The last of 33 guests of 4 MiB does not fit into 128 MiB.
    let error = build(pool(), &specs(33, "")).expect_err("it does not fit");
    assert!(error.to_string().contains("g32"), "{error}");
    drop(error);
    holdings.expect_again();
}

pub fn guests_that_are_killed_leave_nothing_behind() {
    launch(1);
    let holdings = Holdings::now();
    let (mut fleet, receiver) = build(pool(), &specs(8, "spin")).expect("it fits");
    fleet.console().close();
    fleet.start().expect("they start");
    thread::sleep(Duration::from_millis(50));
    fleet.kill_all();
    run_to_end(&mut fleet, &receiver);
    expect_full(fleet.pool());
    drop((fleet, receiver));
    holdings.expect_again();
}

pub fn guests_that_never_start_leave_nothing_behind() {
    launch(1);
    let holdings = Holdings::now();
    let (fleet, receiver) = build(pool(), &specs(8, "")).expect("it fits");
    assert_eq!(fleet.guests().count(), 8);
    assert_ne!(Holdings::now(), holdings);
    drop((fleet, receiver));
    holdings.expect_again();
    // Dropped while they run, without a word before.
    let (mut fleet, receiver) = build(pool(), &specs(8, "spin")).expect("it fits");
    fleet.start().expect("they start");
    drop((fleet, receiver));
    holdings.expect_again();
}
