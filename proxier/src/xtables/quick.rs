//! Cheap drift detection for iptables tables: flushed tables, deleted chains, lost jumps.
//!
//! nf_tables counts all changes in its generation ID. After a foreign change, a chain with another handle was deleted
//! and recreated, and a chain with a lower use count has lost rules or jumps to it. The legacy flavour only reports
//! table sizes. A rule replaced by another shows in neither and takes a full read; [`QuickCheck::is_due`] says when
//! there is reason for one.

use std::io;
use std::time::{Duration, Instant};

use netfilter::iptables::{Chain, Table};
use netfilter::kernel::iptables::{IptablesTool, TableState};

use super::drift::describe;

/// Chains by table.
pub type ChainsByTable = [(Table, &'static [Chain])];

/// The state of tables after the last write, and whether another program changed them since.
#[derive(Debug)]
pub struct QuickCheck {
    chains: &'static ChainsByTable,
    /// By table, in the order of `chains`; empty while unknown.
    known: Vec<TableState>,
    generation: Option<u32>,
    due: bool,
    /// When the last foreign change was detected.
    changed_at: Option<Instant>,
}

impl QuickCheck {
    /// Creates a check of these chains, to which only this mode's rules jump.
    #[must_use]
    pub fn of(chains: &'static ChainsByTable) -> Self {
        Self { chains, known: Vec::new(), generation: None, due: false, changed_at: None }
    }

    /// Forgets the recorded state; nothing counts as drift until the next [`QuickCheck::note`].
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Records the current state as the one that the last write left.
    ///
    /// `full`: all rules were read. `certain`: no other program has changed anything since.
    pub fn note(&mut self, tool: &mut dyn IptablesTool, full: bool, certain: bool) {
        self.generation = tool.generation();
        // If it cannot be read, the check of every `syncPeriod` remains.
        self.known = self.read(tool).unwrap_or_default();
        self.due = (self.due && !full) || (!certain && self.generation.is_some());
    }

    /// Describes the first difference. `rules` counts this mode's rules in a table, jumps included.
    ///
    /// # Errors
    /// If the kernel state cannot be read.
    pub fn look(
        &mut self,
        tool: &mut dyn IptablesTool,
        rules: impl Fn(Table) -> usize,
        now: Instant,
    ) -> io::Result<Option<String>> {
        if self.known.is_empty() {
            return Ok(None);
        }
        let generation = tool.generation();
        if generation.is_some() && generation == self.generation {
            return Ok(None);
        }
        let states = self.read(tool)?;
        self.generation = generation;
        if states == self.known && generation.is_none() {
            return Ok(None);
        }
        self.due = true;
        self.changed_at = Some(now);
        let tables = self.chains.iter().zip(self.known.iter().zip(&states));
        let damage =
            tables.filter_map(|((table, chains), (known, now))| lost(*table, chains, known, now, &rules)).next();
        self.known = if damage.is_some() { Vec::new() } else { states };
        Ok(damage)
    }

    /// Whether a foreign change justifies a full read, and reading can succeed.
    #[must_use]
    pub fn is_due(&self, now: Instant, reading: Duration) -> bool {
        self.due && !self.known.is_empty() && self.is_quiet(now, reading)
    }

    /// Whether nf_tables has been unchanged for as long as a full read takes.
    ///
    /// The tools of that flavour restart their dump after every change, without limit, so starting them earlier is
    /// useless; the legacy tools read a table as of one moment.
    #[must_use]
    pub fn is_quiet(&self, now: Instant, reading: Duration) -> bool {
        self.generation.is_none() || self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= reading)
    }

    /// Records that all rules were read.
    pub fn looked(&mut self) {
        self.due = false;
    }

    fn read(&self, tool: &mut dyn IptablesTool) -> io::Result<Vec<TableState>> {
        let states = self.chains.iter().map(|(table, chains)| tool.table_state(*table, chains));
        states.collect::<io::Result<Option<Vec<_>>>>().map(Option::unwrap_or_default)
    }
}

/// What a table lost of this mode's chains or rules.
fn lost(
    table: Table,
    chains: &[Chain],
    known: &TableState,
    now: &TableState,
    rules: &impl Fn(Table) -> usize,
) -> Option<String> {
    match (known, now) {
        (TableState::Chains(known), TableState::Chains(now)) => {
            chains.iter().zip(known.iter().zip(now)).find_map(|(chain, (known, now))| {
                let known = (*known)?;
                let loss = match now {
                    None => "was deleted",
                    Some(now) if now.handle != known.handle => "was deleted and recreated",
                    Some(now) if now.uses < known.uses => "lost rules or jumps to it",
                    Some(_) => return None,
                };
                Some(format!("{} {loss}", describe((table, *chain))))
            })
        }
        // Other programs delete rules of theirs, but seldom half as many as this mode has.
        (TableState::Size(known), TableState::Size(now)) => {
            let (gone, ours) = (known.entries.saturating_sub(now.entries), rules(table));
            let many = gone > 0 && usize::try_from(gone).is_ok_and(|gone| gone >= ours.div_ceil(2));
            many.then(|| format!("table {} lost {gone} entries; kube-proxy has {ours} rules in it", table.name()))
        }
        _ => None,
    }
}
