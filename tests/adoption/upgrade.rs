//! Another program continues, or does not, and guests do not notice.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_client::Client;
use mkvmm_test_harness::images::{code, elf, numbers};
use mkvmm_test_harness::kept::expect_gone;
use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::server::{EVENT_TIMEOUT, try_http};
use mkvmm_test_harness::tier::{announce, skips_without_kvm};
use mkvmm_test_harness::walk::number;
use mkvmm_test_harness::{Kept, Mkvmm, Running, Scratch, Terminal};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Guests that live through the upgrades unless it is told.
const GUESTS: u64 = 10;
/// Longer than all of it takes.
const LONGEST: Duration = Duration::from_secs(600);
/// Turns of a loop between two lines of the guest that counts.
const PAUSE: u32 = 20_000;

/// A manager with guests.
struct Fleet {
    kept: Kept,
    guests: BTreeMap<String, i64>,
    manager: u64,
    /// What the guest that counts has printed.
    counted: u32,
}

impl Fleet {
    fn start() -> Self {
        Self::start_by(Mkvmm::spawn)
    }

    /// Starts the guests with a manager that `spawn` starts.
    fn start_by(spawn: impl FnOnce(Mkvmm) -> Running) -> Self {
        let guests = number("MKVMM_UPGRADE_GUESTS").unwrap_or(GUESTS);
        let guests = usize::try_from(guests).expect("a small number");
        let mut kept = Kept::new(&format!("{}M@4G", 8 * guests + 64), &[], LONGEST);
        let running = spawn(kept.serving());
        kept.take(running);
        let count = kept.path("count");
        fs::write(&count, elf(&code::count_slowly(PAUSE))).expect("the directory is ours");
        kept.ok(&format!(
            "create count --memory 8M --kernel {}",
            count.display()
        ));
        kept.ok("start count");
        for number in 1..guests {
            kept.ok(&format!(
                "create g{number} --memory 8M --kernel probe --cmdline shell"
            ));
            kept.ok(&format!("start g{number}"));
            // Only one has the processors, beside the one that counts.
            if number > 1 {
                kept.ok(&format!("pause g{number}"));
            }
        }
        let mut fleet = Self {
            kept,
            guests: BTreeMap::new(),
            manager: 1,
            counted: 0,
        };
        fleet.guests = fleet.pids();
        assert_eq!(fleet.guests.len(), guests);
        fleet
    }

    /// The processes of the guests that run.
    fn pids(&self) -> BTreeMap<String, i64> {
        let (_, all) = self.kept.http("GET", "/v1/instances", "");
        let one = |instance: &Value| {
            let name = instance["name"].as_str().expect("a name").to_owned();
            let state = match name.as_str() {
                "count" | "g1" => "active",
                _ => "paused",
            };
            assert_eq!(instance["state"], state, "{instance}");
            (name, instance["pid"].as_i64().expect("it runs"))
        };
        all.as_array().expect("a list").iter().map(one).collect()
    }

    /// The program that serves.
    fn program(&self) -> PathBuf {
        let pid = self.process().as_raw_pid();
        fs::read_link(format!("/proc/{pid}/exe")).expect("it runs")
    }

    /// The process that serves: another one than at first, if a program that was
    /// executed in its place has ended.
    fn process(&self) -> Pid {
        let (_, version) = self.kept.http("GET", "/v1/version", "");
        let pid = version["pid"]
            .as_i64()
            .and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("it has one")
    }

