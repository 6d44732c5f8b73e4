//! Tests of instance pools: both policies, strictness, and that failures change nothing.

use super::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const BASE: u64 = 4 << 30;

fn main_pool(size: u64) -> MainPool {
    MainPool::new(AddrRange::with_size(BASE, size).unwrap(), PAGE_ORDER).unwrap()
}

/// Returns a pool in which free extents of `hole` bytes alternate with single used pages.
fn holes(count: u64, hole: u64) -> MainPool {
    let main = main_pool(count * (hole + PAGE));
    for i in 0..count {
        let addr = BASE + i * (hole + PAGE) + hole;
        main.alloc_with(PAGE, Algo::At(addr)).unwrap();
    }
    main
}

#[test]
fn the_rfc_policy_falls_to_one_mib_then_to_256_kib() {
    let main = holes(4, MIB + 512 * 1024);
    let web = InstancePool::create(&main, 1, 3 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    let sizes: Vec<u64> = web.chunks().iter().rev().map(AddrRange::size).collect();
    // There is no room for 3 MiB, so take 1 MiB; none for 2 MiB, so take 1 MiB; the last MiB in one
    // piece.
    assert_eq!(sizes, [MIB, MIB, MIB]);
    let main = holes(8, 512 * 1024);
    let web = InstancePool::create(&main, 1, 3 * MIB / 2, 12, ChunkPolicy::Rfc).unwrap();
    let sizes: Vec<u64> = web.chunks().iter().rev().map(AddrRange::size).collect();
    assert_eq!(
        sizes,
        [256 << 10, 256 << 10, 256 << 10, 256 << 10, 512 << 10]
    );
    assert_eq!(web.regions().len(), 3, "two neighbours are one region");
}

#[test]
fn the_halving_policy_needs_fewer_chunks() {
    let main = holes(8, 768 * 1024);
    let web = InstancePool::create(&main, 1, 4 * MIB, 12, ChunkPolicy::Halving).unwrap();
    let halving = web.chunks();
    assert_eq!(halving.iter().map(AddrRange::size).sum::<u64>(), 4 * MIB);
    assert_eq!(halving.last().unwrap().size(), 512 << 10);
    web.destroy().unwrap();
    let rfc = InstancePool::create(&main, 1, 4 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    assert!(rfc.chunks().len() > halving.len());
}

#[test]
fn a_pool_says_what_it_is_made_of() {
    let main = holes(4, MIB);
    let mut web = InstancePool::create(&main, 7, 2 * MIB, 13, ChunkPolicy::Rfc).unwrap();
    assert_eq!((web.id(), web.order(), web.size()), (7, 13, 2 * MIB));
    // The chunk obtained last is searched first.
    let newest = web.chunks()[0];
    let beside = AddrRange::with_size(newest.end(), PAGE).unwrap();
    assert!(web.contains(newest) && !web.contains(beside));
    assert_eq!(web.alloc(PAGE, 0).unwrap().size(), 2 * PAGE);
    let largest = web.largest_free().unwrap();
    assert_eq!(largest.size(), MIB);
    assert!(!largest.overlaps(&newest));
    web.alloc(MIB, 0).unwrap();
    assert_eq!(web.largest_free().unwrap().size(), MIB - 2 * PAGE);
    web.alloc(MIB - 2 * PAGE, 0).unwrap();
    assert_eq!((web.largest_free(), web.avail()), (None, 0));
}

#[test]
fn units_are_whole_wherever_they_are_free() {
    let main = holes(4, 3 * MIB);
    let before = main.free_extents();
    // A unit is rounded down to the granule.
    for unit in [MIB + MIB / 2, MIB + MIB / 2 + 1] {
        let web = InstancePool::create(&main, 1, 12 * MIB, 12, ChunkPolicy::Units(unit)).unwrap();
        let sizes: Vec<u64> = web.chunks().iter().map(|chunk| chunk.size()).collect();
        // What remains at the end is there in one piece. The newest chunk comes first.
        assert_eq!(sizes[0], 3 * MIB);
        assert_eq!(sizes[1..], [3 * MIB / 2; 6]);
        assert_eq!(main.avail(), 0);
        drop(web);
        assert_eq!(main.free_extents(), before);
    }
    // In one piece, if there is one.
    let web = InstancePool::create(&main, 1, 3 * MIB, 12, ChunkPolicy::Units(MIB)).unwrap();
    assert_eq!(web.chunks().len(), 1);
    drop(web);
    // What remains may be less than a unit, and a unit may be none at all.
    for (size, unit) in [(12 * MIB, 2 * MIB), (4 * MIB, 0), (4 * MIB, 100)] {
        InstancePool::create(&main, 1, size, 12, ChunkPolicy::Units(unit)).unwrap_err();
        assert_eq!(main.free_extents(), before);
    }
}

#[test]
fn a_failed_creation_gives_everything_back() {
    for policy in [ChunkPolicy::Rfc, ChunkPolicy::Halving] {
        let main = holes(4, MIB);
        let before = main.free_extents();
        let failed = InstancePool::create(&main, 7, 4 * MIB + PAGE, 12, policy).unwrap_err();
        assert!(
            matches!(
                failed,
                CreateError::NoRoom {
                    id: 7,
                    remaining: PAGE,
                    ..
                }
            ),
            "{failed}"
        );
        assert_eq!(main.free_extents(), before);
    }
}

#[test]
fn strict_chunks_are_aligned_to_the_instances_granule() {
    let main = main_pool(64 * MIB);
    main.alloc(PAGE).unwrap();
    let mut web = InstancePool::create(&main, 1, 3 * MIB, 21, ChunkPolicy::Rfc).unwrap();
    assert_eq!((web.size(), web.rounded_from()), (4 * MIB, Some(3 * MIB)));
    assert!(
        web.chunks()
            .iter()
            .all(|c| c.start() % (2 * MIB) == 0 && c.size() % (2 * MIB) == 0)
    );
    assert_eq!(
        web.alloc(1, 4).unwrap(),
        AddrRange::with_size(BASE + 2 * MIB, 2 * MIB).unwrap()
    );
}

#[test]
fn strict_creation_takes_no_piece_below_the_granule() {
    let main = holes(8, MIB);
    let before = main.free_extents();
    let failed = InstancePool::create(&main, 1, 4 * MIB, 21, ChunkPolicy::Rfc).unwrap_err();
    assert!(
        matches!(failed, CreateError::NoRoom { chunks: 0, .. }),
        "{failed}"
    );
    assert_eq!(main.free_extents(), before);
}

#[test]
fn bad_arguments_are_refused() {
    let main = main_pool(MIB);
    let create =
        |size, order| InstancePool::create(&main, 1, size, order, ChunkPolicy::Rfc).unwrap_err();
    assert_eq!(
        create(MIB, 11),
        CreateError::BadOrder {
            id: 1,
            order: 11,
            min: 12
        }
    );
    assert_eq!(
        create(MIB, 64),
        CreateError::BadOrder {
            id: 1,
            order: 64,
            min: 12
        }
    );
    assert_eq!(create(0, 12), CreateError::ZeroSize { id: 1 });
    assert_eq!(
        create(u64::MAX, 12),
        CreateError::TooLarge {
            id: 1,
            size: u64::MAX,
            granule: PAGE
        }
    );
    assert!(matches!(
        create(1, 63),
        CreateError::NoRoom {
            requested: 0x8000_0000_0000_0000,
            ..
        }
    ));
    assert_eq!(main.avail(), MIB);
}

#[test]
fn destroying_a_busy_instance_is_refused_or_forced() {
    let main = main_pool(MIB);
    let mut web = InstancePool::create(&main, 1, MIB / 2, 12, ChunkPolicy::Rfc).unwrap();
    let page = web.alloc(PAGE, 0).unwrap();
    let Err(DestroyError::Busy { pool, allocations }) = web.destroy() else {
        panic!()
    };
    assert_eq!(allocations, [page]);
    assert_eq!(main.avail(), MIB / 2);
    assert_eq!(pool.destroy_forced().unwrap(), [page]);
    assert_eq!(main.free_extents(), [main.range()]);
}

#[test]
fn chunks_go_back_all_together_or_not_at_all() {
    let main = main_pool(MIB);
    let web = InstancePool::create(&main, 1, MIB / 2, 12, ChunkPolicy::Rfc).unwrap();
    let page = AddrRange::with_size(BASE, PAGE).unwrap();
    main.free(page).unwrap();
    let Err(DestroyError::Refused { pool, source }) = web.destroy() else {
        panic!()
    };
    assert!(matches!(
        source,
        FreeError::NotAllocated {
            first_free: BASE,
            ..
        }
    ));
    assert_eq!(main.avail(), MIB / 2 + PAGE, "nothing else went back");
    main.alloc(PAGE).unwrap();
    pool.destroy().unwrap();
    assert_eq!(main.avail(), MIB);
}

#[test]
fn a_dropped_instance_gives_its_chunks_back() {
    let main = holes(4, MIB);
    let before = main.free_extents();
    let mut web = InstancePool::create(&main, 1, 3 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    web.alloc(PAGE, 1).unwrap();
    drop(web);
    assert_eq!(main.free_extents(), before);
    // This also holds for the error that refuses to destroy it, and after an early return.
    let mut web = InstancePool::create(&main, 1, 3 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    web.alloc(PAGE, 1).unwrap();
    drop(web.destroy().unwrap_err());
    assert_eq!(main.free_extents(), before);
    // The pool lives as long as it is needed.
    let web = InstancePool::create(&main, 1, MIB, 12, ChunkPolicy::Rfc).unwrap();
    drop(main);
    web.destroy().unwrap();
}

#[test]
fn a_drop_never_frees_what_belongs_to_another() {
    let main = holes(4, MIB);
    let web = InstancePool::create(&main, 1, 3 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    let [first, others @ ..] = &web.chunks()[..] else {
        panic!()
    };
    let (first, others) = (*first, others.to_vec());
    main.free(first).unwrap();
    drop(web);
    assert!(others.iter().all(|chunk| main.free(*chunk).is_err()));
    assert_eq!(main.avail(), 4 * MIB);
}

#[test]
fn chunks_can_be_kept_for_ever() {
    let main = main_pool(MIB);
    let web = InstancePool::create(&main, 1, MIB / 2, 12, ChunkPolicy::Rfc).unwrap();
    let chunks = web.into_chunks();
    assert_eq!((chunks.len(), main.avail()), (1, MIB / 2));
    main.free_all(&chunks).unwrap();
    assert_eq!(main.avail(), MIB);
}

#[test]
fn allocation_respects_alignment_of_gibibytes() {
    let main = main_pool(16 << 30);
    let mut web = InstancePool::create(&main, 1, 16 << 30, 12, ChunkPolicy::Rfc).unwrap();
    web.alloc(1, 0).unwrap();
    assert_eq!(web.alloc(1, 1 << 33).unwrap().start(), 1 << 33);
    assert_eq!(web.alloc(1, 3), Err(AllocError::BadAlign { align: 3 }));
    assert_eq!(web.alloc(1, 2).unwrap().start(), BASE + PAGE);
}

#[test]
fn an_instance_may_divide_finer_than_its_main_pool() {
    // The main pool allocates 2 MiB pages; the instance allocates 4 KiB pages in them.
    let main = MainPool::new(AddrRange::with_size(1 << 30, 64 << 20).unwrap(), 21).unwrap();
    let mut instance =
        InstancePool::create(&main, 1, 5 << 20, PAGE_ORDER, ChunkPolicy::Halving).unwrap();
    assert_eq!(instance.size(), 6 << 20);
    assert_eq!(instance.rounded_from(), Some(5 << 20));
    let page = instance.alloc(4096, 0).unwrap();
    assert_eq!((page.start(), page.size()), (1 << 30, 4096));
    assert_eq!(
        instance.alloc(1 << 20, 0).unwrap().start(),
        (1 << 30) + 4096
    );
    instance.destroy_forced().unwrap();
    assert_eq!(main.avail(), 64 << 20);
}

#[test]
fn granules_beyond_a_c_int_work() {
    let main = main_pool(64 << 30);
    main.alloc(PAGE).unwrap();
    let mut web = InstancePool::create(&main, 1, 5 << 30, 32, ChunkPolicy::Rfc).unwrap();
    assert_eq!((web.size(), web.rounded_from()), (8 << 30, Some(5 << 30)));
    assert_eq!(
        web.alloc(1, 0).unwrap(),
        AddrRange::with_size(8 << 30, 4 << 30).unwrap()
    );
    web.alloc(1, 1 << 33).unwrap_err();
    assert_eq!(web.alloc(1, 1).unwrap().start(), 12 << 30);
}

#[test]
fn a_draft_goes_back_only_to_the_state_it_was_made_of() {
    let main = MainPool::new(AddrRange::with_size(4 << 30, 1 << 20).unwrap(), PAGE_ORDER).unwrap();
    let create = |id| InstancePool::create(&main, id, 65_536, PAGE_ORDER, ChunkPolicy::Rfc);
    let (mut one, mut two) = (create(1).unwrap(), create(2).unwrap());
    let kept = one.alloc(4096, 1).unwrap();
    let mut draft = one.draft();
    assert_eq!((draft.avail(), draft.size()), (61_440, 65_536));
    draft.free(kept).unwrap();
    let range = draft.alloc(8192, 8192).unwrap();
    assert_eq!((one.avail(), draft.avail()), (61_440, 57_344));
    // Try another pool, a state that has passed, and the same draft twice.
    let again = draft.clone();
    let stale = one.draft();
    assert_eq!(two.adopt(one.draft()), Err(StaleDraft { id: 2 }));
    one.adopt(draft).unwrap();
    assert_eq!(one.allocations(), [range]);
    assert_eq!(one.adopt(again), Err(StaleDraft { id: 1 }));
    assert_eq!(one.adopt(stale), Err(StaleDraft { id: 1 }));
    for change in [true, false] {
        let stale = one.draft();
        if change {
            one.alloc(4096, 1).unwrap();
        } else {
            one.free(range).unwrap();
        }
        assert_eq!(one.adopt(stale), Err(StaleDraft { id: 1 }));
    }
    assert_eq!(one.avail(), 61_440);
}

/// Returns a pool of `range` as fresh as in another process.
fn fresh(main: &MainPool) -> MainPool {
    MainPool::new(main.range(), main.order()).unwrap()
}

/// Restores what `pool` is, with its allocations.
fn restored(main: &MainPool, pool: &InstancePool) -> InstancePool {
    let (id, order) = (pool.id(), pool.order());
    let chunks = pool.chunks();
    let mut same = InstancePool::restore(main, id, &chunks, order, pool.rounded_from()).unwrap();
    for range in pool.allocations() {
        same.alloc_with(range.size(), Algo::At(range.start()))
            .unwrap();
    }
    same
}

/// Checks that nobody can tell the two pools apart.
fn assert_same(one: &InstancePool, other: &InstancePool) {
    let numbers = |pool: &InstancePool| (pool.id(), pool.order(), pool.size(), pool.avail());
    assert_eq!(numbers(one), numbers(other));
    assert_eq!(one.rounded_from(), other.rounded_from());
    assert_eq!(one.chunks(), other.chunks());
    assert_eq!(one.regions(), other.regions());
    assert_eq!(one.free_extents(), other.free_extents());
    assert_eq!(one.largest_free(), other.largest_free());
}

#[test]
fn a_restored_pool_searches_its_chunks_in_the_same_order() {
    let main = holes(4, MIB + 512 * 1024);
    let mut web = InstancePool::create(&main, 3, 4 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    assert!(web.chunks().len() > 2);
    let first = web.alloc(MIB, 0).unwrap();
    let second = web.alloc(3 * PAGE, 0).unwrap();
    web.free(AddrRange::with_size(first.start() + PAGE, PAGE).unwrap())
        .unwrap();
    let elsewhere = fresh(&main);
    let mut same = restored(&elsewhere, &web);
    assert_same(&web, &same);
    for (size, align) in [(PAGE, 0), (2 * PAGE, 0), (PAGE, 8 * PAGE), (MIB, 0), (1, 1)] {
        assert_eq!(web.alloc(size, align), same.alloc(size, align));
    }
    web.free(second).unwrap();
    same.free(second).unwrap();
    assert_same(&web, &same);
    same.destroy_forced().unwrap();
    assert_eq!(elsewhere.free_extents(), [elsewhere.range()]);
}

#[test]
fn a_restored_pool_remembers_what_was_requested() {
    let main = main_pool(64 * MIB);
    for (size, order) in [(3 * MIB, 21), (4 * MIB, 21), (5 * PAGE - 1, 12)] {
        let web = InstancePool::create(&main, 1, size, order, ChunkPolicy::Halving).unwrap();
        assert_same(&web, &restored(&fresh(&main), &web));
    }
    // The main pool's granule may be the larger one.
    let main = MainPool::new(AddrRange::with_size(1 << 30, 64 * MIB).unwrap(), 21).unwrap();
    let mut web = InstancePool::create(&main, 1, 5 * MIB, 12, ChunkPolicy::Rfc).unwrap();
    web.alloc(PAGE, 0).unwrap();
    assert_same(&web, &restored(&fresh(&main), &web));
}

#[test]
fn random_histories_are_restored() {
    let mut state = 12_u64;
    let mut dice = |sides: u64| {
        // This is a linear congruential generator; its high bits are random enough.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for _ in 0..200 {
        let main = main_pool(16 * MIB);
        let mut taken: Vec<AddrRange> = Vec::new();
        for _ in 0..dice(40) {
            taken.extend(main.alloc((dice(64) + 1) * PAGE).ok());
        }
        for range in taken.into_iter().step_by(2) {
            main.free(range).unwrap();
        }
        let order = [12, 13, 16][usize::try_from(dice(3)).unwrap()];
        let size = dice(4 * MIB) + 1;
        let policy = [ChunkPolicy::Rfc, ChunkPolicy::Halving][usize::try_from(dice(2)).unwrap()];
        let mut web = InstancePool::create(&main, 9, size, order, policy).unwrap();
        let mut live: Vec<AddrRange> = Vec::new();
        for _ in 0..dice(60) {
            if dice(3) == 0 && !live.is_empty() {
                let index = usize::try_from(dice(live.len() as u64)).unwrap();
                web.free(live.swap_remove(index)).unwrap();
            } else {
                live.extend(web.alloc(dice(40 * PAGE) + 1, 1 << dice(16)).ok());
            }
        }
        // All that others have is taken there first.
        let elsewhere = fresh(&main);
        for range in main.used_extents() {
            elsewhere
                .alloc_with(range.size(), Algo::At(range.start()))
                .unwrap();
        }
        elsewhere.free_all(&web.chunks()).unwrap();
        let mut same = restored(&elsewhere, &web);
        assert_same(&web, &same);
        assert_eq!(main.free_extents(), elsewhere.free_extents());
        for _ in 0..20 {
            let (size, align) = (dice(20 * PAGE) + 1, 1 << dice(16));
            assert_eq!(web.alloc(size, align), same.alloc(size, align));
        }
    }
}

#[test]
fn what_cannot_have_been_is_not_restored() {
    let main = main_pool(16 * MIB);
    let r = |start: u64, size: u64| AddrRange::with_size(BASE + start, size).unwrap();
    let used = main.alloc_with(PAGE, Algo::At(BASE + 8 * MIB)).unwrap();
    let before = main.free_extents();
    let restore = |chunks: &[AddrRange], order, rounded_from| {
        let error = InstancePool::restore(&main, 5, chunks, order, rounded_from).unwrap_err();
        assert_eq!(main.free_extents(), before, "{error}");
        error
    };
    let bad = |order| RestoreError::BadOrder {
        id: 5,
        order,
        min: 12,
    };
    assert_eq!(restore(&[r(0, PAGE)], 11, None), bad(11));
    assert_eq!(restore(&[r(0, PAGE)], 64, None), bad(64));
    assert_eq!(restore(&[], 12, None), RestoreError::NoChunks { id: 5 });
    for (chunk, order) in [(r(1, PAGE), 12), (r(0, 1), 12), (r(PAGE, 2 * PAGE), 13)] {
        assert!(matches!(
            restore(&[chunk, r(MIB, MIB)], order, None),
            RestoreError::Chunk {
                id: 5,
                source: PoolError::Unaligned { .. }
            }
        ));
    }
    assert!(matches!(
        restore(&[r(0, 2 * PAGE), r(PAGE, PAGE)], 12, None),
        RestoreError::Chunk {
            source: PoolError::Overlap { .. },
            ..
        }
    ));
    let below = AddrRange::with_size(PAGE, MIB).unwrap();
    let beyond = r(15 * MIB, 2 * MIB);
    for chunk in [used, r(7 * MIB, 2 * MIB), below, beyond] {
        let refused = restore(&[chunk, r(0, MIB)], 12, None);
        assert!(
            matches!(refused, RestoreError::Taken { chunk: of, .. } if of == chunk),
            "{refused}"
        );
    }
    for requested in [0, 1, MIB - PAGE, MIB, MIB + 1, u64::MAX] {
        let refused = restore(&[r(0, MIB)], 12, Some(requested));
        assert!(
            matches!(refused, RestoreError::BadRequest { requested: r, size: MIB, .. } if r == requested),
            "{refused}"
        );
    }
    InstancePool::restore(&main, 5, &[r(0, MIB)], 12, Some(MIB - PAGE + 1)).unwrap();
}

#[test]
fn a_main_pool_of_huge_pages_gives_no_part_of_one() {
    let main = MainPool::new(AddrRange::with_size(1 << 30, 64 * MIB).unwrap(), 21).unwrap();
    let part = AddrRange::with_size(1 << 30, MIB).unwrap();
    assert!(matches!(
        InstancePool::restore(&main, 1, &[part], 12, None),
        Err(RestoreError::Chunk {
            source: PoolError::Unaligned {
                granule: 0x20_0000,
                ..
            },
            ..
        })
    ));
    assert_eq!(main.avail(), 64 * MIB);
}
