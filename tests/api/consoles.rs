//! Tests of console logs, and of terminals attached to consoles.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::mkvmm::binary;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Kept, Mkvmm, Scratch, pty};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use rustix::termios::tcgetattr;

use crate::server::{EVENT_TIMEOUT, Server};

#[track_caller]
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + EVENT_TIMEOUT;
    while !happened() {
        assert!(Instant::now() < end, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Creates an instance with a kernel of `code`, and starts it.
fn start(server: &Server, scratch: &Scratch, name: &str, code: &[u8], more: &[&str]) {
    let kernel = scratch.file(name, &elf(code));
    let kernel = kernel.display().to_string();
    let words = ["create", name, "--memory", "8M", "--kernel", &kernel];
    server.run_words([&words[..], more].concat()).expect_code(0);
    server.ok(&format!("start {name}"));
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[test]
fn a_log_that_was_moved_away_is_opened_again_at_a_hangup() {
    if skips_without_kvm() {
        return;
    }
    let mut kept = Kept::start("64M@4G", &[]);
    let scratch = Scratch::new();
    let (log, moved) = (scratch.path("web.log"), scratch.path("web.log.1"));
    let path = log.display();
    let create = format!("create web --memory 8M --kernel probe --console-log {path}");
    kept.ok(&create);
    let boot = |kept: &Kept| {
        kept.ok("start web");
        kept.wait_for_state("web", "stopped");
    };
    let is_whole = |path: &Path| {
        let text = read(path);
        text.starts_with("probe: name web\n") && text.ends_with("probe: pass\n")
    };
    boot(&kept);
    wait_until("the log", || is_whole(&log));
    let first = read(&log);
    // A hangup without a reason changes nothing.
    kill_process(kept.manager(), Signal::HUP).expect("it is there");
    fs::rename(&log, &moved).expect("it is there");
    kill_process(kept.manager(), Signal::HUP).expect("it is there");
    wait_until("the new log", || log.exists());
    boot(&kept);
    wait_until("the new log", || is_whole(&log));
    assert_eq!(read(&moved), first);
    // So it is for the next manager.
    kept.kill_manager();
    kept.serve();
    boot(&kept);
    wait_until("the longer log", || {
        read(&log).matches("probe: pass\n").count() == 2
    });
    assert_eq!(read(&moved), first);
    kept.tear_down();
}

#[test]
fn a_log_keeps_all_boots_of_an_instance_while_others_look() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let log = scratch.file("web.log", b"of an earlier instance");
    let path = log.display().to_string();
    let create = ["create", "web", "--memory", "8M", "--kernel", "probe"];
    let with_log = [&create[..], &["--console-log", &path]].concat();
    // A dry run leaves no trace.
    let dry = [&with_log[..], &["--dry-run"]].concat();
    server.run_words(dry).expect_code(0);
    server.run_words(with_log.clone()).expect_code(0);
    assert_eq!(read(&log), "of an earlier instance", "it has not booted");
    server.run_words(with_log).expect_refusal(4);
    let twin = ["create", "twin", "--memory", "8M", "--console-log", &path];
    let run = server.run_words(twin);
    run.expect_refusal(4);
    assert!(run.stderr.contains("the log of another instance"), "{run}");
    let web = server.json("show web");
    assert_eq!(web["spec"]["console-log"], path.as_str());

    let boot = || {
        server.ok("start web");
        server.wait_for_state("web", "stopped");
    };
    boot();
    wait_until("the log", || read(&log).ends_with("probe: pass\n"));
    let first = read(&log);
    assert!(first.starts_with("probe: name web\n"), "{first}");
    boot();
    wait_until("the second log", || read(&log).len() >= 2 * first.len());
    assert_eq!(read(&log).matches("probe: pass\n").count(), 2);
    // The next instance starts with an empty file.
    server.ok("delete web");
    let again = [&create[..], &["--console-log", &path]].concat();
    server.run_words(again).expect_code(0);
    boot();
    wait_until("the third log", || {
        read(&log).starts_with("probe: name web\n") && read(&log).ends_with("probe: pass\n")
    });
    assert_eq!(read(&log).matches("probe: pass\n").count(), 1);

    let new = scratch.path("new.log");
    let new_path = new.display().to_string();
    let big = [
        "create",
        "big",
        "--memory",
        "1G",
        "--console-log",
        &new_path,
    ];
    server.run_words(big).expect_refusal(5);
    assert!(!new.exists(), "a refusal leaves no file");
}

#[test]
fn logs_lie_only_where_they_may() {
    if skips_without_kvm() {
        return;
    }
    let (scratch, outside) = (Scratch::new(), Scratch::new());
    let socket = scratch.path("sock");
    let mut running = Mkvmm::new(["serve", "--pool", "64M@4G", "--grace", "0", "--socket"])
        .arg(&socket)
        .arg("--log-dir")
        .arg(scratch.dir())
        .spawn();
    running.wait_until("a ready line", |r| r.stdout().starts_with("ready: "));
    let create = |path: &Path| {
        let path = path.display();
        let body = format!(r#"{{"name": "a", "memory": 8388608, "console-log": "{path}"}}"#);
        crate::server::http(&socket, "POST", "/v1/instances", &body)
    };
    let precious = outside.file("precious", b"x");
    std::os::unix::fs::symlink(&precious, scratch.path("link")).unwrap();
    for path in [&precious, &scratch.path("link"), Path::new("/dev/null")] {
        let (status, refusal) = create(path);
        assert_eq!((status, &refusal["error"]["code"]), (422, &"file".into()));
    }
    assert_eq!(read(&precious), "x");
    assert_eq!(create(&scratch.path("log")).0, 201);
    running.signal(Signal::TERM);
    running.wait().expect_code(0);
}

#[test]
fn a_log_that_cannot_be_written_stops_no_guest() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let log = scratch.path("log");
    let path = log.display().to_string();
    let chatter = [code::print(b"begin\n"), code::print_for_ever(b'x')].concat();
    start(
        &server,
        &scratch,
        "web",
        &chatter,
        &["--console-log", &path],
    );
    wait_until("output", || read(&log).len() > 100);
    let limit = Rlimit {
        current: Some(50),
        maximum: Some(50),
    };
    prlimit(server.running.pid(), Resource::Fsize, limit).unwrap();
    wait_until("the event", || {
        server.ok("events").contains("console-log-failed")
    });
    let length = read(&log).len();
    let printed = || server.ok("metrics");
    let before = printed();
    wait_until("more output", || printed() != before);
    assert_eq!(server.json("show web")["state"], "active");
    assert_eq!(read(&log).len(), length);
    server.ok("kill web --force");
    server.expect_audit();
}

#[test]
fn run_logs_to_files_and_has_them_whole_when_it_ends() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (a, b) = (scratch.path("a.log"), scratch.path("b.log"));
    let text = "[[instance]]\nname = \"a\"\nmemory = \"8M\"\nkernel = \"probe\"\n\
                console-log = \"a.log\"\n";
    let file = scratch.file("fleet.toml", text.as_bytes());
    let guest = format!("name=b,kernel=probe,memory=8M,console-log={}", b.display());
    let run = || Mkvmm::run("64M@4G").arg("--fleet").arg(&file).guest(&guest);
    run().arg("--dry-run").finish().expect_code(0);
    assert!(!a.exists() && !b.exists());
    let run = run().finish();
    run.expect_code(0);
    for (log, name) in [(&a, "a"), (&b, "b")] {
        let text = read(log);
        assert!(text.starts_with(&format!("probe: name {name}\n")), "{text}");
        assert!(text.ends_with("probe: pass\n"), "{text}");
    }
    let twice = format!(
        "kernel=probe,console-log={}/no/such",
        scratch.dir().display()
    );
    Mkvmm::run("64M@4G").guest(twice).finish().expect_refusal(3);
}

/// A `mkvmm console` on a terminal of its own.
struct Terminal {
    master: File,
    slave: File,
    child: Child,
    seen: Option<Arc<Mutex<Vec<u8>>>>,
    before: String,
}

impl Terminal {
    /// Attaches in raw mode. Its output is read only if `reads` is true.
    fn attach(server: &Server, name: &str, reads: bool) -> Self {
        let (master, slave) = pty::open();
        let before = modes(&slave);
        let stdio = || Stdio::from(slave.try_clone().expect("there is a terminal"));
        let child = Command::new(binary())
            .args(["console", name, "--socket"])
            .arg(server.socket())
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .expect("there is a terminal");
        let seen = reads.then(|| {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (keep, mut from) = (
                Arc::clone(&seen),
                master.try_clone().expect("there is a terminal"),
            );
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = from.read(&mut buffer) {
                    keep.lock()
                        .expect("there is a terminal")
                        .extend_from_slice(&buffer[..count]);
                }
            });
            seen
        });
        wait_until("a raw terminal", || modes(&slave) != before);
        Self {
            master,
            slave,
            child,
            seen,
            before,
        }
    }

    fn text(&self) -> String {
        let seen = self
            .seen
            .as_ref()
            .expect("there is a terminal")
            .lock()
            .expect("there is a terminal");
        String::from_utf8_lossy(&seen).into_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("there is a terminal");
    }

    /// Checks that the client exits with `code`, and that the terminal was
    /// restored.
    #[track_caller]
    fn expect_end(mut self, code: i32) {
        let mut status = None;
        wait_until("the client's end", || {
            status = self.child.try_wait().expect("there is a terminal");
            status.is_some()
        });
        assert_eq!(status.and_then(|s| s.code()), Some(code));
        assert_eq!(modes(&self.slave), self.before);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns all settings of a terminal.
fn modes(terminal: &File) -> String {
    format!("{:?}", tcgetattr(terminal).expect("there is a terminal"))
}

#[test]
fn the_terminal_is_as_it_was_however_the_client_ends() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let chatter = [code::print(b"begin\n"), code::print_for_ever(b'x')].concat();
    start(&server, &scratch, "web", &chatter, &[]);
    let mut leaves = Terminal::attach(&server, "web", true);
    leaves.master.write_all(b"typed\x1d").unwrap();
    leaves.expect_end(0);
    for (signal, status) in [
        (Signal::TERM, 143),
        (Signal::INT, 130),
        (Signal::HUP, 130),
        (Signal::QUIT, 130),
    ] {
        let terminal = Terminal::attach(&server, "web", true);
        terminal.signal(signal);
        terminal.expect_end(status);
    }
    // Nobody reads any output of this guest.
    let stuck = Terminal::attach(&server, "web", false);
    thread::sleep(Duration::from_millis(200));
    stuck.signal(Signal::TERM);
    stuck.expect_end(143);
    let orphan = Terminal::attach(&server, "web", true);
    server.running.signal(Signal::KILL);
    orphan.expect_end(0);
}