    /// Fails unless `program` serves as manager number `manager`, and all guests
    /// are as they were.
    #[track_caller]
    fn expect(&mut self, program: &Path, manager: u64) {
        assert_eq!(self.program(), program);
        let (_, version) = self.kept.http("GET", "/v1/version", "");
        assert_eq!(version["manager"], manager, "{version}");
        self.manager = manager;
        self.kept.expect_audit();
        assert_eq!(self.pids(), self.guests);
        let mut terminal = Terminal::attach(self.kept.socket(), "count");
        let before = self.counted;
        let has_more = |seen: &[u8]| numbers(&String::from_utf8_lossy(seen)).end > before + 1;
        let seen = numbers(&terminal.wait("another line", has_more));
        assert!(seen.start <= before, "{before} is followed by {seen:?}");
        self.counted = seen.end;
        let mut terminal = Terminal::attach(self.kept.socket(), "g1");
        terminal.wait_for("probe# ");
        terminal.type_in(&format!("echo of {manager}\r"));
        terminal.wait_for(&format!("\r\nof {manager}\r\n"));
        for (due, event) in (1..).zip(self.kept.events(0)) {
            assert_eq!(event["seq"], due, "{event}");
        }
    }

    /// Fails unless `program` is refused with status `code`, and the manager goes
    /// on that there was.
    #[track_caller]
    fn expect_refusal(&mut self, program: &Path, code: i32) {
        let before = self.program();
        let run = self
            .kept
            .run_words(["upgrade", &program.display().to_string()]);
        run.expect_code(code);
        // A program that has begun to take over has a number, too.
        let (_, version) = self.kept.http("GET", "/v1/version", "");
        let manager = version["manager"].as_u64().expect("a number");
        assert!(manager >= self.manager, "{version}");
        self.expect(&before, manager);
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.kept.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the directory is ours");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is ours");
        path
    }

    fn end(self) {
        self.kept.tear_down();
        let (process, keeper) = (self.process(), self.kept.keeper());
        if process == self.kept.manager() {
            return self.kept.end();
        }
        kill_process(process, Signal::TERM).expect("it runs");
        expect_gone(process);
        expect_gone(keeper);
    }
}

/// Returns what the descriptors of a process stand for, once clients have gone.
fn settled_descriptors(pid: Pid) -> Vec<String> {
    let mut before = Kept::descriptors(pid);
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = Kept::descriptors(pid);
        if now == before {
            return now;
        }
        before = now;
    }
}

#[test]
fn another_program_continues_and_the_first_one_again() {
    if skips_without_kvm() {
        return;
    }
    let mut fleet = Fleet::start();
    let first = fleet.program();
    let second = fleet.kept.path("second");
    fs::copy(binary(), &second).expect("there is room");
    let second = second.canonicalize().expect("it is there");
    let pid = fleet.kept.manager().as_raw_pid();
    let mut descriptors = Vec::new();
    for (manager, program) in (2..).zip([&second, &first, &second]) {
        let said = fleet.kept.ok(&format!("upgrade {}", program.display()));
        assert!(
            said.starts_with("upgraded to ") && said.contains(&pid.to_string()),
            "{said}"
        );
        let count = fleet.guests.len();
        assert!(said.contains(&format!("{count} instances")), "{said}");
        fleet.expect(program, manager);
        assert_eq!(fleet.process().as_raw_pid(), pid);
        descriptors.push(settled_descriptors(fleet.kept.manager()));
    }
    assert_eq!(descriptors[0], descriptors[2]);
    // What came by an upgrade can be killed, too.
    fleet.kept.replace_manager();
    fleet.expect(&first, 5);
    fleet.end();
}

/// Returns the path of a copy of the program.
fn copied(scratch: &Scratch) -> PathBuf {
    let copy = scratch.path("other");
    fs::copy(binary(), &copy).expect("there is room");
    copy
}

