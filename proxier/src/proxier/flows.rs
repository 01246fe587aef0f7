//! Flows and connections that outlive the rules that created them.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::warn;

use super::Proxier;
use crate::model::{Destination, Scope};

impl Proxier {
    /// Deletes flows that the rules would not create any more, and schedules the end of connections.
    ///
    /// Only after a sync: until then the old rules would create them again.
    pub(super) fn clean_flows(&mut self, scope: &Scope, gone: BTreeSet<Destination>) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let snapshot = self.tracker.snapshot(node_ip);
        if let Some(cleaned) = self.cleaner.as_mut().and_then(|cleaner| cleaner.clean(&snapshot, scope, gone)) {
            self.observer.cleaned(&cleaned);
        }
        if let Some(ender) = &mut self.ender {
            ender.synced(&snapshot, scope, Instant::now());
        }
    }

    /// Ends connections to endpoints that are gone.
    pub(super) fn end_connections(&mut self, now: Instant) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let Some(ender) = &mut self.ender else { return };
        let mut failure = None;
        let mut end_tracked = |ports: &_| failure = self.backend.end_connections(ports, now).err();
        let ended = ender.end(&self.tracker.snapshot(node_ip), now, &mut end_tracked);
        if ended > 0 {
            self.observer.ended(ended);
        }
        if let Some(error) = failure {
            warn!("{}: starting a full sync: {error}", self.family);
            self.request_full_sync_for_host(now);
        }
    }
}
