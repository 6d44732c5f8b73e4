//! Tests of caching, finding and evicting images.

use super::*;

use rustix::fs::SealFlags;

#[tokio::test]
async fn one_content_is_held_once_whatever_its_names() {
    let dir = Dir::new("content");
    let (a, b) = (dir.file("a", &bzimage()), dir.file("b", &bzimage()));
    let store = store(InProcess::default(), BUDGET);
    let first = kernel(&store, &a, ROOMY).await.unwrap();
    assert!(!first.info.cached);
    assert_eq!(first.info.format, Some("bzImage"));
    assert_eq!(first.info.compression.as_deref(), Some("zstd"));
    assert_eq!(first.info.version.as_deref(), Some("6.1.0 (x)"));
    let second = kernel(&store, &b, ROOMY).await.unwrap();
    assert!(second.info.cached);
    assert_eq!(second.info.path, dir.0.join("b"));
    assert!(Arc::ptr_eq(&first.image, &second.image));
    let counters = store.counters();
    assert_eq!((counters.misses, counters.hits_by_content), (1, 1));
    // That two files are equal is only known once both are unpacked.
    assert_eq!(counters.decompressions, 2);
    assert_eq!(counters.bytes_held, first.image.size());
    // As a bzImage it is another image, and nothing is unpacked.
    let access = client();
    let whole = store.kernel(&a, &access, BootMode::BzImage, ROOMY);
    let whole = whole.await.unwrap();
    let facts = whole.image.kernel().unwrap();
    assert_eq!(facts.boot, BootMode::BzImage);
    assert_eq!(store.counters().decompressions, 2);
    assert_eq!(
        (store.counters().entries, store.counters().bytes_in_flight),
        (2, 0)
    );
}

#[tokio::test]
async fn a_file_that_did_not_change_is_not_read_again() {
    let dir = Dir::new("settled");
    let source = dir.settled("i", b"an archive").await;
    let unpackers = InProcess::default();
    let store = store(unpackers.clone(), BUDGET);
    let first = archive(&store, &source).await.unwrap();
    let second = archive(&store, &source).await.unwrap();
    assert!(!first.info.cached && second.info.cached);
    assert!(Arc::ptr_eq(&first.image, &second.image));
    let counters = store.counters();
    assert_eq!((counters.hits_by_file, counters.bytes_read), (1, 10));
    assert_eq!(unpackers.0.get(), 1);
    // A hard link is the same file.
    let link = dir.0.join("link");
    fs::hard_link(dir.0.join("i"), &link).unwrap();
    let link = ImageSource::Path(link);
    wait_until_settled(&link).await;
    archive(&store, &link).await.unwrap();
    let linked = archive(&store, &source).await.unwrap();
    assert!(Arc::ptr_eq(&first.image, &linked.image));
    assert_eq!(unpackers.0.get(), 2); // the link changed its ctime
}

