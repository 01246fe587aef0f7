//! Removes a mode's jumps and chains from iptables tables.
//!
//! The kernel refuses to delete a chain that a foreign rule refers to with EBUSY, and the tool then refuses the whole
//! transaction (kubernetes/kubernetes#132516). Such a chain is emptied and reported with that rule.

use std::collections::HashMap;

use netfilter::iptables::{Chain, Table};
use netfilter::kernel::iptables::{IptablesTool, RestoreError};
use netfilter::{Restore, SavedTable};

use super::{Jump, TableChain};
use crate::backend::SyncError;

/// The jumps and chains that a mode may have.
#[derive(Clone, Debug)]
pub struct ModeChains {
    /// Jumps from built-in chains.
    pub jumps: Vec<Jump>,
    /// Chains that do not depend on Services.
    pub chains: Vec<TableChain>,
    /// Predicates for the nat chains of Service ports; any of them decides.
    pub services: Vec<fn(&Chain) -> bool>,
}

/// The part of [`ModeChains`] in one table that no active mode uses.
#[derive(Clone, Copy, Debug)]
pub struct StaleChains<'a> {
    owned: &'a ModeChains,
    running: Option<&'a ModeChains>,
    /// The table.
    pub table: Table,
}

impl ModeChains {
    /// The jumps and chains of either mode.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        // A shared jump is kept once.
        other.jumps.into_iter().for_each(|jump| {
            if !self.jumps.contains(&jump) {
                self.jumps.push(jump);
            }
        });
        self.chains.extend(other.chains);
        self.chains.sort_unstable();
        self.chains.dedup();
        self.services.extend(other.services);
        self
    }

    /// The stale part of a table: what the active mode does not use too.
    #[must_use]
    pub fn stale<'a>(&'a self, table: Table, running: Option<&'a Self>) -> StaleChains<'a> {
        StaleChains { owned: self, running, table }
    }

    /// Removes jumps and chains from these tables, each in one transaction.
    ///
    /// A table that fails does not keep the others from being cleaned. Jumps and chains of `running` stay.
    ///
    /// # Errors
    /// One for each table that could not be cleaned, and for each chain that had to stay.
    pub fn remove(
        &self,
        tool: &mut dyn IptablesTool,
        tables: &[Table],
        running: Option<&Self>,
    ) -> Result<(), Vec<SyncError>> {
        let ours = tables.iter().copied().filter(|table| self.chains.iter().any(|(of, _)| of == table));
        let errors: Vec<SyncError> = ours.flat_map(|table| self.stale(table, running).remove(tool)).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

impl StaleChains<'_> {
    /// The stale jumps.
    pub fn jumps(&self) -> impl Iterator<Item = &Jump> {
        let stays = |jump: &Jump| self.running.is_some_and(|running| running.jumps.contains(jump));
        self.owned.jumps.iter().filter(move |jump| jump.table == self.table && !stays(jump))
    }

    /// Whether a chain is stale.
    #[must_use]
    pub fn has(&self, chain: &Chain) -> bool {
        let place = (self.table, *chain);
        let stays = self.running.is_some_and(|running| {
            running.chains.contains(&place) || (self.table == Table::Nat && running.services.iter().any(|is| is(chain)))
        });
        let of_service = || self.table == Table::Nat && self.owned.services.iter().any(|is| is(chain));
        !stays && (self.owned.chains.contains(&place) || of_service())
    }

    /// The chains that may be stale or that stale jumps lead to, unless those of Service ports may be stale too: these
    /// have no fixed names.
    #[must_use]
    pub fn named(&self) -> Option<Vec<Chain>> {
        if self.table == Table::Nat && !self.owned.services.is_empty() {
            return None;
        }
        let fixed = self.owned.chains.iter().map(|(_, chain)| *chain).filter(|chain| self.has(chain));
        let mut chains: Vec<Chain> = fixed.chain(self.jumps().map(|jump| jump.to)).collect();
        chains.sort_unstable();
        chains.dedup();
        Some(chains)
    }

    /// Removes everything stale in one transaction, and retries without what was refused.
    pub fn remove(&self, tool: &mut dyn IptablesTool) -> Vec<SyncError> {
        match self.try_remove(tool) {
            Ok(kept) => {
                let mut kept: Vec<(Chain, String)> = kept.into_iter().collect();
                kept.sort_unstable();
                kept.iter().map(|(chain, rule)| still_referenced(self.table, chain, rule)).collect()
            }
            Err(error) => vec![error],
        }
    }

    fn try_remove(&self, tool: &mut dyn IptablesTool) -> Result<HashMap<Chain, String>, SyncError> {
        let mut kept = HashMap::new();
        let mut failed = false;
        loop {
            let saved = tool.save(self.table)?;
            let restore = self.removal(&saved, &kept);
            if restore.is_empty() {
                return Ok(kept);
            }
            let Err(error) = tool.restore(&restore) else { return Ok(kept) };
            let known = kept.len();
            self.keep_referenced(tool, &error, &restore, &mut kept)?;
            if kept.len() == known && failed {
                return Err(SyncError(error.message));
            }
            // The tool may have been killed after its commit: save again to see what is left.
            failed = kept.len() == known;
        }
    }

    /// Adds the chains whose deletion was refused, and all others that foreign rules refer to.
    fn keep_referenced(
        &self,
        tool: &mut dyn IptablesTool,
        error: &RestoreError,
        restore: &Restore,
        kept: &mut HashMap<Chain, String>,
    ) -> Result<(), SyncError> {
        let refused = error.refused_deletions(restore);
        if refused.is_empty() {
            return Ok(());
        }
        let own: Vec<String> = self.jumps().map(|jump| format!("-A {}{}", jump.from, jump.rule)).collect();
        let mut references = tool.references(self.table, &|chain| self.has(chain))?;
        // Our own jumps are removed in the same transaction.
        references.retain(|_, rule| !own.iter().any(|own| rule.split_whitespace().eq(own.split_whitespace())));
        kept.extend(references);
        refused.into_iter().for_each(|chain| _ = kept.entry(chain).or_insert_with(|| error.message.clone()));
        Ok(())
    }

    fn removal(&self, saved: &SavedTable, kept: &HashMap<Chain, String>) -> Restore {
        let mut restore = Restore::default();
        for jump in self.jumps() {
            for _ in 0..jump.count(saved) {
                restore.remove(self.table, jump.from, &jump.rule);
            }
        }
        let mut chains: Vec<&Chain> = saved.chains.keys().filter(|chain| self.has(chain)).collect();
        chains.sort_unstable();
        for chain in chains {
            match kept.contains_key(chain) {
                false => restore.delete(self.table, *chain),
                true if saved.chains[chain].rules > 0 => restore.declare(self.table, *chain, None),
                true => {}
            }
        }
        restore
    }
}

/// The error for a chain that a foreign rule refers to.
#[must_use]
pub fn still_referenced(table: Table, chain: &Chain, rule: &str) -> SyncError {
    SyncError(format!(
        "cannot delete chain {chain} of table {}, emptied it instead: another program's rule refers to it; \
         delete that rule: {rule}",
        table.name()
    ))
}
