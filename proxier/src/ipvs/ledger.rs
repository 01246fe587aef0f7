//! Things of which several Service ports may want the same one, and which the kernel holds or does not.
//!
//! In: who wants what, what the kernel was seen to hold, what was done. Out: what is to be added and deleted.
//! Must not know: what the things are.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    wanted: u32,
    held: bool,
}

/// An account for each thing.
#[derive(Debug)]
pub struct Ledger<K> {
    accounts: HashMap<K, Account>,
    /// Those that may not be as they should be.
    touched: BTreeSet<K>,
    wanted: usize,
}

impl<K> Default for Ledger<K> {
    fn default() -> Self {
        Self { accounts: HashMap::new(), touched: BTreeSet::new(), wanted: 0 }
    }
}

impl<K: Copy + Eq + Hash + Ord> Ledger<K> {
    /// One more wants it.
    pub fn want(&mut self, thing: K) {
        let account = self.accounts.entry(thing).or_default();
        account.wanted += 1;
        self.wanted += usize::from(account.wanted == 1);
        self.touched.insert(thing);
    }

    /// One less wants it.
    pub fn release(&mut self, thing: K) {
        if let Some(account) = self.accounts.get_mut(&thing).filter(|account| account.wanted > 0) {
            account.wanted -= 1;
            self.wanted -= usize::from(account.wanted == 0);
            self.touched.insert(thing);
        }
    }

    /// Has it looked at again, though nobody wants it otherwise than before.
    pub fn touch(&mut self, thing: K) {
        self.touched.insert(thing);
    }

    /// Whether any is wanted.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.wanted > 0
    }

    /// Whether the kernel holds it, as far as is known.
    #[must_use]
    pub fn holds(&self, thing: &K) -> bool {
        self.accounts.get(thing).is_some_and(|account| account.held)
    }

    /// What the kernel holds, as far as is known.
    pub fn held(&self) -> impl Iterator<Item = K> + '_ {
        self.accounts.iter().filter(|(_, account)| account.held).map(|(thing, _)| *thing)
    }

    /// What is wanted, in order.
    #[must_use]
    pub fn all_wanted(&self) -> BTreeSet<K> {
        self.accounts.iter().filter(|(_, account)| account.wanted > 0).map(|(thing, _)| *thing).collect()
    }

    /// The kernel was seen to hold these and no others.
    pub fn found(&mut self, things: impl IntoIterator<Item = K>) {
        self.accounts.retain(|_, account| {
            account.held = false;
            account.wanted > 0
        });
        for thing in things {
            self.accounts.entry(thing).or_default().held = true;
        }
        self.touched = self.accounts.keys().copied().collect();
    }

    /// Whether anything was touched since the last [`Ledger::changes`].
    #[must_use]
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What is to be added and what is to be deleted, each in order. Nothing is touched any more.
    pub fn changes(&mut self) -> (Vec<K>, Vec<K>) {
        let (mut add, mut delete) = (Vec::new(), Vec::new());
        for thing in std::mem::take(&mut self.touched) {
            match self.accounts.get(&thing) {
                Some(Account { wanted: 1.., held: false }) => add.push(thing),
                Some(Account { wanted: 0, held: true }) => delete.push(thing),
                Some(Account { wanted: 0, held: false }) => _ = self.accounts.remove(&thing),
                _ => {}
            }
        }
        (add, delete)
    }

    /// It was added or deleted.
    pub fn set_held(&mut self, thing: K, held: bool) {
        if let Some(account) = self.accounts.get_mut(&thing) {
            account.held = held;
            if !held && account.wanted == 0 {
                self.accounts.remove(&thing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_want_goes_with_the_second() {
        let mut ledger = Ledger::default();
        ledger.want(1);
        ledger.want(1);
        assert_eq!(ledger.changes(), (vec![1], vec![]));
        ledger.set_held(1, true);
        ledger.release(1);
        assert_eq!(ledger.changes(), (vec![], vec![]));
        ledger.release(1);
        assert!(!ledger.is_used());
        assert_eq!(ledger.changes(), (vec![], vec![1]));
        ledger.set_held(1, false);
        assert_eq!((ledger.accounts.len(), ledger.held().count()), (0, 0));
    }

    #[test]
    fn what_was_refused_is_tried_when_it_is_touched() {
        let mut ledger = Ledger::default();
        ledger.want(7);
        assert_eq!(ledger.changes().0, [7]);
        assert_eq!(ledger.changes().0, [] as [i32; 0], "not by itself");
        ledger.touch(7);
        assert_eq!(ledger.changes().0, [7]);
    }

    #[test]
    fn a_look_at_the_kernel_settles_everything() {
        let mut ledger = Ledger::default();
        ledger.want(1);
        ledger.want(2);
        ledger.found([2, 3]);
        assert_eq!(ledger.changes(), (vec![1], vec![3]));
    }
}
