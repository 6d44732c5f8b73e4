//! Tests of the effects of a launch.

use mkvmm_test_harness::tier::skips_without_kvm;
use mkvmm_test_harness::{Mkvmm, Scratch};

#[test]
fn stdout_has_nothing_but_the_guests_lines() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100000000")
        .show()
        .guest("name=a,kernel=probe,memory=8M")
        .guest("name=b,kernel=probe,memory=8M")
        .finish();
    let consoles = run.expect_code(0).consoles(&["a", "b"]);
    for name in ["a", "b"] {
        assert_eq!(consoles.of(name)[0], format!("probe: name {name}"));
        assert_eq!(consoles.of(name).last().unwrap(), "probe: pass");
    }
}

#[test]
fn guests_without_a_name_are_numbered() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100000000")
        .guest("kernel=probe,memory=8M")
        .guest("kernel=probe,memory=8M")
        .finish();
    let consoles = run.expect_code(0).consoles(&["guest1", "guest2"]);
    assert!(consoles.has("guest2", "probe: name guest2"), "{run}");
}

#[test]
fn an_initramfs_arrives_as_it_is() {
    if skips_without_kvm() {
        return;
    }
    let scratch = Scratch::new();
    // This is the check value in every description of CRC-32.
    let small = scratch.file("small", b"123456789");
    let bytes: Vec<u8> = (0..(3_u32 << 20) + 123)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let large = scratch.file("large", &bytes);
    let run = Mkvmm::run("64M@0x100000000")
        .guest(format!(
            "name=small,kernel=probe,memory=8M,initrd={}",
            small.display()
        ))
        .guest(format!(
            "name=large,kernel=probe,memory=16M,initrd={}",
            large.display()
        ))
        .guest("name=none,kernel=probe,memory=8M")
        .finish();
    let consoles = run.expect_code(0).consoles(&["small", "large", "none"]);
    let line = |name| consoles.starting(name, "probe: initramfs").concat();
    assert!(line("small").contains("crc32 cbf43926 ok"), "{run}");
    assert!(line("large").ends_with(" ok"), "{run}");
    assert_eq!(line("none"), "probe: initramfs none", "{run}");
}

#[test]
fn a_command_line_reaches_its_guest_with_its_commas() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000")
        .guest("name=a,kernel=probe,memory=8M,cmdline=console=ttyS0,,115200 quiet")
        .finish();
    let consoles = run.expect_code(0).consoles(&["a"]);
    let ignored = consoles.starting("a", "probe: ignored");
    assert!(ignored.concat().contains("console=ttyS0,115200"), "{run}");
    assert!(ignored.concat().contains("quiet"), "{run}");
}

#[test]
fn two_hundred_guests_at_once_all_report() {
    if skips_without_kvm() {
        return;
    }
    let names: Vec<String> = (0..200).map(|i| format!("g{i:03}")).collect();
    let mut run = Mkvmm::run("800M@0x100000000").show();
    for name in &names {
        run = run.guest(format!("name={name},kernel=probe,memory=4M"));
    }
    let run = run.timeout(std::time::Duration::from_secs(180)).finish();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let consoles = run.expect_code(0).consoles(&names);
    let report = run.report();
    for name in names {
        assert!(consoles.has(name, "probe: pass"), "{name} did not pass");
        assert_eq!(consoles.e820(name), report.e820(name), "{name}");
        report.check_map(name).unwrap();
    }
}

#[test]
fn a_second_guest_that_does_not_fit_keeps_the_first_from_running() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000")
        .guest("name=first,kernel=probe,memory=8M")
        .guest("name=second,kernel=probe,memory=12M")
        .finish();
    let error = run.expect_refusal(5);
    assert!(error.contains("second"), "{run}");
}

#[test]
fn a_guest_whose_images_do_not_fit_keeps_the_others_from_running() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("64M@0x100000000")
        .guest("name=first,kernel=probe,memory=8M")
        .guest("name=second,kernel=probe,memory=2052K")
        .guest("name=third,kernel=probe,memory=8M")
        .finish();
    let error = run.expect_refusal(5);
    assert!(error.contains("second"), "{run}");
}

#[test]
fn a_dry_run_shows_what_would_be_and_starts_nothing() {
    if skips_without_kvm() {
        return;
    }
    let command = || {
        Mkvmm::run("64M@0x100000000")
            .show()
            .guest("name=a,kernel=probe,memory=8M")
            .guest("name=b,kernel=probe,memory=8M")
    };
    let dry = command().arg("--dry-run").finish();
    dry.expect_code(0);
    assert_eq!(dry.stdout, "", "{dry}");
    let (real, planned) = (command().finish(), dry.report());
    assert_eq!(planned.tree, real.expect_code(0).report().tree);
    assert_eq!(planned.e820("b"), real.consoles(&["a", "b"]).e820("b"));
}

#[test]
fn a_dry_run_refuses_what_a_launch_refuses() {
    if skips_without_kvm() {
        return;
    }
    let run = Mkvmm::run("16M@0x100000000").arg("--dry-run");
    run.guest("kernel=probe,memory=32M")
        .finish()
        .expect_refusal(5);
}
