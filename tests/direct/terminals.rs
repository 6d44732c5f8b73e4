//! `mkvmm run` on a terminal: what guests print is shown, and not obeyed.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::images::{code, elf};
use mkvmm_test_harness::server::EVENT_TIMEOUT;
use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch, Stdout, pty};
use rustix::process::{Pid, Signal};

/// What `bad` prints, each a line: attempts to write a line of `db`'s.
const ATTEMPTS: &[&[u8]] = &[
    b"\x1b[1G\x1b[2Kdb: all data lost",
    // The same in eight bits, alone and as UTF-8.
    b"\x9b1G\x9b2Kdb: all data lost",
    b"\xc2\x9b1G\xc2\x9b2Kdb: all data lost",
    b"\rdb: all data lost",
    b"\x08\x08\x08\x08\x08db: all data lost",
    b"\x0bdb: all data lost",
    b"\x0cdb: all data lost",
    b"\xc2\x85db: all data lost",
    // From right to left.
    b"\xe2\x80\xaetsol atad lla :bd",
    // A title and a sequence that never end, and half a character.
    b"\x1b]0;db: all data lost",
    b"\x1bP",
    b"\x1b[",
    b"\xe2\x82",
    // Into the other character set, and up by a line.
    b"\x0edb: all data lost",
    b"\x1b(0db: all data lost",
    b"\x1bMdb: all data lost",
];
/// What `db` prints, with what a terminal does not obey.
const OWN: &str = "tab\there, \u{c4}rger, 42 \u{20ac}";

/// Runs both guests, with standard output of this kind.
fn run(stdout: Stdout) -> Finished {
    let scratch = Scratch::new();
    let guest = |name: &str, lines: &[&[u8]]| {
        let text: Vec<u8> = lines
            .iter()
            .flat_map(|l| [l, &b"\r\n"[..]].concat())
            .collect();
        let image = elf(&[&code::print(&text), code::HALT].concat());
        let kernel = scratch.file(name, &image);
        format!("name={name},memory=8M,kernel={}", kernel.display())
    };
    Mkvmm::run("64M@4G")
        .stdout(stdout)
        .guest(guest("bad", ATTEMPTS))
        .guest(guest("db", &[OWN.as_bytes()]))
        .finish()
}

#[test]
fn no_guest_writes_anothers_line_on_a_terminal() {
    if skips_without_kvm() {
        return;
    }
    let run = run(Stdout::Terminal);
    run.expect_code(0);
    // A line ends with what the terminal makes of a newline, and nothing else
    // moves the cursor: what a line begins with is where it is from.
    let lines: Vec<&str> = run.stdout.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), ATTEMPTS.len() + 1, "{run}");
    let obeyed = |c: char| c.is_control() && c != '\t' || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!lines.iter().any(|line| line.contains(obeyed)), "{lines:?}");
    let (of_db, of_bad): (Vec<&str>, Vec<&str>) =
        lines.iter().partition(|line| line.starts_with("db: "));
    assert_eq!(of_db, [format!("db: {OWN}")]);
    assert!(
        of_bad.iter().all(|line| line.starts_with("bad: ")),
        "{lines:?}"
    );
    assert_eq!(of_bad[0], "bad: db: all data lost");
}

#[test]
fn what_is_typed_goes_to_the_guest_that_is_chosen() {
    if skips_without_kvm() {
        return;
    }
    let other = "name=db,memory=8M,kernel=probe";
    let mut run = Mkvmm::run("64M@4G")
        .typed()
        .guest("name=web,memory=8M,kernel=probe,cmdline=shell")
        .guest(other)
        .arg("--attach")
        .arg("web")
        .spawn();
    // A line of another guest would divide one that is not whole.
    run.wait_for_lines("db: probe: pass", 1);
    run.type_in("echo typed\n");
    // More than fits into its input at once.
    for _ in 0..64 {
        run.type_in(&format!("echo {}\n", "x".repeat(60)));
    }
    run.type_in("name\nexit\n");
    let run = run.wait();
    run.expect_code(0);
    // The guest's own output is as it is, others' lines are whole.
    assert!(run.stdout.contains("echo typed\r\ntyped\r\n"), "{run}");
    assert_eq!(run.stdout.matches(&"x".repeat(60)).count(), 128, "{run}");
    assert!(run.stdout.contains("probe# name\r\nweb\r\n"), "{run}");
    assert!(!run.stdout.contains("web: "), "{run}");
    let line = |line: &str| line.starts_with("db: probe: name db");
    assert!(run.stdout.lines().any(line), "{run}");

    // Nobody waits for an input that is closed.
    let run = Mkvmm::run("64M@4G")
        .guest("name=web,memory=8M,kernel=probe,cmdline=shell")
        .guest(other)
        .arg("--attach")
        .arg("db")
        .spawn();
    let mut run = run;
    run.wait_until("the prompt", |run| {
        run.stdout().contains("web: probe: shell")
    });
    run.signal(Signal::INT);
    run.wait().expect_code(130);
    let run = Mkvmm::run("64M@4G").guest(other).arg("--attach").arg("web");
    let run = run.finish();
    run.expect_code(2);
    assert_eq!(run.stderr, "error: --attach: there is no guest web\n");
}

