//! iptables that takes everything and keeps nothing but its size: for benches.
//!
//! In: transactions. Out: how many bytes and transactions it was given. Must not know: what is in them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::iptables::{Chain, Rule, Table};
use crate::kernel::iptables::{IptablesTool, RestoreError, ToolError};
use crate::{Restore, SavedTable};

/// What a [`RecordingIptables`] was given.
#[derive(Debug, Default)]
pub struct Recorder {
    bytes: AtomicUsize,
    restores: AtomicUsize,
}

impl Recorder {
    /// The bytes and the transactions since the last call.
    pub fn take(&self) -> (usize, usize) {
        (self.bytes.swap(0, Ordering::Relaxed), self.restores.swap(0, Ordering::Relaxed))
    }
}

/// Tools in front of a kernel that holds nothing: every table reads empty, every transaction succeeds.
#[derive(Debug)]
pub struct RecordingIptables {
    recorder: Arc<Recorder>,
    batch: usize,
}

impl RecordingIptables {
    /// Transactions are best cut at `batch` chains.
    #[must_use]
    pub fn new(batch: usize, recorder: Arc<Recorder>) -> Self {
        Self { recorder, batch }
    }
}

impl IptablesTool for RecordingIptables {
    fn save(&mut self, _: Table) -> Result<SavedTable, ToolError> {
        Ok(SavedTable::default())
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), RestoreError> {
        let bytes = restore.parts().map(|part| std::hint::black_box(part).len()).sum();
        self.recorder.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.recorder.restores.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn has_rule(&mut self, _: Table, _: &str, _: &Rule) -> Result<bool, ToolError> {
        Ok(false)
    }

    fn references(&mut self, _: Table, _: &dyn Fn(&Chain) -> bool) -> Result<HashMap<Chain, String>, ToolError> {
        Ok(HashMap::new())
    }

    fn has_chain(&mut self, _: Table, _: Chain) -> Result<bool, ToolError> {
        Ok(true)
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn random_fully(&self) -> bool {
        true
    }
}
