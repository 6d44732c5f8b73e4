//! Measures how fast a kernel is loaded into a guest once the store has it,
//! compared with a memcpy of the same number of bytes into equally fresh memory
//! and into warm memory.
//!
//! Uses Debian's 6.1 kernel from `.cache/guests` (scripts/fetch-kernels), or
//! the file that `MKVMM_BENCH_KERNEL` names.

use std::env;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use mkvmm_base::image_facts::{BootMode, KernelFacts};
use mkvmm_base::unpacking::{Job, Unpacked};
use mkvmm_image::{KernelImage, child};
use mkvmm_images::{
    Access, Budget, BuiltIn, ImageSource, ImageStore, Loaded, StoreError, Unpackers, UnpackersError,
};
use mkvmm_memory::cleaning::Method;
use mkvmm_memory::reservation::ReservationConfig;
use mkvmm_test_harness::instance::{Instance, Pool};
use mkvmm_test_harness::root;
use tokio::runtime::{Builder, Runtime};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;

fn kernel_path() -> PathBuf {
    let debian = || root().join(".cache/guests/vmlinuz-6.1");
    env::var_os("MKVMM_BENCH_KERNEL").map_or_else(debian, PathBuf::from)
}

/// Unpacks in this process. Only the first load unpacks, and it is not part of
/// the comparison.
#[derive(Debug)]
struct InProcess;

impl Unpackers for InProcess {
    async fn unpack(
        &self,
        job: Job,
        image: OwnedFd,
        output: OwnedFd,
    ) -> Result<Unpacked, UnpackersError> {
        Ok(child::answer(&job, image, output)?)
    }
}

/// A store and the one image that is requested from it.
struct Images {
    runtime: Runtime,
    store: ImageStore<InProcess>,
    access: Arc<Access>,
    source: ImageSource,
    boot: BootMode,
}

impl Images {
    fn new(path: PathBuf, boot: BootMode) -> Self {
        let budget = Budget {
            kept: 1 << 30,
            kept_count: 8,
            in_flight: 4 << 30,
        };
        let probe = BuiltIn {
            name: "probe",
            bytes: mkvmm_guest_images::PROBE,
            content: KernelImage::probe_content().expect("the probe is good"),
            boot: BootMode::Elf,
        };
        let runtime = Builder::new_current_thread().build();
        Self {
            runtime: runtime.expect("there are descriptors"),
            store: ImageStore::new(InProcess, budget, probe),
            access: Arc::new(Access::Own),
            source: ImageSource::Path(path),
            boot,
        }
    }

    fn kernel(&self) -> Result<Loaded, StoreError> {
        let kernel = self
            .store
            .kernel(&self.source, &self.access, self.boot, MEMORY);
        self.runtime.block_on(kernel)
    }
}

/// An instance into which images are loaded repeatedly.
struct Place(Instance);

impl Place {
    fn new(kernel: &KernelFacts) -> Self {
        let mut pool = Pool::new(MEMORY, ReservationConfig::default());
        Self(pool.make(MEMORY, kernel).expect("it fits"))
    }

    /// Makes the instance's memory empty and zero, as for a new instance.
    fn empty(&self) {
        self.0.clean(Method::Punch);
    }

    fn copy(&self, bytes: &[u8]) {
        self.0.write(self.0.plan.kernel.start(), bytes);
    }
}

/// Times `work` alone, without the `before` step of each round.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    before: impl Fn(),
    mut work: impl FnMut(),
) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|rounds| {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                before();
                let start = Instant::now();
                work();
                total += start.elapsed();
            }
            total
        });
    });
}

fn load(criterion: &mut Criterion) {
    let path = kernel_path();
    for (boot, name) in [(BootMode::BzImage, "bzimage"), (BootMode::Elf, "elf")] {
        let images = Images::new(path.clone(), boot);
        let Ok(Loaded { image, info }) = images.kernel() else {
            eprintln!("load: no kernel {}: scripts/fetch-kernels", path.display());
            return;
        };
        eprintln!("load/{name}: first load {:?}", info.load_time);
        let place = Place::new(image.kernel().expect("a kernel was asked for"));
        let size = info.kept_bytes;
        let bytes = vec![0x5a; usize::try_from(size).expect("it is in memory")];
        let mut warm = vec![0; bytes.len()];

        let mut group = criterion.benchmark_group(format!("load/{name}"));
        group.throughput(Throughput::Bytes(size)).sample_size(20);
        let second = || {
            let Loaded { image, .. } = images.kernel().expect("it was there");
            let facts = image.kernel().expect("a kernel was asked for");
            place.0.load(image.file(), facts);
        };
        bench(&mut group, "second", || place.empty(), second);
        let copy = || place.copy(&bytes);
        bench(&mut group, "memcpy-fresh", || place.empty(), copy);
        bench(&mut group, "second-warm", || {}, second);
        bench(&mut group, "memcpy-warm-pool", || {}, copy);
        let warm = || warm.copy_from_slice(black_box(&bytes));
        bench(&mut group, "memcpy-warm", || {}, warm);
        group.finish();
        let counters = images.store.counters();
        assert!(counters.decompressions <= 1, "{counters:?}");
        eprintln!("load/{name}: {counters:?}");
    }
}

criterion_group!(benches, load);
criterion_main!(benches);
