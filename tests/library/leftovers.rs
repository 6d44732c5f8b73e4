//! Tests that descriptors, threads, mappings, child processes, memory and the
//! ledger return to their initial state.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_manager::Manager;
use mkvmm_manager::life::LifeError;
use mkvmm_manager::run::Fleet;
use mkvmm_manager::stream::Stream;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_test_harness::embedded::{ManagerSetup, block_on, memory_files, resolve};

const MIB: u64 = 1 << 20;
const POOL: u64 = 128 * MIB;
/// The time limit for guests, and for cleanup after them.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The interval at which the memory is measured while guests run.
const POLL: Duration = Duration::from_millis(1);

/// The resources that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    /// The number of mappings of guest memory, consoles and boards.
    mappings: usize,
    /// The number of child processes of this process, including zombies.
    children: usize,
}

impl Holdings {
    fn now() -> Self {
        let count = |path| fs::read_dir(path).expect("procfs is there").count();
        let maps = fs::read_to_string("/proc/self/maps").expect("procfs is there");
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            mappings: maps.matches("memfd:").count(),
            children: children(),
        }
    }

    /// Waits until the same is held twice: a thread that was joined may still be there.
    fn settled() -> Self {
        let mut before = Self::now();
        loop {
            thread::sleep(Duration::from_millis(50));
            let now = Self::now();
            if now == before {
                return now;
            }
            before = now;
        }
    }

    /// Waits until the process holds the same resources again.
    #[track_caller]
    fn expect_again(self) {
        let end = Instant::now() + TIMEOUT;
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

/// Returns the number of processes whose parent is this one.
fn children() -> usize {
    let of_this = format!("PPid:\t{}", process::id());
    let processes = fs::read_dir("/proc").expect("procfs is there");
    let is_child = |path: PathBuf| {
        // A process that is gone by now is not a child.
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        status.lines().any(|line| line == of_this)
    };
    let paths = processes.map(|entry| entry.expect("procfs can be listed").path());
    paths.filter(|path| is_child(path.clone())).count()
}

/// Returns the number of bytes of memory of this process's guests.
fn resident() -> u64 {
    // A file that a thread has closed meanwhile has no memory.
    let files = memory_files().into_iter().map(fs::metadata);
    files.flatten().map(|file| file.blocks()).sum::<u64>() * 512
}

fn manager() -> Rc<Manager> {
    ManagerSetup::new(POOL).manager()
}

async fn build(manager: &Rc<Manager>, specs: &[String]) -> Result<Fleet, LifeError> {
    let configs = resolve(manager, specs).await.expect("good images");
    let stream = Stream::start(Box::new(io::sink()), None, || ()).expect("there are threads");
    Fleet::build(Rc::clone(manager), stream, configs).await
}

fn specs(count: usize, cmdline: &str) -> Vec<String> {
    let spec = |i| format!("name=g{i},kernel=probe,memory=4M,cmdline={cmdline}");
    (0..count).map(spec).collect()
}

/// Waits until all guests have ended; returns the maximum of their memory
/// meanwhile.
async fn run_to_end(fleet: &mut Fleet) -> u64 {
    let most = AtomicU64::new(0);
    let watch = async {
        loop {
            most.fetch_max(resident(), Ordering::Relaxed);
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::select! {
        () = fleet.finish() => {}
        () = watch => {}
        () = tokio::time::sleep(TIMEOUT) => panic!("guests end in time"),
    }
    most.into_inner()
}

/// Closes the stream, whose thread is gone when this returns.
fn close(fleet: Fleet) {
    let (_, stream) = fleet.into_parts();
    stream.close();
    stream.join().expect("nothing fails on a sink");
}

/// Checks the ledger of a pool without allocations, while its manager lives.
#[track_caller]
fn expect_full(manager: &Manager) {
    let registry = manager.registry();
    assert!(registry.is_empty());
    let pool = registry.pool();
    assert_eq!(pool.avail(), POOL);
    let tree = pool.to_string();
    assert_eq!(tree.lines().count(), 1, "{tree}");
    assert_eq!(children(), 0, "a process is left");
    let left = memory_files();
    assert!(left.is_empty(), "guest memory is left: {left:?}");
}

/// Launches guests, lets them end, and checks what is left.
fn launch(count: usize) {
    block_on(async {
        let manager = manager();
        let mut fleet = build(&manager, &specs(count, "")).await.expect("it fits");
        assert_eq!(children(), count, "a process for each guest");
        let before = resident();
        fleet.start().await.expect("they start");
        let most = run_to_end(&mut fleet).await;
        // Otherwise the zero below would prove nothing.
        assert!(before > 0 && most >= before, "{before} {most}");
        assert_eq!(fleet.outcomes().len(), count);
        close(fleet);
        expect_full(&manager);
    });
}

pub fn a_launch_leaves_nothing_behind() {
    launch(1); // creates everything that is created only once
    let holdings = Holdings::settled();
    launch(24);
    holdings.expect_again();
    launch(1);
    holdings.expect_again();
}

pub fn a_failed_launch_leaves_nothing_behind() {
    launch(1);
    let holdings = Holdings::settled();
    block_on(async {
        let manager = manager();
        // The last of 33 guests of 4 MiB does not fit into 128 MiB.
        let error = build(&manager, &specs(33, "")).await;
        let error = error.expect_err("it does not fit");
        assert!(error.to_string().contains("g32"), "{error}");
        expect_full(&manager);
    });
    holdings.expect_again();
}

pub fn guests_that_are_killed_leave_nothing_behind() {
    launch(1);
    let holdings = Holdings::settled();
    block_on(async {
        let manager = manager();
        let built = build(&manager, &specs(8, "spin")).await;
        let mut fleet = built.expect("it fits");
        fleet.start().await.expect("they start");
        tokio::time::sleep(Duration::from_millis(50)).await;
        manager.kill_all();
        run_to_end(&mut fleet).await;
        close(fleet);
        expect_full(&manager);
    });
    holdings.expect_again();
}

pub fn guests_that_never_start_leave_nothing_behind() {
    launch(1);
    let holdings = Holdings::settled();
    block_on(async {
        let fleet = build(&manager(), &specs(8, "")).await.expect("it fits");
        assert_eq!(fleet.manager().registry().guests().count(), 8);
        assert_ne!(Holdings::now(), holdings);
        close(fleet);
    });
    holdings.expect_again();
    // Drop it while they run, without ending them first.
    block_on(async {
        let built = build(&manager(), &specs(8, "spin")).await;
        let mut fleet = built.expect("it fits");
        fleet.start().await.expect("they start");
        close(fleet);
    });
    holdings.expect_again();
}

/// Tests that memory populated at startup stays with the pool: all of it is
/// there again, and contains no data of a guest.
pub fn a_populated_pool_is_whole_and_zero_again() {
    launch(1);
    let holdings = Holdings::settled();
    block_on(async {
        let memory = ReservationConfig {
            prealloc: true,
            ..ReservationConfig::default()
        };
        let manager = ManagerSetup {
            memory,
            ..ManagerSetup::new(POOL)
        }
        .manager();
        let files = memory_files().len();
        assert_eq!(resident(), POOL);
        let built = build(&manager, &specs(8, "")).await;
        let mut fleet = built.expect("it fits");
        fleet.start().await.expect("they start");
        run_to_end(&mut fleet).await;
        close(fleet);
        assert_eq!(manager.registry().pool().avail(), POOL);
        assert_eq!(children(), 0, "a process is left");
        assert_eq!((memory_files().len(), resident()), (files, POOL));
        for path in memory_files() {
            let bytes = fs::read(path).expect("it is open");
            assert!(bytes.iter().all(|&byte| byte == 0), "a guest's bytes");
        }
    });
    holdings.expect_again();
}
