//! Tells whether a sync runs, so that `/debug/rules` does not read all rules meanwhile and slow both down.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::model::{Scope, ServicePortName, Snapshot};

/// How many families are at work, and how many syncs began.
#[derive(Clone, Debug, Default)]
pub struct Syncing(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Syncing {
    /// Whether any is.
    #[must_use]
    pub fn now(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    /// How many syncs began so far.
    #[must_use]
    pub fn begun(&self) -> usize {
        self.1.load(Ordering::Acquire)
    }

    /// A mode that tells when it is at work.
    #[must_use]
    pub fn watch(&self, backend: Box<dyn Backend>) -> Box<dyn Backend> {
        Box::new(Watched { backend, syncing: self.clone() })
    }

    fn busy(&self) -> Busy<'_> {
        self.0.fetch_add(1, Ordering::AcqRel);
        Busy(self)
    }
}

/// At work until dropped.
struct Busy<'a>(&'a Syncing);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Watched {
    backend: Box<dyn Backend>,
    syncing: Syncing,
}

impl Backend for Watched {
    fn prepare(&mut self) -> Result<(), SyncError> {
        self.backend.prepare()
    }

    fn sync(&mut self, snapshot: &Snapshot<'_>, scope: &Scope, now: Instant) -> Result<SyncStats, SyncError> {
        let _busy = self.syncing.busy();
        self.syncing.1.fetch_add(1, Ordering::AcqRel);
        self.backend.sync(snapshot, scope, now)
    }

    fn check_drift(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        let _busy = self.syncing.busy();
        self.backend.check_drift(now)
    }

    fn host_changed(&mut self, snapshot: &Snapshot<'_>) -> bool {
        self.backend.host_changed(snapshot)
    }

    fn check_drift_quickly(&mut self, now: Instant) -> Result<Option<String>, SyncError> {
        self.backend.check_drift_quickly(now)
    }

    fn next_event(&self) -> Option<Instant> {
        self.backend.next_event()
    }

    fn tick(&mut self, now: Instant) -> Result<(), SyncError> {
        let _busy = self.syncing.busy();
        self.backend.tick(now)
    }

    fn end_connections(&mut self, ports: &BTreeSet<ServicePortName>, now: Instant) -> Result<(), SyncError> {
        let _busy = self.syncing.busy();
        self.backend.end_connections(ports, now)
    }

    fn cleanup(&mut self) -> Result<(), Vec<SyncError>> {
        let _busy = self.syncing.busy();
        self.backend.cleanup()
    }
}
