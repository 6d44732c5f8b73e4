use std::os::unix::fs::FileExt;

use super::*;
use crate::reservation::backing::Backing;

const MIB: u64 = 1 << 20;

fn range(start: u64, size: u64) -> AddrRange {
    AddrRange::with_size(start, size).unwrap()
}

fn memory(range: AddrRange, prealloc: bool) -> PoolMemory {
    let config = ReservationConfig {
        prealloc,
        ..ReservationConfig::default()
    };
    PoolMemory::new(range, config, &|_| (), &AtomicBool::new(false)).unwrap()
}

fn resident(memory: &PoolMemory, files: &[MemoryFile]) -> u64 {
    let free = memory.granules.iter().filter_map(|g| g.file.as_ref());
    free.chain(files).map(|f| f.resident().unwrap()).sum()
}

fn ranges(files: &[MemoryFile]) -> Vec<(u64, u64)> {
    let of = |file: &MemoryFile| (file.range().start(), file.range().size());
    files.iter().map(of).collect()
}

#[test]
fn a_lazy_region_is_a_file_of_its_own_and_huge_pages_can_have_it() {
    let mut pool = memory(range(0x4000_0000, 64 * MIB), false);
    let regions = [range(0x4000_0000, 4 * MIB), range(0x4070_0000, 8 * MIB)];
    let files = pool.take(&regions).unwrap();
    let expected = [
        (0x4000_0000, 4 * MIB),
        (0x4070_0000, MIB),
        (0x4080_0000, 7 * MIB),
    ];
    assert_eq!(ranges(&files), expected);
    assert_eq!(resident(&pool, &files), 0);
    for file in &files {
        let len = rustix::fs::fstat(file).unwrap().st_size;
        assert_eq!(len.cast_unsigned(), file.range().size());
    }
    let small = pool.take(&[range(0x4020_1000, MIB)]).unwrap();
    assert_eq!(small.len(), 1);
}

#[test]
fn a_populated_pool_holds_each_byte_once_whoever_has_it() {
    let whole = range(0x4010_0000, 200 * MIB);
    let mut pool = memory(whole, true);
    // There are 63 MiB up to the first boundary of 64 MiB, then whole granules
    // and the rest.
    assert_eq!(pool.granules.len(), 4);
    assert_eq!(resident(&pool, &[]), 200 * MIB);
    // This takes the second granule completely, and parts of the first and the
    // third.
    let files = pool.take(&[range(0x4030_0000, 126 * MIB)]).unwrap();
    let expected = [
        (0x4030_0000, 61 * MIB),
        (0x4400_0000, 64 * MIB),
        (0x4800_0000, MIB),
    ];
    assert_eq!(ranges(&files), expected);
    assert_eq!(resident(&pool, &files), 200 * MIB);
    // This takes another part of a granule that was partly lent.
    let more = pool.take(&[range(0x4810_0000, 2 * MIB)]).unwrap();
    for file in files.into_iter().chain(more) {
        pool.put_back(file).unwrap();
    }
    assert_eq!(resident(&pool, &[]), 200 * MIB);
    assert!(pool.granules.iter().all(|g| g.lent.is_empty()));
    // After that, every granule is complete again.
    assert_eq!(pool.take(&[whole]).unwrap().len(), 4);
}

#[test]
fn a_failure_in_the_middle_returns_what_was_taken() {
    let mut pool = memory(range(0x4000_0000, 128 * MIB), true);
    let regions = [range(0x4000_0000, 64 * MIB), range(0x4400_0000, MIB)];
    // The second region's granule is missing and cannot be punched, as if the
    // wrong file had been closed.
    let files = pool.take(&regions).unwrap();
    assert_eq!(files.len(), 2);
    for file in files {
        pool.put_back(file).unwrap();
    }
    let config = ReservationConfig {
        backing: Backing::Hugetlb1G,
        prealloc: true,
        ..ReservationConfig::default()
    };
    if Backing::Hugetlb1G.free().unwrap_or(0) == 0 {
        let asked = range(1 << 30, 1 << 30);
        PoolMemory::new(asked, config, &|_| (), &AtomicBool::new(false)).unwrap_err();
    }
}

#[test]
fn what_is_asked_to_stop_stops_within_a_granule() {
    let config = ReservationConfig {
        prealloc: true,
        ..ReservationConfig::default()
    };
    let stop = AtomicBool::new(true);
    let asked = range(0x4000_0000, 128 * MIB);
    let stopped = PoolMemory::new(asked, config, &|_| (), &stop);
    assert!(matches!(stopped, Err(ReservationError::Stopped)));
}

#[test]
fn memory_is_read_without_bringing_in_pages() {
    let mut pool = memory(range(0x4000_0000, 4 * MIB), false);
    let files = pool.take(&[range(0x4000_0000, 4 * MIB)]).unwrap();
    let file = &files[0];
    file.file_for_tests().write_all_at(&[7], 0x1000).unwrap();
    let mut bytes = [0; 2];
    file.read(0x4000_1000, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0]);
    file.read(0x4010_0000, &mut bytes).unwrap();
    assert_eq!(file.resident().unwrap(), 4096);
    file.read(0x403f_ffff, &mut bytes).unwrap_err();
}