#[test]
fn a_guest_that_reads_nothing_keeps_no_client_from_a_signal() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    // It is never started; input typed meanwhile waits, up to a limit.
    server.ok("create web --memory 8M");
    let mut typed = File::open(scratch.file("typed", &vec![b'x'; 8 << 20])).unwrap();
    let mut client = Command::new(binary())
        .args(["console", "web", "--socket"])
        .arg(server.socket())
        .stdin(Stdio::from(typed.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The offset is shared, and shows how far the client has read.
    let mut last = 0;
    wait_until("a full queue", || {
        thread::sleep(Duration::from_millis(200));
        let (before, now) = (last, typed.stream_position().unwrap());
        last = now;
        now > 0 && now == before
    });
    assert!(last < 8 << 20, "it does not wait for the guest");
    kill_process(Pid::from_child(&client), Signal::TERM).unwrap();
    let mut status = None;
    let end = Instant::now() + EVENT_TIMEOUT;
    while status.is_none() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
        status = client.try_wait().unwrap();
    }
    // This fails only if it has ended already.
    let _ = client.kill();
    let _ = client.wait();
    assert_eq!(status.and_then(|status| status.code()), Some(143));
}

#[test]
fn a_guest_can_ask_the_terminal_for_its_size() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let asks = [code::print(b"\x1b[18t"), code::ECHO.to_vec()].concat();
    start(&server, &scratch, "web", &asks, &[]);
    let mut terminal = Terminal::attach(&server, "web", true);
    wait_until("the question", || terminal.text().contains("\x1b[18t"));
    // This is the terminal's answer; the guest prints what it reads.
    terminal.master.write_all(b"\x1b[8;40;120t").unwrap();
    wait_until("the answer", || terminal.text().contains("\x1b[8;40;120t"));
    // These are all bytes except the one that detaches; nothing is echoed on
    // the way.
    let mut all: Vec<u8> = (0..=255).filter(|&byte| byte != 0x1d).collect();
    terminal.master.write_all(&all).unwrap();
    let seen = Arc::clone(terminal.seen.as_ref().unwrap());
    wait_until("all bytes", || seen.lock().unwrap().ends_with(&all));
    all.insert(0, b't');
    assert!(seen.lock().unwrap().ends_with(&all));
    terminal.master.write_all(&[0x1d]).unwrap();
    terminal.expect_end(0);
}

