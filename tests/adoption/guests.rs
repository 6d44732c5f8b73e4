//! Guests of every kind, before, during and after a change of managers.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf, numbers};
use mkvmm_test_harness::kept::{cpu_ticks, expect_gone, is_alive};
use mkvmm_test_harness::server::{EVENT_TIMEOUT, try_http};
use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Kept, Terminal};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

const POOL: &str = "96M@4G";
/// Turns of a loop between two lines of the guest that counts.
const PAUSE: u32 = 20_000;
/// What a guest does all the time, so it may differ.
const ALIVE: [&str; 3] = ["cpu_us", "resident", "process_memory"];

/// Everything that clients can see and that is stopped.
#[derive(Debug, PartialEq)]
struct View {
    instances: Vec<Value>,
    iomem: String,
    map: String,
    pool: Value,
    events: Vec<Value>,
}

impl View {
    #[track_caller]
    fn take(kept: &Kept) -> Self {
        let get = |path: &str| match kept.http("GET", path, "") {
            (200, answer) => answer,
            other => panic!("{path}: {other:?}"),
        };
        let list = |path: &str| match get(path) {
            Value::Array(all) => all,
            other => panic!("{path}: {other}"),
        };
        let mut instances = list("/v1/instances");
        for instance in &mut instances {
            let fields = instance.as_object_mut().expect("an object");
            fields.retain(|key, _| !ALIVE.contains(&key.as_str()));
        }
        Self {
            instances,
            iomem: kept.ok("iomem"),
            map: kept.ok("pool map"),
            pool: get("/v1/pool"),
            events: kept.events(0),
        }
    }
}

#[track_caller]
fn expect_same(before: &View, after: &View) {
    // One by one, since a whole view is long.
    for (before, after) in before.instances.iter().zip(&after.instances) {
        assert_eq!(before, after);
    }
    assert_eq!(before.events, after.events);
    assert_eq!(before.iomem, after.iomem);
    assert_eq!(before.map, after.map);
    assert_eq!(before, after);
}

/// The guests of the scene.
struct Scene {
    kept: Kept,
    log: String,
    /// Where memory is allocated in the pool.
    allocation: u64,
}

