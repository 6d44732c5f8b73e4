use super::*;

const KINDS: [PageKind; 4] = [
    PageKind::Normal,
    PageKind::Thp,
    PageKind::Hugetlb2M,
    PageKind::Hugetlb1G,
];

fn spec(kind: PageKind, size: u64) -> FileSpec<'static> {
    FileSpec {
        name: "mkvmm-test",
        size,
        kind,
        numa_node: None,
    }
}

/// Bytes of memory that the file has taken.
fn taken(file: &MemoryFile) -> u64 {
    let stat = rustix::fs::fstat(file).unwrap();
    u64::try_from(stat.st_blocks).unwrap() * 512
}

#[test]
fn a_file_has_its_size_for_ever_and_takes_no_memory_yet() {
    for kind in [PageKind::Normal, PageKind::Thp] {
        let file = MemoryFile::create(&spec(kind, 64 << 20)).unwrap();
        assert_eq!((file.size(), file.kind()), (64 << 20, kind));
        assert_eq!(taken(&file), 0);
        for size in [0, 128 << 20] {
            assert_eq!(rustix::fs::ftruncate(&file, size), Err(Errno::PERM));
        }
        let unsealed = rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE);
        assert_eq!(unsealed, Err(Errno::PERM));
        let flags = rustix::io::fcntl_getfd(&file).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn sizes_are_whole_pages() {
    for kind in KINDS {
        let page = kind.page_size();
        for size in [0, 1, page - 1, page + 1, page + page / 2] {
            let refused = MemoryFile::create(&spec(kind, size));
            assert!(matches!(refused, Err(FileError::Size { .. })), "{kind}");
        }
    }
}

/// Whether this process holds a file of that name.
fn is_open(name: &str) -> bool {
    let held = fs::read_dir("/proc/self/fd").unwrap();
    held.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target.to_string_lossy().contains(name))
}

#[test]
fn huge_pages_that_are_not_there_are_an_error_with_numbers() {
    for kind in [PageKind::Hugetlb2M, PageKind::Hugetlb1G] {
        let requested = 64 << 40; // more than any host has
        let spec = FileSpec {
            name: "mkvmm-too-large",
            ..spec(kind, requested)
        };
        let error = MemoryFile::create(&spec).unwrap_err();
        let words = error.to_string();
        assert!(words.contains(&requested.to_string()), "{words}");
        assert!(words.contains(&kind.to_string()), "{words}");
        let FileError::TooLarge { available, .. } = error else {
            panic!("{error:?}");
        };
        assert!(available < requested);
        assert!(!is_open("mkvmm-too-large"), "its pages are given back");
    }
}

// Other processes may take and give huge pages at any time, so what is free
// decides nothing here.
#[test]
fn huge_pages_are_taken_at_once_or_refused() {
    for pages in [1, 2, 3, 1000] {
        let size = pages * PageKind::Hugetlb2M.page_size();
        match MemoryFile::create(&spec(PageKind::Hugetlb2M, size)) {
            Ok(file) => assert_eq!(taken(&file), size),
            Err(error) => assert!(matches!(error, FileError::TooLarge { .. }), "{error:?}"),
        }
    }
}

#[test]
fn a_node_that_is_not_there_is_refused() {
    for node in [1023, 1024, u32::MAX] {
        let spec = FileSpec {
            numa_node: Some(node),
            ..spec(PageKind::Normal, 1 << 20)
        };
        let error = MemoryFile::create(&spec).unwrap_err();
        assert!(matches!(error, FileError::Bind { .. }), "{error:?}");
    }
}

#[test]
fn a_node_that_is_there_is_taken() {
    let spec = FileSpec {
        numa_node: Some(0),
        ..spec(PageKind::Normal, 1 << 20)
    };
    let there = fs::exists("/sys/devices/system/node/node0").unwrap();
    assert_eq!(MemoryFile::create(&spec).is_ok(), there);
}
