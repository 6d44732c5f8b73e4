//! The audit: checks the ledger's consistency from live facts.
//!
//! The allocators, the resource tree, the KVM memory slots and the memory maps
//! are four accounts of the same memory. Nothing is taken from a snapshot: each
//! is queried now, and computed again from the others. `serve` runs it on
//! request; `run` runs it for itself, before and after its guests.

use mkpool::AddrRange;
use mkpool::range::merge_adjacent;

use mkvmm_base::layout::LOW_WINDOW_SIZE;
use mkvmm_memory::e820::{E820Entry, E820Type};
use mkvmm_memory::memory_file::MemoryFile;

use crate::channels::Channel;
use crate::guest::Guest;
use crate::registry::Registry;

/// The result of an audit.
#[derive(Debug, Default)]
pub struct Findings {
    /// The number of comparisons so far.
    pub checks: u64,
    /// The inconsistencies found, one per line.
    pub problems: Vec<String>,
}

impl Findings {
    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.problems.push(problem());
        }
    }
}

/// Compares all accounts with each other.
pub fn audit(registry: &Registry) -> Findings {
    let mut findings = Findings::default();
    check_pool(registry, &mut findings);
    for channel in registry.channels() {
        check_channel(registry, channel, &mut findings);
    }
    for guest in registry.guests() {
        check_instance(registry, guest, &mut findings);
        check_map(registry, guest, &mut findings);
    }
    findings
}

fn sum(ranges: &[AddrRange]) -> u64 {
    ranges.iter().map(AddrRange::size).sum()
}

/// Returns `ranges` in ascending order of their first address.
fn sorted(mut ranges: Vec<AddrRange>) -> Vec<AddrRange> {
    ranges.sort_by_key(AddrRange::start);
    ranges
}

/// Returns the first two ranges that overlap; `ranges` must be in ascending
/// order.
fn overlap(ranges: &[AddrRange]) -> Option<(AddrRange, AddrRange)> {
    let two = ranges.windows(2).find(|two| two[0].overlaps(&two[1]))?;
    Some((two[0], two[1]))
}

fn check_pool(registry: &Registry, findings: &mut Findings) {
    let pool = registry.pool();
    let (used, free) = (pool.used_extents(), pool.free_extents());
    let size = pool.range().size();
    findings.check(sum(&free) == pool.avail(), || {
        let free = sum(&free);
        format!(
            "the free extents have {free} bytes, but avail is {}",
            pool.avail()
        )
    });
    findings.check(sum(&used) + sum(&free) == size, || {
        format!(
            "{} used and {} free bytes are not {size}",
            sum(&used),
            sum(&free)
        )
    });
    let owned = registry.guests().flat_map(|g| g.regions().iter().copied());
    let owned = owned.chain(pool.held()).chain(pool.allocations());
    let owned: Vec<AddrRange> = owned.chain(pool.taken_for_channels()).collect();
    let owned = sorted(owned);
    findings.check(overlap(&owned).is_none(), || {
        format!("two owners: {:?}", overlap(&owned))
    });
    findings.check(
        merge_adjacent(owned.iter().copied()) == merge_adjacent(used.clone()),
        || format!("the owners have {owned:?}, but the allocator has allocated {used:?}"),
    );
    let entries = pool.tree().iter().filter(|(depth, _)| *depth == 1);
    let entries: Vec<AddrRange> = entries.map(|(_, resource)| resource.range()).collect();
    findings.check(entries == owned, || {
        format!("the tree lists {entries:?}, but the owners have {owned:?}")
    });
    if let Some(area) = pool.channel_area() {
        check_area(registry, area, findings);
    }
}

/// Checks that the channel area is its free space and the channels, which the tree has
/// beneath it.
fn check_area(registry: &Registry, area: AddrRange, findings: &mut Findings) {
    let pool = registry.pool();
    let channels = sorted(pool.channels().map(|(_, range)| range).collect());
    let free = pool.channel_area_free();
    let all = sorted(channels.iter().chain(&free).copied().collect());
    findings.check(
        overlap(&all).is_none() && merge_adjacent(all.clone()) == [area],
        || format!("the channel area {area:?} has {channels:?}, and {free:?} free"),
    );
    let tree = pool.tree();
    let entry = tree.path(area.start()).into_iter();
    let entry = entry.clone().find(|r| r.range() == area);
    let children = entry.into_iter().flat_map(|e| e.children());
    let named = children.filter_map(|id| Some(tree.get(id)?.range()));
    let named = sorted(named.collect());
    findings.check(named == channels, || {
        format!("the tree lists {named:?} in the channel area, which has {channels:?}")
    });
}

