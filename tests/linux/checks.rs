//! Checks each guest's memory against what `--show` announced.

use mkvmm_test_harness::report::e820_entry;

use crate::kernels;
use crate::launch::Launch;

const LOW_MIB: u64 = 1 << 20;

/// Checks that each guest's report is complete, and that nothing went wrong on
/// the way.
pub fn all_guests_reach_their_init_and_end_as_asked(launch: &Launch) {
    for (guest, _report) in launch.guests() {
        // The messages about a guest end with the requested end.
        let end = format!("mkvmm: {}: stopped ({})", guest.name, guest.end);
        let ended = |line: &str| line.starts_with(&end);
        assert!(launch.run.stderr.lines().any(ended), "{}", launch.run);
    }
}

pub fn each_guest_runs_the_kernel_it_was_given(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let (start, end) = kernels::release(guest.kernel);
        let release = &report.release;
        assert!(
            release.starts_with(&start) && release.ends_with(end),
            "{release}"
        );
    }
}

/// Checks that the kernel's map equals that of `--show`, byte for byte.
pub fn bios_e820_equals_the_map_announced(launch: &Launch) {
    for (guest, report) in launch.guests() {
        assert_eq!(
            report.e820,
            launch.report.e820(guest.name),
            "{}",
            guest.name
        );
        let map = launch.report.check_map(guest.name);
        map.unwrap_or_else(|why| panic!("{}: {why}\n{}", guest.name, launch.run));
    }
}

pub fn firmware_memmap_equals_the_map_announced(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let announced: Vec<String> = launch
            .report
            .e820(guest.name)
            .iter()
            .map(|line| match e820_entry(line) {
                (start, last, "usable") => format!("{start:#x}-{last:#x} System RAM"),
                (start, last, "reserved") => format!("{start:#x}-{last:#x} Reserved"),
                (.., other) => panic!("no memmap type is known for {other}"),
            })
            .collect();
        assert_eq!(report.memmap, announced, "{}", guest.name);
    }
}

/// Checks that above 1 MiB, System RAM is exactly the usable memory, inside the
/// guest's own chunks.
pub fn system_ram_is_what_the_guest_was_given(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let ram: Vec<(u64, u64)> = report
            .iomem
            .iter()
            .filter(|line| line.name == "System RAM" && line.start >= LOW_MIB)
            .map(|line| (line.start, line.last))
            .collect();
        let usable: Vec<(u64, u64)> = launch
            .report
            .e820(guest.name)
            .iter()
            .map(|line| e820_entry(line))
            .filter(|&(start, _, kind)| kind == "usable" && start >= LOW_MIB)
            .map(|(start, last, _)| (start, last))
            .collect();
        assert!(!ram.is_empty(), "{}: {:x?}", guest.name, report.iomem);
        assert_eq!(ram, usable, "{}", guest.name);
        let own = launch.report.regions(guest.name);
        for (start, last) in ram {
            assert!(
                own.iter().any(|&(a, z)| a <= start && last <= z),
                "{}: {start:#x}-{last:#x} is outside {own:x?}",
                guest.name
            );
        }
    }
}

/// Checks that every byte of the pool is in `/proc/iomem`, as System RAM or as
/// Reserved.
pub fn the_rest_of_the_pool_is_reserved(launch: &Launch) {
    let (pool_start, pool_last) = launch.report.pool();
    for (guest, report) in launch.guests() {
        let mut at = pool_start;
        for line in &report.iomem {
            let counts = line.name == "Reserved" || line.name == "System RAM";
            if counts && line.start <= at && at <= line.last {
                at = line.last + 1;
            }
        }
        assert!(
            at > pool_last,
            "{}: nothing about {at:#x} in {:#x?}",
            guest.name,
            report.iomem
        );
    }
}

/// Checks that `Memory: AVAILABLEK/TOTALK available` includes every usable
/// page, however many regions there are, and MemTotal most of them.
pub fn the_kernel_counts_every_page(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let name = guest.name;
        assert_eq!(launch.report.regions(name).len(), guest.regions, "{name}");
        let line = report.log_line("Memory: ").map(|(_, line)| line);
        let total = line.and_then(|l| l.split_once("K/")?.1.split_once("K ")?.0.parse().ok());
        // These are all pages except low window and control block, and of the
        // low MiB the part without page 0 and a part of a page below the EBDA.
        let low_kib = (0x9f000 - 0x1000) >> 10;
        let usable_kib = ((guest.memory_mib - 2) << 10) + low_kib;
        assert_eq!(total, Some(usable_kib), "{name}: {line:?}");
        // The kernel keeps memory for its code, its page structs and similar
        // data.
        let mem_total = report.mem_total_kib;
        let least = usable_kib.saturating_sub(usable_kib / 16 + (48 << 10));
        assert!(
            (least..usable_kib).contains(&mem_total),
            "{name}: {mem_total} KiB of {usable_kib}"
        );
    }
}

pub fn no_guest_touched_what_is_not_its_own(launch: &Launch) {
    let violation = |line: &&str| line.contains("violation: ");
    let found = launch.run.stderr.lines().find(violation);
    assert_eq!(found, None, "{}", launch.run);
}