#[test]
fn a_terminal_talks_to_the_guests_shell_line_by_line() {
    if skips_without_kvm() {
        return;
    }
    let server = Server::start("64M@4G");
    server.ok("create web --memory 8M --kernel probe --cmdline shell");
    server.ok("start web");
    let mut terminal = Terminal::attach(&server, "web", true);
    let shell = "probe: shell, try help\r\n";
    wait_until("a prompt", || terminal.text().ends_with("probe# "));
    // The key Return sends `\r`; the guest echoes, the terminal does not.
    terminal.master.write_all(b"echo forty-two\r").unwrap();
    let all = format!("{shell}probe# echo forty-two\r\nforty-two\r\nprobe# ");
    wait_until("an answer", || terminal.text().ends_with(&all));
    // Ctrl-C is the guest's.
    terminal.master.write_all(b"echo \x03left\r").unwrap();
    wait_until("a second answer", || {
        terminal.text().matches("probe# ").count() == 3
    });
    assert_eq!(server.json("show web")["state"], "active");
    terminal.master.write_all(b"exit\r").unwrap();
    assert_eq!(server.wait_for_state("web", "stopped")["reason"], "reboot");
    wait_until("how it ended", || {
        terminal
            .text()
            .ends_with("\r\nmkvmm: web: stopped (reboot)\r\n")
    });
    // It stays attached: the next boot is shown, too.
    server.ok("start web");
    wait_until("the next boot", || {
        terminal.text().matches(shell).count() == 2
    });
    server.ok("kill web --force");
    server.ok("delete web");
    wait_until("why it ended", || {
        terminal.text().ends_with("mkvmm: web was deleted\r\n")
    });
    terminal.expect_end(0);
}

#[test]
fn what_a_client_chose_is_shown_to_others_and_not_obeyed() {
    if skips_without_kvm() {
        return;
    }
    let (server, scratch) = (Server::start("64M@4G"), Scratch::new());
    let kernel = scratch.file("a\u{1b}[2Kb", &elf(code::HALT));
    let kernel = kernel.display().to_string();
    let create = ["create", "web", "--memory", "8M", "--kernel", &kernel];
    let cmdline = ["--cmdline", "c\u{1b}[1Gd\u{9b}2Ke\u{202e}f"];
    server
        .run_words([&create[..], &cmdline].concat())
        .expect_code(0);
    let (show, list) = (server.ok("show web"), server.ok("list"));
    assert!(show.contains("c?[1Gd?2Ke?f\n"), "{show}");
    for text in [show, list] {
        assert!(text.contains("/a?[2Kb"), "{text}");
        let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(obeyed), "{text}");
    }
}
