//! Tests of written and restored ledgers: random histories, damaged states, and
//! contradictions one by one.

use mkpool::main_pool::PAGE_ORDER;
use mkvmm_base::InstanceName;
use mkvmm_base::image_facts::ImageFacts;

use super::*;
use crate::host_pool::alloc_log::{Op, Outcome};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const BASE: u64 = 0x1_0000_0000;

/// A splitmix64 generator of pseudo-random numbers.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.next() % len as u64).unwrap()
    }
}

/// A ledger and its sub-pools.
struct World {
    pool: HostPool,
    sub_pools: Vec<SubPool>,
}

fn range(start: u64, size: u64) -> AddrRange {
    AddrRange::with_size(start, size).unwrap()
}

fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

fn facts(kernel_size: u64, initramfs_size: Option<u64>) -> ImageFacts {
    ImageFacts {
        kernel_size,
        kernel_align: 2 * MIB,
        kernel_addr_min: 0,
        kernel_addr_max: None,
        initramfs_size,
        initramfs_addr_max: None,
    }
}

impl World {
    fn new(size: u64, order: u32) -> Self {
        Self {
            pool: HostPool::new(range(BASE, size), order).unwrap(),
            sub_pools: Vec::new(),
        }
    }

    /// Performs one random operation; returns what a client sees of it.
    fn step(&mut self, rng: &mut Rng) -> String {
        let what = rng.below(12);
        let (size, align) = (rng.below(40 * PAGE) + 1, 1 << rng.below(23));
        let with_initramfs = rng.below(2) == 0;
        let facts = facts(
            rng.below(4 * MIB) + 1,
            with_initramfs.then(|| rng.below(MIB) + 1),
        );
        let pick = rng.index(1 << 20);
        let is_live = rng.below(3) == 0;
        match what {
            0 | 1 => {
                let id = self.pool.next_id();
                let order = [12, 12, 13, 16][pick % 4];
                let of = name(&format!("guest-{id}"));
                let memory = rng.below(12 * MIB) + 1;
                let made = self.pool.carve_with_order(id, &of, memory, order);
                let said = format!("{id} {:?}", made.as_ref().map(SubPool::state));
                self.sub_pools.extend(made.ok());
                return said;
            }
            2 => return format!("{:?}", self.pool.alloc(size, align)),
            3 => {
                let at: Vec<AddrRange> = self.pool.allocations().collect();
                let at = at.get(pick % (at.len() + 1));
                return format!("{:?}", self.pool.free(at.map_or(BASE, AddrRange::start)));
            }
            4 => {
                let pages = (self.pool.range().size() / PAGE).max(1);
                let start = BASE + rng.below(pages) * PAGE;
                return format!("{:?}", self.pool.hold(range(start, size)));
            }
            _ if self.sub_pools.is_empty() => return String::new(),
            _ => (),
        }
        let index = pick % self.sub_pools.len();
        if what == 11 && pick.is_multiple_of(3) {
            let gone = self.sub_pools.remove(index);
            return format!("{:?}", self.pool.release(gone));
        }
        let of = &mut self.sub_pools[index];
        match what {
            // Allocations in the control block would go with it.
            5 | 6 if of.check_control_idle().is_ok() => match self.pool.place(of, &facts) {
                Ok(plan) => format!("{plan:?}"),
                Err(error) => {
                    self.pool.note_refusal(of, &error);
                    format!("{error:?}")
                }
            },
            7 if of.check_control_idle().is_ok() => format!("{:?}", self.pool.unplace(of)),
            8 => {
                let at: Vec<AddrRange> = of.allocations().collect();
                let at = at
                    .get(rng.index(at.len() + 1))
                    .map_or(BASE, |at| at.start());
                format!("{:?}", self.pool.free_in(of, at, is_live))
            }
            11 if pick % 3 == 1 => format!("{:?}", self.pool.lose(of)),
            _ => format!("{:?}", self.pool.alloc_in(of, size, align, is_live)),
        }
    }

    /// Returns what is written down of it.
    fn written(&self) -> Vec<u8> {
        let sub_pools: Vec<SubPoolState> = self.sub_pools.iter().map(SubPool::state).collect();
        postcard::to_stdvec(&(self.pool.state(), sub_pools)).unwrap()
    }

    fn read(bytes: &[u8]) -> Option<(PoolState, Vec<SubPoolState>)> {
        postcard::from_bytes(bytes).ok()
    }

