//! What requests do.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use mkvmm_virtio::{Progress, VirtioDevice};
use vmm_sys_util::epoll::EventSet;

use crate::OfBoth;
use crate::disk::{Disk, FLUSH, IOERR, Kind, OK, Scratch, UNSUPP, open};
use crate::driver::DATA;

pub const TESTS: &[OfBoth] = &[
    ("requests::writes_are_read_back", writes_are_read_back),
    (
        "requests::the_end_of_the_disk_is_a_limit",
        the_end_is_a_limit,
    ),
    (
        "requests::lengths_are_whole_sectors",
        lengths_are_whole_sectors,
    ),
    ("requests::a_read_only_disk_is_not_written", read_only),
    ("requests::ranges_become_zeros", ranges_become_zeros),
    ("requests::ranges_are_checked", ranges_are_checked),
    ("requests::it_says_who_it_is", it_says_who_it_is),
    ("requests::what_is_unknown_is_unsupported", unknown),
    ("requests::many_at_once_on_two_queues", many_at_once),
    ("requests::successes_are_counted", successes_are_counted),
    (
        "requests::what_a_pause_has_waited_for_is_answered_after_it",
        answered_after_a_pause,
    ),
    (
        "requests::a_driver_without_flushes_has_durable_writes",
        write_through,
    ),
];

fn scratch() -> Scratch {
    let bytes = (0..1_u32 << 20).map(|index| (index / 512).to_le_bytes()[0]);
    Scratch::new(&bytes.collect::<Vec<_>>())
}

fn answered_after_a_pause(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    let soon = || Instant::now() + Duration::from_secs(10);
    assert!(disk.block.settle(soon()), "nothing was under way");
    for sector in 0..8 {
        disk.drivers[0].offer(0, sector, &[], 512);
    }
    disk.kick(0);
    assert!(disk.block.settle(soon()));
    assert!(disk.drivers[0].done().is_none());
    assert_eq!(disk.drivers[0].data(1, 512), [1; 512]);
    let event = EventSet::empty();
    while disk.block.on_descriptor(0, event).unwrap() == Progress::More {}
    let done: Vec<_> = std::iter::from_fn(|| disk.drivers[0].done()).collect();
    assert!(done.len() == 8 && done.iter().all(|done| done.status == OK));
    // The answers of a driver that is gone are not the next one's.
    disk.drivers[0].offer(0, 1, &[], 512);
    disk.kick(0);
    assert!(disk.block.settle(soon()));
    assert_eq!(disk.block.reset(), Progress::Done);
    disk.activate();
    assert_eq!(disk.block.on_descriptor(0, event).unwrap(), Progress::Done);
    assert!(disk.drivers[0].done().is_none());
    assert_eq!(disk.read(7, 512), (OK, vec![7; 512]));
}

fn writes_are_read_back(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    assert_eq!(disk.read(7, 1024), (OK, [[7; 512], [8; 512]].concat()));
    assert_eq!(disk.write(9, &[0xaa; 1536]), OK);
    assert_eq!(disk.flush(), OK);
    assert_eq!(disk.read(8, 512).1, [8; 512]);
    assert_eq!(disk.read(9, 1536), (OK, vec![0xaa; 1536]));
    assert_eq!(file.contents()[9 * 512..12 * 512], [0xaa; 1536]);
    assert_eq!(file.contents()[12 * 512..13 * 512], [12; 512]);
}

fn the_end_is_a_limit(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    let last = (1 << 20) / 512 - 1;
    assert_eq!(disk.write(last, &[1; 512]), OK);
    for (sector, len) in [
        (last, 1024),
        (last + 1, 512),
        (u64::MAX, 512),
        (1 << 55, 512),
    ] {
        assert_eq!(disk.write(sector, &vec![2; len]), IOERR, "{sector:#x}");
        assert_eq!(disk.read(sector, len.try_into().unwrap()).0, IOERR);
    }
    assert_eq!(file.contents().len(), 1 << 20);
    assert_eq!(disk.failures(), 8);
}

fn lengths_are_whole_sectors(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    for len in [0, 1, 511, 513, 1023] {
        assert_eq!(disk.write(0, &vec![2; len]), IOERR, "{len}");
        assert_eq!(disk.read(0, len.try_into().unwrap()).0, IOERR, "{len}");
    }
    assert_eq!(file.contents()[..512], [0; 512]);
}

fn read_only(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::with(file.path(), kind, true, FLUSH);
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.range(11, 0, 1, 0), IOERR);
    assert_eq!(disk.range(13, 0, 1, 0), IOERR);
    assert_eq!(disk.read(3, 512), (OK, vec![3; 512]));
    assert_eq!(disk.flush(), OK);
    assert_eq!(file.contents(), scratch().contents());
}

