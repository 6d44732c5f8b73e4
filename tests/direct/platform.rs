//! Tests of vCPUs, the manifest, and the timeline with the guest's marks.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm};
use rustix::process::Signal;

/// Returns the probe's line about its manifest, which it checks against CPUID,
/// its command line and its e820.
fn manifest(run: &Finished, names: &[&str], name: &str) -> String {
    run.consoles(names)
        .starting(name, "probe: manifest ")
        .concat()
}

#[test]
fn a_guest_boots_with_any_number_of_vcpus() {
    if skips_without_kvm() {
        return;
    }
    for cpus in [1, 2, 4, 17, 64] {
        let run = Mkvmm::run("16M@0x100000000")
            .guest(format!("name=a,kernel=probe,memory=8M,cpus={cpus}"))
            .finish();
        // The probe checks the manifest's number of CPUs against CPUID's.
        let consoles = run.expect_code(0).consoles(&["a"]);
        assert!(consoles.has("a", "probe: pass"), "{run}");
        assert!(manifest(&run, &["a"], "a").ends_with(" ok"), "{run}");
    }
}

#[test]
fn sixty_five_vcpus_are_refused() {
    let run = Mkvmm::run("16M@0x100000000")
        .guest("kernel=probe,memory=8M,cpus=65")
        .finish();
    assert!(run.expect_refusal(2).contains("65"), "{run}");
}

#[test]
fn vcpus_stay_on_the_processors_they_may_use() {
    if skips_without_kvm() {
        return;
    }
    let guest = |affinity: &str, cmdline: &str| {
        Mkvmm::run("16M@0x100000000").guest(format!(
            "name=a,kernel=probe,memory=8M,cpus=2,cpus-affinity={affinity},cmdline={cmdline}"
        ))
    };
    let mut run = guest("0", "spin").spawn();
    run.wait_for_lines("probe: pass", 1);
    assert_eq!(run.of_threads("vcpu", "Cpus_allowed_list"), ["0", "0"]);
    run.signal(Signal::INT);
    run.wait().expect_code(130);
    for nonsense in ["", "x", "3-1", "0-", "99999"] {
        let run = guest(nonsense, "").finish();
        assert!(run.expect_refusal(2).contains("cpus-affinity"), "{run}");
    }
}

#[test]
fn each_manifest_is_its_own_guests() {
    if skips_without_kvm() {
        return;
    }
    let names = ["web", "db"];
    let run = Mkvmm::run("64M@0x100000000")
        .show()
        .guest("name=web,kernel=probe,memory=8M,cpus=2")
        .guest("name=db,kernel=probe,memory=16M")
        .finish();
    run.expect_code(0);
    let report = run.report();
    for name in names {
        let line = manifest(&run, &names, name);
        let regions = report.tree.iter().find(|l| l.name.contains(name)).unwrap();
        let id = regions.name.split('-').nth(2).unwrap();
        let (start, last) = report.pool();
        let start_of_line = format!("probe: manifest version 1 id {id} ");
        let pool = format!("pool [mem {start:#018x}-{last:#018x}] chunks 1 ok");
        assert!(line.starts_with(&start_of_line), "{line}\n{run}");
        assert!(line.ends_with(&pool), "{line}\n{run}");
    }
}

#[test]
fn the_timeline_has_the_stages_and_the_guests_marks_in_order() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000")
        .arg("--timeline")
        .guest("name=a,kernel=probe,memory=8M,cmdline=marks")
        .finish();
    run.expect_code(0);
    let lines = run.stderr.lines();
    let text = lines.filter_map(|l| l.strip_prefix("a: timeline: ")).next();
    let text = text.unwrap_or_else(|| panic!("no timeline\n{run}"));
    let entries = text.strip_suffix(" ms").unwrap().split(", ");
    let entries: Vec<(&str, f64)> = entries
        .map(|entry| entry.rsplit_once(' ').unwrap())
        .map(|(what, at)| (what, at.parse().unwrap()))
        .collect();
    let at = |what| {
        let found = entries.iter().find(|entry| entry.0 == what);
        found.unwrap_or_else(|| panic!("no {what} in {text}")).1
    };
    let order = [
        "created",
        "placed",
        "loaded",
        "exec",
        "first_exit",
        "first_output",
        "mark \"0x6d\"",
        "mark \"probe checked\"",
        "ended",
    ];
    let times = order.map(at);
    assert!(times.is_sorted(), "{text}");
    // There are no others: writes to port 0x80 as a delay make no marks.
    assert_eq!(entries.len(), order.len(), "{text}");
}

#[test]
fn a_guest_without_marks_has_a_timeline_too() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000")
        .arg("--timeline")
        .guest("name=a,kernel=probe,memory=4M")
        .guest("name=b,kernel=probe,memory=4M,cmdline=end=crash")
        .finish();
    run.expect_code(6);
    for name in ["a", "b"] {
        let start = format!("{name}: timeline: created ");
        let lines = run.stderr.lines().filter(|l| l.starts_with(&start));
        let ended = lines.filter(|l| l.contains(", ended ")).count();
        assert_eq!(ended, 1, "{run}");
    }
}
