//! The chains and sets of clients that Service ports share, counted as they come and go: with session affinity there are
//! as many as endpoints, so nothing may look at all of them because of one change.
//!
//! In: chains that Service ports want, or do not want any more. Out: what is new, what nobody needs any more.
//! Must not know: rules, Service ports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::names::SharedChain;
use super::rules;

/// What is there, or will be after the next batch, and how many need it.
#[derive(Debug, Default)]
pub struct ChainRefCounts {
    /// By how many Service ports each is wanted.
    wanted: HashMap<SharedChain, u32>,
    /// How many of those need each. Those that nobody needs stay until they are deleted.
    there: HashMap<SharedChain, u32>,
    /// Those of `there` that are still to be made.
    new: BTreeSet<SharedChain>,
    /// Those of `there` that nobody needs.
    idle: BTreeSet<SharedChain>,
    /// How many need so many sets of clients.
    sets: BTreeMap<u32, u32>,
    /// How many sets of clients are there.
    sets_there: u32,
}

fn add_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    *counts.entry(key).or_insert(0) += 1;
}

/// Whether none is left.
fn take_one(count: Option<&mut u32>) -> bool {
    count.is_some_and(|count| {
        *count = count.saturating_sub(1);
        *count == 0
    })
}

impl ChainRefCounts {
    /// One more Service port wants this chain.
    pub fn add(&mut self, chain: SharedChain) {
        let count = self.wanted.entry(chain).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        let (needed, sets) = rules::needs(chain);
        add_one(&mut self.sets, sets);
        for chain in needed {
            let count = self.there.entry(chain).or_insert_with(|| {
                self.new.insert(chain);
                0
            });
            *count += 1;
            self.idle.remove(&chain);
        }
    }

    /// One Service port less wants this chain.
    pub fn subtract(&mut self, chain: SharedChain) {
        if !take_one(self.wanted.get_mut(&chain)) {
            return;
        }
        self.wanted.remove(&chain);
        let (needed, sets) = rules::needs(chain);
        if take_one(self.sets.get_mut(&sets)) {
            self.sets.remove(&sets);
        }
        for chain in needed {
            if take_one(self.there.get_mut(&chain)) {
                if self.new.remove(&chain) {
                    self.there.remove(&chain);
                } else {
                    self.idle.insert(chain);
                }
            }
        }
    }

    fn sets_needed(&self) -> u32 {
        self.sets.last_key_value().map_or(0, |(sets, _)| *sets)
    }

    /// What is to be made now: chains, those that others lead to first, and sets of clients.
    pub fn take_new(&mut self) -> (BTreeSet<SharedChain>, Range<u32>) {
        let sets = self.sets_there..self.sets_needed();
        self.sets_there = sets.end.max(sets.start);
        (std::mem::take(&mut self.new), sets)
    }

    /// What nobody needs any more, in the same order.
    pub fn idle(&self) -> (impl DoubleEndedIterator<Item = SharedChain>, Range<u32>) {
        (self.idle.iter().copied(), self.sets_needed()..self.sets_there)
    }

    /// Whether there is anything that nobody needs.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty() || self.sets_needed() < self.sets_there
    }

    /// What nobody needed was deleted.
    pub fn forget_idle(&mut self) {
        for chain in std::mem::take(&mut self.idle) {
            self.there.remove(&chain);
        }
        self.sets_there = self.sets_needed();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nftables::names::{Balance, Policy, Sticky, VipOrNodePort};

    /// One of few chains; some are as those of Services with session affinity.
    fn chain(number: u32) -> SharedChain {
        let sticky = (number & 1 == 1).then_some(Sticky { numbers: number / 4 + 1, seconds: 9, service: number / 8 });
        let balance = Balance { place: VipOrNodePort::Address, policy: Policy::Cluster, count: 2, sticky };
        if number & 2 == 0 { SharedChain::Balance(balance) } else { SharedChain::External(balance) }
    }

    /// What all these need, looked up anew.
    fn needed(wanted: &[SharedChain]) -> (BTreeSet<SharedChain>, u32) {
        let needs = wanted.iter().map(|chain| rules::needs(*chain));
        needs.fold(Default::default(), |(mut chains, sets), (more, numbers)| {
            chains.extend(more);
            (chains, numbers.max(sets))
        })
    }

    proptest! {
        #[test]
        fn what_is_there_is_what_is_needed_and_what_is_idle(
            steps in prop::collection::vec((0_u32..16, 0_u8..4), 1..60),
        ) {
            let (mut chains, mut wanted) = (ChainRefCounts::default(), Vec::new());
            let (mut there, mut sets_there) = (BTreeSet::new(), 0);
            for (number, step) in steps {
                let chain = chain(number);
                match (step, wanted.iter().position(|known| *known == chain)) {
                    (0, Some(at)) => {
                        chains.subtract(wanted.swap_remove(at));
                    }
                    (3, _) => {
                        there.retain(|chain| needed(&wanted).0.contains(chain));
                        sets_there = needed(&wanted).1;
                        chains.forget_idle();
                    }
                    _ => {
                        chains.add(chain);
                        wanted.push(chain);
                    }
                }
                let (all, sets) = needed(&wanted);
                let (new, new_sets) = chains.take_new();
                prop_assert_eq!(&new, &all.difference(&there).copied().collect());
                prop_assert_eq!(new_sets.collect::<Vec<_>>(), (sets_there..sets).collect::<Vec<_>>());
                there.extend(new);
                sets_there = sets_there.max(sets);
                let (idle, idle_sets) = chains.idle();
                prop_assert_eq!(idle.collect::<Vec<_>>(), there.difference(&all).copied().collect::<Vec<_>>());
                prop_assert_eq!(idle_sets, sets..sets_there);
                prop_assert_eq!(chains.has_idle(), there != all || sets < sets_there);
            }
        }
    }
}
