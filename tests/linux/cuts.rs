//! Power cuts under a file system of a guest.
//!
//! Each time the guest goes on, and writes to a disk that is not what it knows
//! any more. Then it unmounts that, the disk becomes what the cut had left, and
//! is mounted anew, as after the next start of the host.

use std::fs;
use std::path::Path;
use std::process::Command;

use mkvmm_test_harness::Scratch;
use mkvmm_test_power::{Dice, PowerFile, missing};

use crate::shell::Shell;

/// The size of the disk.
const SIZE: usize = 24 << 20;
const CUTS: u64 = 3;
/// How many files are written in a round, and their size in bytes.
const FILES: u64 = 16;
const FILE: u64 = 10_000;
/// What checks file systems, on Debian.
pub const CHECKER: &str = "/usr/sbin/e2fsck";
/// How the guest finds its second disk.
const DEVICE: &str = "/dev/vdb";

/// The disk whose power is cut.
pub struct Disk {
    file: PowerFile,
}

impl Disk {
    /// Creates the disk, unless this host has no FUSE.
    pub fn new() -> Option<Self> {
        if missing().is_some() {
            return None;
        }
        let file = PowerFile::new(SIZE).expect("FUSE is there");
        Some(Self { file })
    }

    /// Returns the path of the disk.
    pub fn path(&self) -> String {
        self.file.path().display().to_string()
    }

    /// Cuts the power while the guest writes to the disk; what it has
    /// synchronised is there afterwards.
    pub fn lose_power(&self, guest: &mut Shell) {
        let mut dice = Dice::new(13);
        let scratch = Scratch::new();
        let mut safe = Vec::new();
        // Nothing is written later than when the command ends.
        let lazy = "lazy_itable_init=0,lazy_journal_init=0";
        guest.run(&format!(
            "mkfs.ext4 -q -E {lazy} {DEVICE} && mount {DEVICE} /mnt"
        ));
        for cut in 1..=CUTS {
            let before = self.file.counts();
            guest.begin(&writes(cut));
            let at = 3 + dice.below(FILES / 2);
            guest.wait_until("synchronised files", |text| {
                synchronised(text, cut).len() as u64 >= at
            });
            let text = guest.wait_until("more of them", |_| true);
            let left = self.file.cut(&mut dice);
            // They were printed before the cut; there may be more.
            safe.extend(synchronised(&text, cut));
            let after = self.file.counts();
            assert!(after.syncs >= before.syncs + at, "{before:?}, {after:?}");
            guest.end();
            expect_whole(&left, &scratch.path("left.img"));

            // The kernel of the guest may keep nothing of it in memory.
            guest.run(&format!("umount /mnt; blockdev --flushbufs {DEVICE}"));
            self.file.refill(&left).expect("it is there");
            guest.run(&format!("mount {DEVICE} /mnt"));
            guest.run(&compare(&safe));
        }
        guest.run("umount /mnt");
        expect_whole(&self.file.contents(), &scratch.path("end.img"));
        eprintln!("linux: {} files outlived {CUTS} power cuts", safe.len());
    }
}

/// A command that writes files one by one, says so of each that was synchronised,
/// and writes others in between, whose fate is open.
fn writes(cut: u64) -> String {
    format!(
        "i=0; while [ $i -lt {FILES} ]; do i=$((i + 1)); \
         dd if=/dev/zero of=/mnt/loose bs=4k count=4 seek=$i conv=notrunc oflag=direct 2>/dev/null; \
         yes {cut}-$i | head -c {FILE} >/mnt/{cut}-$i && sync /mnt/{cut}-$i && echo safe-{cut}-$i; \
         mv /mnt/{cut}-$i /mnt/f{cut}-$i; done; true"
    )
}

/// Returns the names of the files of a round that the guest calls synchronised.
fn synchronised(text: &str, cut: u64) -> Vec<String> {
    let start = format!("safe-{cut}-");
    let numbers = text.lines().filter_map(|line| line.strip_prefix(&start));
    let numbers = numbers.filter_map(|number| number.trim_end().parse::<u64>().ok());
    numbers.map(|number| format!("{cut}-{number}")).collect()
}

/// A command that fails unless all of the files are there, with their old name or
/// the new one.
fn compare(names: &[String]) -> String {
    format!(
        "lost=; for f in {}; do \
         yes $f | head -c {FILE} | cmp - $(ls /mnt/$f /mnt/f$f 2>/dev/null) || lost=\"$lost $f\"; \
         done; echo \"lost:$lost\"; [ -z \"$lost\" ]",
        names.join(" ")
    )
}

/// Checks a file system as the next start of a host does, and once more.
#[track_caller]
fn expect_whole(image: &[u8], copy: &Path) {
    fs::write(copy, image).expect("there is space");
    // The first carries out what is in the journal, which is no fault.
    for (options, good) in [("-fp", &[0, 1][..]), ("-fn", &[0])] {
        let checked = Command::new(CHECKER).arg(options).arg(copy).output();
        let checked = checked.expect("e2fsck is there");
        let code = checked.status.code().unwrap_or(-1);
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(good.contains(&code), "e2fsck {options}: {code}: {said}");
    }
}
