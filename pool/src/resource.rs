//! A tree of named ranges with their owners, printed like `/proc/iomem`.
//!
//! Resources are looked up by handle or by address, never by name, because names may repeat.
//! Siblings never overlap and children lie inside their parent. Insertion checks that against the
//! neighbours only, in O(log siblings).

use crate::range::AddrRange;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A handle of a resource. It is never reused after the resource is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(u64);

/// The reason why the tree was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The resource does not exist, or no longer exists.
    #[error("there is no resource #{}", id.0)]
    Unknown {
        /// The handle that was given.
        id: ResourceId,
    },
    /// Part of the range already belongs to a sibling.
    #[error("`{name}` at {range} overlaps `{existing}` at {existing_range}")]
    Overlap {
        /// The name to be inserted.
        name: String,
        /// The range to be inserted.
        range: AddrRange,
        /// The name of the sibling.
        existing: String,
        /// The range of the sibling.
        existing_range: AddrRange,
    },
    /// The range does not lie inside its parent.
    #[error("`{name}` at {range} does not lie inside `{parent}` at {parent_range}")]
    OutsideParent {
        /// The name to be inserted.
        name: String,
        /// The range to be inserted.
        range: AddrRange,
        /// The name of the parent.
        parent: String,
        /// The range of the parent.
        parent_range: AddrRange,
    },
    /// A resource with children cannot be removed alone.
    #[error("`{name}` at {range} still has {children} children")]
    HasChildren {
        /// The name of the resource.
        name: String,
        /// The range of the resource.
        range: AddrRange,
        /// The number of its children.
        children: usize,
    },
    /// The name contains control characters, which could forge lines of the printed tree.
    #[error("the name {name:?} contains control characters")]
    BadName {
        /// The name that was given.
        name: String,
    },
}

/// One named range of the tree.
#[derive(Debug, Clone)]
pub struct Resource {
    id: ResourceId,
    name: String,
    range: AddrRange,
    parent: Option<ResourceId>,
    /// The children by start address.
    children: BTreeMap<u64, ResourceId>,
}

impl Resource {
    /// Returns the handle of the resource.
    #[must_use]
    pub fn id(&self) -> ResourceId {
        self.id
    }

    /// Returns the name of the resource; others may have the same name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the addresses the resource covers.
    #[must_use]
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// Returns the resource that contains it; `None` at the top of the tree.
    #[must_use]
    pub fn parent(&self) -> Option<ResourceId> {
        self.parent
    }

    /// Returns the resources directly inside it, by ascending address.
    pub fn children(&self) -> impl DoubleEndedIterator<Item = ResourceId> + '_ {
        self.children.values().copied()
    }
}

/// A tree of the owners of ranges.
///
/// ```
/// use mkpool::{AddrRange, resource::ResourceTree};
/// let mut tree = ResourceTree::new();
/// let pool = AddrRange::with_size(4 << 30, 1 << 30).unwrap();
/// let root = tree.insert(None, pool, "Multikernel Memory Pool").unwrap();
/// let region = AddrRange::with_size(4 << 30, 256 << 20).unwrap();
/// tree.insert(Some(root), region, "mk-instance-1-web-region-0").unwrap();
/// assert_eq!(
///     tree.to_string(),
///     "100000000-13fffffff : Multikernel Memory Pool\n  \
///      100000000-10fffffff : mk-instance-1-web-region-0\n"
/// );
/// ```
#[derive(Debug, Clone, Default)]
pub struct ResourceTree {
    resources: BTreeMap<ResourceId, Resource>,
    roots: BTreeMap<u64, ResourceId>,
    next: u64,
}

impl ResourceTree {
    /// Returns an empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of resources.
    #[must_use]
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Returns whether the tree has no resources.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Inserts `range` below `parent`, or at the top, and returns its handle.
    ///
    /// # Errors
    ///
    /// Returns [`ResourceError::Overlap`] with a sibling, [`ResourceError::OutsideParent`],
    /// [`ResourceError::Unknown`] for the parent, and [`ResourceError::BadName`]. Nothing changes
    /// then.
    pub fn insert(
        &mut self,
        parent: Option<ResourceId>,
        range: AddrRange,
        name: impl Into<String>,
    ) -> Result<ResourceId, ResourceError> {
        let name = name.into();
        if name.chars().any(char::is_control) {
            return Err(ResourceError::BadName { name });
        }
        if let Some(parent) = parent {
            let above = self.known(parent)?;
            if !above.range.contains_range(&range) {
                return Err(ResourceError::OutsideParent {
                    name,
                    range,
                    parent: above.name.clone(),
                    parent_range: above.range,
                });
            }
        }
        let siblings = self.level(parent)?;
        // If any sibling overlaps, it is the last one that starts below our end.
        let below = siblings.range(..range.end()).next_back();
        if let Some(sibling) = below.and_then(|(_, id)| self.resources.get(id))
            && sibling.range.overlaps(&range)
        {
            return Err(ResourceError::Overlap {
                name,
                range,
                existing: sibling.name.clone(),
                existing_range: sibling.range,
            });
        }
        let id = ResourceId(self.next);
        // There are never 2^64 insertions.
        self.next = self.next.wrapping_add(1);
        let children = BTreeMap::new();
        self.resources.insert(
            id,
            Resource {
                id,
                name,
                range,
                parent,
                children,
            },
        );
        self.level_mut(parent).insert(range.start(), id);
        Ok(id)
    }

