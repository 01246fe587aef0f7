//! What a mode is to the rest of the program.
//!
//! In: a snapshot and how much of it to look at. Out: the kernel's state made so, and what was done.
//! Must not know: any mode.

use std::fmt;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::model::{Scope, ServicePortName, Snapshot};

/// A mode: turns snapshots into kernel state of one IP family.
pub trait Backend: Send + fmt::Debug {
    /// Sets what takes more rights than syncing does, or belongs to the start: the mode's sysctls. `--init-only` does
    /// this and no more. A mode that has nothing of that kind does nothing.
    ///
    /// # Errors
    /// What could not be set.
    fn prepare(&mut self) -> Result<(), SyncError> {
        Ok(())
    }

    /// Makes the kernel's state what `snapshot` asks for, looking only at what `scope` names.
    ///
    /// # Errors
    /// When the state could not be reached. What was there before is there still, or is already as it should be;
    /// the next sync has to be [`Scope::Full`].
    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) -> Result<SyncStats, SyncError>;

    /// Compares the kernel's state with what the last sync left: `None` if it is as it was, else what a person
    /// should read in the log. Cheap enough to be called every `syncPeriod`; it decides itself how deep it looks.
    ///
    /// # Errors
    /// When the state could not be read.
    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError>;

    /// Whether facts of the host that rules depend on (addresses, sysctls) are others than those of the last sync. Called
    /// after an address came or went and every `syncPeriod`. A fact that cannot be read has its last known value.
    fn host_changed(&mut self, _snapshot: &Snapshot<'_>) -> bool {
        false
    }

    /// Looks for damage like [`Backend::check_drift`], but only for what costs microseconds to see. Called several times a
    /// second.
    ///
    /// # Errors
    /// When the state could not be read.
    fn check_drift_quickly(&mut self, _now: Instant) -> Result<Option<String>, SyncError> {
        Ok(None)
    }

    /// When the mode has something to do by itself, besides syncs: then [`Backend::tick`] is to be called.
    fn next_event(&self) -> Option<Instant> {
        None
    }

    /// Does what was due.
    ///
    /// # Errors
    /// When it could not be done; the next sync has to be [`Scope::Full`].
    fn tick(&mut self, _now: Instant) -> Result<(), SyncError> {
        Ok(())
    }

    /// Removes every trace of this mode, and nothing else.
    ///
    /// # Errors
    /// All that went wrong; what could be removed is removed.
    fn cleanup(&mut self) -> Result<(), Vec<SyncError>>;
}

/// How long to wait after a check that took so much CPU time: checks may take one hundredth of one CPU.
pub(crate) fn budget_pause(effort: Duration) -> Duration {
    effort * 100
}

/// Why a sync failed, in the words of the tool or the kernel.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SyncError(pub String);

/// A Service port that the kernel or its tool would not take. It was left out; all others are programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The Service port.
    pub port: ServicePortName,
    /// What was refused and with which words.
    pub reason: String,
}

/// Rules of one table, as two of kube-proxy's metrics count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRules {
    /// The table.
    pub table: &'static str,
    /// Rules of ours in the table.
    pub total: usize,
    /// Rules written in this sync.
    pub written: usize,
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Whether everything was looked at.
    pub full: bool,
    /// Service ports left out.
    pub rejected: Vec<Rejected>,
    /// Service ports with endpoints, but none on this node, under `internalTrafficPolicy: Local`.
    pub no_local_internal: usize,
    /// The same under `externalTrafficPolicy: Local`.
    pub no_local_external: usize,
    /// Rules by table.
    pub rules: Vec<TableRules>,
    /// Attempts that failed before one was taken, which left out what was at fault or read anew.
    pub failed_writes: usize,
    /// Since the last sync, failures to delete what nothing uses any more. It stays for now.
    pub failed_deletions: usize,
}
