//! Tests with files that are larger than they should be, and with unpackers
//! that were compromised by their input.

use super::*;

/// C2: sizes are checked before a byte is read.
#[tokio::test]
async fn what_no_instance_could_hold_is_refused_unread() {
    let dir = Dir::new("sparse");
    let path = dir.0.join("0");
    let sparse = File::create(&path).unwrap();
    sparse.set_len(4_187_593_113).unwrap(); // 3.9 GiB
    let unpackers = InProcess::default();
    let store = store(unpackers.clone(), BUDGET);
    let access = client();
    for i in 0..4 {
        let link = dir.0.join(format!("link-{i}"));
        fs::hard_link(&path, &link).unwrap();
        let source = ImageSource::Path(link);
        let load = store.initramfs(&source, &access, 8 << 20);
        let error = load.await.unwrap_err().to_string();
        assert_eq!(
            error,
            "has 4187593113 bytes, exceeding the limit of 8388608"
        );
    }
    let error = kernel(&store, &ImageSource::Path(path), 8 << 20).await;
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "has 4187593113 bytes, exceeding the limit of 2147483648"
    );
    assert_eq!((unpackers.0.get(), store.counters().bytes_read), (0, 0));
}

/// A sparse file below every limit costs no more than its first MiB.
#[tokio::test]
async fn a_sparse_kernel_costs_nothing() {
    let dir = Dir::new("zeros");
    let path = dir.0.join("k");
    File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let store = store(InProcess::default(), BUDGET);
    let error = kernel(&store, &ImageSource::Path(path), 8 << 20).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with("is a file that begins with zeros"),
        "{error}"
    );
}

/// Requests a kernel from a store whose unpacker lies.
async fn told(lie: impl Fn(&mut Unpacked, &File) + 'static) -> Result<Loaded, StoreError> {
    let dir = Dir::new("lies");
    let source = dir.file("k", mkvmm_guest_images::PROBE);
    let store = store(Lying(lie), BUDGET);
    let loaded = kernel(&store, &source, 64 << 20).await;
    let counters = store.counters();
    assert_eq!(counters.bytes_in_flight, 0);
    assert_eq!(counters.entries, u64::from(loaded.is_ok()));
    loaded
}

fn facts(answer: &mut Unpacked) -> &mut mkvmm_base::image_facts::KernelFacts {
    match &mut answer.facts {
        Facts::Kernel(facts) => facts,
        Facts::Initramfs { .. } => panic!("no kernel"),
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_true_is_refused() {
    told(|_, _| {}).await.unwrap();
    let lies: [fn(&mut Unpacked, &File); 6] = [
        |answer, _| facts(answer).segments[0].file_offset = 1 << 40,
        |answer, _| facts(answer).segments[0].offset = u64::MAX,
        |answer, _| facts(answer).mem_size = 65 << 20,
        |answer, _| facts(answer).boot = BootMode::BzImage,
        |answer, _| answer.facts = Facts::Initramfs { crc32: 0 },
        |answer, _| answer.output_size = 1,
    ];
    for (i, lie) in lies.into_iter().enumerate() {
        let error = told(lie).await.unwrap_err();
        assert!(matches!(error, StoreError::Answer(_)), "{i}: {error}");
    }
    let error = told(|answer, _| answer.input_size += 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Changing), "{error}");
}

#[tokio::test]
async fn an_output_that_is_not_what_was_said_is_refused() {
    let deeds: [fn(&mut Unpacked, &File); 4] = [
        |answer, _| answer.output_size += 1,
        |answer, _| answer.output_size = u64::MAX,
        |_, file| file.set_len(10).unwrap(),
        |_, file| rustix::fs::fcntl_add_seals(file, rustix::fs::SealFlags::SEAL).unwrap(),
    ];
    for (i, deed) in deeds.into_iter().enumerate() {
        let error = told(deed).await.unwrap_err();
        assert!(matches!(error, StoreError::Memfile(_)), "{i}: {error}");
    }
    // Writing more than was reported has no effect.
    let loaded = told(|_, file| file.write_all_at(b"evil", 1 << 20).unwrap_or(()));
    let loaded = loaded.await.unwrap();
    let facts = KernelImage::probe().unwrap().kernel_facts().clone();
    assert_eq!(loaded.image.kernel().unwrap().segments, facts.segments);
    assert!(mkvmm_guest_images::PROBE.starts_with(&bytes(&loaded)));
}

/// One client's image compromises its unpacker, which reports the content hash
/// of another's image. That other image remains unchanged.
#[tokio::test]
async fn an_unpacker_cannot_put_its_content_in_anothers_place() {
    let dir = Dir::new("poison");
    let evil = Lying(|answer: &mut Unpacked, _: &File| {
        if answer.input_size == 4 {
            answer.sha256 = mkvmm_base::unpacking::ContentHash([7; 32]);
            answer.facts = Facts::Initramfs { crc32: 7 };
        }
    });
    let store = store(evil, BUDGET);
    let bad = dir.file("bad", b"evil");
    let good = dir.file("good", b"good");
    let first = archive(&store, &bad).await.unwrap();
    let second = archive(&store, &good).await.unwrap();
    assert_eq!(first.info.sha256, second.info.sha256);
    assert_eq!(
        (bytes(&first), bytes(&second)),
        (b"evil".to_vec(), b"good".to_vec())
    );
    assert_eq!(store.counters().hits_by_content, 0);
    assert_eq!(bytes(&archive(&store, &bad).await.unwrap()), b"evil");
    assert_eq!(bytes(&archive(&store, &good).await.unwrap()), b"good");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_unpacked_is_refused() {
    let dir = Dir::new("changing");
    let path = dir.0.join("i");
    let source = dir.file("i", b"before");
    let store = store(
        Lying(move |_: &mut Unpacked, _: &File| fs::write(&path, b"after!!").unwrap()),
        BUDGET,
    );
    let error = archive(&store, &source).await.unwrap_err();
    assert!(matches!(error, StoreError::Changing), "{error}");
    assert_eq!(store.counters().entries, 0);
}

/// An unpacker that never answers.
struct Silent;

impl Unpackers for Silent {
    async fn unpack(&self, _: Job, _: OwnedFd, _: OwnedFd) -> Result<Unpacked, UnpackersError> {
        pending().await
    }
}

/// An unpacker that is lost at once.
struct Lost;

impl Unpackers for Lost {
    async fn unpack(&self, _: Job, _: OwnedFd, _: OwnedFd) -> Result<Unpacked, UnpackersError> {
        let cause = io::Error::from(io::ErrorKind::BrokenPipe);
        Err(UnpackersError::Lost(Arc::new(cause)))
    }
}

#[tokio::test]
async fn an_unpacker_that_is_lost_or_silent_is_a_matter_of_its_request() {
    let dir = Dir::new("lost");
    let source = dir.file("i", b"an archive");
    let lost = store(Lost, BUDGET);
    let error = archive(&lost, &source).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "could not be unpacked: its unpacker failed"
    );
    let silent = store(Silent, BUDGET);
    tokio::select! {
        _ = archive(&silent, &source) => panic!("there is no answer"),
        () = async {
            while silent.counters().bytes_in_flight == 0 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert_eq!(silent.counters().bytes_in_flight, 0);
    assert_eq!(silent.counters().abandoned, 1);
}
