//! Reference counts of the chains and client sets that Service ports share.
//!
//! With session affinity there are as many chains as endpoints, so a change must not visit all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::names::SharedChain;
use super::rules;

/// Counts references to shared chains and client sets.
#[derive(Debug, Default)]
pub struct ChainRefCounts {
    /// References from Service ports.
    wanted: HashMap<SharedChain, u32>,
    /// References from referenced chains, for each existing chain. Idle chains stay until they are deleted.
    there: HashMap<SharedChain, u32>,
    /// Chains of `there` that must be created.
    new: BTreeSet<SharedChain>,
    /// Chains of `there` without references.
    idle: BTreeSet<SharedChain>,
    /// How many chains need that many client sets.
    sets: BTreeMap<u32, u32>,
    /// The number of existing client sets.
    sets_there: u32,
}

fn add_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    *counts.entry(key).or_insert(0) += 1;
}

/// Decrements a count; returns whether it reached zero.
fn take_one(count: Option<&mut u32>) -> bool {
    count.is_some_and(|count| {
        *count = count.saturating_sub(1);
        *count == 0
    })
}

impl ChainRefCounts {
    /// Adds a reference from a Service port.
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

    /// Drops a reference from a Service port.
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

    /// Whether a chain exists, or will after the next batch.
    pub fn exists(&self, chain: SharedChain) -> bool {
        self.there.contains_key(&chain)
    }

    fn sets_needed(&self) -> u32 {
        self.sets.last_key_value().map_or(0, |(sets, _)| *sets)
    }

    /// The chains to create, jump targets first, and the client sets to create.
    pub fn take_new(&mut self) -> (BTreeSet<SharedChain>, Range<u32>) {
        let sets = self.sets_there..self.sets_needed();
        self.sets_there = sets.end.max(sets.start);
        (std::mem::take(&mut self.new), sets)
    }

    /// The unreferenced chains and client sets, in the same order.
    pub fn idle(&self) -> (impl DoubleEndedIterator<Item = SharedChain>, Range<u32>) {
        (self.idle.iter().copied(), self.sets_needed()..self.sets_there)
    }

    /// Whether any chain or client set is unreferenced.
    pub fn has_idle(&self) -> bool {
        !self.idle.is_empty() || self.sets_needed() < self.sets_there
    }

    /// Records that the unreferenced chains and client sets were deleted.
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

    /// One of few chains, some with session affinity.
    fn chain(number: u32) -> SharedChain {
        let sticky = (number & 1 == 1).then_some(Sticky { numbers: number / 4 + 1, seconds: 9, service: number / 8 });
        let balance = Balance { place: VipOrNodePort::Address, policy: Policy::Cluster, count: 2, sticky, hash: None };
        if number & 2 == 0 { SharedChain::Balance(balance) } else { SharedChain::External(balance) }
    }

    /// What all these need, computed from scratch.
    fn needed(wanted: &[SharedChain]) -> (BTreeSet<SharedChain>, u32) {
        let needs = wanted.iter().map(|chain| rules::needs(*chain));
        needs.fold(Default::default(), |(mut chains, sets), (more, numbers)| {
            chains.extend(more);
            (chains, numbers.max(sets))
        })
    }

    proptest! {
        #[test]
        fn existing_chains_are_the_needed_and_the_idle_ones(
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
