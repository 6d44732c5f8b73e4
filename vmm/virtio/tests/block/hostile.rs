//! Requests that no correct driver makes.

use mkvmm_virtio::testing::{NEXT, WRITE};
use mkvmm_virtio::{Broken, Progress, VirtioDevice};

use crate::OfBoth;
use crate::disk::{Disk, IOERR, Kind, OK, Scratch};

pub const TESTS: &[OfBoth] = &[
    ("hostile::no_header_breaks_the_device", no_header),
    ("hostile::no_status_breaks_the_device", no_status),
    ("hostile::memory_that_is_not_there_breaks_it", no_memory),
    ("hostile::any_layout_of_descriptors_will_do", any_layout),
    ("hostile::segments_are_limited", segments_are_limited),
    ("hostile::after_a_reset_it_works_again", after_a_reset),
];

/// Where the tests put headers, data and statuses.
const AT: u64 = 2 << 20;

fn disk(kind: Kind) -> (Scratch, Disk) {
    let file = Scratch::new(&[7; 4 << 20]);
    let disk = Disk::new(file.path(), kind);
    (file, disk)
}

/// Offers one chain of descriptors (address, length, flags) on queue 0.
fn offer(disk: &mut Disk, parts: &[(u64, u32, u16)]) {
    let driver = &mut disk.drivers[0].raw;
    for (index, (addr, len, flags)) in (0..).zip(parts) {
        let is_last = usize::from(index) + 1 == parts.len();
        let next = if is_last { 0 } else { NEXT };
        driver.set_descriptor(index, *addr, *len, flags | next, index + 1);
    }
    driver.offer(0);
}

fn broken(disk: &mut Disk) -> Broken {
    disk.block.on_queue(0).unwrap_err()
}

fn no_header(kind: Kind) {
    let (_file, mut disk) = disk(kind);
    offer(&mut disk, &[(AT, 15, 0), (AT + 512, 1, WRITE)]);
    assert!(matches!(
        broken(&mut disk),
        Broken::Request { queue: 0, .. }
    ));
}

fn no_status(kind: Kind) {
    let (_file, mut disk) = disk(kind);
    offer(&mut disk, &[(AT, 16, 0)]);
    assert!(matches!(
        broken(&mut disk),
        Broken::Request { queue: 0, .. }
    ));
}

fn no_memory(kind: Kind) {
    let (_file, mut disk) = disk(kind);
    for addr in [16 << 20, u64::MAX - 256, (16 << 20) - 256] {
        offer(
            &mut disk,
            &[(AT, 16, 0), (addr, 512, WRITE), (AT + 512, 1, WRITE)],
        );
        assert!(
            matches!(broken(&mut disk), Broken::Address { .. }),
            "{addr:#x}"
        );
        assert_eq!(disk.block.reset(), Progress::Done);
        disk.activate();
    }
}

/// A header in pieces; data that begins in the header's descriptor; a status in
/// the last descriptor of the data.
fn any_layout(kind: Kind) {
    use vm_memory::{Bytes, GuestAddress};
    let (file, mut disk) = disk(kind);
    let mut bytes = vec![0; 16];
    bytes[0] = 1;
    bytes[8] = 3;
    bytes.extend([9; 512]);
    disk.memory.write_slice(&bytes, GuestAddress(AT)).unwrap();
    let parts = [
        (AT, 3, 0),
        (AT + 3, 12, 0),
        (AT + 15, 201, 0),
        (AT + 216, 0, 0),
        (AT + 216, 312, 0),
        (AT + 1024, 1, WRITE),
    ];
    offer(&mut disk, &parts);
    disk.kick(0);
    disk.wait();
    assert_eq!(disk.drivers[0].raw.used(), Some((0, 1)));
    assert_eq!(file.contents()[3 * 512..4 * 512], [9; 512]);

    disk.memory.write_obj(0_u32, GuestAddress(AT)).unwrap();
    let parts = [(AT, 16, 0), (AT + 2048, 500, WRITE), (AT + 4096, 13, WRITE)];
    offer(&mut disk, &parts);
    disk.kick(0);
    disk.wait();
    assert_eq!(disk.drivers[0].raw.used(), Some((0, 513)));
    let mut read = [0; 13];
    disk.memory
        .read_slice(&mut read, GuestAddress(AT + 4096))
        .unwrap();
    assert_eq!(read, [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, OK]);
}

fn segments_are_limited(kind: Kind) {
    use vm_memory::{Bytes, GuestAddress};
    let (_file, mut disk) = disk(kind);
    let status = GuestAddress(AT + 512);
    disk.memory.write_slice(&[0; 16], GuestAddress(AT)).unwrap();
    // A data segment of more than 1 MiB; the disk would be large enough.
    let parts = [
        (AT, 16, 0),
        (4 << 20, (1 << 20) + 512, WRITE),
        (AT + 512, 1, WRITE),
    ];
    offer(&mut disk, &parts);
    disk.kick(0);
    assert_eq!(disk.drivers[0].raw.used(), Some((0, 0)));
    assert_eq!(disk.memory.read_obj::<u8>(status).unwrap(), IOERR);
    // As many segments as are allowed.
    let mut parts = vec![(AT, 16, 0)];
    parts.extend(vec![(4 << 20, 512, WRITE); 254]);
    parts.push((AT + 512, 1, WRITE));
    offer(&mut disk, &parts);
    disk.kick(0);
    disk.wait();
    assert_eq!(disk.drivers[0].raw.used(), Some((0, 254 * 512 + 1)));
    assert_eq!(disk.memory.read_obj::<u8>(status).unwrap(), OK);
}

fn after_a_reset(kind: Kind) {
    let (_file, mut disk) = disk(kind);
    offer(&mut disk, &[(AT, 16, 0)]);
    broken(&mut disk);
    assert_eq!(disk.block.reset(), Progress::Done);
    disk.activate();
    assert_eq!(disk.read(0, 512), (OK, vec![7; 512]));
}