#[test]
fn an_earlier_program_is_followed_and_comes_back_if_it_can() {
    if skips_without_kvm() {
        return;
    }
    // Unless there is an earlier one, it is a copy of this one.
    let scratch = Scratch::new();
    let other = env::var_os("MKVMM_OTHER").map_or_else(|| copied(&scratch), PathBuf::from);
    let other = other.canonicalize().expect("MKVMM_OTHER is a program");
    let this = binary().canonicalize().expect("it is there");
    let script = format!("exec {} \"$@\"", other.display());
    let mut fleet = Fleet::start_by(|serve| serve.by(["sh", "-c", &script]).spawn());
    assert_eq!(fleet.program(), other);
    fleet.kept.ok(&format!("upgrade {}", this.display()));
    fleet.expect(&this, 2);
    // What is started now is of another version than what runs on.
    fleet
        .kept
        .ok("create new --memory 8M --kernel probe --cmdline shell");
    fleet.kept.ok("start new");
    fleet.kept.ok("kill new --force");
    fleet.kept.ok("delete new");
    let run = fleet
        .kept
        .run_words(["upgrade", &other.display().to_string()]);
    match run.code() {
        Some(0) => {
            announce("the other program has come back");
            fleet.expect(&other, 3);
            fleet.kept.ok(&format!("upgrade {}", this.display()));
            fleet.expect(&this, 4);
        }
        _ => {
            // It was refused before anybody had left.
            let error = run.expect_refusal(2);
            assert!(error.contains("version"), "{error}");
            announce(&format!("the other program does not come back: {error}"));
            fleet.expect(&this, 2);
        }
    }
    let next = fleet.manager + 1;
    fleet.kept.replace_manager();
    fleet.expect(&this, next);
    fleet.end();
}

#[test]
fn a_guard_that_looks_late_revives_nobody() {
    if skips_without_kvm() {
        return;
    }
    let this = binary().canonicalize().expect("it is there");
    let mut fleet = Fleet::start();
    let guard = fleet.kept.path("guard");
    // The guard is stopped before the new program serves.
    let text = format!(
        r#"[ "$1" = serve ] && for process in /proc/[0-9]*; do
            case "$(tr '\0' ' ' 2>/dev/null <"$process/cmdline")" in
            *upgrade-guard*{socket}*--alone*)
                kill -STOP "${{process#/proc/}}" && echo "${{process#/proc/}}" >{guard}
            esac
        done
        exec {this} "$@""#,
        socket = fleet.kept.path("sock").display(),
        guard = guard.display(),
        this = this.display(),
    );
    let script = fleet.script("stops-the-guard", &text);
    // It is refused because the program that serves is not the script.
    let run = fleet
        .kept
        .run_words(["upgrade", &script.display().to_string()]);
    run.expect_code(2);
    fleet.expect(&this, 2);
    let guard = fs::read_to_string(guard).expect("there was a guard");
    let guard = guard.trim().parse().ok().and_then(Pid::from_raw);
    let guard = guard.expect("a process ID");
    fleet.kept.kill_manager();
    kill_process(guard, Signal::CONT).expect("it is stopped");
    expect_gone(guard);
    fleet.kept.serve();
    fleet.expect(&this, 3);
    fleet.end();
}

#[test]
fn whoever_waits_for_an_end_goes_on_waiting_under_the_next_program() {
    if skips_without_kvm() {
        return;
    }
    let kept = Kept::start("32M@4G", &[]);
    kept.ok("create a --memory 8M --kernel probe --cmdline shell");
    kept.ok("start a");
    let other = kept.path("second");
    fs::copy(binary(), &other).expect("there is room");
    let client = Client::new(kept.socket());
    let waiting = thread::spawn(move || client.wait("a"));
    let command = Mkvmm::new(["wait", "a", "--socket"])
        .arg(kept.socket())
        .spawn();
    for _ in 0..2 {
        // By then they listen again.
        thread::sleep(Duration::from_secs(1));
        kept.ok(&format!("upgrade {}", other.display()));
    }
    assert!(!waiting.is_finished(), "{:?}", waiting.join());
    kept.ok("kill a --force");
    let ended = waiting.join().expect("it does not panic");
    assert_eq!(ended.expect("it waits").name.as_str(), "a");
    command.wait().expect_code(0);
    kept.end();
}

/// Returns the guard of an upgrade of the manager at `socket`, if it waits by now.
fn find_guard(socket: &Path) -> Option<Pid> {
    let socket = socket.display().to_string();
    let entries = fs::read_dir("/proc").expect("procfs is there");
    let mut pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let pid = pids.find(|pid: &i32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split('\0').collect();
        ["upgrade-guard", "--alone", &socket]
            .iter()
            .all(|word| words.contains(word))
    });
    pid.and_then(Pid::from_raw)
}