impl Scene {
    fn set(options: &[&str]) -> Self {
        let kept = Kept::start(POOL, options);
        let count = kept.path("count");
        fs::write(&count, elf(&code::count_slowly(PAUSE))).expect("the directory is ours");
        let (count, log) = (
            count.display(),
            kept.path("count.log").display().to_string(),
        );
        kept.ok("create spin --memory 8M --kernel probe --cmdline spin");
        for shell in ["shell", "paused"] {
            kept.ok(&format!(
                "create {shell} --memory 8M --kernel probe --cmdline shell"
            ));
        }
        kept.ok("create again --memory 8M --kernel probe --cmdline shell --on-reboot restart");
        kept.ok("create ready --memory 8M");
        kept.ok("create loaded --memory 8M --kernel probe --cpus 2");
        kept.ok(&format!(
            "create count --memory 8M --kernel {count} --console-log {log}"
        ));
        kept.ok("create ended --memory 4M --kernel probe");
        for name in ["spin", "shell", "paused", "again", "count", "ended"] {
            kept.ok(&format!("start {name}"));
        }
        let allocated = kept.http("POST", "/v1/pool/allocations", r#"{"size":65536}"#);
        let allocation = allocated.1["start"].as_u64().expect("an address");
        kept.ok("pool alloc 128K --instance ready");
        kept.ok("create gone --memory 4M");
        kept.ok("delete gone");
        let scene = Self {
            kept,
            log,
            allocation,
        };
        scene.type_before();
        scene.kept.wait_for_state("ended", "stopped");
        scene
    }

    /// Uses the shells: one is paused with input that it has not read.
    fn type_before(&self) {
        let kept = &self.kept;
        for name in ["shell", "paused", "again"] {
            let mut terminal = Terminal::attach(kept.socket(), name);
            terminal.wait_for("probe# ");
            terminal.type_in("echo before\r");
            terminal.wait_for("\r\nbefore\r\nprobe# ");
        }
        kept.ok("pause paused");
        let mut terminal = Terminal::attach(kept.socket(), "paused");
        terminal.type_in("echo unread\r");
        // It is the guest's as soon as it is in the ring; the terminal's end
        // would be seen after it.
        thread::sleep(Duration::from_millis(100));
    }

    /// Fails unless the guest that counts has left nothing out.
    #[track_caller]
    fn check_count(&self) {
        let mut terminal = Terminal::attach(self.kept.socket(), "count");
        let has_some = |seen: &[u8]| numbers(&String::from_utf8_lossy(seen)).len() > 2;
        let shown = numbers(&terminal.wait("lines", has_some)).end;
        // What it has shown is in the log soon.
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            let log = fs::read_to_string(&self.log).expect("it is there");
            let logged = numbers(&log);
            assert_eq!(logged.start, 0);
            if logged.end >= shown {
                return;
            }
            assert!(Instant::now() < end, "{shown} lines are not in the log");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every verb, after a change of managers.
    fn use_all(&self) {
        let kept = &self.kept;
        let mut terminal = Terminal::attach(kept.socket(), "shell");
        terminal.wait_for("\r\nbefore\r\nprobe# ");
        terminal.type_in("echo after\r");
        let text = terminal.wait_for("\r\nafter\r\nprobe# ");
        assert_eq!(text.matches("\r\nbefore\r\n").count(), 1, "{text}");
        assert_eq!(text.matches("shell, try help").count(), 1, "{text}");

        kept.ok("resume paused");
        let mut terminal = Terminal::attach(kept.socket(), "paused");
        let text = terminal.wait_for("\r\nunread\r\nprobe# ");
        assert_eq!(text.matches("\r\nunread\r\n").count(), 1, "{text}");

        // Its policy restarts it.
        let pid = kept.worker_pid("again");
        let mut terminal = Terminal::attach(kept.socket(), "again");
        terminal.wait_for("\r\nbefore\r\nprobe# ");
        terminal.type_in("exit\r");
        terminal.wait("a second boot", |seen| {
            String::from_utf8_lossy(seen)
                .matches("shell, try help")
                .count()
                == 2
        });
        assert_ne!(kept.worker_pid("again"), pid);

        kept.ok("pause spin");
        kept.ok("debug regs spin");
        kept.ok("resume spin");
        kept.ok("kill spin --force");
        kept.ok("start spin");
        kept.ok("kill shell --grace-ms 100");
        kept.ok("load ready --kernel probe --cmdline shell");
        kept.ok("start ready");
        kept.ok("start loaded");
        kept.wait_for_state("loaded", "stopped");
        kept.ok("unload loaded");
        kept.ok("unload ended");
        kept.ok("load ended --kernel probe");
        kept.ok("start ended");
        kept.ok("create late --memory 8M --kernel probe");
        kept.ok("delete late");
        let plan = r#"{"instances":[{"name":"planned","memory":4194304,"kernel":"probe"}]}"#;
        assert_eq!(kept.http("POST", "/v1/plan", plan).0, 200);
        kept.expect_audit();
    }
}

fn a_killed_manager_is_replaced(options: &[&str]) {
    if skips_without_kvm() {
        return;
    }
    let mut scene = Scene::set(options);
    let before = View::take(&scene.kept);
    let last = log_numbers(&scene.kept)
        .pop()
        .expect("there were allocations");
    let memory = scene.kept.memory("paused");
    let children = scene.kept.children();
    let keeper = scene.kept.keeper();
    let spin = scene.kept.worker_pid("spin");
    let count = scene.kept.worker_pid("count");

    for number in 2..4 {
        scene.kept.kill_manager();
        // Nobody is there for whom the guests could go on.
        let (end, ticks) = (Instant::now() + EVENT_TIMEOUT, [spin, count].map(cpu_ticks));
        while [spin, count]
            .map(cpu_ticks)
            .iter()
            .zip(ticks)
            .any(|(now, then)| *now < then + 5)
        {
            assert!(Instant::now() < end, "the guests stand still");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(scene.kept.children(), children);
        scene.kept.serve();
        let after = View::take(&scene.kept);
        expect_same(&before, &after);
        scene.kept.expect_audit();
        assert_eq!(scene.kept.keeper(), keeper);
        assert_eq!(scene.kept.children(), children);
        let (_, version) = scene.kept.http("GET", "/v1/version", "");
        assert_eq!(version["manager"], number, "{version}");
        let memory_now = scene.kept.memory("paused");
        assert!(
            memory == memory_now,
            "the memory of a paused guest has changed"
        );
        scene.check_count();
    }
    // The log of allocations begins anew, with the next number.
    assert!(log_numbers(&scene.kept).is_empty());
    scene.use_all();

    // Numbers go on where they were.
    let events = scene.kept.events(0);
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].clone()).collect();
    let expected: Vec<_> = (1..=events.len()).map(|seq| json!(seq)).collect();
    assert_eq!(numbers, expected);
    let numbers = log_numbers(&scene.kept);
    let expected: Vec<_> = (last + 1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected);
    scene.check_count();
    // And ids.
    let created = scene.kept.json("create fresh --memory 4M");
    let ids = before.instances.iter().filter_map(|it| it["id"].as_u64());
    assert!(created["id"].as_u64() > ids.max(), "{created}");

    scene.kept.replace_manager();
    scene.kept.ok(&format!("pool free {:#x}", scene.allocation));
    scene.kept.tear_down();
    scene.kept.end();
}

/// Returns the numbers of the entries in the log of allocations.
fn log_numbers(kept: &Kept) -> Vec<u64> {
    let (_, log) = kept.http("GET", "/v1/pool/log", "");
    let entries = log.as_array().expect("a list").iter();
    let numbers = entries.map(|entry| entry["seq"].as_u64().expect("a number"));
    numbers.collect()
}

#[test]
fn a_killed_manager_is_replaced_and_guests_do_not_notice() {
    a_killed_manager_is_replaced(&[]);
}

#[test]
fn a_killed_manager_is_replaced_with_populated_memory() {
    a_killed_manager_is_replaced(&["--prealloc"]);
}

#[test]
fn a_killed_manager_is_replaced_with_huge_pages() {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free = fs::read_to_string(path).unwrap_or_default();
    if free.trim().parse().unwrap_or(0) < 48 {
        return skip("this host has not 48 free huge pages of 2 MiB");
    }
    a_killed_manager_is_replaced(&["--backing", "hugetlb-2M"]);
}

#[test]
fn a_kill_with_a_grace_and_a_restart_go_on_under_the_next_manager() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    // It takes no notice of its power button.
    kept.ok("create deaf --memory 8M --kernel probe --cmdline spin --on-reboot restart");
    kept.ok("start deaf");
    // It resets for as long as it lives, and is restarted after longer and
    // longer pauses.
    kept.ok("create loop --memory 8M --kernel probe --on-reboot restart");
    kept.ok("start loop");
    let socket = kept.socket().to_owned();
    let killer = thread::spawn(move || {
        let body = r#"{"grace_ms":6000}"#;
        try_http(&socket, "POST", "/v1/instances/deaf/kill", body)
    });
    // The kill is in the journal as soon as a client can see it.
    thread::sleep(Duration::from_secs(1));
    let pid = kept.worker_pid("deaf");
    kept.running.signal(Signal::KILL);
    kept.bury_manager();
    assert!(killer.join().expect("it does not fail").is_none());
    assert!(is_alive(pid), "it has its grace");
    let boots = |kept: &Kept| {
        let (_, instance) = kept.http("GET", "/v1/instances/loop", "");
        instance["timeline"]["exec"].as_u64().unwrap_or(0)
    };
    kept.serve();
    let deaf = kept.wait_for_state("deaf", "stopped");
    assert_eq!(
        (&deaf["reason"], &deaf["restarting"]),
        (&json!("killed"), &json!(false))
    );
    let (end, before) = (Instant::now() + EVENT_TIMEOUT, boots(&kept));
    while boots(&kept) <= before {
        assert!(Instant::now() < end, "nobody restarts the other");
        thread::sleep(Duration::from_millis(10));
    }
    kept.tear_down();
    kept.end();
}

