//! Code that both pictures of a pool share: colours of owners, and a grid of
//! round addresses.

use std::collections::HashMap;

use mkvmm_api::pool::{Owner, PoolMap, Segment, SegmentKind};

/// Colours of instances, as numbers of the terminal's 256 and as RGB.
/// Neighbours can be told apart, on black and on white.
pub const PALETTE: [(u8, u32); 12] = [
    (33, 0x0087ff),
    (208, 0xff8700),
    (35, 0x00af5f),
    (161, 0xd7005f),
    (98, 0x875fd7),
    (178, 0xd7af00),
    (37, 0x00afaf),
    (205, 0xff5faf),
    (106, 0x87af00),
    (67, 0x5f87af),
    (130, 0xaf5f00),
    (141, 0xaf87ff),
];

const KEYS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// The number of free extents that a legend lists.
const EXTENTS_LISTED: usize = 4;

/// The owner of the bytes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    Free,
    /// The instance with this index among the owners.
    Instance(usize),
    Channel,
    /// Free, and for channels only.
    ChannelArea,
    Allocation,
    Held,
    Lost,
}

/// The purpose of bytes of an instance, as far as pictures distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Everything not listed below: the guest's RAM.
    Memory,
    /// The kernel and the initramfs.
    Image,
    /// The low window, the control block, and allocations.
    Vmm,
}

impl Use {
    pub fn of(part: &str) -> Self {
        match part {
            "kernel" | "initramfs" => Self::Image,
            "low window" | "control block" | "allocation" => Self::Vmm,
            _ => Self::Memory,
        }
    }
}

/// A range that is drawn in one style.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub start: u64,
    pub size: u64,
    pub who: Who,
    pub what: Use,
}

impl Piece {
    /// Returns what an instance uses the range for, if it belongs to one.
    pub fn of_instance(&self) -> Option<Use> {
        matches!(self.who, Who::Instance(_)).then_some(self.what)
    }
}

/// Returns the parts of all segments, in ascending order.
pub fn pieces(map: &PoolMap) -> Vec<Piece> {
    let index = index(map);
    let mut pieces = Vec::new();
    for segment in &map.segments {
        let who = who(segment, &index);
        match &segment.kind {
            SegmentKind::Instance { parts, .. } => pieces.extend(parts.iter().map(|part| Piece {
                start: part.range.start,
                size: part.range.size,
                who,
                what: Use::of(&part.name),
            })),
            _ => pieces.push(Piece {
                start: segment.range.start,
                size: segment.range.size,
                who,
                what: Use::Memory,
            }),
        }
    }
    pieces
}

/// Returns the index of each owner by name.
pub fn index(map: &PoolMap) -> HashMap<&str, usize> {
    let owners = map.owners.iter().enumerate();
    owners.map(|(i, owner)| (owner.name.as_str(), i)).collect()
}

/// Returns the owner of `segment`.
pub fn who(segment: &Segment, index: &HashMap<&str, usize>) -> Who {
    match &segment.kind {
        SegmentKind::Free => Who::Free,
        SegmentKind::Instance { instance, .. } => match index.get(instance.as_str()) {
            Some(&i) => Who::Instance(i),
            // An owner that is missing from the legend cannot be named.
            None => Who::Lost,
        },
        SegmentKind::Channel { .. } => Who::Channel,
        SegmentKind::ChannelArea => Who::ChannelArea,
        SegmentKind::Allocation => Who::Allocation,
        SegmentKind::Held => Who::Held,
        SegmentKind::Lost => Who::Lost,
    }
}

/// Returns an index into [`PALETTE`] for each owner, in turn, skipping the
/// colours of its neighbours.
pub fn colours(map: &PoolMap) -> Vec<usize> {
    let index = index(map);
    let instances = map.segments.iter().filter_map(|s| match who(s, &index) {
        Who::Instance(i) => Some(i),
        _ => None,
    });
    let row: Vec<usize> = instances.collect();
    let mut beside = vec![Vec::new(); map.owners.len()];
    for two in row.windows(2) {
        beside[two[0]].push(two[1]);
        beside[two[1]].push(two[0]);
    }
    let mut colours: Vec<Option<usize>> = vec![None; map.owners.len()];
    for i in 0..colours.len() {
        let mut free = [true; PALETTE.len()];
        for colour in beside[i].iter().filter_map(|&other| colours[other]) {
            free[colour] = false;
        }
        let mut in_turn = (i..i + PALETTE.len()).map(|turn| turn % PALETTE.len());
        // An instance whose neighbours use all colours takes the next in turn.
        let colour = in_turn.find(|&colour| free[colour]);
        colours[i] = Some(colour.unwrap_or(i % PALETTE.len()));
    }
    colours.into_iter().flatten().collect()
}

