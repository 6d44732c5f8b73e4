use std::os::fd::AsFd;
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

/// Returns `file` as another process would have adopted it.
fn adopted(file: &MemoryFile, config: &ReservationConfig) -> MemoryFile {
    let fd = file.as_fd().try_clone_to_owned().unwrap();
    MemoryFile::adopt(file.range(), fd, file.number(), config).unwrap()
}

/// Returns the memory that the next manager rebuilds while owners have `files`.
fn rebuilt(
    memory: &PoolMemory,
    files: &[MemoryFile],
) -> Result<(PoolMemory, Vec<MemoryFile>), ReservationError> {
    let config = memory.config();
    let at_home: Vec<MemoryFile> = memory.at_home().map(|of| adopted(of, config)).collect();
    let lent: Vec<AddrRange> = files.iter().map(MemoryFile::range).collect();
    let again = PoolMemory::restore(memory.range(), *config, at_home, &lent)?;
    Ok((again, files.iter().map(|of| adopted(of, config)).collect()))
}

#[test]
fn a_populated_pool_is_rebuilt_with_each_byte_once() {
    let whole = range(0x4010_0000, 200 * MIB);
    let mut pool = memory(whole, true);
    // This takes the second granule completely, and parts of two others.
    let files = pool.take(&[range(0x4030_0000, 126 * MIB)]).unwrap();
    let (mut again, files) = rebuilt(&pool, &files).unwrap();
    let numbers = |of: &PoolMemory| of.at_home().map(MemoryFile::number).collect::<Vec<_>>();
    assert_eq!(numbers(&again), numbers(&pool));
    drop(pool);
    assert_eq!(resident(&again, &files), 200 * MIB);
    let more = again.take(&[range(0x4810_0000, 2 * MIB)]).unwrap();
    assert_eq!(resident(&again, &files) + resident_of(&more), 200 * MIB);
    for file in files.into_iter().chain(more) {
        again.put_back(file).unwrap();
    }
    assert_eq!(resident(&again, &[]), 200 * MIB);
    assert!(again.granules.iter().all(|g| g.lent.is_empty()));
    assert_eq!(again.take(&[whole]).unwrap().len(), 4);
    assert_eq!(again.at_home().count(), 0);
}

fn resident_of(files: &[MemoryFile]) -> u64 {
    files.iter().map(|f| f.resident().unwrap()).sum()
}

#[test]
fn a_step_that_was_not_completed_is_completed() {
    let whole = range(0x4000_0000, 128 * MIB);
    let mut pool = memory(whole, true);
    let lent = pool.take(&[range(0x4010_0000, MIB)]).unwrap();
    // The manager died after it had given up pages, before there was a file.
    let home = pool.at_home().next().unwrap();
    home.punch(range(0x4020_0000, 2 * MIB)).unwrap();
    // In the other granule, pages were allocated while a part was still lent.
    let late = pool.take(&[range(0x4500_0000, MIB)]).unwrap();
    let home = pool.at_home().last().unwrap();
    home.populate(range(0x4500_0000, MIB), pool.config())
        .unwrap();
    let files: Vec<MemoryFile> = lent.into_iter().chain(late).collect();
    assert_eq!(resident(&pool, &files), 127 * MIB);
    let (again, files) = rebuilt(&pool, &files).unwrap();
    assert_eq!(resident(&again, &files), 128 * MIB);
    let of_each: Vec<u64> = again.at_home().map(|of| of.resident().unwrap()).collect();
    assert_eq!(of_each, [63 * MIB, 63 * MIB]);
}

#[test]
fn a_lazy_pool_is_rebuilt_of_nothing() {
    let whole = range(0x4000_0000, 64 * MIB);
    let mut pool = memory(whole, false);
    let files = pool.take(&[range(0x4070_0000, 8 * MIB)]).unwrap();
    let (mut again, files) = rebuilt(&pool, &files).unwrap();
    assert!(again.is_quick());
    assert_eq!(again.at_home().count(), 0);
    let more = again.take(&[range(0x4000_0000, MIB)]).unwrap();
    assert!(more[0].number() > files[0].number());
    for file in files {
        again.put_back(file).unwrap();
    }
}