    /// Restores all that was written; each sub-pool that is refused changes
    /// nothing.
    fn restored(written: &(PoolState, Vec<SubPoolState>)) -> Result<Self, HostPoolError> {
        let mut pool = HostPool::restore(&written.0)?;
        let mut sub_pools = Vec::new();
        for state in &written.1 {
            let seen = |of: &HostPool| (of.to_string(), of.free_extents(), of.state());
            let before = (seen(&pool), pool.owners.clone());
            match pool.restore_sub_pool(state) {
                Ok(of) => sub_pools.push(of),
                Err(error) => {
                    let after = (seen(&pool), pool.owners.clone());
                    assert_eq!(before, after, "{error:?}");
                    return Err(error);
                }
            }
        }
        Ok(Self { pool, sub_pools })
    }

    /// Checks that what the ledger says of itself adds up.
    fn audit(&self) {
        let used: u64 = self.pool.used_extents().iter().map(AddrRange::size).sum();
        let held: u64 = self.pool.held().map(|range| range.size()).sum();
        let allocated: u64 = self.pool.allocations().map(|range| range.size()).sum();
        let carved: u64 = self.sub_pools.iter().map(SubPool::size).sum();
        assert_eq!(used, held + allocated + carved);
        for of in &self.sub_pools {
            let pieces: u64 = of.pieces.iter().map(|(range, _)| range.size()).sum();
            let withheld: u64 = of.withheld().map(|range| range.size()).sum();
            assert_eq!(of.size() - of.avail(), pieces + withheld);
            let inside = of.allocations.values().filter(|a| a.in_control);
            let inside: u64 = inside.map(|a| a.range.size()).sum();
            let taken = of.control.as_ref().map_or(0, |of| of.size() - of.avail());
            assert_eq!(taken, inside);
            for (i, region) in of.regions().iter().enumerate() {
                let lost = if of.is_lost { " (lost)" } else { "" };
                let entry = format!("mk-instance-{}-{}-region-{i}{lost}", of.pool.id(), of.name);
                assert_eq!(self.pool.owner(region.start()), Some(entry));
            }
        }
    }
}

/// Checks that nobody can tell the two apart.
fn assert_same(one: &World, other: &World) {
    assert_eq!(one.pool.to_string(), other.pool.to_string());
    assert_eq!(one.pool.free_extents(), other.pool.free_extents());
    assert_eq!(one.pool.largest_free(), other.pool.largest_free());
    assert_eq!(one.pool.state(), other.pool.state());
    assert_eq!(one.pool.log().counts(), other.pool.log().counts());
    assert_eq!(one.pool.owners, other.pool.owners);
    assert_eq!(one.sub_pools.len(), other.sub_pools.len());
    for (one, other) in one.sub_pools.iter().zip(&other.sub_pools) {
        assert_eq!(one.state(), other.state());
        assert_eq!(one.regions(), other.regions());
        assert_eq!(one.free_extents(), other.free_extents());
        let in_control = |of: &SubPool| {
            let control = of.control.as_ref();
            control.map(|of| of.free_extents().collect::<Vec<_>>())
        };
        assert_eq!(in_control(one), in_control(other));
    }
}

#[test]
fn any_history_goes_on_as_if_nothing_had_happened() {
    let (mut lost, mut placed, mut in_control, mut split) = (0, 0, 0, 0);
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let order = if seed % 8 == 7 { 16 } else { PAGE_ORDER };
        let mut before = World::new(64 * MIB, order);
        for _ in 0..rng.below(80) {
            before.step(&mut rng);
        }
        before.audit();
        let written = World::read(&before.written()).unwrap();
        let mut after = World::restored(&written).unwrap();
        assert_same(&before, &after);
        after.audit();
        for of in &written.1 {
            lost += usize::from(of.is_lost);
            placed += usize::from(of.plan.is_some());
            in_control += of.allocations.iter().filter(|a| a.in_control).count();
            split += usize::from(of.chunks.len() > 1);
        }
        let seed = rng.next();
        let (mut one, mut other) = (Rng(seed), Rng(seed));
        for _ in 0..20 {
            assert_eq!(before.step(&mut one), after.step(&mut other));
        }
        assert_same(&before, &after);
        after.audit();
        for of in after.sub_pools.drain(..) {
            after.pool.release(of).unwrap();
        }
        assert_eq!(after.pool.owners.len(), 0);
    }
    // These histories had everything that is to be restored.
    let seen = (lost, placed, in_control, split);
    assert!(lost > 50 && placed > 50 && in_control > 50, "{seen:?}");
    assert!(split > 50, "{seen:?}");
}