/// Returns the letter that stands for an instance.
pub fn key(instance: usize) -> char {
    char::from(KEYS[instance % KEYS.len()])
}

/// Returns `name` without characters that would break a picture; mkvmm's own
/// names have none.
pub fn plain(name: &str) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(plain).collect()
}

/// A grid whose rows are a power of two of bytes, at multiples of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// The start of the first row, at or below the pool's first byte.
    pub start: u64,
    pub row: u64,
    pub rows: u64,
}

impl Grid {
    /// Creates a grid of at least `rows` rows and fewer than twice as many,
    /// with at least `least` bytes (a power of two) in each.
    pub fn new(map: &PoolMap, rows: u64, least: u64) -> Self {
        let (first, last) = (map.pool.range.start, map.pool.range.last());
        let wanted = (map.pool.range.size / rows.max(1)).max(1);
        let row = (1_u64 << wanted.ilog2()).max(least);
        let start = first / row * row;
        Self {
            start,
            row,
            rows: (last - start) / row + 1,
        }
    }
}

/// Returns the number of rows for `segments` with `per_row` of them in each.
pub fn rows_for(segments: usize, per_row: usize, most: u64) -> u64 {
    let wanted = segments.div_ceil(per_row.max(1)).next_power_of_two() as u64;
    wanted.clamp(4, most)
}

/// Returns a count with its noun: `1 instance`, `2 instances`.
pub fn count(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

/// The legend's entries about instances: the largest ones, and a line about the
/// rest.
pub struct Legend<'a> {
    /// The listed owners with their indices.
    pub listed: Vec<(usize, &'a Owner)>,
    pub rest: Option<String>,
}

impl<'a> Legend<'a> {
    /// Lists at most `most` instances.
    pub fn new(map: &'a PoolMap, most: usize, size: impl Fn(u64) -> String) -> Self {
        let mut listed: Vec<(usize, &Owner)> = map.owners.iter().enumerate().collect();
        if listed.len() <= most {
            return Self { listed, rest: None };
        }
        // The sort is stable: of equal owners the lower ones come first.
        listed.sort_by_key(|(_, owner)| std::cmp::Reverse(owner.memory));
        let rest = listed.split_off(most);
        let bytes = rest.iter().map(|(_, owner)| owner.memory).sum();
        Self {
            listed,
            rest: Some(format!("and {} more, in all {}", rest.len(), size(bytes))),
        }
    }
}

/// Returns `free: 3 extents, 200M: 128M at 0x…, 64M at 0x…`, the longest first.
pub fn free_line(map: &PoolMap, size: impl Fn(u64) -> String) -> String {
    let free = map.segments.iter().filter(|s| s.kind == SegmentKind::Free);
    let mut free: Vec<&Segment> = free.collect();
    free.sort_by_key(|segment| std::cmp::Reverse(segment.range.size));
    let listed = free.iter().take(EXTENTS_LISTED);
    let listed = listed.map(|s| format!("{} at {:#x}", size(s.range.size), s.range.start));
    let mut parts: Vec<String> = listed.collect();
    let rest: u64 = free.iter().skip(EXTENTS_LISTED).map(|s| s.range.size).sum();
    match free.len() {
        0 => return "free: nothing".to_owned(),
        1 => return format!("free: {}", parts.concat()),
        n if n > EXTENTS_LISTED => parts.push(format!(
            "{} more, in all {}",
            n - EXTENTS_LISTED,
            size(rest)
        )),
        _ => {}
    }
    let avail = size(map.pool.avail);
    format!(
        "free: {avail} in {} extents: {}",
        free.len(),
        parts.join(", ")
    )
}
