//! Tests with invalid pools: one line, a status, nothing left behind.

use std::fs;

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Finished, Mkvmm};

fn with_pool(pool: &str) -> Finished {
    // With `=` a value may begin with a dash.
    Mkvmm::new(["run".to_owned(), format!("--pool={pool}")])
        .guest("kernel=probe,memory=8M")
        .finish()
}

#[test]
fn text_that_is_no_pool_is_refused() {
    for text in [
        "",
        "garbage",
        "@",
        "@0x100000000",
        "64M@",
        "64Q",
        "-64M",
        "0x",
        "64M,64M",
        "64M@here",
        "64M@-1",
        "99999999999999999999",
        "16E",
    ] {
        let run = with_pool(text);
        let error = run.expect_refusal(2);
        assert!(error.contains("--pool"), "`{text}`\n{run}");
    }
}

#[test]
fn junk_after_the_address_is_refused() {
    for text in [
        "64M@0x100000000junk",
        "64M@0x100000000,quiet",
        "64M@0x100000000 ",
        "64M@0x100000000@0x200000000",
        "64M@0x100000000M1",
        "64MM@0x100000000",
    ] {
        let error = with_pool(text);
        assert!(error.expect_refusal(2).contains("--pool"), "{error}");
    }
}

#[test]
fn a_range_that_cannot_be_held_is_refused_with_the_reason() {
    if skips_without_kvm() {
        return;
    }
    let held = |range: &str| {
        let run = Mkvmm::run("64M@4G").arg("--hold").arg(range);
        run.guest("kernel=probe").finish()
    };
    for outside in ["4K@3G", "1M@8G", "128M@4G"] {
        let run = held(outside);
        let words = "cannot be held, since the pool is 0x100000000-0x104000000";
        assert!(run.expect_refusal(2).contains(words), "{run}");
    }
}

#[test]
fn a_pool_of_nothing_is_refused() {
    for text in ["0", "0M", "0@0x100000000"] {
        with_pool(text).expect_refusal(2);
    }
}

#[test]
fn a_pool_that_holds_no_guest_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for text in ["1", "1@0x100000000", "4095", "1M", "1M@0x100000000"] {
        with_pool(text).expect_refusal(2);
    }
}

#[test]
fn an_odd_address_is_refused_with_the_next_that_works() {
    if skips_without_kvm() {
        return;
    }
    for text in ["64M@0x100000001", "64M@0x100000800", "64M@0x40000fff"] {
        with_pool(text).expect_refusal(2);
    }
    let run = with_pool("64M@0x100000001");
    assert!(run.stderr.contains("help: "), "{run}");
    assert!(run.stderr.contains("0x100001000"), "{run}");
}

#[test]
fn a_pool_in_or_across_the_hole_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for text in [
        "1G@0xa0000000",
        "64M@0xbffff000",
        "16M@0xc0000000",
        "16M@0xfec00000",
        "16M@0xfffff000",
        "8G@0x40000000",
        "4G@0x100000",
    ] {
        let run = with_pool(text);
        assert!(run.expect_refusal(2).contains("hole"), "{run}");
    }
}

#[test]
fn a_pool_in_the_low_mib_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for text in ["64M@0", "64M@0x1000", "64M@0xff000"] {
        with_pool(text).expect_refusal(2);
    }
}

#[test]
fn a_pool_above_the_address_width_is_refused() {
    if skips_without_kvm() {
        return;
    }
    // No x86 processor has more than 52 bits.
    for text in ["64M@0x10000000000000", "64M@0xfffffffffc000000"] {
        with_pool(text).expect_refusal(2);
    }
}

#[test]
fn a_pool_larger_than_the_host_can_give_is_refused() {
    if skips_without_kvm() {
        return;
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib: u64 = total
        .unwrap()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .unwrap();
    let run = with_pool(&format!("{}K@0x100000000", (kib * 4).next_multiple_of(4)));
    let error = run.expect_refusal(5);
    assert!(error.contains("--pool"), "{run}");
}
