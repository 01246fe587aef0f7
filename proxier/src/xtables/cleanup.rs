//! Removing every trace of a mode from the tables, and nothing else.
//!
//! In: what the mode owns, what another one needs that runs. Out: tables without its chains and jumps.
//! Must not know: any mode.

use super::{Jump, Place};
use crate::backend::SyncError;
use crate::kernel::iptables::IptablesTool;
use crate::netfilter::iptables::{Chain, Table};
use crate::netfilter::{Restore, SavedTable};

/// What a mode has in the tables, at most.
#[derive(Clone, Debug)]
pub struct Owned {
    /// Jumps from built-in chains.
    pub jumps: Vec<Jump>,
    /// Chains that are there whatever Services there are.
    pub chains: Vec<Place>,
    /// Whether a chain of nat is one of a Service port: any of these says so.
    pub services: Vec<fn(&Chain) -> bool>,
}

impl Owned {
    /// What either of two modes has.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        // One that both have is there once.
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

    /// Removes jumps and chains from these tables, one after the other; a table that fails does not keep the others.
    /// What `running` has too stays: it is in use.
    ///
    /// # Errors
    /// One for each table that could not be cleaned.
    pub fn remove(
        &self,
        tool: &mut dyn IptablesTool,
        tables: &[Table],
        running: Option<&Self>,
    ) -> Result<(), Vec<SyncError>> {
        let ours = tables.iter().copied().filter(|table| self.chains.iter().any(|(of, _)| of == table));
        let clean = |table: Table| -> Result<(), SyncError> {
            let saved = tool.save(table)?;
            let restore = self.removal(table, &saved, running);
            if restore.is_empty() { Ok(()) } else { tool.restore(&restore).map_err(|error| SyncError(error.message)) }
        };
        let errors: Vec<SyncError> = ours.map(clean).filter_map(Result::err).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn removal(&self, table: Table, saved: &SavedTable, running: Option<&Self>) -> Restore {
        let mut restore = Restore::default();
        let stays = |jump: &Jump| running.is_some_and(|running| running.jumps.contains(jump));
        for jump in self.jumps.iter().filter(|jump| jump.table == table && !stays(jump)) {
            for _ in 0..jump.count(saved) {
                restore.remove(table, jump.from, &jump.rule);
            }
        }
        let stays = |place: &Place| running.is_some_and(|running| running.chains.contains(place));
        let fixed = self.chains.iter().filter(|(of, chain)| *of == table && saved.chains.contains_key(chain));
        for (_, chain) in fixed.filter(|place| !stays(place)) {
            restore.delete(table, *chain);
        }
        let of_service = |chain: &&Chain| table == Table::Nat && self.services.iter().any(|is| is(chain));
        for chain in saved.chains.keys().filter(of_service) {
            restore.delete(table, *chain);
        }
        restore
    }
}
