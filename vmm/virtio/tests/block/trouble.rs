//! A disk of the host that fails, becomes shorter, or stalls.

use std::time::Duration;

use mkvmm_test_power::{PowerFile, Trouble, missing};
use mkvmm_virtio::{Progress, VirtioDevice};

use crate::OfBoth;
use crate::disk::{Disk, IOERR, Kind, OK, Scratch, open};

pub const TESTS: &[OfBoth] = &[
    (
        "trouble::a_failed_read_is_an_error_of_that_read",
        reads_fail,
    ),
    (
        "trouble::a_full_disk_is_an_error_of_that_write",
        writes_fail,
    ),
    (
        "trouble::a_failed_flush_is_one_of_all_that_wait",
        flushes_fail,
    ),
    ("trouble::a_file_that_was_cut_short", cut_short),
    (
        "trouble::a_reset_waits_for_a_disk_that_stands_still",
        stands_still,
    ),
    ("trouble::an_end_waits_for_nothing", ends_at_once),
];

const SIZE: usize = 1 << 20;

fn disk(kind: Kind) -> Option<(PowerFile, Disk)> {
    if missing().is_some() {
        return None;
    }
    let file = PowerFile::new(SIZE).unwrap();
    let disk = Disk::new(&file.path(), kind);
    Some((file, disk))
}

fn reads_fail(kind: Kind) {
    let Some((file, mut disk)) = disk(kind) else {
        return;
    };
    file.set_trouble(Trouble::Reads(libc::EIO));
    assert_eq!(disk.read(1000, 4096).0, IOERR);
    assert_eq!(disk.write(100, &[1; 4096]), OK);
    assert_eq!(disk.failures(), 1);
    file.set_trouble(Trouble::None);
    assert_eq!(disk.read(1000, 4096), (OK, vec![0; 4096]));
    assert_eq!(disk.failures(), 1);
}

fn writes_fail(kind: Kind) {
    let Some((file, mut disk)) = disk(kind) else {
        return;
    };
    for errno in [libc::ENOSPC, libc::EIO, libc::EDQUOT, libc::EROFS] {
        file.set_trouble(Trouble::Writes(errno));
        assert_eq!(disk.write(100, &[1; 4096]), IOERR);
    }
    assert_eq!(disk.failures(), 4);
    file.set_trouble(Trouble::None);
    assert_eq!(disk.write(100, &[1; 4096]), OK);
    assert_eq!(file.contents()[100 * 512..][..4096], [1; 4096]);
}

fn flushes_fail(kind: Kind) {
    let Some((file, mut disk)) = disk(kind) else {
        return;
    };
    assert_eq!(disk.write(0, &[1; 512]), OK);
    file.set_trouble(Trouble::StandStill);
    for queue in [0, 1, 0] {
        disk.drivers[usize::from(queue)].offer(4, 0, &[], 0);
        disk.kick(queue);
    }
    file.set_trouble(Trouble::Syncs(libc::EIO));
    let mut failed = 0;
    while failed < 3 {
        disk.wait();
        for driver in &mut disk.drivers {
            while let Some(done) = driver.done() {
                assert_eq!(done.status, IOERR);
                failed += 1;
            }
        }
    }
    assert_eq!(file.contents()[..512], [0; 512], "the write is lost");
    file.set_trouble(Trouble::None);
    assert_eq!(disk.write(0, &[2; 512]), OK);
    assert_eq!(disk.flush(), OK, "a later one is judged anew");
}

fn cut_short(kind: Kind) {
    let file = Scratch::new(&[3; SIZE]);
    let mut disk = Disk::new(file.path(), kind);
    open(file.path()).set_len(10 * 512 + 100).unwrap();
    assert_eq!(disk.read(0, 4096), (OK, vec![3; 4096]));
    assert_eq!(disk.read(8, 4096).0, IOERR, "the end is in the middle");
    assert_eq!(disk.read(100, 4096).0, IOERR);
    assert_eq!(disk.flush(), OK);
    std::fs::remove_file(file.path()).unwrap();
    assert_eq!(
        disk.read(0, 4096),
        (OK, vec![3; 4096]),
        "the file is still there"
    );
    assert_eq!(disk.write(0, &[4; 512]), OK);
}

/// A reset is not complete while the host has the guest's buffers, and nobody
/// waits for it meanwhile.
fn stands_still(kind: Kind) {
    let Some((file, mut disk)) = disk(kind) else {
        return;
    };
    file.set_trouble(Trouble::StandStill);
    for sector in 0..40 {
        disk.drivers[0].offer(0, sector * 8, &[], 4096);
        disk.drivers[1].offer(1, 1024 + sector * 8, &[7; 4096], 0);
    }
    disk.kick(0);
    disk.kick(1);
    assert_eq!(disk.block.reset(), Progress::More);
    assert!(!disk.wait_for(Duration::from_millis(1)));
    assert_eq!(disk.block.reset(), Progress::More);
    file.set_trouble(Trouble::None);
    while disk.block.reset() == Progress::More {
        disk.wait();
    }
    disk.activate();
    assert_eq!(disk.write(0, &[8; 512]), OK);
    assert_eq!(disk.read(0, 512), (OK, vec![8; 512]));
}

fn ends_at_once(kind: Kind) {
    let Some((file, mut disk)) = disk(kind) else {
        return;
    };
    file.set_trouble(Trouble::StandStill);
    disk.drivers[0].offer(0, 0, &[], 4096);
    disk.kick(0);
    // It would hang here; the memory stays, as the kernel may write to it.
    drop(disk);
    file.set_trouble(Trouble::None);
}
