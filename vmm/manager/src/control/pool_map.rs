//! The map of the pool: the owners of all bytes, without gaps.
//!
//! It is derived from the resource tree, which contains everything that is in
//! use; the rest is free. It is one walk over the tree in address order, so
//! that its cost for a thousand instances is proportional to the output.

use std::collections::HashMap;

use mkpool::AddrRange;
use mkpool::resource::{Resource, ResourceTree};
use mkvmm_api::pool::{Owner, Part, PoolMap, Segment, SegmentKind};

use crate::control::objects;
use crate::registry::Registry;

/// The name of a part of an instance that is not in the tree.
const GUEST_MEMORY: &str = "guest memory";

/// Returns the current map of the pool.
pub fn pool_map(registry: &Registry) -> PoolMap {
    let pool = registry.pool();
    let mut holders = HashMap::new();
    holders.extend(pool.allocations().map(|r| (r.start(), Holder::Allocation)));
    let channels = pool.channels();
    holders.extend(channels.map(|(name, r)| (r.start(), Holder::Channel(name.as_str()))));
    holders.extend(pool.held().map(|r| (r.start(), Holder::Held)));
    let mut owners: Vec<(u64, Owner)> = Vec::new();
    for guest in registry.guests() {
        let name = guest.name().as_str();
        // What is lost has no holder.
        let regions = guest.regions().iter().filter(|_| !guest.is_lost());
        holders.extend(regions.map(|r| (r.start(), Holder::Instance(name))));
        let owner = Owner {
            id: guest.id().0,
            name: name.to_owned(),
            state: guest.state(),
            memory: guest.sub_pool().size(),
            chunks: guest.regions().len() as u64,
        };
        owners.push((guest.regions().first().map_or(0, AddrRange::start), owner));
    }
    owners.sort_by_key(|(start, _)| *start);
    PoolMap {
        pool: objects::pool_of(registry),
        granule: 1 << pool.order(),
        segments: segments(pool.tree(), pool.range(), pool.channel_area(), &holders),
        owners: owners.into_iter().map(|(_, owner)| owner).collect(),
    }
}

