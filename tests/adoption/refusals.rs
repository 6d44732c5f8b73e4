//! What a manager refuses to take over, and the ways in which it ends.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::kept::{expect_gone, is_alive};
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Kept, Mkvmm, Terminal};
use rustix::process::{Pid, Signal, kill_process};

const POOL: &str = "32M@4G";
/// Where the parts of a journal's header begin: version, boot, keeper, checksum.
const VERSION: usize = 8;
const BOOT: usize = 12;
const KEEPER: usize = 28;
const CHECKSUM: usize = 36;
const HEADER: usize = 40;

/// Starts a manager with one guest that runs.
fn with_guest(options: &[&str]) -> (Kept, Pid) {
    let kept = Kept::start(POOL, options);
    kept.ok("create a --memory 8M --kernel probe --cmdline shell");
    kept.ok("start a");
    Terminal::attach(kept.socket(), "a").wait_for("probe# ");
    let pid = kept.worker_pid("a");
    (kept, pid)
}

/// Fails unless the next manager finds the guest as it was, and can use it.
#[track_caller]
fn expect_taken_over(kept: &mut Kept, pid: Pid) {
    kept.serve();
    kept.expect_audit();
    assert_eq!(kept.worker_pid("a"), pid);
    let mut terminal = Terminal::attach(kept.socket(), "a");
    terminal.wait_for("probe# ");
    terminal.type_in("echo 123\r");
    terminal.wait_for("\r\n123\r\n");
    let children = kept.children();
    let workers = children.iter().filter(|child| child.title == "worker: a");
    assert_eq!(workers.count(), 1, "{children:?}");
}

/// The journal that a keeper holds.
struct Journal {
    file: File,
    bytes: Vec<u8>,
}

impl Journal {
    fn of(kept: &Kept) -> Self {
        let directory = format!("/proc/{}/fd", kept.keeper().as_raw_pid());
        let entries = fs::read_dir(directory).expect("it runs").flatten();
        let is_journal = |path: &PathBuf| {
            let target = fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().starts_with("/memfd:mkvmm-journal")
        };
        let journals: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(is_journal)
            .collect();
        assert_eq!(journals.len(), 1, "{journals:?}");
        let file = File::options().read(true).write(true).open(&journals[0]);
        let bytes = fs::read(&journals[0]).expect("it can be read");
        Self {
            file: file.expect("it can be written"),
            bytes,
        }
    }

    /// Puts other bytes in its place.
    fn put(&self, bytes: &[u8]) {
        self.file.set_len(0).expect("it is a memory file");
        self.file.write_all_at(bytes, 0).expect("there is memory");
    }