#[test]
fn a_signal_during_an_upgrade_is_not_lost() {
    // Shorter than the guard is alone before the program is executed.
    const IN_TIME: Duration = Duration::from_millis(40);
    if skips_without_kvm() {
        return;
    }
    for _ in 0..20 {
        let kept = Kept::start("32M@4G", &[]);
        kept.ok("create a --memory 8M --kernel probe --cmdline shell");
        kept.ok("start a");
        let (manager, keeper) = (kept.manager(), kept.keeper());
        let other = kept.path("second");
        fs::copy(binary(), &other).expect("there is room");
        let socket = kept.socket().to_owned();
        let body = format!(r#"{{"binary":"{}"}}"#, other.display());
        let asking = thread::spawn(move || try_http(&socket, "POST", "/v1/upgrade", &body));
        let end = Instant::now() + EVENT_TIMEOUT;
        let mut before = Instant::now();
        let guard = loop {
            let now = Instant::now();
            if let Some(guard) = find_guard(kept.socket()) {
                break guard;
            }
            before = now;
            assert!(now < end, "there is no guard");
        };
        kill_process(manager, Signal::STOP).expect("it runs");
        let is_in_time = before.elapsed() < IN_TIME;
        if is_in_time {
            kill_process(manager, Signal::TERM).expect("it is stopped");
        }
        kill_process(manager, Signal::CONT).expect("it is stopped");
        let _ = asking.join();
        if is_in_time {
            for pid in [manager, keeper, guard] {
                expect_gone(pid);
            }
            assert!(kept.find_keeper().is_none());
            return;
        }
        // This machine is too busy for it now, and the other program serves soon.
        expect_gone(guard);
        kept.tear_down();
        kept.end();
    }
    announce("this machine was too busy for a signal in time");
}

#[test]
fn a_program_that_cannot_be_executed_leaves_the_keeper_as_it_was() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start("32M@4G", &["--on-manager-exit", "kill"]);
    kept.ok("create a --memory 8M --kernel probe --cmdline shell");
    kept.ok("start a");
    let (worker, keeper) = (kept.worker_pid("a"), kept.keeper());
    let script = kept.path("gone");
    let text = format!("#!/bin/sh\nrm \"$0\"\nexec {} \"$@\"\n", binary().display());
    fs::write(&script, text).expect("the directory is ours");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("it is ours");
    let body = format!(r#"{{"binary":"{}"}}"#, script.display());
    let (status, answer) = kept.http("POST", "/v1/upgrade", &body);
    assert_eq!(status, 202, "{answer}");
    let end = Instant::now() + EVENT_TIMEOUT;
    while !kept.said().contains("cannot be executed") {
        assert!(Instant::now() < end, "{}", kept.said());
        thread::sleep(Duration::from_millis(2));
    }
    kept.expect_audit();
    // No other program came, so its guests end with it, as was asked for.
    kept.kill_manager();
    expect_gone(worker);
    expect_gone(keeper);
    kept.serve();
    kept.expect_empty();
    kept.end();
}

#[test]
fn an_end_while_the_fleet_is_made_after_an_upgrade_is_no_failure() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::new("64M@4G", &[], LONGEST);
    let file = kept.path("fleet.toml");
    let fleet = |memory: &str| {
        let text = format!(
            "[[instance]]\nname = \"a\"\nmemory = \"{memory}\"\nkernel = \"probe\"\ncmdline = \"spin\"\n"
        );
        fs::write(&file, text).expect("the directory is ours");
    };
    fleet("8M");
    kept.set_options(&["--fleet", &file.display().to_string()]);
    kept.set_grace(2);
    kept.serve();
    let (manager, keeper) = (kept.manager(), kept.keeper());
    fleet("16M");
    let second = kept.path("second");
    fs::copy(binary(), &second).expect("there is room");
    let body = format!(r#"{{"binary":"{}"}}"#, second.display());
    try_http(kept.socket(), "POST", "/v1/upgrade", &body);
    // The instance that is replaced has its grace now.
    let end = Instant::now() + EVENT_TIMEOUT;
    while !kept.said().contains("were taken over") {
        assert!(Instant::now() < end, "{}", kept.said());
        thread::sleep(Duration::from_millis(2));
    }
    let guard = find_guard(kept.socket());
    if let Some(guard) = guard {
        kill_process(guard, Signal::STOP).expect("it waits");
    }
    kill_process(manager, Signal::TERM).expect("it runs");
    kept.bury_manager();
    expect_gone(keeper);
    if let Some(guard) = guard {
        kill_process(guard, Signal::CONT).expect("it is stopped");
        expect_gone(guard);
    }
    assert!(kept.find_keeper().is_none());
}

#[test]
fn a_check_that_hangs_holds_up_nothing_else() {
    if skips_without_kvm() {
        return;
    }
    let mut fleet = Fleet::start();
    let began = fleet.kept.path("began");
    let hangs = fleet.script(
        "hangs",
        &format!("echo > {}\nexec sleep 60", began.display()),
    );
    let body = serde_json::json!({"binary": hangs}).to_string();
    let socket = fleet.kept.socket().to_owned();
    let asking = thread::spawn(move || try_http(&socket, "POST", "/v1/upgrade", &body));
    let end = Instant::now() + EVENT_TIMEOUT;
    while !began.exists() {
        assert!(Instant::now() < end, "it does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    let program = binary();
    let run = fleet
        .kept
        .run_words(["upgrade", &program.display().to_string()]);
    let error = run.expect_refusal(2);
    assert!(
        error.contains("another program is being checked"),
        "{error}"
    );
    fleet.kept.expect_audit();
    // The manager leaves at once, and the check ends with it.
    fleet.kept.leave();
    let answer = asking.join().expect("it does not fail");
    assert!(answer.is_none_or(|(status, _)| status != 200));
    fleet.kept.serve();
    fleet.expect(&program.canonicalize().expect("it is there"), 2);
    fleet.end();
}

#[test]
fn a_program_that_cannot_continue_does_not_take_over() {
    if skips_without_kvm() {
        return;
    }
    let mut fleet = Fleet::start();
    fleet.expect_refusal(Path::new("/bin/false"), 2);
    fleet.expect_refusal(Path::new("/nonexistent"), 3);
    let text = fleet.kept.path("text");
    fs::write(&text, "no program").expect("the directory is ours");
    fleet.expect_refusal(&text, 3);
    // It says yes, and no more.
    let mkvmm = binary();
    let mkvmm = mkvmm.display();
    let check = format!("[ \"$1\" = check-journal ] && exec {mkvmm} \"$@\"");
    let other_pool = fleet.script(
        "other-pool",
        &format!(
            "{check}\nexec {mkvmm} serve --pool 1M@4G --state-dir {} --socket {}",
            fleet.kept.state_dir().display(),
            fleet.kept.socket().display()
        ),
    );
    fleet.expect_refusal(&other_pool, 2);
    fleet.end();
}

#[test]
fn a_program_that_ends_instead_of_continuing_does_not_take_over() {
    if skips_without_kvm() {
        return;
    }
    let mut fleet = Fleet::start();
    let mkvmm = binary();
    let check = format!(
        "[ \"$1\" = check-journal ] && exec {} \"$@\"",
        mkvmm.display()
    );
    let fails = fleet.script("fails", &format!("{check}\nexit 1"));
    fleet.expect_refusal(&fails, 2);
    // The process that serves now can be asked, too.
    fleet.expect_refusal(&fails, 2);
    fleet.end();
}

#[test]
fn a_manager_whose_guests_would_end_is_not_upgraded() {
    if skips_without_kvm() {
        return;
    }
    let server = mkvmm_test_harness::Server::start("16M@4G");
    let program = binary();
    let run = server.run_words(["upgrade", &program.display().to_string()]);
    let error = run.expect_refusal(4);
    assert!(error.contains("--state-dir"), "{error}");
    server.expect_audit();
}
