//! Damage that costs microseconds to see: flushed tables, deleted chains, jumps that are gone.
//!
//! With nf_tables the kernel counts all changes, whoever makes them. After a change that is not ours, a chain that has
//! another handle was deleted and made again, and one that is used less has lost rules or jumps to it. With the legacy
//! flavour only the size of tables is told. What neither shows (a rule that was replaced by another) takes a look at all
//! rules; [`QuickCheck::is_due`] says when there is reason for one.

use std::io;
use std::time::{Duration, Instant};

use netfilter::iptables::{Chain, Table};
use netfilter::kernel::iptables::{IptablesTool, TableState};

use super::drift::describe;

/// Chains by table.
pub type ChainsByTable = [(Table, &'static [Chain])];

/// The state of tables after our last write, and whether another program has changed them since.
#[derive(Debug)]
pub struct QuickCheck {
    chains: &'static ChainsByTable,
    /// By table, in the order of `chains`; empty while nothing is known.
    known: Vec<TableState>,
    generation: Option<u32>,
    due: bool,
    /// When a foreign change was seen last.
    changed_at: Option<Instant>,
}

impl QuickCheck {
    /// A check of these chains, to which nothing but our own jumps leads.
    #[must_use]
    pub fn of(chains: &'static ChainsByTable) -> Self {
        Self { chains, known: Vec::new(), generation: None, due: false, changed_at: None }
    }

    /// Nothing is known, and nothing counts as damage, until the next [`QuickCheck::note`].
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// Takes the present state for the one that we left. `full`: all rules were looked at. `certain`: nobody else has
    /// changed anything since then.
    pub fn note(&mut self, tool: &mut dyn IptablesTool, full: bool, certain: bool) {
        self.generation = tool.generation();
        // Where it cannot be read, the check of every `syncPeriod` is all there is.
        self.known = self.read(tool).unwrap_or_default();
        self.due = (self.due && !full) || (!certain && self.generation.is_some());
    }

    /// The first damage. `rules` tells how many rules of ours a table has, jumps among them.
    ///
    /// # Errors
    /// If the kernel does not tell.
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

    /// Whether somebody else's change makes a look at all rules worth while, and they can be read.
    #[must_use]
    pub fn is_due(&self, now: Instant, reading: Duration) -> bool {
        self.due && !self.known.is_empty() && self.is_quiet(now, reading)
    }

    /// Whether nobody has changed nf_tables for as long as it takes to read all rules. The tools of that flavour begin anew
    /// whenever somebody changes anything, for ever if need be, so there is no use in starting them; the legacy ones read
    /// a table as it is at one moment.
    #[must_use]
    pub fn is_quiet(&self, now: Instant, reading: Duration) -> bool {
        self.generation.is_none() || self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= reading)
    }

    /// All rules were looked at.
    pub fn looked(&mut self) {
        self.due = false;
    }

    fn read(&self, tool: &mut dyn IptablesTool) -> io::Result<Vec<TableState>> {
        let states = self.chains.iter().map(|(table, chains)| tool.table_state(*table, chains));
        states.collect::<io::Result<Option<Vec<_>>>>().map(Option::unwrap_or_default)
    }
}

/// What a table lost that we had put there.
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
                    Some(now) if now.handle != known.handle => "was deleted and made again",
                    Some(now) if now.uses < known.uses => "has lost rules, or jumps to it",
                    Some(_) => return None,
                };
                Some(format!("{} {loss}", describe((table, *chain))))
            })
        }
        // Others may delete rules of theirs, but seldom half as many as we have.
        (TableState::Size(known), TableState::Size(now)) => {
            let (gone, ours) = (known.entries.saturating_sub(now.entries), rules(table));
            let many = gone > 0 && usize::try_from(gone).is_ok_and(|gone| gone >= ours.div_ceil(2));
            many.then(|| format!("table {} has lost {gone} entries, {ours} rules in it are ours", table.name()))
        }
        _ => None,
    }
}