#[test]
fn files_that_are_not_those_of_the_pool_are_refused() {
    let whole = range(0x4000_0000, 128 * MIB);
    let pool = memory(whole, true);
    let config = *pool.config();
    let home: Vec<MemoryFile> = pool.at_home().cloned().collect();
    let granules = [home[0].range(), home[1].range()];
    let restore = |files: &[&MemoryFile], lent: &[AddrRange]| {
        let files = files.iter().map(|of| (*of).clone()).collect();
        PoolMemory::restore(whole, config, files, lent)
    };
    restore(&[&home[1], &home[0]], &[]).unwrap();
    restore(&[&home[0]], &[granules[1]]).unwrap();
    let missing = restore(&[&home[0]], &[]);
    assert!(matches!(missing, Err(ReservationError::NoFile { range }) if range == granules[1]));
    let part = range(0x4400_0000, MIB);
    let missing = restore(&[&home[0]], &[part]);
    assert!(matches!(missing, Err(ReservationError::NoFile { .. })));
    let both = restore(&[&home[0], &home[1]], &[granules[1]]);
    assert!(matches!(both, Err(ReservationError::Twice { .. })));
    let twice = restore(&[&home[0], &home[0]], &[granules[1]]);
    assert!(matches!(twice, Err(ReservationError::Twice { .. })));
    let overlap = [part, range(0x440f_f000, MIB)];
    let overlap = restore(&[&home[0], &home[1]], &overlap);
    assert!(matches!(overlap, Err(ReservationError::Twice { .. })));
    let across = restore(&[&home[0], &home[1]], &[range(0x43f0_0000, 2 * MIB)]);
    assert!(matches!(across, Err(ReservationError::NoGranule { .. })));
    let outside = restore(&[&home[0], &home[1]], &[range(0x3000_0000, MIB)]);
    assert!(matches!(outside, Err(ReservationError::Outside { .. })));
    let foreign = MemoryFile::make(part, &config).unwrap();
    let foreign = restore(&[&home[0], &home[1], &foreign], &[]);
    assert!(matches!(
        foreign,
        Err(ReservationError::Twice { .. } | ReservationError::NoGranule { .. })
    ));
    // A lazy pool has no files of its own.
    let lazy = ReservationConfig::default();
    let lazy = PoolMemory::restore(whole, lazy, home, &[]);
    assert!(matches!(lazy, Err(ReservationError::NoGranule { .. })));
}

#[test]
fn only_sealed_files_of_the_right_size_are_adopted() {
    use rustix::fs::{MemfdFlags, SealFlags};
    let of = range(0x4000_0000, MIB);
    let config = ReservationConfig::default();
    let file = MemoryFile::make(of, &config).unwrap();
    let next = MemoryFile::make(of, &config).unwrap();
    assert!(next.number() > file.number());
    assert_eq!(file.clone().number(), file.number());
    let fd = || file.as_fd().try_clone_to_owned().unwrap();
    let high = next.number() + (1 << 40);
    let adopted = MemoryFile::adopt(of, fd(), high, &config).unwrap();
    assert_eq!((adopted.number(), adopted.range()), (high, of));
    adopted.file_for_tests().write_all_at(&[7], 5).unwrap();
    let mut byte = [0];
    file.read(0x4000_0005, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert!(MemoryFile::make(of, &config).unwrap().number() > high);
    for number in [0, 1 << 63, u64::MAX] {
        let refused = MemoryFile::adopt(of, fd(), number, &config);
        assert!(matches!(refused, Err(ReservationError::Number { .. })));
    }
    let longer = MemoryFile::adopt(range(0x4000_0000, MIB + 1), fd(), 1, &config);
    assert!(matches!(
        longer,
        Err(ReservationError::Size { size: MIB, .. })
    ));
    let sealed_with = |seals: SealFlags| {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&fd, MIB).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        MemoryFile::adopt(of, fd, 1, &config)
    };
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    sealed_with(all).unwrap();
    for bad in [
        SealFlags::SHRINK | SealFlags::GROW,
        SealFlags::SHRINK | SealFlags::SEAL,
        SealFlags::GROW | SealFlags::SEAL,
        all | SealFlags::WRITE,
        all | SealFlags::FUTURE_WRITE,
    ] {
        let refused = sealed_with(bad);
        assert!(matches!(refused, Err(ReservationError::Seals { .. })));
    }
    // A file that is not in memory has no seals.
    let disk = std::fs::File::open("/proc/self/exe").unwrap();
    let refused = MemoryFile::adopt(of, disk.into(), 1, &config);
    assert!(matches!(refused, Err(ReservationError::Memfd(_))));
}

#[test]
fn what_is_adopted_is_locked_again_except_for_what_is_lent() {
    let config = ReservationConfig {
        lock: true,
        ..ReservationConfig::default()
    };
    // No other test of this process locks memory.
    let locked = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let of_line = |line: &str| {
            let kib = line.strip_prefix("VmLck:")?.strip_suffix("kB")?;
            kib.trim().parse::<u64>().ok()
        };
        status.lines().find_map(of_line).unwrap() << 10
    };
    let of = range(0x4000_0000, 4 * MIB);
    let file = match MemoryFile::make(of, &config) {
        Ok(file) => file,
        // The limit of locked memory does not allow even this.
        Err(ReservationError::Lock { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    file.punch(range(0x4010_0000, MIB)).unwrap();
    assert_eq!(locked(), 4 * MIB);
    let again = adopted(&file, &config);
    assert_eq!(locked(), (4 + 3) * MIB);
    assert_eq!(again.resident().unwrap(), 3 * MIB);
    drop(file);
    again.populate(range(0x4010_0000, MIB), &config).unwrap();
    assert_eq!(locked(), 4 * MIB);
    assert_eq!(again.resident().unwrap(), 4 * MIB);
}
