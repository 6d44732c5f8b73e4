//! How fast a kernel gets into a guest once the cache has it: against memcpy
//! of as many bytes, into memory that is as fresh and into memory that is warm.
//!
//! Takes Debian's 6.1 kernel out of `.cache/guests` (scripts/fetch-kernels),
//! or the file that `MKVMM_BENCH_KERNEL` names.

use std::env;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use mkpool::AddrRange;
use mkvmm::host_pool::{HostPool, SubPool};
use mkvmm::instance::memory::InstanceMemory;
use mkvmm::loader::{self, BootMode, ImageCache, ImageSource, KernelImage};
use mkvmm::placement::PlacementPlan;
use mkvmm::reservation::ReservationConfig;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;

fn kernel_path() -> PathBuf {
    let debian = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.cache/guests/vmlinuz-6.1"
    );
    env::var_os("MKVMM_BENCH_KERNEL").map_or_else(|| debian.into(), PathBuf::from)
}

/// An instance, loaded into again and again.
struct Place {
    pool: HostPool,
    sub_pool: SubPool,
    plan: PlacementPlan,
    memory: InstanceMemory,
}

impl Place {
    fn new(kernel: &KernelImage) -> Self {
        let range = AddrRange::with_size(0x1_0000_0000, MEMORY).expect("a range");
        let mut pool =
            HostPool::new(range, ReservationConfig::default(), &|_| {}).expect("256 MiB are there");
        let id = pool.next_id();
        let name = "bench".parse().expect("a name");
        let mut sub_pool = pool.carve(id, &name, MEMORY).expect("it fits");
        let facts = kernel.facts(None);
        let plan = pool.place(&mut sub_pool, &facts).expect("it fits");
        let memory = InstanceMemory::new(pool.reservation(), sub_pool.regions(), plan.low_window)
            .expect("memory can be described");
        Self {
            pool,
            sub_pool,
            plan,
            memory,
        }
    }

    /// As a new instance finds it: nothing there, all zero.
    fn scrub(&self) {
        for &region in self.sub_pool.regions() {
            self.pool.reservation().scrub(region).expect("it can be");
        }
    }

    fn copy(&self, bytes: &[u8]) {
        let addr = self.plan.kernel.start();
        self.memory.write(addr, bytes).expect("RAM");
    }
}

/// Times `work` alone, not the `before` of each round.
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
    let source = ImageSource::Path(path.clone());
    for (boot, name) in [(BootMode::BzImage, "bzimage"), (BootMode::Elf, "elf")] {
        let mut cache = ImageCache::new(1 << 30);
        let first = cache.batch().kernel(&source, boot);
        let Ok((kernel, info)) = first else {
            eprintln!("load: no kernel {}: scripts/fetch-kernels", path.display());
            return;
        };
        eprintln!("load/{name}: first load {:?}", info.load_time);
        let place = Place::new(&kernel);
        let size = info.kept_bytes;
        let bytes = vec![0x5a; usize::try_from(size).expect("it is in memory")];
        let mut warm = vec![0; bytes.len()];

        let mut group = criterion.benchmark_group(format!("load/{name}"));
        group.throughput(Throughput::Bytes(size)).sample_size(20);
        let second = |cache: &mut ImageCache| {
            let (kernel, _) = cache.batch().kernel(&source, boot).expect("it was there");
            loader::load(&place.memory, &kernel, None, &place.plan).expect("it loads");
        };
        bench(
            &mut group,
            "second",
            || place.scrub(),
            || second(&mut cache),
        );
        bench(
            &mut group,
            "memcpy-fresh",
            || place.scrub(),
            || place.copy(&bytes),
        );
        bench(&mut group, "second-warm", || {}, || second(&mut cache));
        bench(&mut group, "memcpy-warm-pool", || {}, || place.copy(&bytes));
        bench(
            &mut group,
            "memcpy-warm",
            || {},
            || {
                warm.copy_from_slice(black_box(&bytes));
            },
        );
        group.finish();
        let counters = cache.counters();
        assert!(counters.decompressions <= 1, "{counters:?}");
        eprintln!("load/{name}: {counters:?}");
    }
}

criterion_group!(benches, load);
criterion_main!(benches);
