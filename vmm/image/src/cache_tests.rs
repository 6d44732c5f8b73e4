use super::*;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;

use crate::{bzimage, elf};

/// A directory of its own, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mkvmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, content: &[u8]) -> ImageSource {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        ImageSource::Path(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bzimage() -> Vec<u8> {
    let elf = elf::tests::elf(0x100_0010, &[(1, 0x800, 0x100_0000, 0x100, 0x5000)]);
    let mut payload = zstd::encode_all(&elf[..], 1).unwrap();
    payload.extend_from_slice(&0x1000_u32.to_le_bytes());
    bzimage::tests::bzimage(&payload)
}

#[test]
fn one_content_is_unpacked_once_whatever_its_names() {
    let dir = Dir::new("content");
    let (a, b) = (dir.file("a", &bzimage()), dir.file("b", &bzimage()));
    let mut cache = ImageCache::new(1 << 20);
    let (first, info) = cache.batch().kernel(&a, BootMode::Elf).unwrap();
    assert!(!info.cached);
    assert_eq!(info.format, Some("bzImage"));
    assert_eq!(info.compression.as_deref(), Some("zstd"));
    assert_eq!(info.version.as_deref(), Some("6.1.0 (x)"));
    let (second, info) = cache.batch().kernel(&b, BootMode::Elf).unwrap();
    assert!(info.cached);
    assert_eq!(info.path, dir.0.join("b"));
    assert!(Arc::ptr_eq(&first, &second));
    let counters = cache.counters();
    assert_eq!((counters.misses, counters.hits_by_content), (1, 1));
    assert_eq!(counters.decompressions, 1);
    assert_eq!(counters.bytes_held, first.kept_bytes());
    // As a bzImage it is another image, and nothing is unpacked.
    let (whole, _) = cache.batch().kernel(&a, BootMode::BzImage).unwrap();
    assert_eq!(whole.boot(), BootMode::BzImage);
    assert_eq!(cache.counters().decompressions, 1);
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    // Long unchanged, unlike anything that this test could write.
    let source = ImageSource::Path("/proc/self/exe".into());
    let Opened::File(_, id) = source.open().unwrap() else {
        panic!("no file");
    };
    if !has_settled(&id, SystemTime::now()) {
        std::thread::sleep(Duration::from_secs(3));
    }
    let mut cache = ImageCache::new(1 << 30);
    cache.batch().initramfs(&source).unwrap();
    let read = cache.counters().bytes_read;
    let (_, info) = cache.batch().initramfs(&source).unwrap();
    assert!(info.cached);
    let counters = cache.counters();
    assert_eq!((counters.hits_by_file, counters.bytes_read), (1, read));
}

#[test]
fn a_file_that_has_just_changed_is_read_again() {
    let dir = Dir::new("fresh");
    let source = dir.file("i", b"one");
    let mut cache = ImageCache::new(1 << 20);
    let (one, _) = cache.batch().initramfs(&source).unwrap();
    dir.file("i", b"two");
    let (two, _) = cache.batch().initramfs(&source).unwrap();
    assert_eq!((one.as_slice(), two.as_slice()), (&b"one"[..], &b"two"[..]));
}

#[test]
fn a_change_settles_after_two_seconds() {
    let file = fs::File::open("/proc/self/exe").unwrap();
    let Opened::File(_, id) = ImageSource::Fd(file.as_raw_fd()).open().unwrap() else {
        panic!("no file");
    };
    let changed = u64::try_from(id.changed()).unwrap();
    let at = |s| UNIX_EPOCH + Duration::from_secs(changed + s);
    assert!(!has_settled(&id, at(2)));
    assert!(has_settled(&id, at(3)));
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_too_large_is_not_kept() {
    let dir = Dir::new("lru");
    let sources: Vec<_> = (0..3_u8)
        .map(|i| dir.file(&i.to_string(), &[i; 400]))
        .collect();
    let mut cache = ImageCache::new(1000);
    for i in [0, 1, 0, 2, 0] {
        cache.batch().initramfs(&sources[i]).unwrap();
    }
    let counters = cache.counters();
    assert_eq!((counters.evictions, counters.bytes_held), (1, 800));
    assert_eq!((counters.misses, counters.hits_by_content), (3, 2));
    cache.batch().initramfs(&sources[1]).unwrap();
    assert_eq!(cache.counters().misses, 4);
    let large = dir.file("large", &[9; 1001]);
    cache.batch().initramfs(&large).unwrap();
    assert_eq!(cache.counters().bytes_held, 800);
}

#[test]
fn within_a_batch_a_pipe_serves_several_guests() {
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"an archive").unwrap();
    drop(writer);
    let source = ImageSource::Fd(pipe.as_raw_fd());
    let mut cache = ImageCache::new(1 << 20);
    let mut batch = cache.batch();
    let (one, _) = batch.initramfs(&source).unwrap();
    let (two, info) = batch.initramfs(&source).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(info.path, PathBuf::from(source.to_string()));
    assert!(matches!(
        cache.batch().initramfs(&source),
        Err(CacheError::Source(SourceError::Empty))
    ));
}

#[test]
fn what_is_no_kernel_leaves_nothing_behind() {
    let dir = Dir::new("bad");
    let source = dir.file("text", b"#!/bin/sh");
    let mut cache = ImageCache::new(1 << 20);
    for _ in 0..2 {
        let error = cache.batch().kernel(&source, BootMode::Elf).unwrap_err();
        assert!(matches!(
            error,
            CacheError::Image(ImageError::Foreign { .. })
        ));
    }
    assert_eq!(cache.counters().bytes_held, 0);
    assert_eq!(cache.counters().misses, 2);
}

#[test]
fn the_hash_is_sha256_in_hex() {
    assert_eq!(
        ContentHash::of(b"abc").to_string(),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