/// Checks a channel against the ledger, and that only runs of its members have it.
fn check_channel(registry: &Registry, channel: &Channel, findings: &mut Findings) {
    let (name, range) = (channel.name(), channel.range());
    let mut booked = registry.pool().channels();
    findings.check(
        booked.any(|(other, its)| other == name && its == range),
        || format!("channel {name}: the ledger does not have it at {range:?}"),
    );
    let files: Vec<AddrRange> = channel.files().map(MemoryFile::range).collect();
    // One that is being deleted has returned its files.
    findings.check(
        files.is_empty() || merge_adjacent(files.clone()) == [range],
        || format!("channel {name}: its files are {files:?}, not {range:?}"),
    );
    for member in channel.members() {
        let Some(run) = member.run else {
            continue;
        };
        let guest = registry.guest(run.id).filter(|guest| guest.run_id() == run);
        findings.check(
            guest.is_some_and(|guest| *guest.name() == member.name),
            || format!("channel {name}: {} has it, but does not run", member.name),
        );
    }
}

fn check_instance(registry: &Registry, guest: &Guest, findings: &mut Findings) {
    let (name, sub_pool) = (guest.name(), guest.sub_pool());
    let chunks = sub_pool.chunks();
    findings.check(sum(&chunks) == sub_pool.size(), || {
        format!("{name}: its chunks are not {} bytes", sub_pool.size())
    });
    findings.check(merge_adjacent(chunks.clone()) == guest.regions(), || {
        format!("{name}: its regions are not its chunks {chunks:?}")
    });
    let mut taken: Vec<AddrRange> = sub_pool.withheld().collect();
    if let Some(images) = guest.loaded() {
        taken.extend(images.plan.pieces().map(|(_, range)| range));
    }
    let taken = sorted(taken);
    findings.check(overlap(&taken).is_none(), || {
        format!("{name}: two pieces overlap: {:?}", overlap(&taken))
    });
    findings.check(sum(&taken) + sub_pool.avail() == sub_pool.size(), || {
        format!(
            "{name}: {} bytes in pieces and {} free are not {}",
            sum(&taken),
            sub_pool.avail(),
            sub_pool.size()
        )
    });
    let mut named = Vec::new();
    for region in guest.regions() {
        let tree = registry.pool().tree();
        let path = tree.path(region.start());
        let entry = path
            .into_iter()
            .find(|r| r.range() == *region && r.parent().is_some());
        findings.check(entry.is_some(), || {
            format!("{name}: the tree does not list {region:?}")
        });
        let children = entry.into_iter().flat_map(|e| e.children());
        named.extend(children.filter_map(|id| Some(registry.pool().tree().get(id)?.range())));
    }
    findings.check(sorted(named.clone()) == taken, || {
        format!("{name}: the tree lists {named:?}, but its pieces are {taken:?}")
    });
}

/// Checks the memory map against the ledger, and the slots against both.
fn check_map(registry: &Registry, guest: &Guest, findings: &mut Findings) {
    let (name, pool) = (guest.name(), registry.pool().range());
    let map = match guest.e820(registry.pool()) {
        Ok(map) => map,
        Err(error) => {
            findings.check(false, || format!("{name}: no memory map: {error}"));
            return;
        }
    };
    findings.check(covers(&map, pool), || {
        format!("{name}: its memory map omits part of the pool")
    });
    let mut reserved: Vec<AddrRange> = guest.sub_pool().withheld().collect();
    if let Some(images) = guest.loaded() {
        reserved.extend(images.plan.withheld());
    }
    let usable = map.iter().filter(|entry| entry.kind == E820Type::Usable);
    let usable = usable.filter(|entry| entry.range.start() >= LOW_WINDOW_SIZE);
    let usable: Vec<AddrRange> = usable.map(|entry| entry.range).collect();
    let expected = guest.sub_pool().size() - sum(&reserved);
    findings.check(sum(&usable) == expected, || {
        let usable = sum(&usable);
        format!("{name}: {usable} bytes are usable by its map, {expected} by the ledger")
    });
    let own = |range: &AddrRange| guest.regions().iter().any(|r| r.contains_range(range));
    findings.check(usable.iter().all(own), || {
        format!("{name}: its map makes memory usable that it does not own: {usable:?}")
    });
    let Some((given, slots)) = guest.machine_facts() else {
        return;
    };
    findings.check(given == map, || {
        format!("{name}: it was started with another memory map")
    });
    let expected = registry.due_slots(guest);
    // What its process is joining or leaving may be there or not.
    let moving = registry.moving_of(guest);
    let settled = slots.iter().filter(|slot| !moving.contains(slot));
    findings.check(settled.eq(&expected), || {
        format!("{name}: its memory slots are {slots:?}, not {expected:?}")
    });
}

/// Returns whether the rows of `map` cover all of `range` without a gap.
fn covers(map: &[E820Entry], range: AddrRange) -> bool {
    let rows = map.iter().filter_map(|row| row.range.intersection(&range));
    merge_adjacent(rows) == [range]
}