    /// Removes a resource that has no children.
    ///
    /// # Errors
    ///
    /// Returns [`ResourceError::Unknown`] or [`ResourceError::HasChildren`].
    pub fn remove(&mut self, id: ResourceId) -> Result<(), ResourceError> {
        let resource = self.known(id)?;
        if !resource.children.is_empty() {
            return Err(ResourceError::HasChildren {
                name: resource.name.clone(),
                range: resource.range,
                children: resource.children.len(),
            });
        }
        self.remove_subtree(id)
    }

    /// Removes a resource and everything below it.
    ///
    /// # Errors
    ///
    /// Returns [`ResourceError::Unknown`] if it does not exist.
    pub fn remove_subtree(&mut self, id: ResourceId) -> Result<(), ResourceError> {
        let top = self.known(id)?;
        let (parent, start) = (top.parent, top.range.start());
        self.level_mut(parent).remove(&start);
        let mut doomed = Vec::from([id]);
        while let Some(id) = doomed.pop() {
            if let Some(resource) = self.resources.remove(&id) {
                doomed.extend(resource.children());
            }
        }
        Ok(())
    }

    /// Returns the resource with the handle `id`.
    #[must_use]
    pub fn get(&self, id: ResourceId) -> Option<&Resource> {
        self.resources.get(&id)
    }

    /// Returns the deepest resource that contains `addr`.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<ResourceId> {
        self.path(addr).last().map(|resource| resource.id)
    }

    /// Returns all resources that contain `addr`, the outermost first.
    #[must_use]
    pub fn path(&self, addr: u64) -> Vec<&Resource> {
        let mut path = Vec::new();
        let mut level = &self.roots;
        while let Some((_, id)) = level.range(..=addr).next_back() {
            match self.resources.get(id) {
                Some(resource) if resource.range.contains(addr) => {
                    path.push(resource);
                    level = &resource.children;
                }
                _ => break,
            }
        }
        path
    }

    /// Returns all resources in printing order with their depth: by ascending address, parents
    /// first.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Resource)> + '_ {
        let mut open: Vec<(usize, ResourceId)> =
            self.roots.values().rev().map(|&id| (0, id)).collect();
        core::iter::from_fn(move || {
            let (depth, id) = open.pop()?;
            let resource = self.resources.get(&id)?;
            let below = depth.saturating_add(1);
            open.extend(resource.children().rev().map(|child| (below, child)));
            Some((depth, resource))
        })
    }

    fn known(&self, id: ResourceId) -> Result<&Resource, ResourceError> {
        self.resources.get(&id).ok_or(ResourceError::Unknown { id })
    }

    fn level(
        &self,
        parent: Option<ResourceId>,
    ) -> Result<&BTreeMap<u64, ResourceId>, ResourceError> {
        match parent {
            None => Ok(&self.roots),
            Some(id) => Ok(&self.known(id)?.children),
        }
    }

    /// Returns the children of a parent that is known to exist.
    fn level_mut(&mut self, parent: Option<ResourceId>) -> &mut BTreeMap<u64, ResourceId> {
        match parent.and_then(|id| self.resources.get_mut(&id)) {
            None => &mut self.roots,
            Some(resource) => &mut resource.children,
        }
    }
}