/// The number of events that a manager keeps.
const KEPT_EVENTS: u64 = 4096;

#[test]
fn what_was_told_long_ago_is_not_told_again() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    for name in ["old", "busy"] {
        kept.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline shell"
        ));
        kept.ok(&format!("start {name}"));
    }
    let newest = |kept: &Kept| {
        kept.events(0)
            .last()
            .map_or(0, |event| event["seq"].clone().as_u64().unwrap_or(0))
    };
    let told = newest(&kept);
    // Until nothing that was said about the other is kept.
    while newest(&kept) < told + KEPT_EVENTS {
        for _ in 0..200 {
            for verb in ["pause", "resume"] {
                let path = format!("/v1/instances/busy/{verb}");
                assert_eq!(kept.http("POST", &path, "").0, 200);
            }
        }
    }
    let events = kept.events(0);
    assert!(events.iter().all(|event| event["instance"] == "busy"));
    kept.replace_manager();
    // All that the next manager begins with is done by then.
    kept.ok("pause old");
    let after = kept.events(
        events
            .last()
            .map_or(0, |event| event["seq"].as_u64().unwrap_or(0)),
    );
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!(after[0]["instance"], "old");
    assert_eq!(after[0]["state"], "paused");
    kept.tear_down();
    kept.end();
}

/// Returns the size of the journal that the manager writes, in bytes.
fn journal_size(kept: &Kept) -> u64 {
    let open = format!("/proc/{}/fd", kept.manager().as_raw_pid());
    let entries = fs::read_dir(open).expect("the manager runs");
    let is_journal = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|link| link.starts_with("/memfd:mkvmm-journal (deleted)"))
    };
    let found = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let sizes = found
        .filter(is_journal)
        .filter_map(|path| fs::metadata(path).ok());
    sizes
        .map(|file| file.len())
        .max()
        .expect("it has a journal")
}