fn ranges_become_zeros(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    assert_eq!(disk.range(13, 8, 16, 0), OK, "zeros");
    assert_eq!(disk.range(13, 40, 16, 1), OK, "zeros that may be unmapped");
    assert_eq!(disk.range(11, 80, 8, 0), OK, "a discard");
    let contents = file.contents();
    for (start, end) in [(8, 24), (40, 56), (80, 88)] {
        let range = start * 512..end * 512;
        assert!(contents[range].iter().all(|byte| *byte == 0));
        assert_eq!(usize::from(contents[(start - 1) * 512]), start - 1);
        assert_eq!(usize::from(contents[end * 512]), end);
    }
    assert_eq!(contents.len(), 1 << 20);
}

fn ranges_are_checked(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    let sectors = (1 << 20) / 512;
    for kind in [11, 13] {
        assert_eq!(disk.range(kind, 0, 0, 0), IOERR);
        assert_eq!(disk.range(kind, 0, sectors + 1, 0), IOERR);
        assert_eq!(disk.range(kind, sectors.into(), 1, 0), IOERR);
        assert_eq!(disk.range(kind, u64::MAX, u32::MAX, 0), IOERR);
        assert_eq!(disk.range(kind, 0, 1, 2), UNSUPP, "a reserved flag");
        assert_eq!(disk.ask(kind, 0, &[0; 15], 0), IOERR, "half a range");
        assert_eq!(disk.ask(kind, 0, &[0; 32], 0), IOERR, "two ranges");
    }
    assert_eq!(disk.range(11, 0, 1, 1), UNSUPP, "a discard has no flags");
    assert_eq!(file.contents(), scratch().contents());
}

fn it_says_who_it_is(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    assert_eq!(disk.ask(8, 0, &[], 20), OK);
    assert_eq!(disk.drivers[0].data(0, 20), b"a disk of the tests\0");
    assert_eq!(disk.ask(8, 0, &[], 19), IOERR, "too little room");
    let mut capacity = [0; 8];
    disk.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    assert_eq!(
        (disk.block.id(), disk.block.queue_sizes()),
        (2, &[256, 256][..])
    );
}

fn unknown(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    for kind in [2, 3, 14, 16, 24, 1 << 31, u32::MAX] {
        assert_eq!(disk.ask(kind, 0, &[0; 512], 512), UNSUPP, "{kind}");
    }
}

/// Far more requests than the engine takes at a time, all returned once, with
/// the data of their sectors.
fn many_at_once(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    let (mut begun, mut ended) = (0, 0);
    let mut sectors = vec![[0; 64]; 2];
    while ended < 2000 {
        for queue in 0..2_u16 {
            let index = usize::from(queue);
            while begun < 2000 && disk.drivers[index].has_room() {
                let sector = begun * 7 % 2000;
                let slot = disk.drivers[index].offer(0, sector, &[], 512);
                sectors[index][usize::from(slot)] = sector;
                begun += 1;
            }
            disk.kick(queue);
        }
        let before = ended;
        for (driver, sectors) in disk.drivers.iter_mut().zip(&sectors) {
            while let Some(done) = driver.done() {
                let sector = sectors[usize::from(done.slot)];
                let data = driver.data(done.slot, 512);
                assert_eq!((done.status, done.written), (OK, 513));
                assert_eq!(data, [sector.to_le_bytes()[0]; 512], "{sector}");
                ended += 1;
            }
        }
        if before == ended {
            disk.wait();
        }
    }
    assert_eq!((begun, ended), (2000, 2000));
}

fn successes_are_counted(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::new(file.path(), kind);
    assert_eq!(disk.write(0, &vec![1; DATA as usize]), OK);
    assert_eq!(disk.read(0, 1024).0, OK);
    assert_eq!(disk.read(u64::MAX, 1024).0, IOERR);
    assert_eq!(disk.flush(), OK);
    assert_eq!(disk.range(13, 0, 1, 0), OK);
    let counts = disk.block.counters()[0].counts();
    assert_eq!((counts.reads, counts.read_bytes), (1, 1024));
    assert_eq!((counts.writes, counts.written_bytes), (1, u64::from(DATA)));
    assert_eq!((counts.flushes, counts.discards), (1, 1));
    assert_eq!(disk.failures(), 1);
    assert_eq!(disk.block.counters()[1].counts(), Default::default());
}

fn write_through(kind: Kind) {
    let file = scratch();
    let mut disk = Disk::with(file.path(), kind, false, 0);
    assert_eq!(disk.write(1, &[5; 512]), OK);
    assert_eq!(disk.range(13, 2, 1, 0), OK);
    let mut data = [0; 1024];
    open(file.path()).read_exact_at(&mut data, 512).unwrap();
    assert_eq!(data, [[5; 512], [0; 512]].concat()[..]);
}