    /// Returns it with another header, whose checksum is valid.
    fn with_header(&self, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        change(&mut bytes[..CHECKSUM]);
        let sum = crc32fast::hash(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Returns it with another content of its last frame, whose checksum is
    /// valid.
    fn with_foreign_record(&self) -> Vec<u8> {
        let content = [0xff; 9];
        let len = u32::try_from(content.len()).expect("nine");
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&len.to_le_bytes());
        hasher.update(&content);
        let mut bytes = self.bytes.clone();
        bytes.extend(len.to_le_bytes());
        bytes.extend(hasher.finalize().to_le_bytes());
        bytes.extend(content);
        bytes
    }
}

/// Returns the descriptors of a keeper once it has noticed that its manager has
/// ended: when they stay the same for a while.
fn without_manager(keeper: Pid) -> Vec<String> {
    let (mut last, mut same) = (Kept::descriptors(keeper), 0);
    while same < 50 {
        thread::sleep(Duration::from_millis(10));
        let now = Kept::descriptors(keeper);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// Fails unless a keeper soon has these descriptors: it closes the connection of a
/// manager when it notices its end.
#[track_caller]
fn expect_descriptors(keeper: Pid, expected: &[String]) {
    let end = Instant::now() + EVENT_TIMEOUT;
    loop {
        let now = Kept::descriptors(keeper);
        if now == expected {
            return;
        }
        assert!(Instant::now() < end, "{now:?}, not {expected:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn journals_that_are_not_this_keepers_are_refused_and_guests_run_on() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    let keeper = kept.keeper();
    kept.kill_manager();
    let journal = Journal::of(&kept);
    let descriptors = without_manager(keeper);
    let mut damaged = journal.bytes.clone();
    damaged[HEADER + 12] ^= 1;
    let cases: [(&str, Vec<u8>); 8] = [
        ("no valid header", Vec::new()),
        ("no valid header", journal.bytes[..HEADER - 1].to_vec()),
        ("no valid header", vec![0; journal.bytes.len()]),
        ("damaged at byte", damaged),
        (
            "has version 99",
            journal.with_header(|head| head[VERSION] = 99),
        ),
        ("another boot", journal.with_header(|head| head[BOOT] ^= 1)),
        (
            "another keeper",
            journal.with_header(|head| head[KEEPER] ^= 1),
        ),
        ("cannot be decoded", journal.with_foreign_record()),
    ];
    for (text, bytes) in cases {
        journal.put(&bytes);
        let run = kept.serving().finish();
        let error = run.expect_refusal(1);
        assert!(error.contains(text), "{text}: {error}");
        assert!(run.stderr.contains("help: the guests still run"), "{run}");
        assert!(is_alive(pid) && is_alive(keeper), "{text}");
        expect_descriptors(keeper, &descriptors);
    }
    // A journal without its first records contradicts itself.
    journal.put(&journal.bytes[..HEADER]);
    let run = kept.serving().finish();
    let error = run.expect_refusal(1);
    assert!(error.contains("it has no manager"), "{error}");
    expect_descriptors(keeper, &descriptors);

    // A frame whose writer was killed is none.
    let mut torn = journal.bytes.clone();
    torn.extend([64, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
    journal.put(&torn);
    expect_taken_over(&mut kept, pid);
    kept.tear_down();
    kept.end();
}

#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    kept.kill_manager();
    // Like a process that the manager was starting when it was killed.
    let lock = File::open(kept.state_dir().join("lock")).expect("it is ours");
    lock.lock().expect("nobody else has it");
    let moment = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        drop(lock);
    });
    expect_taken_over(&mut kept, pid);
    moment.join().expect("it has let go");
    kept.end();
}

#[test]
fn a_second_manager_of_a_directory_is_refused() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    let other = kept.path("other");
    let second = |kept: &Kept| {
        let run = Mkvmm::new(["serve", "--pool", POOL, "--socket"])
            .arg(&other)
            .arg("--state-dir")
            .arg(kept.state_dir());
        let run = run.finish();
        let error = run.expect_refusal(4);
        assert!(error.contains("another mkvmm serve uses it"), "{error}");
    };
    second(&kept);
    kept.replace_manager();
    second(&kept);
    kept.expect_audit();
    assert_eq!(kept.worker_pid("a"), pid);
    kept.kill_manager();

    // It must not be anybody else's.
    let state = kept.state_dir();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o750)).expect("it is ours");
    let run = kept.serving().finish();
    let error = run.expect_refusal(2);
    assert!(error.contains("0700"), "{error}");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("it is ours");
    expect_taken_over(&mut kept, pid);
    kept.tear_down();
    kept.end();
}

#[test]
fn another_pool_is_refused_with_what_was_there() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    let keeper = kept.keeper();
    kept.kill_manager();
    let descriptors = without_manager(keeper);
    let others = [
        kept.serving_pool("64M@4G"),
        kept.serving_pool("16M@4G"),
        kept.serving_pool("32M@8G"),
        kept.serving().arg("--prealloc"),
    ];
    for other in others {
        let run = other.finish();
        let error = run.expect_refusal(2);
        assert!(error.contains("@0x100000000"), "{error}");
        assert!(is_alive(pid) && is_alive(keeper), "{run}");
        expect_descriptors(keeper, &descriptors);
    }
    // Without an address it is wherever it was.
    let running = kept.serving_pool("32M").spawn();
    kept.take(running);
    assert_eq!(kept.worker_pid("a"), pid);
    kept.kill_manager();
    expect_taken_over(&mut kept, pid);
    kept.tear_down();
    kept.end();
}

