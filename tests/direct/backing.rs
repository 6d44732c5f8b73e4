//! Tests of the pool's backing, and of parts that are held back.

use std::fs;
use std::sync::Mutex;

use mkvmm_test_harness::tier::{skip, skips_without_kvm};
use mkvmm_test_harness::{Finished, Mkvmm};
use rustix::process::Signal;

const POOL: &str = "64M@0x100000000";
const POOL_KIB: u64 = 64 << 10;
const GUEST: &str = "name=a,kernel=probe,memory=8M";

fn with(args: &[&str]) -> Finished {
    let run = Mkvmm::run(POOL).show().guest(GUEST);
    args.iter().fold(run, |run, arg| run.arg(*arg)).finish()
}

#[track_caller]
fn expect_pass(run: &Finished) {
    let consoles = run.expect_code(0).consoles(&["a"]);
    assert!(consoles.has("a", "probe: pass"), "{run}");
}

/// Returns the number of free hugetlb pages of `kib`; 0 if there is no such
/// pool.
fn free_huge_pages(kib: u32) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[test]
fn ordinary_pages_are_what_there_is_without_a_word() {
    if skips_without_kvm() {
        return;
    }
    let (silent, said) = (with(&[]), with(&["--backing", "normal"]));
    expect_pass(&said);
    assert_eq!(silent.report().tree, said.report().tree);
}

#[test]
fn transparent_huge_pages_are_there_or_refused_with_a_help() {
    if skips_without_kvm() {
        return;
    }
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let run = with(&["--backing", "thp"]);
    // `never` and `deny` disable them, and some kernels do not support them.
    if setting.is_ok_and(|s| !s.contains("[never]") && !s.contains("[deny]")) {
        expect_pass(&run);
    } else {
        run.expect_refusal(2);
        assert!(run.stderr.contains("help: "), "{run}");
    }
}

/// Protects the host's huge pages, which all tests share.
static HUGE_PAGES: Mutex<()> = Mutex::new(());

#[test]
fn huge_pages_that_are_not_there_are_missed_at_the_start() {
    let _one = HUGE_PAGES.lock();
    if skips_without_kvm() {
        return;
    }
    for (kind, kib) in [("hugetlb-2M", 2 << 10), ("hugetlb-1G", 1 << 20)] {
        let pool_kib = (free_huge_pages(kib) + 2) * u64::from(kib);
        let run = Mkvmm::run(&format!("{pool_kib}K@0x100000000"))
            .guest(GUEST)
            .arg(format!("--backing={kind}"))
            .finish();
        run.expect_refusal(5);
        let help = run.stderr.lines().nth(1).unwrap_or_default();
        assert!(help.contains(&format!("hugepages-{kib}kB")), "{run}");
    }
}

#[test]
fn a_guest_boots_from_huge_pages() {
    let _one = HUGE_PAGES.lock();
    if skips_without_kvm() {
        return;
    }
    if free_huge_pages(2 << 10) < 32 {
        skip("this host has not 32 free huge pages of 2 MiB");
        return;
    }
    expect_pass(&with(&["--backing", "hugetlb-2M"]));
    expect_pass(&with(&["--backing", "hugetlb-2M", "--prealloc"]));
}

#[test]
fn a_pool_of_huge_pages_lies_at_their_multiples() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100001000")
        .guest(GUEST)
        .arg("--backing=hugetlb-2M")
        .finish();
    run.expect_refusal(2);
    assert!(run.stderr.contains("0x100200000"), "{run}");
}

#[test]
fn backings_that_do_not_exist_are_refused() {
    if skips_without_kvm() {
        return;
    }
    for kind in ["", "huge", "hugetlb", "hugetlb-4M", "Normal"] {
        let run = with(&[&format!("--backing={kind}")]);
        assert!(run.expect_refusal(2).contains("backing"), "{run}");
    }
}

/// Returns the resident memory of a running mkvmm's pool in KiB.
fn resident(args: &[&str]) -> u64 {
    let run = Mkvmm::run(POOL).guest(format!("{GUEST},cmdline=spin"));
    let mut run = args.iter().fold(run, |run, arg| run.arg(*arg)).spawn();
    run.wait_for_lines("probe: pass", 1);
    let kib = run.memory_files_kib();
    run.signal(Signal::INT);
    run.wait().expect_code(130);
    kib
}

#[test]
fn prealloc_brings_in_all_pages_and_otherwise_they_come_lazily() {
    if skips_without_kvm() {
        return;
    }
    let lazy = resident(&[]);
    assert!((1..POOL_KIB / 4).contains(&lazy), "{lazy} KiB");
    let eager = resident(&["--prealloc"]);
    assert!(eager >= POOL_KIB, "{eager} KiB");
}

#[test]
fn the_pool_may_come_from_a_numa_node_that_exists() {
    if skips_without_kvm() {
        return;
    }
    expect_pass(&with(&["--numa-node", "0"]));
    let run = with(&["--numa-node", "1000"]);
    run.expect_code(2);
    assert!(
        run.stderr.lines().any(|l| l.starts_with("error: ")),
        "{run}"
    );
}

#[test]
fn what_is_held_goes_to_no_guest() {
    if skips_without_kvm() {
        return;
    }
    // The free extents are 5 MiB, 4, 4, 4, 4 and 38; the first only fits small
    // chunks.
    let holds = [
        0x1_0050_0000_u64,
        0x1_00a0_0000,
        0x1_00f0_0000,
        0x1_0140_0000,
    ];
    let mut run = Mkvmm::run(POOL).show();
    for start in holds {
        run = run.arg("--hold").arg(format!("1M@{start:#x}"));
    }
    let run = run
        .arg("--hold")
        .arg("39M@0x101900000")
        .guest("name=a,kernel=probe,memory=20M");
    let run = run.finish();
    expect_pass(&run);
    let report = run.report();
    let regions = report.regions("a");
    assert!(regions.len() >= 5, "{regions:x?}\n{run}");
    let held: Vec<_> = report.tree.iter().filter(|l| l.name == "held").collect();
    assert_eq!(held.len(), 5, "{run}");
    for hold in held {
        let apart = |r: &(u64, u64)| r.1 < hold.start || hold.last < r.0;
        assert!(regions.iter().all(apart), "{hold:x?} {regions:x?}");
    }
    // The probe found all of its regions, and that the manifest lists them.
    report.check_map("a").unwrap();
    let consoles = run.consoles(&["a"]);
    assert_eq!(consoles.e820("a"), report.e820("a"), "{run}");
    let manifest = consoles.starting("a", "probe: manifest ").concat();
    let chunks = format!("chunks {} ok", regions.len());
    assert!(manifest.ends_with(&chunks), "{run}");
}

#[test]
fn what_cannot_be_held_is_refused() {
    if skips_without_kvm() {
        return;
    }
    for hold in [
        "",
        "1M",
        "@0x100000000",
        "1M@",
        "1M@0x100000000x",
        "0@0x100000000",
    ] {
        let run = with(&[&format!("--hold={hold}")]);
        assert!(run.expect_refusal(2).contains("--hold"), "{hold}\n{run}");
    }
    // Try a hold outside the pool, and a repeated one.
    for holds in [
        &["--hold=1M@0x200000000"] as &[&str],
        &["--hold=1M@0xfff00000"],
        &["--hold=65M@0x100000000"],
        &["--hold=2M@0x100000000", "--hold=2M@0x100100000"],
    ] {
        with(holds).expect_refusal(2);
    }
}
