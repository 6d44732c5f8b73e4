//! Tests with invalid guests: one line, a status, nothing left behind.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm};

fn with_guest(spec: &str) -> Finished {
    with_guests(&[spec])
}

fn with_guests(specs: &[&str]) -> Finished {
    let run = Mkvmm::run("64M@0x100000000");
    specs
        .iter()
        .fold(run, |run, spec| run.guest(*spec))
        .finish()
}

#[test]
fn keys_that_do_not_exist_or_come_twice_are_refused() {
    for spec in [
        "",
        "kernel",
        "probe",
        "kernel=probe,",
        "kernel=probe,memroy=8M",
        "kernel=probe,Memory=8M",
        "kernel=probe, memory=8M",
        "kernel=probe,memory=8M,memory=8M",
        "kernel=probe,kernel=probe",
        "name=a,kernel=probe,name=a",
        "name=a,memory=8M",
    ] {
        let run = with_guest(spec);
        let error = run.expect_refusal(2);
        assert!(error.contains("--guest"), "`{spec}`\n{run}");
    }
}

#[test]
fn two_guests_of_one_name_are_refused() {
    let a = "name=twin,kernel=probe,memory=8M";
    let run = with_guests(&[a, "name=other,kernel=probe,memory=8M", a]);
    assert!(run.expect_refusal(2).contains("twin"), "{run}");
    // The name that a nameless guest gets also counts.
    let run = with_guests(&["name=guest2,kernel=probe", "kernel=probe"]);
    assert!(run.expect_refusal(2).contains("guest2"), "{run}");
}

#[test]
fn names_that_could_not_stand_in_a_line_are_refused() {
    let long = "x".repeat(33);
    for name in [
        "", "a b", "a:b", "a/b", "-a", "ä", "a\nb", "a\x1b[2J", &long,
    ] {
        let run = with_guest(&format!("name={name},kernel=probe,memory=8M"));
        let error = run.expect_refusal(2);
        assert!(!error.contains('\x1b'), "{name:?} reached the terminal");
    }
}

#[test]
fn numbers_of_cpus_that_nobody_has_are_refused() {
    for cpus in ["0", "-1", "1.5", "two", "", "100000", "0x", "1 "] {
        let run = with_guest(&format!("kernel=probe,memory=8M,cpus={cpus}"));
        let error = run.expect_refusal(2);
        assert!(error.contains("cpus"), "{run}");
    }
}

#[test]
fn policies_that_do_not_exist_are_refused() {
    for policy in ["", "shrug", "Stop", "log,stop"] {
        with_guest(&format!("kernel=probe,violation={policy}")).expect_refusal(2);
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    for memory in [
        "",
        "0",
        "M",
        "8Q",
        "-8M",
        "8M8",
        "8 M",
        "0xffffffffffffffff",
    ] {
        let run = with_guest(&format!("kernel=probe,memory={memory}"));
        let error = run.expect_refusal(2);
        assert!(error.contains("memory"), "{run}");
    }
}

#[test]
fn memory_in_which_no_guest_can_boot_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for memory in ["1", "4K", "1M", "2M", "2052K"] {
        let run = with_guest(&format!("name=tiny,kernel=probe,memory={memory}"));
        let error = run.expect_refusal(5);
        // Either by its name, or by its key where no guest at all would run.
        let key = format!("memory={memory}:");
        assert!(error.contains("tiny") || error.contains(&key), "{run}");
    }
}

#[test]
fn memory_that_the_pool_does_not_have_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for memory in ["65M", "68720K", "1T", "0x7ffffffffffff000"] {
        let run = with_guest(&format!("name=huge,kernel=probe,memory={memory}"));
        let error = run.expect_refusal(5);
        assert!(error.contains("huge"), "{run}");
    }
}

#[test]
fn a_command_line_over_the_kernels_limit_is_refused() {
    if skips_without_kvm() {
        return;
    }
    let line = "x".repeat(70_000);
    let run = with_guest(&format!("kernel=probe,memory=8M,cmdline={line}"));
    let error = run.expect_refusal(2);
    assert!(error.contains("70"), "the error names its length\n{run}");
    assert!(error.len() < 1000, "the error repeats the command line");
}

#[test]
fn what_is_wrong_with_the_arguments_is_one_line_too() {
    for args in [
        &["run"] as &[&str],
        &["run", "--pool", "64M"],
        &["run", "--guest", "kernel=probe"],
        &["run", "--pool", "64M", "--guest", "kernel=probe", "--frob"],
        &[
            "run",
            "--pool",
            "64M",
            "--pool",
            "64M",
            "--guest",
            "kernel=probe",
        ],
        &["frobnicate"],
    ] {
        let run = Mkvmm::new(args.iter().copied()).finish();
        run.expect_refusal(2);
    }
}