#[test]
fn a_first_manager_that_is_refused_leaves_no_keeper() {
    if skips_without_kvm() {
        return;
    }
    let kept = Kept::new(POOL, &[], EVENT_TIMEOUT);
    // No processor has so many addresses.
    let run = kept.serving_pool("1024P").finish();
    assert_ne!(run.code(), Some(0), "{run}");
    assert!(!run.stderr.is_empty(), "{run}");
    assert!(kept.find_keeper().is_none());
}

#[test]
fn guests_end_with_the_manager_where_that_was_asked_for() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&["--on-manager-exit", "kill"]);
    let keeper = kept.keeper();
    kept.kill_manager();
    expect_gone(pid);
    expect_gone(keeper);
    // What comes then is new.
    kept.serve();
    let (_, version) = kept.http("GET", "/v1/version", "");
    assert_eq!(version["manager"], 1, "{version}");
    kept.expect_empty();
    kept.ok("create a --memory 8M --kernel probe --cmdline shell");
    kept.ok("start a");
    let pid = kept.worker_pid("a");
    // A manager that leaves is not one that was killed.
    kept.running.signal(Signal::USR1);
    assert_eq!(kept.bury_manager().code(), Some(0));
    assert!(is_alive(pid));
    expect_taken_over(&mut kept, pid);
    let keeper = kept.keeper();
    kept.kill_manager();
    expect_gone(pid);
    expect_gone(keeper);
}

#[test]
fn sigterm_leaves_nothing_and_sigusr1_everything() {
    if skips_without_kvm() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let (mut kept, pid) = with_guest(&[]);
        let keeper = kept.keeper();
        kept.running.signal(Signal::USR1);
        assert_eq!(kept.bury_manager().code(), Some(0), "{}", kept.said());
        assert!(is_alive(pid) && is_alive(keeper));
        expect_taken_over(&mut kept, pid);
        let children = kept.children();
        kept.running.signal(signal);
        assert_eq!(kept.bury_manager().code(), Some(0), "{}", kept.said());
        for child in children {
            expect_gone(Pid::from_raw(child.pid).expect("it had one"));
        }
        expect_gone(keeper);
        // Of the next one nobody needs to know that there was one before.
        kept.serve();
        kept.expect_empty();
        let (_, version) = kept.http("GET", "/v1/version", "");
        assert_eq!(version["manager"], 1, "{version}");
        kept.end();
    }
}

#[test]
fn a_keeper_whose_socket_is_gone_has_no_second_one() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    let keeper = kept.keeper();
    kept.kill_manager();
    let socket = kept.state_dir().join("keeper.sock");
    let aside = kept.path("aside");
    fs::rename(&socket, &aside).expect("it is there");
    let run = kept.serving().finish();
    let error = run.expect_refusal(1);
    assert!(error.contains("keeper.sock is gone"), "{error}");
    assert!(run.stderr.contains("help: use another directory"), "{run}");
    assert_eq!(kept.find_keeper(), Some(keeper));
    // One that nobody listens on is no better.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("the directory is ours"));
    kept.serving().finish().expect_refusal(1);
    assert!(is_alive(pid) && is_alive(keeper));
    fs::rename(&aside, &socket).expect("it is ours");
    expect_taken_over(&mut kept, pid);
    kept.kill_manager();
    // The lock is the keeper's, and ends with it.
    fs::remove_file(&socket).expect("it is there");
    kill_process(keeper, Signal::KILL).expect("it runs");
    expect_gone(keeper);
    kept.serve();
    kept.expect_empty();
    kept.end();
}