/// Formats the tree like `/proc/iomem`: two blanks per level, inclusive ends, at least eight hex
/// digits.
impl fmt::Display for ResourceTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, resource) in self.iter() {
            let (first, last) = (resource.range.start(), resource.range.last());
            let indent = depth.saturating_mul(2);
            writeln!(
                f,
                "{:indent$}{first:08x}-{last:08x} : {}",
                "", resource.name
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    fn r(start: u64, end: u64) -> AddrRange {
        AddrRange::new(start, end).unwrap()
    }

    #[test]
    fn siblings_may_touch_but_not_overlap() {
        let mut tree = ResourceTree::new();
        let root = tree.insert(None, r(0x1000, 0x9000), "pool").unwrap();
        tree.insert(Some(root), r(0x2000, 0x3000), "a").unwrap();
        tree.insert(Some(root), r(0x3000, 0x4000), "b").unwrap();
        for (start, end) in [
            (0x1000, 0x2001),
            (0x3fff, 0x5000),
            (0x2800, 0x2900),
            (0x1000, 0x9000),
        ] {
            let refused = tree.insert(Some(root), r(start, end), "c");
            assert!(
                matches!(refused, Err(ResourceError::Overlap { .. })),
                "{start:#x}"
            );
        }
        assert!(matches!(
            tree.insert(None, r(0, 0x1001), "d"),
            Err(ResourceError::Overlap { .. })
        ));
        assert_eq!(tree.len(), 3);
    }

    #[test]
    fn children_stay_inside_their_parent() {
        let mut tree = ResourceTree::new();
        let root = tree.insert(None, r(0x1000, 0x9000), "pool").unwrap();
        let outside = tree.insert(Some(root), r(0x8000, 0x9001), "a").unwrap_err();
        assert_eq!(
            outside.to_string(),
            "`a` at 0x8000-0x9001 does not lie inside `pool` at 0x1000-0x9000"
        );
        tree.insert(Some(root), r(0x1000, 0x9000), "all of it")
            .unwrap();
    }

    #[test]
    fn prints_as_proc_iomem() {
        let mut tree = ResourceTree::new();
        let low = tree.insert(None, r(0x1000, 0xa_0000), "low").unwrap();
        let pool = tree
            .insert(None, r(0x1_0000_0000, 0x1_4000_0000), "pool")
            .unwrap();
        let region = tree
            .insert(Some(pool), r(0x1_0000_0000, 0x1_1000_0000), "region")
            .unwrap();
        tree.insert(Some(region), r(0x1_0020_0000, 0x1_0040_0000), "kernel")
            .unwrap();
        tree.insert(Some(region), r(0x1_0000_0000, 0x1_0010_0000), "low window")
            .unwrap();
        tree.insert(Some(low), r(0x2000, 0x3000), "page").unwrap();
        assert_eq!(
            tree.to_string(),
            "00001000-0009ffff : low\n  00002000-00002fff : page\n\
             100000000-13fffffff : pool\n  100000000-10fffffff : region\n    \
             100000000-1000fffff : low window\n    100200000-1003fffff : kernel\n"
        );
    }

    #[test]
    fn the_deepest_resource_is_found() {
        let mut tree = ResourceTree::new();
        let pool = tree.insert(None, r(0x1000, 0x9000), "pool").unwrap();
        let region = tree
            .insert(Some(pool), r(0x2000, 0x4000), "region")
            .unwrap();
        let page = tree
            .insert(Some(region), r(0x2000, 0x3000), "page")
            .unwrap();
        assert_eq!(tree.find(0x2fff), Some(page));
        assert_eq!(tree.find(0x3000), Some(region));
        assert_eq!(tree.find(0x4000), Some(pool));
        assert_eq!(tree.find(0x9000), None);
        assert_eq!(tree.find(0), None);
        let names: Vec<&str> = tree.path(0x2000).iter().map(|r| r.name()).collect();
        assert_eq!(names, ["pool", "region", "page"]);
    }

    #[test]
    fn removal_respects_children_and_never_reuses_a_handle() {
        let mut tree = ResourceTree::new();
        let pool = tree.insert(None, r(0x1000, 0x9000), "pool").unwrap();
        let region = tree
            .insert(Some(pool), r(0x2000, 0x4000), "region")
            .unwrap();
        assert!(matches!(
            tree.remove(pool),
            Err(ResourceError::HasChildren { children: 1, .. })
        ));
        assert_eq!(tree.len(), 2);
        tree.remove(region).unwrap();
        assert_eq!(
            tree.remove(region),
            Err(ResourceError::Unknown { id: region })
        );
        let again = tree
            .insert(Some(pool), r(0x2000, 0x4000), "region")
            .unwrap();
        assert_ne!(again, region);
        tree.insert(Some(again), r(0x2000, 0x3000), "page").unwrap();
        tree.remove_subtree(pool).unwrap();
        assert!(tree.is_empty());
        let orphan = tree.insert(Some(pool), r(0x2000, 0x3000), "page");
        assert_eq!(orphan, Err(ResourceError::Unknown { id: pool }));
    }

    #[test]
    fn a_resource_says_what_it_is() {
        let mut tree = ResourceTree::new();
        assert_eq!((tree.len(), tree.is_empty()), (0, true));
        let top = tree.insert(None, r(0, 8), "top").unwrap();
        let leaf = tree.insert(Some(top), r(2, 4), "leaf").unwrap();
        assert_eq!((tree.len(), tree.is_empty()), (2, false));
        let resource = tree.get(leaf).unwrap();
        assert_eq!((resource.id(), resource.name()), (leaf, "leaf"));
        assert_eq!((resource.range(), resource.parent()), (r(2, 4), Some(top)));
        assert_eq!(tree.get(top).unwrap().parent(), None);
        assert!(tree.get(top).unwrap().children().eq([leaf]));
        tree.remove_subtree(top).unwrap();
        assert!(tree.get(leaf).is_none() && tree.is_empty());
    }

    #[test]
    fn names_cannot_forge_lines() {
        let mut tree = ResourceTree::new();
        let forged = tree.insert(None, r(1, 2), "a\n00000000-00000000 : b");
        assert!(matches!(forged, Err(ResourceError::BadName { .. })));
        assert_eq!(tree.iter().count(), 0);
    }
}
