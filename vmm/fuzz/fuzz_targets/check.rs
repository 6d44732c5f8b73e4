//! Checks the properties of every accepted image.

use mkpool::instance::ChunkPolicy;
use mkpool::{AddrRange, InstancePool, MainPool};
use mkvmm_base::image_facts::KernelFacts;
use mkvmm_memory::placement;

/// The pool: 2 GiB from 1 MiB on, so that both limits of a kernel's place can
/// take effect.
const POOL: u64 = 2 << 30;

/// Panics if `facts` are impossible for a file of `len` bytes.
pub fn check(facts: &KernelFacts, len: u64) {
    facts.check(len).expect("what was parsed passes the check");
    let size = facts.mem_size;
    assert!(facts.align.is_power_of_two());
    assert!(facts.entry_offset < size);
    let mut end = 0;
    for segment in &facts.segments {
        assert!(segment.offset >= end, "segments ascend and are disjoint");
        assert!(segment.file_size <= segment.mem_size);
        assert!(segment.file_offset + segment.file_size <= len);
        end = segment.offset + segment.mem_size;
        assert!(end <= size);
    }
    place(facts);
}

/// Checks that a plan respects the kernel's limits, and that a refusal changes
/// nothing.
fn place(kernel: &KernelFacts) {
    let range = AddrRange::with_size(1 << 20, POOL).expect("a range");
    let main = MainPool::new(range, 12).expect("a pool");
    let pool = InstancePool::create(&main, 1, POOL, 12, ChunkPolicy::Rfc).expect("all of it");
    let facts = kernel.placement(Some(5000));
    if let Ok((plan, next)) = placement::plan(&facts, pool.draft()) {
        assert!(plan.kernel.start() >= kernel.addr_min);
        assert!(plan.kernel.start() % kernel.align == 0);
        assert!(plan.kernel.size() >= kernel.mem_size);
        if let Some(max) = kernel.addr_max {
            assert!(plan.kernel.last() <= max);
        }
        let taken: u64 = plan.pieces().map(|(_, range)| range.size()).sum();
        assert_eq!(next.avail(), POOL - taken);
    }
    assert_eq!(pool.avail(), POOL);
}