#[test]
fn a_journal_of_which_little_counts_is_written_anew_by_the_next_manager() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    kept.ok("create busy --memory 8M --kernel probe --cmdline shell");
    kept.ok("start busy");
    for _ in 0..200 {
        for verb in ["pause", "resume"] {
            let path = format!("/v1/instances/busy/{verb}");
            assert_eq!(kept.http("POST", &path, "").0, 200);
        }
    }
    let (before, view) = (journal_size(&kept), View::take(&kept));
    kept.replace_manager();
    let end = Instant::now() + EVENT_TIMEOUT;
    while journal_size(&kept) > before / 2 {
        assert!(Instant::now() < end, "it is as long as before: {before}");
        thread::sleep(Duration::from_millis(10));
    }
    // That one goes on.
    let compact = journal_size(&kept);
    kept.replace_manager();
    expect_same(&view, &View::take(&kept));
    kept.ok("pause busy");
    assert!(journal_size(&kept) >= compact);
    kept.tear_down();
    kept.end();
}

#[test]
fn guests_that_end_without_a_manager_have_ended_for_the_next_one() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    let log = kept.path("brief.log");
    // They look after their memory for a while, and reset.
    for (name, more) in [
        ("brief", format!("--console-log {}", log.display())),
        ("again", "--on-reboot restart".to_owned()),
    ] {
        kept.ok(&format!("create {name} --memory 8M {more}"));
        let body = r#"{"kernel":"probe","cmdline":"hold=5000"}"#;
        let path = format!("/v1/instances/{name}/load");
        assert_eq!(kept.http("POST", &path, body).0, 200);
    }
    kept.ok("create shot --memory 8M --kernel probe --cmdline spin");
    for name in ["brief", "again", "shot"] {
        kept.ok(&format!("start {name}"));
    }
    let [brief, again, shot] = ["brief", "again", "shot"].map(|name| kept.worker_pid(name));
    kept.kill_manager();
    kill_process(shot, Signal::KILL).expect("it runs");
    for pid in [brief, again, shot] {
        expect_gone(pid);
    }
    kept.serve();
    let reason = |name: &str, state: &str| kept.wait_for_state(name, state)["reason"].clone();
    assert_eq!(reason("brief", "stopped"), "reboot");
    assert_eq!(reason("shot", "failed"), "vmm");
    kept.wait_for_state("again", "active");
    assert_ne!(kept.worker_pid("again"), again);
    kept.expect_audit();
    let end = Instant::now() + EVENT_TIMEOUT;
    loop {
        let text = fs::read_to_string(&log).expect("it is there");
        if text.ends_with("probe: pass\n") {
            assert_eq!(text.matches("probe: name brief\n").count(), 1, "{text}");
            break;
        }
        assert!(Instant::now() < end, "the log ends with {text}");
        thread::sleep(Duration::from_millis(5));
    }
    for name in ["brief", "shot"] {
        kept.ok(&format!("start {name}"));
    }
    kept.tear_down();
    kept.end();
}

#[test]
fn a_process_that_stands_still_does_not_hold_up_the_next_manager() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start(POOL, &[]);
    for name in ["still", "other"] {
        kept.ok(&format!(
            "create {name} --memory 8M --kernel probe --cmdline shell"
        ));
        kept.ok(&format!("start {name}"));
        Terminal::attach(kept.socket(), name).wait_for("probe# ");
    }
    let still = kept.worker_pid("still");
    kill_process(still, Signal::STOP).expect("it runs");
    // Orders that wait in its socket leave no room for those of the next manager.
    for _ in 0..10 {
        let ask = || {
            let mut stream = UnixStream::connect(kept.socket()).expect("it serves");
            let request = b"GET /v1/instances/still/regs HTTP/1.1\r\nHost: x\r\n\r\n";
            stream.write_all(request).expect("it reads");
            stream
        };
        let asking: Vec<_> = (0..100).map(|_| ask()).collect();
        thread::sleep(Duration::from_millis(100));
        drop(asking);
    }
    // A verb waits for it when the manager is killed.
    let socket = kept.socket().to_owned();
    let pausing = thread::spawn(move || try_http(&socket, "POST", "/v1/instances/still/pause", ""));
    thread::sleep(Duration::from_millis(200));
    kept.kill_manager();
    assert!(pausing.join().expect("it does not fail").is_none());
    kept.serve();
    kept.expect_audit();
    kept.ok("pause other");
    kept.ok("resume other");
    kept.ok("kill other --force");
    kill_process(still, Signal::CONT).expect("it runs");
    let end = Instant::now() + EVENT_TIMEOUT;
    // It was told to pause, and may have been told by one manager or by none.
    loop {
        let (_, answer) = kept.http("POST", "/v1/instances/still/kill", r#"{"grace_ms":0}"#);
        if answer["error"]["code"] != "busy" {
            break;
        }
        assert!(Instant::now() < end, "{answer}");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(kept.wait_for_state("still", "stopped")["reason"], "killed");
    kept.ok("start still");
    kept.tear_down();
    kept.end();
}