/// Starts the end of a manager whose guest takes no notice of its power button, and
/// waits until it has begun.
fn ending() -> (Kept, Pid, Pid) {
    let mut kept = Kept::new(POOL, &[], EVENT_TIMEOUT * 4);
    kept.set_grace(3600);
    kept.serve();
    kept.ok("create a --memory 8M --kernel probe --cmdline spin");
    kept.ok("start a");
    let (pid, keeper) = (kept.worker_pid("a"), kept.keeper());
    kept.running.signal(Signal::TERM);
    let end = Instant::now() + EVENT_TIMEOUT;
    let body = r#"{"name":"b","memory":8388608}"#;
    while kept.http("POST", "/v1/instances", body).0 == 201 {
        kept.http("DELETE", "/v1/instances/b", "");
        assert!(Instant::now() < end, "it does not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(is_alive(pid) && is_alive(keeper), "it has its grace");
    (kept, pid, keeper)
}

#[test]
fn a_manager_that_is_killed_while_it_ends_leaves_nothing() {
    if skips_without_kvm() {
        return;
    }
    // A service manager's patience ends by SIGKILL, that of people by a second
    // signal.
    for (signal, code) in [(Signal::KILL, None), (Signal::TERM, Some(143))] {
        let (mut kept, pid, keeper) = ending();
        kept.running.signal(signal);
        assert_eq!(kept.bury_manager().code(), code, "{}", kept.said());
        expect_gone(pid);
        expect_gone(keeper);
        kept.set_grace(0);
        kept.serve();
        kept.tear_down();
        kept.end();
    }
}

#[test]
fn two_signals_at_once_leave_nothing() {
    if skips_without_kvm() {
        return;
    }
    for _ in 0..5 {
        let (mut kept, pid) = with_guest(&[]);
        let keeper = kept.keeper();
        kept.running.signal(Signal::TERM);
        kept.running.signal(Signal::INT);
        let code = kept.bury_manager().code();
        assert!(
            matches!(code, Some(0 | 130 | 143)),
            "{code:?}: {}",
            kept.said()
        );
        expect_gone(pid);
        expect_gone(keeper);
    }
}

#[test]
fn a_signal_while_guests_are_taken_over_ends_them() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    let keeper = kept.keeper();
    kept.kill_manager();
    let running = kept.serving().spawn();
    // As soon as it handles signals: before that, it is not there yet.
    let end = Instant::now() + EVENT_TIMEOUT;
    let caught = |running: &mkvmm_test_harness::Running| {
        let pid = running.pid().expect("it runs").as_raw_pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << (Signal::TERM.as_raw() - 1)) != 0)
    };
    while !caught(&running) {
        assert!(Instant::now() < end, "it handles no signals");
        thread::yield_now();
    }
    running.signal(Signal::TERM);
    let run = running.wait();
    assert_eq!(run.code(), Some(0), "{run}");
    expect_gone(pid);
    expect_gone(keeper);
    kept.serve();
    kept.expect_empty();
    kept.end();
}

#[test]
fn guests_end_with_their_keeper_and_serve_says_so() {
    if skips_without_kvm() {
        return;
    }
    let (mut kept, pid) = with_guest(&[]);
    kept.replace_manager();
    let keeper = kept.keeper();
    kill_process(keeper, Signal::KILL).expect("it runs");
    assert_eq!(kept.bury_manager().code(), Some(1), "{}", kept.said());
    assert!(
        kept.said().contains("the keeper process has ended"),
        "{}",
        kept.said()
    );
    expect_gone(pid);
    expect_gone(keeper);
    kept.serve();
    kept.expect_empty();
    // Without a manager it is the same.
    kept.ok("create a --memory 8M --kernel probe --cmdline shell");
    kept.ok("start a");
    let (pid, keeper) = (kept.worker_pid("a"), kept.keeper());
    kept.kill_manager();
    kill_process(keeper, Signal::KILL).expect("it runs");
    expect_gone(pid);
    kept.serve();
    kept.expect_empty();
    kept.end();
}
