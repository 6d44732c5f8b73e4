//! Checks of each kernel's messages about its platform.

use mkvmm_test_harness::report::TreeLine;

use crate::guest::{Form, LARGE, LARGE_SIZE};
use crate::launch::Launch;

/// The node type `SETUP_RNG_SEED`, which the kernel wipes after use.
const RNG_SEED: u32 = 9;

pub fn each_guest_has_the_cpus_it_was_given(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let cpus = u64::from(guest.cpus);
        let found = (report.nproc, report.cpuinfo);
        assert_eq!(found, (cpus, cpus), "{}", guest.name);
    }
}

/// Checks that the code is in the piece `kernel` if mkvmm unpacked it; if it
/// unpacked itself, possibly to another address, in its own RAM.
pub fn the_kernel_runs_where_it_was_placed(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let name = guest.name;
        let find = |what| report.iomem.iter().find(|line| line.name == what);
        let code = find("Kernel code").unwrap_or_else(|| panic!("{name}: no kernel"));
        let holds = |line: &&TreeLine| line.start <= code.start && code.last <= line.last;
        let mut places = match guest.form {
            Form::InGuest => {
                let ram = report.iomem.iter().filter(|l| l.name == "System RAM");
                ram.collect()
            }
            Form::BzImage | Form::Elf => launch.report.pieces(name, "kernel"),
        }
        .into_iter();
        assert!(places.any(|line| holds(&line)), "{name}: {code:x?}");
    }
}

pub fn time_comes_from_kvm_clock(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let name = guest.name;
        assert_eq!(report.log_line("nable to calibrate"), None, "{name}");
        for line in ["Hypervisor detected: KVM", "kvm-clock: Using msrs"] {
            assert!(report.log_line(line).is_some(), "{name}: no {line:?}");
        }
        // Linux prefers the TSC if KVM declares it stable.
        let source = report.clocksource.as_str();
        assert!(matches!(source, "kvm-clock" | "tsc"), "{name}: {source}");
    }
}

pub fn entropy_is_ready_before_the_first_program(launch: &Launch) {
    for (guest, report) in launch.guests() {
        let name = guest.name;
        let seed = report.setup_data.iter().find(|node| node.0 == RNG_SEED);
        assert_eq!(seed, Some(&(RNG_SEED, Vec::new())), "{name}: not used");
        let ready = report.log_line("crng init done");
        let memory = report.log_line("Memory: ");
        assert!(ready.is_some() && ready < memory, "{name}: {ready:?}");
    }
}

pub fn the_acpi_tables_are_found(launch: &Launch) {
    for (guest, report) in launch.guests() {
        for table in ["RSDP", "XSDT", "FACP", "DSDT", "APIC"] {
            let line = format!("ACPI: {table} 0x");
            let found = report.log_line(&line);
            assert!(found.is_some(), "{}: no {table}", guest.name);
        }
    }
}

/// Checks that it is read completely, up to the padding at its end.
pub fn a_large_initramfs_is_unpacked_whole(launch: &Launch) {
    for (guest, report) in launch.guests() {
        match report.padding {
            Some(size) => {
                assert_eq!(guest.initramfs, LARGE, "{}", guest.name);
                let most = LARGE_SIZE - (4 << 20)..LARGE_SIZE;
                assert!(most.contains(&size), "{}: {size}", guest.name);
            }
            None => assert_ne!(guest.initramfs, LARGE, "{}", guest.name),
        }
    }
}
