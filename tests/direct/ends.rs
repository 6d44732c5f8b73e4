//! Tests of how guests and mkvmm end, and with which status.

use std::time::{Duration, Instant};

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Scratch, Stdout};
use rustix::process::Signal;

const SPINNING: [&str; 3] = ["s1", "s2", "s3"];
/// The time limit for handling an interrupt, on a busy machine.
const SOON: Duration = Duration::from_secs(15);

/// Returns three guests that never end by themselves.
fn spinning() -> Mkvmm {
    SPINNING
        .iter()
        .fold(Mkvmm::run("64M@0x100000000"), |run, name| {
            run.guest(format!("name={name},kernel=probe,memory=8M,cmdline=spin"))
        })
}

/// Interrupts three running guests.
fn interrupted_by(signal: Signal) -> Finished {
    let mut run = spinning().spawn();
    run.wait_for_lines("probe: pass", 3);
    let sent = Instant::now();
    run.signal(signal);
    let run = run.wait();
    assert!(sent.elapsed() < SOON, "{:?}\n{run}", sent.elapsed());
    run
}

#[test]
fn ctrl_c_ends_all_guests() {
    if skips_without_kvm() {
        return;
    }
    let run = interrupted_by(Signal::INT);
    // Their previous output is complete.
    run.expect_code(130).consoles(&SPINNING);
}

#[test]
fn sigterm_ends_all_guests() {
    if skips_without_kvm() {
        return;
    }
    interrupted_by(Signal::TERM).expect_code(143);
}

#[test]
fn ctrl_c_ends_a_pool_that_is_being_populated() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let serve = Mkvmm::new(["serve", "--socket"]).arg(scratch.path("sock"));
    let run = Mkvmm::new(["run"]).guest("name=a,kernel=probe,memory=8M");
    for command in [serve, run] {
        let mut command = command.arg("--pool").arg("3G").arg("--prealloc").spawn();
        // Some of it is populated, most of it is not.
        command.wait_until("some memory", |c| c.memory_files_kib() > 32 << 10);
        command.signal(Signal::INT);
        let command = command.wait();
        command.expect_code(130);
        // It did not become ready, or run the guest.
        assert_eq!(command.stdout, "", "{command}");
    }
}

#[test]
fn ctrl_c_works_when_nobody_reads_the_consoles() {
    if skips_without_kvm() {
        return;
    }
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut run = (0..12)
            .fold(Mkvmm::run("64M@0x100000000"), |run, i| {
                run.guest(format!("name=s{i},kernel=probe,memory=4M,cmdline=spin"))
            })
            .stdout(Stdout::Unread)
            .spawn();
        run.wait_for_full_pipe();
        let sent = Instant::now();
        run.signal(signal);
        let run = run.wait();
        run.expect_code(code);
        assert!(sent.elapsed() < SOON, "{:?}\n{run}", sent.elapsed());
    }
}

#[test]
fn guests_end_when_their_consoles_cannot_be_written() {
    if skips_without_kvm() {
        return;
    }
    // They would spin forever; the status reports the failure. No error is
    // printed for a reader that has gone.
    let run = spinning().stdout(Stdout::Closed).finish();
    run.expect_code(1);
    assert!(!run.stderr.contains("error"), "{run}");
}

#[test]
fn a_crashed_guest_makes_the_status_6_and_harms_no_neighbour() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100000000")
        .guest("name=bad,kernel=probe,memory=8M,cmdline=end=crash")
        .guest("name=good,kernel=probe,memory=8M,cmdline=hold=300")
        .guest("name=other,kernel=probe,memory=8M")
        .finish();
    let consoles = run.expect_code(6).consoles(&["bad", "good", "other"]);
    for name in ["bad", "good", "other"] {
        assert!(consoles.has(name, "probe: pass"), "{name}\n{run}");
    }
    let held = consoles.starting("good", "probe: hold ok");
    assert_eq!(held.len(), 1, "{run}");
    let why = |l: &str| l.contains("bad: ") && l.contains("triple-fault");
    assert!(run.stderr.lines().any(why), "{run}");
}

#[test]
fn a_clean_end_of_all_guests_is_status_0() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000")
        .guest("name=a,kernel=probe,memory=8M,cmdline=end=reset")
        .finish();
    run.expect_code(0);
    let why = |l: &str| l.contains("a: ") && l.contains("reboot");
    assert!(run.stderr.lines().any(why), "{run}");
}