#[tokio::test]
async fn a_file_that_has_just_changed_is_read_again() {
    let dir = Dir::new("fresh");
    let source = dir.file("i", b"one");
    let store = store(InProcess::default(), BUDGET);
    let one = archive(&store, &source).await.unwrap();
    dir.file("i", b"two");
    let two = archive(&store, &source).await.unwrap();
    assert_eq!(
        (bytes(&one), bytes(&two)),
        (b"one".to_vec(), b"two".to_vec())
    );
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_what_is_too_large_is_not_kept() {
    let dir = Dir::new("lru");
    let file = |i: u8| dir.file(&i.to_string(), &[i; 400]);
    let sources: Vec<_> = (0..3_u8).map(file).collect();
    let budget = Budget {
        kept: 1000,
        kept_count: 16,
        ..BUDGET
    };
    let store = store(InProcess::default(), budget);
    for i in [0, 1, 0, 2, 0] {
        archive(&store, &sources[i]).await.unwrap();
    }
    let counters = store.counters();
    assert_eq!((counters.evictions, counters.bytes_held), (1, 800));
    // Either counter may count: on a slow machine the files have settled
    // meanwhile.
    let hits = counters.hits_by_content + counters.hits_by_file;
    assert_eq!((counters.misses, hits), (3, 2));
    archive(&store, &sources[1]).await.unwrap();
    assert_eq!(store.counters().misses, 4);
    let large = archive(&store, &dir.file("large", &[9; 1001]))
        .await
        .unwrap();
    assert_eq!(bytes(&large), [9; 1001]);
    assert_eq!(store.counters().bytes_held, 800);
}

#[tokio::test]
async fn within_a_batch_a_pipe_serves_several_guests() {
    let (pipe, mut writer) = io::pipe().unwrap();
    writer.write_all(b"an archive").unwrap();
    drop(writer);
    let source = ImageSource::Fd(pipe.as_raw_fd());
    let store = store(InProcess::default(), BUDGET);
    let mut batch = store.batch(Arc::new(Access::Own));
    let one = batch.initramfs(&source, ROOMY).await.unwrap();
    let two = batch.initramfs(&source, 10).await.unwrap();
    assert!(Arc::ptr_eq(&one.image, &two.image));
    assert_eq!(bytes(&one), b"an archive");
    assert_eq!(two.info.path, PathBuf::from(source.to_string()));
    let error = batch.initramfs(&source, 9).await.unwrap_err();
    assert_eq!(error.to_string(), "has 10 bytes, exceeding the limit of 9");
    let mut other = store.batch(Arc::new(Access::Own));
    let error = other.initramfs(&source, ROOMY).await.unwrap_err();
    assert_eq!(error.to_string(), "is empty");
    // A client cannot name it at all.
    let error = archive(&store, &source).await.unwrap_err();
    assert!(matches!(error, StoreError::Source(_)), "{error}");
}

#[tokio::test]
async fn what_is_no_kernel_leaves_nothing_behind() {
    let dir = Dir::new("bad");
    let source = dir.file("text", b"#!/bin/sh");
    let store = store(InProcess::default(), BUDGET);
    for _ in 0..2 {
        let error = kernel(&store, &source, ROOMY).await.unwrap_err();
        let StoreError::Refused(refusal) = error else {
            panic!("{error}");
        };
        assert_eq!(refusal.class(), UnpackErrorClass::Invalid);
        assert!(refusal.to_string().starts_with("is a script"), "{refusal}");
    }
    let counters = store.counters();
    assert_eq!((counters.bytes_held, counters.bytes_in_flight), (0, 0));
    assert_eq!(counters.misses, 2);
    let empty = dir.file("empty", b"");
    let error = kernel(&store, &empty, ROOMY).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Size(SizeError::Empty)),
        "{error}"
    );
}

#[tokio::test]
async fn the_probe_is_there_at_once_and_once() {
    let unpackers = InProcess::default();
    let store = store(unpackers.clone(), BUDGET);
    let first = store.probe().unwrap();
    let second = store.probe().unwrap();
    assert!(Arc::ptr_eq(&first.image, &second.image));
    assert!(!first.info.cached && second.info.cached);
    assert_eq!(bytes(&first), mkvmm_guest_images::PROBE);
    assert_eq!(first.info.path, PathBuf::from("probe"));
    assert_eq!(unpackers.0.get(), 0);
}

#[tokio::test]
async fn a_stored_image_cannot_be_changed() {
    let dir = Dir::new("sealed");
    let store = store(InProcess::default(), BUDGET);
    let loaded = archive(&store, &dir.file("i", b"archive")).await.unwrap();
    for loaded in [loaded, store.probe().unwrap()] {
        let file = File::from(loaded.image.file().try_clone().unwrap());
        file.write_all_at(b"x", 0).unwrap_err();
        file.set_len(1).unwrap_err();
        file.set_len(1 << 20).unwrap_err();
        let seals = rustix::fs::fcntl_get_seals(&file).unwrap();
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        assert!(seals.contains(all), "{seals:?}");
    }
}
