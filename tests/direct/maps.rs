//! Tests that each guest gets its own memory map, as announced.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm};

const NAMES: [&str; 3] = ["web", "db", "cache"];

/// Runs three guests of different sizes from `pool`, each to its clean end.
fn three_guests(pool: &str) -> Finished {
    let run = Mkvmm::run(pool)
        .show()
        .guest("name=web,kernel=probe,memory=24M")
        .guest("name=db,kernel=probe,memory=64M")
        .guest("name=cache,kernel=probe,memory=4M")
        .finish();
    run.expect_code(0);
    run
}

/// Checks properties that hold wherever the pool lies.
fn check_maps(run: &Finished) {
    let (report, consoles) = (run.report(), run.consoles(&NAMES));
    for name in NAMES {
        assert_eq!(
            consoles.e820(name),
            report.e820(name),
            "{name} saw another map than the one announced\n{run}"
        );
        report
            .check_map(name)
            .unwrap_or_else(|why| panic!("{name}: {why}\n{run}"));
        assert!(consoles.has(name, "probe: pass"), "{name}\n{run}");
        assert!(
            !consoles.starting(name, "probe: usable ").is_empty(),
            "{name} checked no memory\n{run}"
        );
    }
    for (i, a) in NAMES.iter().enumerate() {
        for b in &NAMES[i + 1..] {
            assert_ne!(report.e820(a), report.e820(b), "{a} and {b}\n{run}");
        }
    }
}

#[test]
fn guests_of_a_pool_above_4_gib_see_the_maps_announced() {
    if skips_without_kvm() {
        return;
    }
    let run = three_guests("1G@0x100000000");
    check_maps(&run);
    assert_eq!(run.report().pool(), (0x1_0000_0000, 0x1_3fff_ffff));
}

#[test]
fn guests_of_a_pool_below_the_hole_see_the_maps_announced() {
    if skips_without_kvm() {
        return;
    }
    let run = three_guests("512M@0x40000000");
    check_maps(&run);
    assert_eq!(run.report().pool(), (0x4000_0000, 0x5fff_ffff));
}

#[test]
fn guests_of_a_pool_without_an_address_see_the_maps_announced() {
    if skips_without_kvm() {
        return;
    }
    let run = three_guests("512M");
    check_maps(&run);
    let (start, last) = run.report().pool();
    assert_eq!(last - start + 1, 512 << 20);
    assert!(start >= 16 << 20, "{start:#x}");
}

#[test]
fn a_pool_without_an_address_lies_at_the_same_place_every_time() {
    if skips_without_kvm() {
        return;
    }
    let pool = || {
        let run = Mkvmm::run("512M").show().arg("--dry-run");
        let run = run.guest("kernel=probe,memory=8M").finish();
        run.expect_code(0).report().pool()
    };
    assert_eq!(pool(), pool());
}

#[test]
fn a_pool_may_begin_where_the_low_window_ends() {
    if skips_without_kvm() {
        return;
    }
    check_maps(&three_guests("128M@1M"));
}

#[test]
fn a_guest_may_have_the_whole_pool() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100000000")
        .show()
        .guest("name=all,kernel=probe,memory=64M")
        .finish();
    run.expect_code(0);
    let report = run.report();
    assert_eq!(report.regions("all"), [(0x1_0000_0000, 0x1_03ff_ffff)]);
    report.check_map("all").unwrap();
    assert_eq!(run.consoles(&["all"]).e820("all"), report.e820("all"));
}
