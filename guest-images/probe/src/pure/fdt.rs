//! Reads a flattened device tree: properties of the root and of its children.
//!
//! Format: Devicetree Specification 0.4, chapter 5. All numbers are big-endian.

use super::range::Range;

const MAGIC: u32 = 0xd00d_feed;
/// The format version that is supported: 17 and everything compatible with 16.
const COMPATIBLE: u32 = 16;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// A tree whose structure has been walked once and found valid.
#[derive(Clone, Copy, Debug)]
pub struct Fdt<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
}

/// An item of the structure block.
enum Item<'a> {
    Begin(&'a str),
    End,
    Property { name: &'a str, value: &'a [u8] },
}

impl<'a> Fdt<'a> {
    /// Parses the tree in `bytes`; bytes after it are ignored.
    ///
    /// # Errors
    /// Returns a description of the problem.
    pub fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let field = |n: usize| u32_at(bytes, 4 * n).ok_or("is shorter than its header");
        if field(0)? != MAGIC {
            return Err("has no magic number");
        }
        let total = part(bytes, 0, field(1)?).ok_or("is shorter than it says")?;
        if field(6)? > COMPATIBLE {
            return Err("is of a newer format");
        }
        let structure = part(total, field(2)?, field(9)?);
        let strings = part(total, field(3)?, field(8)?);
        let this = Self {
            structure: structure.ok_or("has its structure outside")?,
            strings: strings.ok_or("has its strings outside")?,
        };
        let mut depth = 0;
        let mut walk = this.walk();
        while let Some(item) = walk.next().ok_or("is cut or corrupt")? {
            match item {
                Item::Begin(_) => depth += 1,
                Item::End => depth -= 1,
                Item::Property { .. } => {}
            }
            if depth < 0 {
                return Err("ends a node that it did not begin");
            }
        }
        if depth > 0 {
            return Err("does not end its nodes");
        }
        Ok(this)
    }

    /// Returns the value of property `name` of the root's child `node`, or of
    /// the root itself if `node` is empty. The first one counts.
    #[must_use]
    pub fn property(&self, node: &str, name: &str) -> Option<&'a [u8]> {
        let wanted = if node.is_empty() { 1 } else { 2 };
        let (mut depth, mut inside) = (0, false);
        let mut walk = self.walk();
        while let Some(Some(item)) = walk.next() {
            match item {
                Item::Begin(begins) => {
                    depth += 1;
                    if depth == wanted {
                        inside = begins == node;
                    }
                }
                Item::End => depth -= 1,
                Item::Property { name: is, value } => {
                    if depth == wanted && inside && is == name {
                        return Some(value);
                    }
                }
            }
        }
        None
    }

    /// Returns a property of 4 bytes.
    #[must_use]
    pub fn u32(&self, node: &str, name: &str) -> Option<u32> {
        let value = self.property(node, name)?.try_into().ok()?;
        Some(u32::from_be_bytes(value))
    }

    /// Returns a property of 8 bytes.
    #[must_use]
    pub fn u64(&self, node: &str, name: &str) -> Option<u64> {
        let value = self.property(node, name)?.try_into().ok()?;
        Some(u64::from_be_bytes(value))
    }

    /// Returns a property that is text with its NUL.
    #[must_use]
    pub fn text(&self, node: &str, name: &str) -> Option<&'a str> {
        let (&nul, text) = self.property(node, name)?.split_last()?;
        (nul == 0).then_some(core::str::from_utf8(text).ok()?)
    }

    /// Returns the ranges in `reg` of a node, by start and size of 8 bytes
    /// each; `None` for one that is empty or wraps.
    pub fn reg(&self, node: &str) -> Option<impl Iterator<Item = Option<Range>> + use<'a>> {
        let (pairs, rest) = self.property(node, "reg")?.as_chunks::<16>();
        let range = |pair: &[u8; 16]| {
            let word = |half: &[u8]| half.iter().fold(0, |w, &b| w << 8 | u64::from(b));
            let (start, size) = pair.split_at(8);
            Range::sized(word(start), word(size))
        };
        rest.is_empty().then(|| pairs.iter().map(range))
    }

    fn walk(&self) -> Walk<'a> {
        Walk { fdt: *self, at: 0 }
    }
}

struct Walk<'a> {
    fdt: Fdt<'a>,
    at: usize,
}

