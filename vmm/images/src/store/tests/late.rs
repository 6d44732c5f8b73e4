//! Images whose hashes come after they are used.

use super::*;
use crate::unpackers::LateHash;
use mkvmm_base::unpacking::ContentHash;
use tokio::task::LocalSet;

/// Tells the hash of each image only with a permit; none at all once that is closed.
#[derive(Debug, Clone)]
struct Hesitant {
    inner: InProcess,
    gate: Arc<Semaphore>,
}

impl Unpackers for Hesitant {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        self.inner.unpack(job, image, output).await
    }

    async fn unpack_early(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<(Unpacked, Option<LateHash>), UnpackersError> {
        let complete = self.unpack(job, image, output).await?;
        let (gate, sha256) = (Arc::clone(&self.gate), complete.sha256);
        let late = async move {
            gate.acquire().await.ok()?.forget();
            Some(sha256)
        };
        let early = Unpacked {
            sha256: ContentHash::UNKNOWN,
            ..complete
        };
        Ok((early, Some(late.boxed_local())))
    }
}

impl Hesitant {
    fn new() -> Self {
        Self {
            inner: InProcess::default(),
            gate: Arc::new(Semaphore::new(0)),
        }
    }
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_image_is_used_before_it_is_hashed_and_equal_ones_are_found_then() {
    let dir = Dir::new("late");
    let first = dir.settled("first", b"the same").await;
    let second = dir.settled("second", b"the same").await;
    let other = dir.settled("other", b"another!").await;
    let unpackers = Hesitant::new();
    let store = store(unpackers.clone(), BUDGET);
    let work = async {
        let one = archive(&store, &first).await.unwrap();
        let two = archive(&store, &second).await.unwrap();
        let three = archive(&store, &other).await.unwrap();
        assert_eq!(bytes(&two), b"the same");
        for loaded in [&one, &two, &three] {
            assert!(!loaded.image.sha256().is_known());
        }
        // Nobody knows yet that two are equal, but their files are known.
        let again = archive(&store, &second).await.unwrap();
        assert!(Arc::ptr_eq(&again.image, &two.image) && again.info.cached);
        let counters = store.counters();
        assert_eq!((counters.entries, counters.hits_by_content), (3, 0));
        assert_ne!(counters.bytes_in_flight, 0, "three processes are left");

        unpackers.gate.add_permits(3);
        until(|| store.counters().hits_by_content == 1).await;
        until(|| store.counters().bytes_in_flight == 0).await;
        assert_eq!(one.image.sha256(), two.image.sha256());
        assert_ne!(one.image.sha256(), three.image.sha256());
        let counters = store.counters();
        assert_eq!((counters.entries, counters.bytes_held), (2, 16));
        // From now on both files have one image.
        let images = [
            archive(&store, &first).await.unwrap().image,
            archive(&store, &second).await.unwrap().image,
        ];
        assert!(Arc::ptr_eq(&images[0], &images[1]));
        assert_eq!(unpackers.inner.0.get(), 3);
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_image_without_a_hash_stays_what_it_is() {
    let dir = Dir::new("never");
    let source = dir.settled("image", b"changed later").await;
    let unpackers = Hesitant::new();
    let store = store(unpackers.clone(), BUDGET);
    let work = async {
        let loaded = archive(&store, &source).await.unwrap();
        unpackers.gate.close();
        until(|| store.counters().bytes_in_flight == 0).await;
        assert!(!loaded.image.sha256().is_known());
        let again = archive(&store, &source).await.unwrap();
        assert!(Arc::ptr_eq(&again.image, &loaded.image));
        assert_eq!(bytes(&again), b"changed later");
    };
    LocalSet::new().run_until(work).await;
}
