//! Parses what `run --show` prints before the guests start: the resource tree,
//! formatted like `/proc/iomem`, and every guest's map as Linux prints it.

use std::collections::BTreeMap;

/// A line of the tree; addresses are inclusive, as printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeLine {
    /// The depth: 0 for the pool, 1 for regions of instances, 2 for their
    /// pieces.
    pub depth: usize,
    /// The first byte of the range.
    pub start: u64,
    /// The last byte of the range.
    pub last: u64,
    /// The name of the resource.
    pub name: String,
}

impl TreeLine {
    /// Parses a line of `/proc/iomem` or of the tree; `None` for any other.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line.trim_start_matches(' ');
        let (range, name) = text.split_once(" : ")?;
        let (start, last) = range.split_once('-')?;
        Some(Self {
            depth: (line.len() - text.len()) / 2,
            start: u64::from_str_radix(start, 16).ok()?,
            last: u64::from_str_radix(last, 16).ok()?,
            name: name.to_owned(),
        })
    }
}

/// The parsed report of `--show`.
#[derive(Debug)]
pub struct Report {
    /// The lines of the tree, from the top down.
    pub tree: Vec<TreeLine>,
    e820: BTreeMap<String, Vec<String>>,
}

impl Report {
    /// Finds the report on stderr, among the VMM's messages.
    ///
    /// # Errors
    /// Returns an error if there is no tree or no map.
    pub fn parse(stderr: &str) -> Result<Self, String> {
        let tree: Vec<TreeLine> = stderr.lines().filter_map(TreeLine::parse).collect();
        let mut e820: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in stderr.lines() {
            if let Some((name, entry)) = line.split_once(": ")
                && entry.starts_with("BIOS-e820: ")
            {
                e820.entry(name.to_owned())
                    .or_default()
                    .push(entry.to_owned());
            }
        }
        if tree.is_empty() || e820.is_empty() {
            return Err("stderr has no resource tree or no e820".to_owned());
        }
        Ok(Self { tree, e820 })
    }

    /// Returns the map of one guest, as lines `BIOS-e820: …`.
    pub fn e820(&self, name: &str) -> &[String] {
        self.e820.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the first and the last byte of the pool.
    pub fn pool(&self) -> (u64, u64) {
        let pool = self.tree.first().expect("a report has a tree");
        (pool.start, pool.last)
    }

    /// Returns the regions of one guest, inclusive, in ascending order.
    pub fn regions(&self, name: &str) -> Vec<(u64, u64)> {
        let own = |line: &&TreeLine| {
            let words = line.name.strip_prefix("mk-instance-");
            // The format is ID-NAME-region-N; the name itself may contain
            // dashes.
            let named = words.and_then(|w| Some(w.split_once('-')?.1.rsplit_once("-region-")?.0));
            line.depth == 1 && named == Some(name)
        };
        let regions = self.tree.iter().filter(own);
        regions.map(|line| (line.start, line.last)).collect()
    }

    /// Returns the pieces of guest `name` that are called `piece`, in its
    /// regions.
    pub fn pieces(&self, name: &str, piece: &str) -> Vec<&TreeLine> {
        let regions = self.regions(name);
        let inside = |l: &TreeLine| regions.iter().any(|r| r.0 <= l.start && l.last <= r.1);
        let lines = self.tree.iter().filter(|l| l.depth == 2 && l.name == piece);
        lines.filter(|line| inside(line)).collect()
    }

    /// Checks the map of guest `name` against the tree: sorted, disjoint and
    /// merged; above 1 MiB usable memory is the guest's regions without low
    /// window and control block, and the rest of the pool is reserved.
    ///
    /// # Errors
    /// Returns a description of the first inconsistency.
    pub fn check_map(&self, name: &str) -> Result<(), String> {
        let entries: Vec<_> = self.e820(name).iter().map(|l| e820_entry(l)).collect();
        for pair in entries.windows(2) {
            let ((_, last, kind), (start, _, next)) = (pair[0], pair[1]);
            if start <= last || (start == last + 1 && kind == next) {
                return Err(format!("entries {pair:x?} overlap or are not merged"));
            }
        }
        let (pool_start, pool_last) = self.pool();
        let mut published = 0;
        let mut usable = 0;
        for &(start, last, kind) in entries.iter().filter(|e| e.1 >= pool_start) {
            // An entry merged with the pool's first one begins before the pool.
            let size = last + 1 - start.max(pool_start);
            published += size;
            let own = self.regions(name);
            let is_own = own.iter().any(|&(a, z)| a <= start && last <= z);
            match kind {
                "usable" if is_own => usable += size,
                "reserved" if last <= pool_last => {}
                _ => return Err(format!("{start:#x}-{last:#x} {kind} is not in its regions")),
            }
        }
        let sizes = self.regions(name).into_iter().map(|(a, z)| z + 1 - a);
        let own: u64 = sizes.sum();
        if published != pool_last + 1 - pool_start {
            return Err(format!("only {published:#x} bytes of the pool are in it"));
        }
        if usable + (2 << 20) != own {
            return Err(format!("{usable:#x} bytes of {own:#x} are usable"));
        }
        Ok(())
    }
}

/// Parses a line `BIOS-e820: [mem 0x…-0x…] TYPE` into `(first byte, last byte,
/// type)`.
///
/// # Panics
/// Panics for any other line.
pub fn e820_entry(line: &str) -> (u64, u64, &str) {
    let parse = || {
        let (range, kind) = line.strip_prefix("BIOS-e820: [mem 0x")?.split_once("] ")?;
        let (start, last) = range.split_once("-0x")?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(last)?, kind))
    };
    parse().unwrap_or_else(|| panic!("not a line of an e820: {line:?}"))
}
