//! Whether the kernel still holds what it held when it was last known.
//!
//! In: the number that nf_tables makes another one with every change, whoever makes it; our own writes. Out: whether
//! all has to be read to tell. Must not know: rules.
//!
//! The tool commits each table of a transaction as one change, so after our own writes the number is known, unless
//! somebody else has been there too. With the legacy flavour there is no such number, and nothing is ever taken for known.

use netfilter::kernel::iptables::IptablesTool;

/// What is known.
#[derive(Debug, Default)]
pub struct GenerationTracker(Option<u32>);

/// Our own changes, from one look at the number to the next.
#[derive(Debug)]
pub struct OwnWrites {
    /// The number before them, if what the kernel held then is known.
    before: Option<u32>,
    tables: u32,
}

impl GenerationTracker {
    /// Whether nobody has changed anything since it was known what the kernel holds.
    pub fn is_current(&self, tool: &mut dyn IptablesTool) -> bool {
        self.0.is_some() && tool.generation() == self.0
    }

    /// Whether it was known after the last changes what the kernel holds.
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Begins changes. Until they end well nothing is known. `read`: all is going to be read before the first of them.
    pub fn begin(&mut self, tool: &mut dyn IptablesTool, read: bool) -> OwnWrites {
        let (known, now) = (self.0.take(), tool.generation());
        OwnWrites { before: now.filter(|_| read || known == now), tables: 0 }
    }

    /// Ends them.
    pub fn commit(&mut self, tool: &mut dyn IptablesTool, writes: &OwnWrites) {
        let expected = writes.before.map(|before| before.wrapping_add(writes.tables));
        self.0 = expected.filter(|_| tool.generation() == expected);
    }
}

impl OwnWrites {
    /// One was made, of so many tables.
    pub fn record(&mut self, tables: usize) {
        self.tables = self.tables.saturating_add(u32::try_from(tables).unwrap_or(u32::MAX));
    }
}
