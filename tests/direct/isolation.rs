//! Tests of a guest that accesses its neighbour's memory.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm};

const POOL: &str = "64M@0x100000000";
const ALL_ONES: &str = "read 0xffffffffffffffff";

/// Runs two guests; `intruder` and `victim` are their command lines.
fn pair(intruder: &str, victim: &str) -> Finished {
    Mkvmm::run(POOL)
        .show()
        .guest(format!(
            "name=intruder,kernel=probe,memory=8M,cmdline={intruder}"
        ))
        .guest(format!(
            "name=victim,kernel=probe,memory=8M,cmdline={victim}"
        ))
        .finish()
}

/// Returns the address of the victim's last page, which the probe watches.
fn victims_mark() -> u64 {
    let regions = pair("", "").expect_code(0).report().regions("victim");
    let (_, last) = *regions.last().expect("the victim has memory");
    last + 1 - 4096
}

/// Returns the number before the word `violations` in the last line about
/// `name`.
fn violations(run: &Finished, name: &str) -> u64 {
    let about = format!(" {name}: ");
    let number = run
        .stderr
        .lines()
        .filter(|line| line.contains(&about))
        .filter_map(|line| line.split_once(" violations")?.0.rsplit(' ').next())
        .next_back();
    let parsed = number.and_then(|text| text.parse().ok());
    parsed.unwrap_or_else(|| panic!("no count of {name}'s violations\n{run}"))
}

#[test]
fn a_neighbours_memory_reads_as_all_ones_and_stays_as_it_is() {
    if skips_without_kvm() {
        return;
    }
    let mark = victims_mark();
    // The victim watches for thirty times as long as the intruder waits.
    let run = pair(&format!("hold=300 touch={mark:#x}"), "hold=9000");
    let consoles = run.expect_code(0).consoles(&["intruder", "victim"]);

    let touch = consoles.starting("intruder", "probe: touch").concat();
    assert!(touch.contains(&format!("{mark:#x} ")), "{run}");
    assert!(touch.ends_with(ALL_ONES), "{run}");
    let held = consoles.starting("victim", "probe: hold").concat();
    assert!(held.starts_with("probe: hold ok"), "{run}");
    // It was still watching when the access happened.
    let touched = run.stdout.find("intruder: probe: touch");
    assert!(touched < run.stdout.find("victim: probe: hold"), "{run}");
}

#[test]
fn an_access_to_a_neighbour_is_reported_with_its_owner() {
    if skips_without_kvm() {
        return;
    }
    let mark = victims_mark();
    // The victim is there until the other has come to that, on a busy host, too.
    let run = pair(&format!("touch={mark:#x}"), "hold=9000");
    run.expect_code(0);
    let addr = format!("{mark:#x}");
    for access in ["write", "read"] {
        let reported = run.stderr.lines().any(|line| {
            ["intruder: ", "violation", access, &addr, "victim"]
                .iter()
                .all(|word| line.contains(word))
        });
        assert!(reported, "no report of the {access}\n{run}");
    }
}

#[test]
fn every_access_is_counted_and_only_for_the_one_that_made_it() {
    if skips_without_kvm() {
        return;
    }
    let mark = victims_mark();
    // The probe's reads in its own checks count as well.
    let quiet = pair("", "");
    let touches = vec![format!("{mark:#x}"); 20].join(",,");
    let run = pair(&format!("touch={touches}"), "");
    quiet.expect_code(0);
    run.expect_code(0);
    assert_eq!(
        violations(&run, "intruder"),
        violations(&quiet, "intruder") + 2 * 20,
        "{run}"
    );
    assert_eq!(
        violations(&run, "victim"),
        violations(&quiet, "victim"),
        "{run}"
    );
}

#[test]
fn a_guest_cannot_fill_the_log_with_its_accesses() {
    if skips_without_kvm() {
        return;
    }
    let touches = vec!["0x103fff000"; 100].join(",,");
    let run = pair(&format!("touch={touches}"), "");
    run.expect_code(0);
    let lines = run.stderr.lines();
    let reported = lines.filter(|l| l.contains("intruder: violation")).count();
    assert!((1..=32).contains(&reported), "{reported} reports\n{run}");
}

#[test]
fn memory_of_nobody_reads_as_all_ones_too() {
    if skips_without_kvm() {
        return;
    }
    // These are the pool's free end, addresses after the pool, and the 32-bit
    // hole.
    let run = pair("touch=0x103fff000,,0x104000000,,0xd0000000", "");
    let consoles = run.expect_code(0).consoles(&["intruder", "victim"]);
    let touches = consoles.starting("intruder", "probe: touch");
    assert_eq!(touches.len(), 3, "{run}");
    for touch in touches {
        assert!(touch.ends_with(ALL_ONES), "{run}");
    }
    assert!(run.stderr.contains("0x104000000, outside"), "{run}");
}

#[test]
fn the_policy_stop_ends_a_guest_that_touches_and_only_that() {
    if skips_without_kvm() {
        return;
    }
    // In a pool of its own, the probe's checks access nothing foreign.
    let alone = |cmdline: &str| {
        let spec = format!("name=a,kernel=probe,memory=16M,violation=stop,cmdline={cmdline}");
        Mkvmm::run("16M@0x100000000").guest(spec).finish()
    };
    alone("").expect_code(0);
    let run = alone("touch=0x101000000");
    run.expect_code(6);
    let consoles = run.consoles(&["a"]);
    assert!(consoles.starting("a", "probe: touch").is_empty(), "{run}");
    assert!(run.stderr.contains("violation"), "{run}");
}

#[test]
fn a_guest_stopped_for_a_violation_does_not_take_its_neighbour_along() {
    if skips_without_kvm() {
        return;
    }
    // The probe's own check of the reserved part is sufficient to be stopped.
    let run = Mkvmm::run(POOL)
        .guest("name=bad,kernel=probe,memory=8M,violation=stop")
        .guest("name=good,kernel=probe,memory=8M,cmdline=hold=300")
        .finish();
    let consoles = run.expect_code(6).consoles(&["bad", "good"]);
    assert!(!consoles.has("bad", "probe: pass"), "{run}");
    assert!(consoles.has("good", "probe: pass"), "{run}");
}
