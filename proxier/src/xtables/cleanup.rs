//! Removing every trace of a mode from the tables, and nothing else.
//!
//! In: what the mode owns, what another one needs meanwhile. Out: tables without its chains and jumps.
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
    /// Whether a chain of nat is one of a Service port.
    pub is_of_service: fn(&Chain) -> bool,
}

impl Owned {
    /// Removes jumps and chains, table by table; a table that fails does not keep the others. What `other` has too
    /// stays: it is in use now.
    ///
    /// # Errors
    /// One for each table that could not be cleaned.
    pub fn remove(&self, tool: &mut dyn IptablesTool, other: Option<&Self>) -> Vec<SyncError> {
        let tables = Table::ALL.into_iter().filter(|table| self.chains.iter().any(|(of, _)| of == table));
        let clean = |table: Table| -> Result<(), SyncError> {
            let saved = tool.save(table)?;
            let restore = self.removal(table, &saved, other);
            if restore.is_empty() { Ok(()) } else { tool.restore(&restore).map_err(|error| SyncError(error.message)) }
        };
        tables.map(clean).filter_map(Result::err).collect()
    }

    fn removal(&self, table: Table, saved: &SavedTable, other: Option<&Self>) -> Restore {
        let mut restore = Restore::default();
        let stays = |jump: &Jump| other.is_some_and(|other| other.jumps.contains(jump));
        for jump in self.jumps.iter().filter(|jump| jump.table == table && !stays(jump)) {
            for _ in 0..jump.count(saved) {
                restore.remove(table, jump.from, &jump.rule);
            }
        }
        let stays = |place: &Place| other.is_some_and(|other| other.chains.contains(place));
        let fixed = self.chains.iter().filter(|(of, chain)| *of == table && saved.chains.contains_key(chain));
        for (_, chain) in fixed.filter(|place| !stays(place)) {
            restore.delete(table, *chain);
        }
        for chain in saved.chains.keys().filter(|chain| table == Table::Nat && (self.is_of_service)(chain)) {
            restore.delete(table, *chain);
        }
        restore
    }
}