#[test]
fn damaged_states_are_refused_or_valid() {
    let (mut refused, mut valid, mut unread) = (0, 0, 0);
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let mut world = World::new(64 * MIB, PAGE_ORDER);
        for _ in 0..rng.below(40) {
            world.step(&mut rng);
        }
        let whole = world.written();
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=rng.below(2) {
                let at = rng.index(bytes.len());
                bytes[at] = [rng.next().to_le_bytes()[0], bytes[at] ^ 1, 0, 0xff][rng.index(4)];
            }
            if rng.below(16) == 0 {
                bytes.truncate(rng.index(bytes.len()));
            }
            let Some(state) = World::read(&bytes) else {
                unread += 1;
                continue;
            };
            match World::restored(&state) {
                Ok(mut restored) => {
                    valid += 1;
                    restored.audit();
                    for _ in 0..5 {
                        restored.step(&mut rng);
                    }
                    restored.audit();
                }
                Err(_) => refused += 1,
            }
        }
    }
    let seen = (refused, valid, unread);
    assert!(refused > 100 && valid > 100 && unread > 100, "{seen:?}");
}

/// Returns a ledger with one of everything.
fn sample() -> World {
    let mut world = World::new(64 * MIB, PAGE_ORDER);
    let pool = &mut world.pool;
    pool.hold(range(BASE + 4 * MIB, PAGE)).unwrap();
    pool.alloc(PAGE, 0).unwrap();
    for of in ["web", "db"] {
        let id = pool.next_id();
        let mut sub_pool = pool.carve(id, &name(of), 16 * MIB).unwrap();
        pool.place(&mut sub_pool, &facts(2 * MIB, Some(MIB)))
            .unwrap();
        pool.alloc_in(&mut sub_pool, PAGE, 0, false).unwrap();
        pool.alloc_in(&mut sub_pool, PAGE, 0, true).unwrap();
        world.sub_pools.push(sub_pool);
    }
    world
}

/// Restores the sample after a change; returns the error and those that caused
/// it.
fn refusal(change: impl FnOnce(&mut PoolState, &mut Vec<SubPoolState>)) -> String {
    let mut written = World::read(&sample().written()).unwrap();
    change(&mut written.0, &mut written.1);
    match World::restored(&written) {
        Ok(world) => panic!("restored:\n{}", world.pool),
        Err(error) => mkvmm_base::chain(&error),
    }
}

#[track_caller]
fn assert_refused(words: &str, change: impl FnOnce(&mut PoolState, &mut Vec<SubPoolState>)) {
    let said = refusal(change);
    assert!(said.contains(words), "{said}");
}

#[test]
fn a_pool_that_contradicts_itself_is_refused() {
    assert_refused("ID 0", |pool, _| pool.next_id = 0);
    assert_refused("ID 4294967295", |pool, _| pool.next_id = u32::MAX);
    assert_refused("set up", |pool, _| pool.order = 64);
    assert_refused("set up", |pool, _| pool.order = 63);
    assert_refused("set up", |pool, _| pool.range = range(BASE + 1, 64 * MIB));
    assert_refused("held cannot be at", |pool, _| pool.held.push(pool.held[0]));
    assert_refused("held cannot be at", |pool, _| {
        pool.held.push(range(PAGE, PAGE));
    });
    assert_refused("whole granules", |pool, _| {
        pool.held[0] = range(pool.held[0].start(), 1);
    });
    assert_refused("allocation cannot be at", |pool, _| {
        pool.allocations.push(pool.held[0]);
    });
    let sum = "do not add up";
    assert_refused(sum, |pool, _| pool.log.last_seq += 1);
    assert_refused(sum, |pool, _| pool.log.counts[0].count -= 1);
    assert_refused(sum, |pool, _| pool.log.counts.clear());
    assert_refused(sum, |pool, _| {
        let one = pool.log.counts[0];
        pool.log.last_seq += one.count;
        pool.log.counts.push(one);
    });
    let none = OpCount {
        op: Op::Free,
        is_main: true,
        outcome: Outcome::Invalid,
        count: 0,
    };
    assert_refused(sum, |pool, _| pool.log.counts.push(none));
    assert_refused(sum, |pool, _| {
        pool.log.last_seq = u64::MAX;
        let count = u64::MAX;
        pool.log.counts = vec![OpCount { count, ..none }];
    });
}