impl<'a> Walk<'a> {
    /// Returns the next item; `Some(None)` at the end, `None` if it is invalid.
    /// Every call advances by at least 4 bytes, so a walk is bounded.
    fn next(&mut self) -> Option<Option<Item<'a>>> {
        let structure = self.fdt.structure;
        loop {
            let token = u32_at(structure, self.at)?;
            self.at += 4;
            let item = match token {
                NOP => continue,
                END => return Some(None),
                BEGIN_NODE => {
                    let name = text_at(structure, self.at)?;
                    self.skip(name.len() + 1);
                    Item::Begin(name)
                }
                END_NODE => Item::End,
                PROPERTY => {
                    let len = u32_at(structure, self.at)?;
                    let name = u32_at(structure, self.at + 4)?;
                    let start = u32::try_from(self.at + 8).ok()?;
                    let value = part(structure, start, len)?;
                    self.skip(8 + value.len());
                    let name = text_at(self.fdt.strings, usize::try_from(name).ok()?)?;
                    Item::Property { name, value }
                }
                _ => return None,
            };
            return Some(Some(item));
        }
    }

    /// Advances by `len` bytes, to the next multiple of 4.
    fn skip(&mut self, len: usize) {
        self.at = (self.at + len).next_multiple_of(4);
    }
}

fn part(bytes: &[u8], start: u32, len: u32) -> Option<&[u8]> {
    let start = usize::try_from(start).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*word))
}

/// Returns the text up to its NUL.
fn text_at(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let len = rest.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(rest.get(..len)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_fdt::FdtWriter;

    /// Returns a tree with all kinds of values, as `vm-fdt` writes it.
    fn written() -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        fdt.property_string("compatible", "mkvmm,test").unwrap();
        fdt.property_u32("version", 7).unwrap();
        let pool = fdt.begin_node("pool").unwrap();
        let reg = [0x1_0000_0000, 0x4000_0000, 0x2_0000_0000, 0x1000];
        fdt.property_array_u64("reg", &reg).unwrap();
        let deeper = fdt.begin_node("instance").unwrap();
        fdt.property_string("name", "deeper").unwrap();
        fdt.end_node(deeper).unwrap();
        fdt.end_node(pool).unwrap();
        let instance = fdt.begin_node("instance").unwrap();
        fdt.property_string("name", "web").unwrap();
        fdt.property_u64("entry", 0x1_0020_0000).unwrap();
        fdt.property_null("empty").unwrap();
        fdt.end_node(instance).unwrap();
        fdt.end_node(root).unwrap();
        fdt.finish().unwrap()
    }

    #[test]
    fn properties_are_found_where_they_were_written() {
        let bytes = written();
        let fdt = Fdt::new(&bytes).unwrap();
        assert_eq!(fdt.text("", "compatible"), Some("mkvmm,test"));
        assert_eq!(fdt.u32("", "version"), Some(7));
        assert_eq!(fdt.text("instance", "name"), Some("web"));
        assert_eq!(fdt.u64("instance", "entry"), Some(0x1_0020_0000));
        assert_eq!(fdt.property("instance", "empty"), Some(&[][..]));
        let reg: Vec<_> = fdt.reg("pool").unwrap().flatten().collect();
        let want = [
            Range::sized(0x1_0000_0000, 0x4000_0000),
            Range::sized(0x2_0000_0000, 0x1000),
        ];
        assert_eq!(reg, want.map(Option::unwrap));
    }

    #[test]
    fn what_is_not_there_or_of_another_kind_is_none() {
        let bytes = written();
        let fdt = Fdt::new(&bytes).unwrap();
        assert_eq!(fdt.property("pool", "name"), None);
        assert_eq!(fdt.property("poo", "reg"), None);
        assert_eq!(fdt.property("", "reg"), None);
        assert_eq!(fdt.u64("", "version"), None);
        assert_eq!(fdt.u32("instance", "entry"), None);
        assert_eq!(fdt.text("", "version"), None);
        assert!(fdt.reg("instance").is_none());
    }

    #[test]
    fn no_cut_and_no_changed_byte_makes_it_panic() {
        let bytes = written();
        for len in 0..bytes.len() {
            assert!(Fdt::new(&bytes[..len]).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 3, 4, 9, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(fdt) = Fdt::new(&changed) {
                    let _ = (fdt.text("instance", "name"), fdt.reg("pool"));
                }
            }
        }
    }

    #[test]
    fn nodes_must_pair_up() {
        let bytes = written();
        let structure = u32_at(&bytes, 8).unwrap() as usize;
        let mut changed = bytes.clone();
        // The root's beginning becomes two NOPs.
        for at in [structure, structure + 4] {
            changed[at..at + 4].copy_from_slice(&NOP.to_be_bytes());
        }
        let error = Fdt::new(&changed).unwrap_err();
        assert_eq!(error, "ends a node that it did not begin");
        // The last end of a node, before the end of all, becomes a NOP.
        let tail = [END_NODE, END].map(u32::to_be_bytes);
        let at = bytes.windows(8).rposition(|w| w == tail.as_flattened());
        let at = at.unwrap();
        let mut changed = bytes.clone();
        changed[at..at + 4].copy_from_slice(&NOP.to_be_bytes());
        let error = Fdt::new(&changed).unwrap_err();
        assert_eq!(error, "does not end its nodes");
    }
}
