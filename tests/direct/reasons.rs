//! Tests that each way in which a guest ends has its own reason and policy.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm, Running};
use rustix::process::Signal;

/// Returns a run of one guest, `a`, with additional keys.
fn guest(more: &str) -> Mkvmm {
    Mkvmm::run("16M@0x100000000").guest(format!("name=a,kernel=probe,memory=8M,{more}"))
}

/// Runs a guest with `end=HOW` to its end.
fn ended(how: &str) -> Finished {
    let run = guest(&format!("cmdline=end={how}")).finish();
    assert!(run.consoles(&["a"]).has("a", "probe: pass"), "{run}");
    run
}

/// Waits until guest `a` has booted three times, and interrupts it.
fn interrupt_after_three_boots(run: Mkvmm) -> Finished {
    let mut run: Running = run.spawn();
    run.wait_for_lines("probe: pass", 3);
    run.signal(Signal::INT);
    let run = run.wait();
    run.expect_code(130);
    run
}

#[test]
fn both_kinds_of_reset_are_a_reboot() {
    if skips_without_kvm() {
        return;
    }
    for how in ["reset", "acpi-reset"] {
        ended(how)
            .expect_code(0)
            .expect_said("a", "stopped (reboot)");
    }
}

#[test]
fn acpis_soft_off_is_a_poweroff() {
    if skips_without_kvm() {
        return;
    }
    let run = ended("poweroff");
    run.expect_code(0).expect_said("a", "stopped (poweroff)");
}

#[test]
fn a_guest_that_sleeps_for_ever_has_halted() {
    if skips_without_kvm() {
        return;
    }
    let run = ended("halt");
    run.expect_code(0).expect_said("a", "stopped (halt)");
}

#[test]
fn a_panic_that_the_guest_tells_is_a_failure() {
    if skips_without_kvm() {
        return;
    }
    ended("panic")
        .expect_code(6)
        .expect_said("a", "failed (panic)");
}

#[test]
fn a_guest_that_halts_does_not_end_its_neighbour() {
    if skips_without_kvm() {
        return;
    }
    // It watches for longer than the VMM takes to detect that the other halted.
    let run = Mkvmm::run("16M@0x100000000")
        .guest("name=idle,kernel=probe,memory=8M,cmdline=end=halt")
        .guest("name=busy,kernel=probe,memory=8M,cmdline=hold=12000")
        .finish();
    run.expect_code(0)
        .expect_said("idle", "stopped (halt)")
        .expect_said("busy", "stopped (reboot)");
    let consoles = run.consoles(&["idle", "busy"]);
    assert!(consoles.has("busy", "probe: pass"), "{run}");
}

#[test]
fn a_guest_that_spins_has_not_halted() {
    if skips_without_kvm() {
        return;
    }
    let mut run = guest("cmdline=spin").spawn();
    run.wait_for_lines("probe: pass", 1);
    // This is enough for several of the VMM's checks for halted guests.
    std::thread::sleep(std::time::Duration::from_secs(4));
    run.signal(Signal::INT);
    let run = run.wait();
    run.expect_code(130);
    assert!(!run.stderr.contains("halt"), "{run}");
}

#[test]
fn a_guest_may_restart_for_ever_in_memory_that_is_new_each_time() {
    if skips_without_kvm() {
        return;
    }
    let run = interrupt_after_three_boots(guest("on-reboot=restart,cmdline=hold=1"));
    run.expect_said("a", "stopped (reboot)");
    // Each boot found its memory zero, although the previous one had written to
    // it.
    let lines = run.stdout.lines();
    let fresh = lines.filter(|l| *l == "a: probe: fresh memory zero ok");
    assert!(fresh.count() >= 3, "{run}");
    assert!(!run.stdout.contains("BAD"), "{run}");
}

#[test]
fn a_guest_that_panics_may_restart() {
    if skips_without_kvm() {
        return;
    }
    let run = interrupt_after_three_boots(guest("on-panic=restart,cmdline=end=panic"));
    run.expect_said("a", "failed (panic)");
}

#[test]
fn a_policy_speaks_only_of_its_own_end() {
    if skips_without_kvm() {
        return;
    }
    let both = "on-panic=restart,on-reboot=restart";
    for (more, status) in [
        ("on-panic=restart,cmdline=end=reset".to_owned(), 0),
        ("on-reboot=restart,cmdline=end=panic".to_owned(), 6),
        (format!("{both},cmdline=end=poweroff"), 0),
        (format!("{both},cmdline=end=crash"), 6),
        (format!("{both},cmdline=end=halt"), 0),
    ] {
        let run = guest(&more).finish();
        let passed = run
            .expect_code(status)
            .stdout
            .matches("probe: pass")
            .count();
        assert_eq!(passed, 1, "{more}\n{run}");
    }
}

#[test]
fn a_neighbour_of_a_guest_that_restarts_ends_as_ever() {
    if skips_without_kvm() {
        return;
    }
    let mut run = Mkvmm::run("16M@0x100000000")
        .guest("name=again,kernel=probe,memory=8M,on-reboot=restart")
        .guest("name=once,kernel=probe,memory=8M")
        .spawn();
    run.wait_until("once's end and three boots of again", |run| {
        let boots = run.stdout().matches("again: probe: pass").count();
        boots >= 3 && run.stderr().contains("once: stopped (reboot)")
    });
    run.signal(Signal::TERM);
    run.wait().expect_code(143);
}

#[test]
fn policies_on_ends_have_two_words() {
    for key in ["on-reboot", "on-panic"] {
        for value in ["", "Restart", "kill", "stop "] {
            let run = guest(&format!("{key}={value}")).finish();
            assert!(run.expect_refusal(2).contains(key), "{run}");
        }
    }
}