/// The direct owner of a range of the pool.
#[derive(Debug, Clone, Copy)]
enum Holder<'a> {
    Instance(&'a str),
    Channel(&'a str),
    Allocation,
    Held,
}

/// Returns the pool in segments; `holders` maps the first byte of each to its
/// owner. The channel area is one segment for each channel in it, and for each gap.
fn segments(
    tree: &ResourceTree,
    pool: AddrRange,
    area: Option<AddrRange>,
    holders: &HashMap<u64, Holder<'_>>,
) -> Vec<Segment> {
    let top = tree.iter().filter(|(depth, _)| *depth == 1);
    let covered = cover(pool, top.map(|(_, resource)| resource));
    let covered = covered.into_iter().flat_map(|(range, taken)| match taken {
        Some(resource) if Some(range) == area => {
            cover(range, resource.children().filter_map(|id| tree.get(id)))
        }
        _ => vec![(range, taken)],
    });
    let segment = |(range, taken): (AddrRange, Option<&Resource>)| {
        let holder = holders.get(&range.start()).copied();
        let kind = match (taken, holder) {
            (None, _) if area.is_some_and(|area| area.contains_range(&range)) => {
                SegmentKind::ChannelArea
            }
            (None, _) => SegmentKind::Free,
            (Some(resource), Some(Holder::Instance(name))) => SegmentKind::Instance {
                instance: name.to_owned(),
                parts: parts(tree, resource, GUEST_MEMORY),
            },
            (Some(_), Some(Holder::Channel(name))) => SegmentKind::Channel {
                channel: name.to_owned(),
            },
            (Some(_), Some(Holder::Allocation)) => SegmentKind::Allocation,
            (Some(_), Some(Holder::Held)) => SegmentKind::Held,
            (Some(_), None) => SegmentKind::Lost,
        };
        Segment {
            range: range.into(),
            kind,
        }
    };
    covered.map(segment).collect()
}

/// Returns the innermost names in `resource`; the ranges that none of them
/// covers are called `rest`.
fn parts(tree: &ResourceTree, resource: &Resource, rest: &str) -> Vec<Part> {
    let children = resource.children().filter_map(|id| tree.get(id));
    let mut all = Vec::new();
    for (range, child) in cover(resource.range(), children) {
        match child {
            Some(child) => all.extend(parts(tree, child, child.name())),
            None => all.push(Part {
                name: rest.to_owned(),
                range: range.into(),
            }),
        }
    }
    all
}

/// Splits `whole` into `children`, which are in ascending order without
/// overlaps, and the gaps between them.
fn cover<'a>(
    whole: AddrRange,
    children: impl Iterator<Item = &'a Resource>,
) -> Vec<(AddrRange, Option<&'a Resource>)> {
    let mut pieces = Vec::new();
    let mut next = whole.start();
    // An empty gap is not a valid range, and not a piece.
    let gap = |from: u64, to: u64| Some((AddrRange::new(from, to).ok()?, None));
    for child in children {
        let range = child.range();
        pieces.extend(gap(next, range.start()));
        pieces.push((range, Some(child)));
        next = range.end();
    }
    pieces.extend(gap(next, whole.end()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use mkvmm_api::Range;

    fn range(start: u64, size: u64) -> AddrRange {
        AddrRange::with_size(start, size).unwrap()
    }

    /// Returns start and size of each range, and whether they are adjacent.
    fn joined<'a>(ranges: impl Iterator<Item = &'a Range>) -> (u64, u64) {
        let ranges: Vec<&Range> = ranges.collect();
        for two in ranges.windows(2) {
            assert_eq!(two[0].start + two[0].size, two[1].start);
        }
        (ranges[0].start, ranges.iter().map(|r| r.size).sum())
    }

    #[test]
    fn segments_and_parts_have_no_gaps() {
        let mut tree = ResourceTree::new();
        let pool = range(0x1000, 0x100_0000);
        let root = tree.insert(None, pool, "pool").unwrap();
        let web = tree
            .insert(Some(root), range(0x2000, 0x8000), "mk-instance-1-web")
            .unwrap();
        let control = tree
            .insert(Some(web), range(0x3000, 0x2000), "control block")
            .unwrap();
        tree.insert(Some(control), range(0x3000, 0x1000), "allocation")
            .unwrap();
        tree.insert(Some(web), range(0x5000, 0x1000), "kernel")
            .unwrap();
        for (start, name) in [(0xa000, "held"), (0xb000, "allocation"), (0xd000, "gone")] {
            tree.insert(Some(root), range(start, 0x1000), name).unwrap();
        }
        let holders = HashMap::from([
            (0x2000, Holder::Instance("web")),
            (0xb000, Holder::Allocation),
            (0xa000, Holder::Held),
        ]);
        let all = segments(&tree, pool, None, &holders);
        assert_eq!(joined(all.iter().map(|s| &s.range)), (0x1000, 0x100_0000));
        let kinds: Vec<&SegmentKind> = all.iter().map(|s| &s.kind).collect();
        let SegmentKind::Instance { instance, parts } = kinds[1] else {
            panic!("{kinds:?}");
        };
        assert_eq!(instance, "web");
        assert_eq!(joined(parts.iter().map(|p| &p.range)), (0x2000, 0x8000));
        let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                GUEST_MEMORY,
                "allocation",
                "control block",
                "kernel",
                GUEST_MEMORY
            ]
        );
        let [free, _, held, allocation, gap, lost, rest] = kinds[..] else {
            panic!("{kinds:?}");
        };
        assert_eq!([free, gap, rest], [&SegmentKind::Free; 3]);
        assert_eq!(
            [held, allocation, lost],
            [
                &SegmentKind::Held,
                &SegmentKind::Allocation,
                &SegmentKind::Lost
            ]
        );
    }

    #[test]
    fn the_channel_area_is_its_channels_and_the_gaps() {
        let mut tree = ResourceTree::new();
        let (pool, area) = (range(0x1000, 0x10_0000), range(0x4000, 0x4000));
        let root = tree.insert(None, pool, "pool").unwrap();
        let entry = tree.insert(Some(root), area, "mk-channel-area").unwrap();
        tree.insert(Some(entry), range(0x4000, 0x1000), "mk-channel-1-ab")
            .unwrap();
        let holders = HashMap::from([(0x4000, Holder::Channel("ab"))]);
        let all = segments(&tree, pool, Some(area), &holders);
        assert_eq!(joined(all.iter().map(|s| &s.range)), (0x1000, 0x10_0000));
        let kinds: Vec<&SegmentKind> = all.iter().map(|s| &s.kind).collect();
        let channel = SegmentKind::Channel {
            channel: "ab".to_owned(),
        };
        let (free, gap) = (SegmentKind::Free, SegmentKind::ChannelArea);
        assert_eq!(kinds, [&free, &channel, &gap, &free]);
    }
}
