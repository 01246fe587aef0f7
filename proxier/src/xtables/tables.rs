//! iptables tables as read back from the kernel.

use netfilter::iptables::{Chain, Table};
use netfilter::kernel::ToolError;
use netfilter::kernel::iptables::IptablesTool;
use netfilter::{SavedChain, SavedTable};

use super::jump::{Jump, JumpPresence};

/// Saved tables, and the jumps from built-in chains that are missing.
#[derive(Debug, Default)]
pub struct ObservedTables {
    tables: [SavedTable; Table::ALL.len()],
    /// Missing jumps from built-in chains.
    pub missing_jumps: Vec<Jump>,
}

impl ObservedTables {
    /// Reads `tables`; the others are empty.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn read(tool: &mut dyn IptablesTool, tables: &[Table], jumps: Vec<Jump>) -> Result<Self, ToolError> {
        let mut read = Self::default();
        for &table in tables {
            read.tables[table as usize] = tool.save(table)?;
        }
        for jump in jumps {
            let missing = match jump.presence(read.table(jump.table)) {
                JumpPresence::Present => false,
                JumpPresence::Absent => true,
                JumpPresence::Alike => !tool.has_rule(jump.table, jump.from, &jump.rule)?,
            };
            if missing {
                read.missing_jumps.push(jump);
            }
        }
        Ok(read)
    }

    /// One table.
    #[must_use]
    pub fn table(&self, table: Table) -> &SavedTable {
        &self.tables[table as usize]
    }

    /// A chain, if it exists.
    #[must_use]
    pub fn chain(&self, table: Table, chain: &Chain) -> Option<SavedChain> {
        self.table(table).chains.get(chain).copied()
    }
}
