//! Tracks the nf_tables generation ID, which the kernel increments with every commit.
//!
//! The tool commits each table of a transaction separately, so after own writes the expected ID is known unless another
//! program has committed too. The legacy flavour has no such ID, so its state always counts as unknown.

use netfilter::kernel::iptables::IptablesTool;

/// The generation ID at which the kernel state was last known.
#[derive(Debug, Default)]
pub struct GenerationTracker(Option<u32>);

/// Own writes between two reads of the generation ID.
#[derive(Debug)]
pub struct OwnWrites {
    /// The generation ID before them, if the kernel state was known then.
    before: Option<u32>,
    tables: u32,
}

impl GenerationTracker {
    /// Whether nothing has been committed since the kernel state was last known.
    pub fn is_current(&self, tool: &mut dyn IptablesTool) -> bool {
        self.0.is_some() && tool.generation() == self.0
    }

    /// Whether the kernel state was known after the last writes.
    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Begins writes; the state is unknown until [`GenerationTracker::commit`]. `read`: all rules are read before the
    /// first write.
    pub fn begin(&mut self, tool: &mut dyn IptablesTool, read: bool) -> OwnWrites {
        let (known, now) = (self.0.take(), tool.generation());
        OwnWrites { before: now.filter(|_| read || known == now), tables: 0 }
    }

    /// Ends writes: the state is known if only own writes were committed.
    pub fn commit(&mut self, tool: &mut dyn IptablesTool, writes: &OwnWrites) {
        let expected = writes.before.map(|before| before.wrapping_add(writes.tables));
        self.0 = expected.filter(|_| tool.generation() == expected);
    }
}

impl OwnWrites {
    /// Records a transaction of that many tables.
    pub fn record(&mut self, tables: usize) {
        self.tables = self.tables.saturating_add(u32::try_from(tables).unwrap_or(u32::MAX));
    }
}
