//! Unpackers and cleaners that are stopped, killed or hang: another one does
//! the work, and where that fails, too, memory is lost until it can be cleaned.

use std::fs;
use std::time::{Duration, Instant};

use mkvmm_api::{ImagesSpec, KernelSource, Source};
use mkvmm_base::chain;
use mkvmm_base::state::{OnStall, State};
use mkvmm_manager::images::Images;
use mkvmm_manager::life::LifeError;
use mkvmm_manager::resolve::ResolveError;
use mkvmm_test_harness::images::{code, elf};

use crate::fixture::{EVENT_TIMEOUT, Fixture, MIB, POOL, forward};

/// The first cleaner falls, the second one cleans.
pub async fn cleaner_falls(deed: &str) {
    let fixture = used().await;
    fixture.plan_children("cleaner", &[deed]);
    let deleted = fixture.through("cleaner", fixture.manager.delete(&fixture.bad));
    deleted.await.expect("the second one cleans");
    fixture.expect_peace();
    fixture.expect_bad_is_gone().await;
}

/// Both fall: the memory is lost, and nobody's, until a third one cleans.
pub async fn cleaners_fall(deed: &str) {
    let fixture = used().await;
    fixture.plan_children("cleaner", &[deed, deed]);
    let deleted = fixture.through("cleaner", fixture.manager.delete(&fixture.bad));
    let error: LifeError = deleted.await.expect_err("both have fallen");
    let text = chain(&error);
    assert!(text.contains("the cleaner process"), "{text}");
    fixture.expect_peace();
    {
        let registry = fixture.manager.registry();
        assert_eq!(fixture.state_of_bad().0, State::Cleaning);
        let tree = registry.pool().to_string();
        assert!(tree.contains("-bad-region-0 (lost)\n"), "{tree}");
        assert_eq!(registry.pool().avail(), POOL - 16 * MIB);
    }
    fixture.expect_bad_is_gone().await;
    fixture.expect_peace();
}

/// The first unpacker falls, the second one unpacks.
pub async fn unpacker_falls(deed: &str) {
    let fixture = Fixture::new().await;
    fixture.plan_children("unpacker", &[deed]);
    let read = fixture.through("unpacker", fixture.read()).await;
    let images = read.expect("the second one unpacks");
    fixture.expect_peace();
    let loaded = fixture.manager.load(&fixture.bad, images).await;
    loaded.expect("the image is whole");
    fixture.tear_down().await;
}

/// Both fall: the image cannot be had this time.
pub async fn unpackers_fall(deed: &str) {
    let fixture = Fixture::new().await;
    fixture.plan_children("unpacker", &[deed, deed]);
    let read = fixture.through("unpacker", fixture.read()).await;
    let text = chain(&read.expect_err("both have fallen"));
    assert!(text.contains("the unpacker process"), "{text}");
    fixture.expect_peace();
    fixture.read().await.expect("nobody falls any more");
    fixture.tear_down().await;
}

/// A fixture of populated memory, with a bad one that has run.
async fn used() -> Fixture {
    let fixture = Fixture::with(OnStall::Wait, true).await;
    let result = fixture.load_and_start().await;
    result.expect("its worker is honest");
    fixture.wait_for(State::Stopped).await;
    fixture
}

impl Fixture {
    /// Lays down what the next children of a role do.
    fn plan_children(&self, role: &str, deeds: &[&str]) {
        self.plans.file(role, deeds.join("\n").as_bytes());
    }

    /// Waits for `work`. While a child of a role that has fallen is there, the
    /// clock is put forward, and the neighbour is looked at.
    async fn through<T>(&self, role: &str, work: impl Future<Output = T>) -> T {
        let note = self.plans.path(role).with_extension("pid");
        let mut work = std::pin::pin!(work);
        let begin = Instant::now();
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
            assert!(
                begin.elapsed() < EVENT_TIMEOUT,
                "{role}: nothing comes of it"
            );
            self.expect_peace();
            let pid = fs::read_to_string(&note).unwrap_or_default();
            let has_fallen = self.plans.path(role).with_extension("deed").exists();
            if has_fallen && fs::exists(format!("/proc/{pid}")).expect("procfs is there") {
                forward().await;
            }
        }
    }

    /// Reads the images of the bad one, out of a file.
    async fn read(&self) -> Result<Images, ResolveError> {
        let kernel = self.plans.file("kernel", &elf(code::COUNT));
        let spec = ImagesSpec {
            kernel: KernelSource::File(Source::Path(kernel)),
            boot: None,
            initrd: Vec::new(),
            cmdline: None,
        };
        self.manager.read_images(&self.bad, spec, 8 * MIB).await
    }

    /// Waits until the bad one is gone and its memory has come back.
    async fn expect_bad_is_gone(&self) {
        let begin = Instant::now();
        while self.manager.registry().find(&self.bad).is_ok() {
            assert!(begin.elapsed() < EVENT_TIMEOUT, "it is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.manager.registry().pool().avail(), POOL - 8 * MIB);
    }
}
