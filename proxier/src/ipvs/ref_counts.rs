//! Reference counts of addresses, set entries and rules that several Service ports may need.
//!
//! Each item also records whether the kernel has it, so that what differs (referenced but missing, present but
//! unreferenced) is found by looking at the items that changed, not at all of them.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

#[derive(Clone, Copy, Debug, Default)]
struct RefCount {
    references: u32,
    /// Whether the kernel has the item, as far as is known.
    present: bool,
}

/// A reference count for each item of one kind.
#[derive(Debug)]
pub struct RefCounts<K> {
    counts: HashMap<K, RefCount>,
    /// Items whose kernel state may differ from their reference count.
    dirty: BTreeSet<K>,
    /// How many items have references.
    referenced: usize,
}

impl<K> Default for RefCounts<K> {
    fn default() -> Self {
        Self { counts: HashMap::new(), dirty: BTreeSet::new(), referenced: 0 }
    }
}

impl<K: Copy + Eq + Hash + Ord> RefCounts<K> {
    /// Adds a reference to an item.
    pub fn acquire(&mut self, item: K) {
        let count = self.counts.entry(item).or_default();
        count.references += 1;
        self.referenced += usize::from(count.references == 1);
        self.dirty.insert(item);
    }

    /// Drops a reference to an item.
    pub fn release(&mut self, item: K) {
        if let Some(count) = self.counts.get_mut(&item).filter(|count| count.references > 0) {
            count.references -= 1;
            self.referenced -= usize::from(count.references == 0);
            self.dirty.insert(item);
        }
    }

    /// Includes an item in the next [`RefCounts::take_changes`] although its references did not change.
    pub fn mark_dirty(&mut self, item: K) {
        self.dirty.insert(item);
    }

    /// Whether any item has references.
    #[must_use]
    pub fn has_references(&self) -> bool {
        self.referenced > 0
    }

    /// Whether the kernel has the item, as far as is known.
    #[must_use]
    pub fn is_present(&self, item: &K) -> bool {
        self.counts.get(item).is_some_and(|count| count.present)
    }

    /// The items that the kernel has, as far as is known.
    pub fn present(&self) -> impl Iterator<Item = K> + '_ {
        self.counts.iter().filter(|(_, count)| count.present).map(|(item, _)| *item)
    }

    /// The items with references, in order.
    #[must_use]
    pub fn referenced(&self) -> BTreeSet<K> {
        self.counts.iter().filter(|(_, count)| count.references > 0).map(|(item, _)| *item).collect()
    }

    /// Records that the kernel has exactly these items.
    pub fn observe(&mut self, items: impl IntoIterator<Item = K>) {
        self.counts.retain(|_, count| {
            count.present = false;
            count.references > 0
        });
        for item in items {
            self.counts.entry(item).or_default().present = true;
        }
        self.dirty = self.counts.keys().copied().collect();
    }

    /// Whether any item is dirty.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The items to add and the items to delete, each in order. No item is dirty afterwards.
    pub fn take_changes(&mut self) -> (Vec<K>, Vec<K>) {
        let (mut add, mut delete) = (Vec::new(), Vec::new());
        for item in std::mem::take(&mut self.dirty) {
            match self.counts.get(&item) {
                Some(RefCount { references: 1.., present: false }) => add.push(item),
                Some(RefCount { references: 0, present: true }) => delete.push(item),
                Some(RefCount { references: 0, present: false }) => _ = self.counts.remove(&item),
                _ => {}
            }
        }
        (add, delete)
    }

    /// Records that the kernel has the item now, or not any more.
    pub fn set_present(&mut self, item: K, present: bool) {
        if let Some(count) = self.counts.get_mut(&item) {
            count.present = present;
            if !present && count.references == 0 {
                self.counts.remove(&item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_with_two_references_is_deleted_after_the_second_release() {
        let mut counts = RefCounts::default();
        counts.acquire(1);
        counts.acquire(1);
        assert_eq!(counts.take_changes(), (vec![1], vec![]));
        counts.set_present(1, true);
        counts.release(1);
        assert_eq!(counts.take_changes(), (vec![], vec![]));
        counts.release(1);
        assert!(!counts.has_references());
        assert_eq!(counts.take_changes(), (vec![], vec![1]));
        counts.set_present(1, false);
        assert_eq!((counts.counts.len(), counts.present().count()), (0, 0));
    }

    #[test]
    fn a_refused_item_when_marked_dirty_is_tried_again() {
        let mut counts = RefCounts::default();
        counts.acquire(7);
        assert_eq!(counts.take_changes().0, [7]);
        assert_eq!(counts.take_changes().0, [] as [i32; 0], "not by itself");
        counts.mark_dirty(7);
        assert_eq!(counts.take_changes().0, [7]);
    }

    #[test]
    fn an_observation_when_it_differs_yields_additions_and_deletions() {
        let mut counts = RefCounts::default();
        counts.acquire(1);
        counts.acquire(2);
        counts.observe([2, 3]);
        assert_eq!(counts.take_changes(), (vec![1], vec![3]));
    }
}
