//! What holds for every image that was accepted.

use mkpool::instance::ChunkPolicy;
use mkpool::{AddrRange, InstancePool, MainPool};
use mkvmm::loader::KernelImage;
use mkvmm::placement;

/// 2 GiB from 1 MiB on: both limits of a kernel's place can bite.
const POOL: u64 = 2 << 30;

/// Panics when the image promises what cannot be.
pub fn check(kernel: &KernelImage) {
    let size = kernel.mem_size();
    assert!(kernel.align().is_power_of_two());
    assert!(kernel.entry_offset() < size);
    let mut end = 0;
    for segment in kernel.segments() {
        assert!(segment.offset >= end, "segments ascend and are disjoint");
        assert!(segment.data.len() as u64 <= segment.mem_size);
        end = segment.offset + segment.mem_size;
        assert!(end <= size);
    }
    place(kernel);
}

/// A plan keeps the kernel's limits; a refusal leaves the books as they were.
fn place(kernel: &KernelImage) {
    let range = AddrRange::with_size(1 << 20, POOL).expect("a range");
    let main = MainPool::new(range, 12).expect("a pool");
    let pool = InstancePool::create(&main, 1, POOL, 12, ChunkPolicy::Rfc).expect("all of it");
    let facts = kernel.facts(Some(5000));
    if let Ok((plan, next)) = placement::plan(&facts, pool.draft()) {
        assert!(plan.kernel.start() >= kernel.kernel_addr_min());
        assert!(plan.kernel.start() % kernel.align() == 0);
        assert!(plan.kernel.size() >= kernel.mem_size());
        if let Some(max) = kernel.kernel_addr_max() {
            assert!(plan.kernel.last() <= max);
        }
        let taken: u64 = plan.pieces().map(|(_, range)| range.size()).sum();
        assert_eq!(next.avail(), POOL - taken);
    }
    assert_eq!(pool.avail(), POOL);
}
