//! The interface between a family's proxier and a proxy mode.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::model::{Scope, ServicePortName, Snapshot};

/// A proxy mode: turns snapshots into kernel state of one IP family.
pub trait Backend: Send + fmt::Debug {
    /// Sets the mode's sysctls; `--init-only` does only this.
    ///
    /// These need more privileges than syncing does. A mode without sysctls does nothing.
    ///
    /// # Errors
    /// If a sysctl could not be set.
    fn prepare(&mut self) -> Result<(), SyncError> {
        Ok(())
    }

    /// Syncs the kernel state to `snapshot`, restricted to `scope`.
    ///
    /// # Errors
    /// If the state could not be reached. Each object is then either unchanged or already as desired; the next sync
    /// must be [`Scope::Full`].
    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) -> Result<SyncStats, SyncError>;

    /// Compares the kernel state with what the last sync wrote.
    ///
    /// Returns a description of the first difference, for the log. The mode limits its own cost, so this may be called
    /// every `syncPeriod`.
    ///
    /// # Errors
    /// If the state could not be read.
    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError>;

    /// Whether host addresses or sysctls that rules depend on changed since the last sync.
    ///
    /// Called after an address change and every `syncPeriod`. A value that cannot be read keeps its last known value.
    fn host_changed(&mut self, _snapshot: &Snapshot<'_>) -> bool {
        false
    }

    /// Like [`Backend::check_drift`], restricted to checks that cost microseconds.
    ///
    /// Called several times a second.
    ///
    /// # Errors
    /// If the state could not be read.
    fn check_drift_quickly(&mut self, _now: Instant) -> Result<Option<String>, SyncError> {
        Ok(None)
    }

    /// When [`Backend::tick`] is due, if the mode has work besides syncs.
    fn next_event(&self) -> Option<Instant> {
        None
    }

    /// Does the work announced by [`Backend::next_event`].
    ///
    /// # Errors
    /// If the work failed; the next sync must be [`Scope::Full`].
    fn tick(&mut self, _now: Instant) -> Result<(), SyncError> {
        Ok(())
    }

    /// Ends connections of Service ports to removed endpoints that the mode keeps only until now.
    ///
    /// # Errors
    /// If the work failed; the next sync must be [`Scope::Full`].
    fn end_connections(&mut self, _ports: &BTreeSet<ServicePortName>, _now: Instant) -> Result<(), SyncError> {
        Ok(())
    }

    /// Removes all kernel state of this mode and nothing else.
    ///
    /// # Errors
    /// All failures; everything that can be removed is removed.
    fn cleanup(&mut self) -> Result<(), Vec<SyncError>>;
}

/// The pause after a check of that CPU time: checks may use one hundredth of one CPU.
pub(crate) fn budget_pause(effort: Duration) -> Duration {
    effort * 100
}

/// A failed sync, in the words of the tool or the kernel.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SyncError(pub String);

/// A Service port that the kernel or the tool refused.
///
/// It is left out; all others are programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The Service port.
    pub port: ServicePortName,
    /// The refused rule or operation and the error.
    pub reason: String,
}

/// Service ports that a mode leaves out, each with the reason.
pub(crate) type RejectedPorts = HashMap<ServicePortName, String>;

/// The maximum number of refused Service ports in one sync.
const MAX_REJECTIONS: usize = 1000;

/// Adds refused Service ports, so that the next attempt leaves them out; returns whether another attempt makes sense.
///
/// It does not if no port is at fault, too many are, or one was left out already.
pub(crate) fn reject(rejected: &mut RejectedPorts, refused: Vec<(ServicePortName, String)>) -> bool {
    if refused.is_empty() || rejected.len() + refused.len() > MAX_REJECTIONS {
        return false;
    }
    refused.into_iter().all(|(port, reason)| rejected.insert(port, reason).is_none())
}

/// The rejected Service ports, for [`SyncStats`].
pub(crate) fn list_rejected(rejected: &RejectedPorts) -> Vec<Rejected> {
    rejected.iter().map(|(port, reason)| Rejected { port: port.clone(), reason: reason.clone() }).collect()
}

/// Rule counts of one table, for two of kube-proxy's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRules {
    /// The table.
    pub table: &'static str,
    /// Rules of this proxy in the table.
    pub total: usize,
    /// Rules written in this sync.
    pub written: usize,
}

/// The result of a sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Whether this was a full sync.
    pub full: bool,
    /// Service ports left out.
    pub rejected: Vec<Rejected>,
    /// Service ports with endpoints, but none on this node, under `internalTrafficPolicy: Local`.
    pub no_local_internal: usize,
    /// The same under `externalTrafficPolicy: Local`.
    pub no_local_external: usize,
    /// Services that ask for endpoints chosen by a hash, which the mode or the kernel cannot do.
    pub unhashed_services: usize,
    /// Rules by table.
    pub rules: Vec<TableRules>,
    /// Failed attempts before one succeeded.
    pub failed_writes: usize,
    /// Failed deletions of unused objects since the last sync; they are retried later.
    pub failed_deletions: usize,
}
