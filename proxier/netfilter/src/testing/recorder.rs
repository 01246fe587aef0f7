//! iptables programs that discard their input and record its size, for benches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::iptables::{Chain, Rule, Table};
use crate::kernel::iptables::{IptablesTool, RestoreError, ToolError};
use crate::{Restore, SavedTable};

/// The input of a [`RecordingIptables`].
#[derive(Debug, Default)]
pub struct Recorder {
    bytes: AtomicUsize,
    restores: AtomicUsize,
}

impl Recorder {
    /// The bytes and transactions since the last call.
    pub fn take(&self) -> (usize, usize) {
        (self.bytes.swap(0, Ordering::Relaxed), self.restores.swap(0, Ordering::Relaxed))
    }
}

/// Programs whose tables are always empty and whose transactions always succeed.
#[derive(Debug)]
pub struct RecordingIptables {
    recorder: Arc<Recorder>,
    batch: usize,
}

impl RecordingIptables {
    /// Programs for which transactions should be split at `batch` chains.
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
