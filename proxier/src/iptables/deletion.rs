//! Deletion of stale chains, including chains that cannot be deleted yet.
//!
//! The kernel refuses to delete a chain that a foreign rule refers to, and one such deletion makes the tool refuse the
//! whole transaction (kubernetes/kubernetes#132516). The chain is emptied instead, logged, and deleted once that rule
//! is gone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use netfilter::Restore;
use netfilter::iptables::{Chain, Table};
use netfilter::kernel::ToolError;
use netfilter::kernel::iptables::{IptablesTool, RestoreError};
use tracing::{info, warn};

use super::cleanup::is_own_in_nat;
use super::{Iptables, names};
use crate::xtables::still_referenced;

/// Chains of Service ports that foreign rules refer to.
#[derive(Debug, Default)]
pub(super) struct ReferencedChains {
    /// With the rule, or the tool's error if it does not print the rule.
    rules: HashMap<Chain, String>,
    /// Stale chains that are kept empty.
    emptied: HashSet<Chain>,
}

impl ReferencedChains {
    /// The chains, each with the rule that refers to it.
    pub fn rules(&self) -> &HashMap<Chain, String> {
        &self.rules
    }

    /// Reads again which chains are referred to, if any was.
    pub fn refresh(&mut self, tool: &mut dyn IptablesTool) -> Result<(), ToolError> {
        if !self.rules.is_empty() {
            self.rules = tool.references(Table::Nat, &is_own_in_nat)?;
        }
        Ok(())
    }

    /// Records refused deletions; returns whether a chain is new.
    pub fn refused(&mut self, tool: &mut dyn IptablesTool, chains: Vec<Chain>, error: &str) -> bool {
        let known = self.rules.len();
        // If the references cannot be read, the refused chains are known nonetheless.
        self.rules.extend(tool.references(Table::Nat, &is_own_in_nat).unwrap_or_default());
        chains.into_iter().for_each(|chain| _ = self.rules.entry(chain).or_insert_with(|| error.to_owned()));
        self.rules.len() > known
    }

    /// Records the stale chains that a sync kept empty and logs new ones. `full`: these are all.
    pub fn note_emptied(&mut self, emptied: Vec<Chain>, full: bool) {
        if full {
            let gone = |chain: &&Chain| !emptied.contains(chain);
            self.emptied
                .iter()
                .filter(gone)
                .for_each(|chain| info!("deleted chain {chain} of table nat, which no other rule refers to any more"));
            self.emptied.retain(|chain| emptied.contains(chain));
        }
        for chain in emptied {
            if self.emptied.insert(chain) {
                let rule = self.rules.get(&chain).map_or("", String::as_str);
                warn!("{}", still_referenced(Table::Nat, &chain, rule));
            }
        }
    }
}

/// The transaction that deletes stale chains, or empties referenced ones.
fn deletion(chains: &[Chain], referenced: &ReferencedChains) -> Restore {
    let mut restore = Restore::default();
    for chain in chains {
        if referenced.rules.contains_key(chain) {
            restore.declare(Table::Nat, *chain, None);
        } else {
            restore.delete(Table::Nat, *chain);
        }
    }
    restore
}

impl Iptables {
    /// Deletes the chains whose deletion a large cluster postponed, if no sync did.
    ///
    /// No rule of this mode refers to them, so nothing else has to be compared.
    pub(super) fn delete_overdue(&mut self, now: Instant) {
        let interval: Duration = self.config.periods.sync;
        if self.state.retired.is_empty() || self.state.last_deletion.is_some_and(|at| now - at <= interval) {
            return;
        }
        self.state.last_deletion = Some(now);
        let mut retired: Vec<Chain> = self.state.retired.iter().copied().collect();
        names::sort_for_deletion(&mut retired);
        let mut writes = self.generation.begin(self.tool.as_mut(), false);
        for batch in retired.chunks(self.tool.batch()) {
            match self.delete(batch) {
                Ok(tables) => {
                    writes.record(tables);
                    batch.iter().for_each(|chain| _ = self.state.retired.remove(chain));
                    let emptied =
                        batch.iter().copied().filter(|chain| self.referenced.rules.contains_key(chain)).collect();
                    self.referenced.note_emptied(emptied, false);
                }
                Err(error) => warn!("{}: cannot delete stale chains: {error}", self.family),
            }
        }
        self.generation.commit(self.tool.as_mut(), &writes);
    }

    /// Deletes stale chains, or empties referenced ones. Returns how many tables changed.
    fn delete(&mut self, chains: &[Chain]) -> Result<usize, RestoreError> {
        let restore = deletion(chains, &self.referenced);
        let Err(error) = self.tool.restore(&restore) else { return Ok(restore.tables()) };
        let refused = error.refused_deletions(&restore);
        if refused.is_empty() || !self.referenced.refused(self.tool.as_mut(), refused, &error.message) {
            return Err(error);
        }
        let restore = deletion(chains, &self.referenced);
        self.tool.restore(&restore).map(|()| restore.tables())
    }

    /// Schedules the deletion of emptied chains that nothing refers to any more.
    pub(super) fn release_emptied(&mut self) -> Result<(), ToolError> {
        if self.referenced.emptied.is_empty() {
            return Ok(());
        }
        self.referenced.refresh(self.tool.as_mut())?;
        let (kept, free): (HashSet<Chain>, HashSet<Chain>) =
            self.referenced.emptied.iter().partition(|chain| self.referenced.rules.contains_key(chain));
        self.referenced.emptied = kept;
        if !free.is_empty() {
            // A chain that a Service port uses again is not stale.
            let needed: HashSet<Chain> = self.state.expected_chains().map(|((_, chain), _)| chain).collect();
            self.state.retired.extend(free.into_iter().filter(|chain| !needed.contains(chain)));
            self.state.last_deletion = None;
        }
        Ok(())
    }
}
