//! Reads the chains of a large table of iptables in nf_tables, in several threads.
//!
//! The kernel lists rules by chain, and nearly all of the time is its own: there are as many threads as processors, up to
//! [`THREADS_MAX`].

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{available_parallelism, scope};

use netfilter::kernel::iptables_nft::InspectedRule;
use netfilter::kernel::nftables::NftError;
use netfilter::kernel::{NftReader, NftRules};
use netfilter::nft::ruleset::TableId;
use netfilter::{Counters, IpFamily};

use crate::rules::Policy;

/// The most threads: each has a block of chains in memory.
const THREADS_MAX: usize = 4;
/// The number of chains that a thread reads before it passes them on.
const BLOCK: usize = 256;

/// A chain without its rules: its name, and the policy of a built-in one.
pub(super) type ChainHead = (String, Option<Policy>);

/// A chain with its rules.
pub(super) struct ReadChain {
    pub head: ChainHead,
    pub counters: Counters,
    pub rules: Vec<InspectedRule>,
}

/// What reads one chain of a table after another.
struct ChainReader {
    table: TableId,
    rules: NftRules,
    heads: NftReader,
    /// Whether a chain changed during each attempt to read it.
    changed: bool,
}

impl ChainReader {
    fn new(family: IpFamily, table: &str) -> Self {
        let (rules, heads) = (NftRules::new(family), NftReader::new(family));
        Self { table: TableId::of(family, table), rules, heads, changed: false }
    }

    fn read(&mut self, head: &ChainHead) -> Result<ReadChain, NftError> {
        let counters = policy_counters(&mut self.heads, &self.table, head)?;
        let (rules, changed) = self.rules.inspect_chain(&self.table.name, &head.0)?;
        self.changed |= changed;
        Ok(ReadChain { head: head.clone(), counters, rules })
    }
}

/// What the policy of a built-in chain counted; zero for other chains.
///
/// # Errors
/// If the kernel does not answer.
pub(super) fn policy_counters(
    reader: &mut NftReader,
    table: &TableId,
    (name, policy): &ChainHead,
) -> Result<Counters, NftError> {
    let found = if policy.is_some() { reader.chain(table, name)? } else { None };
    Ok(found.map_or_else(Counters::default, |(_, counters)| counters))
}

/// Passes each of these chains of a table to `each`, in any order; returns whether one changed during each attempt.
///
/// # Errors
/// The first failure to read a chain.
pub(super) fn read_chains(
    family: IpFamily,
    table: &str,
    heads: &[ChainHead],
    each: &mut dyn FnMut(ReadChain),
) -> Result<bool, NftError> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX);
    let (sender, blocks) = sync_channel(threads);
    let next = AtomicUsize::new(0);
    scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut reader = ChainReader::new(family, table);
                while let Some(block) = heads.get(next.fetch_add(BLOCK, Ordering::Relaxed)..) {
                    let heads = block.iter().take(BLOCK);
                    let read: Result<Vec<ReadChain>, NftError> = heads.map(|head| reader.read(head)).collect();
                    let failed = read.is_err();
                    // After a failure, blocks are not received any more.
                    if block.is_empty() || sender.send(read.map(|read| (read, reader.changed))).is_err() || failed {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut any_changed = false;
        // Moved here, so that its end is the end of the threads.
        let blocks = blocks;
        for block in &blocks {
            let (chains, changed) = block?;
            any_changed |= changed;
            chains.into_iter().for_each(&mut *each);
        }
        Ok(any_changed)
    })
}