#[test]
fn a_terminal_is_that_of_the_guest_until_somebody_leaves() {
    if skips_without_kvm() {
        return;
    }
    let (mut master, slave) = pty::open();
    let mut child = Command::new(mkvmm_test_harness::mkvmm::binary())
        .args(["run", "--pool", "64M@4G", "--attach", "web"])
        .args(["--guest", "name=web,memory=8M,kernel=probe,cmdline=shell"])
        .stdin(slave.try_clone().expect("a descriptor"))
        .stdout(slave.try_clone().expect("a descriptor"))
        .stderr(slave.try_clone().expect("a descriptor"))
        .spawn()
        .expect("it starts");
    let modes = || {
        format!(
            "{:?}",
            rustix::termios::tcgetattr(&slave).expect("a terminal")
        )
    };
    let end = Instant::now() + EVENT_TIMEOUT;
    let mut seen = String::new();
    let mut wait_for = |master: &mut File, text: &str| {
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            assert!(Instant::now() < end, "no {text}: {seen}");
            let count = master.read(&mut buffer).expect("it prints");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    wait_for(&mut master, "attached to web; Ctrl-] leaves");
    wait_for(&mut master, "probe# ");
    let raw = modes();
    master.write_all(b"echo hello\r").expect("it reads");
    // Every line begins at its beginning.
    wait_for(&mut master, "probe# echo hello\r\nhello\r\nprobe# ");
    master.write_all(b"\x1d").expect("it reads");
    while modes() == raw {
        assert!(Instant::now() < end, "it is still raw");
        thread::sleep(Duration::from_millis(10));
    }
    // The guest goes on, until the terminal ends it.
    assert!(child.try_wait().expect("a child").is_none());
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).expect("it is there");
    assert_eq!(child.wait().expect("a child").code(), Some(130));
}

#[test]
fn a_second_signal_does_not_leave_the_terminal_raw() {
    if skips_without_kvm() {
        return;
    }
    let (mut master, slave) = pty::open();
    let modes = || {
        let modes = rustix::termios::tcgetattr(&slave).expect("a terminal");
        format!("{modes:?}")
    };
    let before = modes();
    // This guest takes no notice of its power button.
    let mut child = Command::new(mkvmm_test_harness::mkvmm::binary())
        .args([
            "run", "--pool", "64M@4G", "--attach", "web", "--grace", "1h",
        ])
        .args(["--guest", "name=web,memory=8M,kernel=probe,cmdline=spin"])
        .stdin(slave.try_clone().expect("a descriptor"))
        .stdout(slave.try_clone().expect("a descriptor"))
        .stderr(slave.try_clone().expect("a descriptor"))
        .spawn()
        .expect("it starts");
    let end = Instant::now() + EVENT_TIMEOUT;
    while modes() == before {
        assert!(Instant::now() < end, "it does not attach");
        thread::sleep(Duration::from_millis(10));
    }
    let reader = thread::spawn(move || {
        // Until nobody has the terminal any more.
        let mut buffer = [0; 4096];
        while let Ok(1..) = master.read(&mut buffer) {}
    });
    // Both arrive before the process can handle the first.
    let pid = Pid::from_child(&child);
    for signal in [Signal::STOP, Signal::TERM, Signal::INT, Signal::CONT] {
        rustix::process::kill_process(pid, signal).expect("it is there");
    }
    let code = child.wait().expect("a child").code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    assert_eq!(modes(), before);
    drop(slave);
    reader.join().expect("it only reads");
}

#[test]
fn a_guests_bytes_go_into_a_pipe_as_they_are() {
    if skips_without_kvm() {
        return;
    }
    let run = run(Stdout::Kept);
    run.expect_code(0);
    let consoles = run.consoles(&["bad", "db"]);
    assert_eq!(consoles.of("db"), [OWN]);
    // Except `\r`, which belongs to a console's line ends. The harness reads
    // text.
    let printed: Vec<String> = ATTEMPTS
        .iter()
        .map(|line| String::from_utf8_lossy(line).replace('\r', ""))
        .collect();
    assert_eq!(consoles.of("bad"), printed);
}