#[test]
fn sub_pools_that_contradict_themselves_or_others_are_refused() {
    let plan = |of: &SubPoolState| *of.plan.as_ref().unwrap();
    assert_refused("has the ID 3", |_, of| of[1].id = 3);
    assert_refused("has the ID 0", |_, of| of[0].id = 0);
    assert_refused("exists already", |_, of| of[1].id = of[0].id);
    assert_refused("exists already", |_, of| of[1].name = of[0].name.clone());
    assert_refused("order 11", |_, of| of[0].order = 11);
    assert_refused("no chunks", |_, of| of[0].chunks.clear());
    assert_refused("main pool cannot provide", |_, of| {
        of[1].chunks = of[0].chunks.clone();
    });
    assert_refused("main pool cannot provide", |_, of| {
        of[0].chunks.push(range(BASE + (1 << 40), PAGE));
    });
    assert_refused("not rounded up", |_, of| of[0].rounded_from = Some(5));
    assert_refused("does not have", |_, of| {
        let plan = of[0].plan.as_mut().unwrap();
        plan.low_window = range(plan.low_window.start(), PAGE);
    });
    assert_refused("does not have", |_, of| {
        let plan = of[0].plan.as_mut().unwrap();
        plan.control_block = range(plan.control_block.start(), 2 * MIB);
    });
    assert_refused("kernel cannot be at", |_, of| {
        let plan = of[0].plan.as_mut().unwrap();
        plan.kernel = plan.low_window;
    });
    assert_refused("initramfs cannot be at", |_, of| {
        let other = plan(&of[1]);
        of[0].plan.as_mut().unwrap().initramfs = other.initramfs;
    });
    assert_refused("there is none", |_, of| of[0].plan = None);
    assert_refused("allocation cannot be at", |_, of| {
        for allocation in &mut of[0].allocations {
            allocation.in_control = true;
        }
    });
    assert_refused("allocation cannot be at", |_, of| {
        for allocation in &mut of[0].allocations {
            allocation.in_control = false;
        }
    });
    assert_refused("allocation cannot be at", |_, of| {
        let twice = of[0].allocations[0];
        of[0].allocations.push(twice);
    });
    assert_refused("pieces (limit: 128)", |_, of| {
        let single = (0..129).map(|i| range(BASE + 48 * MIB + 2 * i * PAGE, PAGE));
        of[0].chunks = single.collect();
        (of[0].plan, of[0].allocations) = (None, Vec::new());
    });
}

#[test]
fn a_claimed_length_allocates_nothing() {
    let empty = postcard::to_stdvec(&HostPool::new(range(BASE, MIB), 12).unwrap().state());
    let empty = empty.unwrap();
    // Two empty lists of ranges, no record, and an empty list of counters.
    let (head, tail) = empty.split_at(empty.len() - 4);
    assert_eq!(tail, [0; 4]);
    let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let bytes = [head, &longest].concat();
    postcard::from_bytes::<PoolState>(&bytes).unwrap_err();
}

#[test]
fn what_is_lost_can_be_released_after_a_restart() {
    let mut world = sample();
    world.pool.lose(&mut world.sub_pools[0]).unwrap();
    // It is said once, however often it is tried.
    world.pool.lose(&mut world.sub_pools[0]).unwrap();
    let mut again = World::restored(&World::read(&world.written()).unwrap()).unwrap();
    assert_same(&world, &again);
    assert!(again.pool.to_string().contains("web-region-0 (lost)\n"));
    again.pool.release(again.sub_pools.remove(0)).unwrap();
    assert!(!again.pool.to_string().contains("web"));
}

#[test]
fn what_was_released_can_be_carved_again_where_it_was() {
    let mut world = World::new(64 * MIB, PAGE_ORDER);
    let mut carve = |text: &str| {
        let id = world.pool.next_id();
        world.pool.carve(id, &name(text), 8 * MIB).unwrap()
    };
    let (mut a, b) = (carve("a"), carve("b"));
    let (plan, next) = a.plan(&facts(MIB, None)).unwrap();
    world.pool.book(&mut a, &plan, next).unwrap();
    world.pool.alloc_in(&mut a, PAGE, 0, false).unwrap();
    let (before, state) = (world.pool.to_string(), a.state());
    world.pool.release(a).unwrap();
    world.pool.release(b).unwrap();
    let a = world.pool.carve_again(&state).unwrap();
    assert_eq!(a.state(), state);
    let id = world.pool.next_id();
    let b = world.pool.carve(id, &name("b"), 8 * MIB).unwrap();
    let renumbered = before.replace("instance-2-b", "instance-3-b");
    assert_eq!(world.pool.to_string(), renumbered);
    // Not where somebody else is, and not twice.
    let text = world.pool.to_string();
    world.pool.carve_again(&state).unwrap_err();
    world.pool.release(a).unwrap();
    let taken = world.pool.alloc(MIB, 0).unwrap();
    world.pool.carve_again(&state).unwrap_err();
    world.pool.free(taken.start()).unwrap();
    world.pool.carve_again(&state).unwrap();
    assert_eq!(world.pool.to_string(), text);
    drop(b);
}
