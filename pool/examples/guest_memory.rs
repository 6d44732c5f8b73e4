//! A VMM's guest memory: one pool for all guests, a sub-pool for each, and a plan before anything
//! is changed.
//!
//! `cargo run -p mkpool --example guest_memory`

use mkpool::instance::{ChunkPolicy, Draft};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::pool::AllocError;
use mkpool::resource::ResourceTree;
use mkpool::{AddrRange, Algo, InstancePool, MainPool};
use std::error::Error;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The places of the images of one guest.
struct Plan {
    kernel: AddrRange,
    initramfs: AddrRange,
}

/// Finds places for a kernel, which must lie at 16 MiB into the guest or above, and for an
/// initramfs, as high as possible. Only the draft changes.
fn plan(draft: &mut Draft, guest: AddrRange) -> Result<Plan, AllocError> {
    let above = AddrRange::new(guest.start() + 16 * MIB, guest.end()).expect("a guest of 16 MiB");
    let aligned = Algo::FirstFitAlign { align: 2 * MIB };
    Ok(Plan {
        kernel: draft.alloc_within(62 * MIB, aligned, above)?,
        initramfs: draft.alloc_with(5 * MIB, Algo::LastFit)?,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let all = AddrRange::with_size(4 * GIB, 2 * GIB)?;
    let memory = MainPool::new(all, PAGE_ORDER)?;
    let mut tree = ResourceTree::new();
    let root = tree.insert(None, all, "guest memory")?;

    let mut guests = Vec::new();
    for (id, name) in (1..).zip(["web", "db"]) {
        let mut guest =
            InstancePool::create(&memory, id, 256 * MIB, PAGE_ORDER, ChunkPolicy::Halving)?;
        let region = guest.regions()[0];
        let mut draft = guest.draft();
        let plan = plan(&mut draft, region)?;
        guest.adopt(draft)?;

        let entry = tree.insert(Some(root), region, name)?;
        tree.insert(Some(entry), plan.kernel, "kernel")?;
        tree.insert(Some(entry), plan.initramfs, "initramfs")?;
        guests.push(guest);
    }
    print!("{tree}");

    // A guest that is too large fails as a whole and leaves nothing behind.
    let before = memory.avail();
    let too_large = InstancePool::create(&memory, 3, 2 * GIB, PAGE_ORDER, ChunkPolicy::Halving);
    println!("{}", too_large.expect_err("2 GiB are not free any more"));
    assert_eq!(memory.avail(), before);

    // A guest's memory is freed when its pool is dropped.
    drop(guests);
    assert_eq!(memory.free_extents(), [all]);
    Ok(())
}
