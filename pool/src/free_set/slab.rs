//! Storage for nodes and leaves: small indices instead of pointers, with reuse of vacancies.

use alloc::vec::Vec;

/// The capacity up to which a slab keeps its memory even when it is empty.
const SMALL: usize = 64;

/// Values by index. Vacant places are reused before the vector grows.
#[derive(Debug, Clone)]
pub(super) struct Slab<T> {
    items: Vec<T>,
    vacant: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(super) const fn new() -> Self {
        Self {
            items: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// Returns a number that is greater than every index in use.
    pub(super) fn bound(&self) -> usize {
        self.items.len()
    }

    /// Stores `item` and returns its index.
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.vacant.pop() {
            *self.get_mut(id) = item;
            return id;
        }
        // A node or leaf takes tens of bytes: memory is exhausted long before indices are, and the
        // two largest are markers.
        let id = u32::try_from(self.items.len()).expect("fewer than 2^32 nodes fit in memory");
        if self.items.is_empty() {
            // Most sets have one node and one leaf, and a vector begins with room for four.
            self.items.reserve_exact(1);
        }
        self.items.push(item);
        id
    }

    /// Removes the item at `id` and remembers the vacancy.
    pub(super) fn remove(&mut self, id: u32) {
        *self.get_mut(id) = T::default();
        self.vacant.push(id);
        if self.vacant.len() == self.items.len() && self.items.capacity() > SMALL {
            // Nothing is left, so free the memory. A small slab is kept, because the next
            // allocation would need it again.
            *self = Self::new();
        }
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> &T {
        &self.items[id as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> &mut T {
        &mut self.items[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vacancies_are_reused_and_an_empty_slab_holds_no_memory() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert(7_u64), slab.insert(8));
        slab.remove(a);
        assert_eq!(slab.insert(9), a);
        assert_eq!((*slab.get(a), *slab.get(b), slab.bound()), (9, 8, 2));
        let more: Vec<u32> = (0..SMALL).map(|_| slab.insert(1)).collect();
        for id in more.into_iter().chain([a, b]) {
            assert!(slab.bound() > SMALL);
            slab.remove(id);
        }
        assert_eq!(
            (slab.bound(), slab.items.capacity(), slab.vacant.capacity()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_small_slab_keeps_its_memory() {
        let mut slab = Slab::new();
        let ids: Vec<u32> = (0..SMALL).map(|_| slab.insert(1_u64)).collect();
        slab.items.shrink_to_fit();
        ids.into_iter().for_each(|id| slab.remove(id));
        assert_eq!((slab.bound(), slab.items.capacity()), (SMALL, SMALL));
    }
}
