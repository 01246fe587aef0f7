//! The periodic checks of a [`Proxier`]: host addresses and sysctls, and drift of the kernel state.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netfilter::kernel;
use tracing::{debug, warn};

use super::Proxier;
use crate::backend::SyncError;
use crate::cleaner::FlowCleaner;
use crate::model::Scope;

/// The period of checks that cost microseconds.
const QUICK_CHECK_PERIOD: Duration = Duration::from_millis(250);

impl Proxier {
    /// Runs the cheap checks: address changes, and drift such as a flushed table.
    pub(super) fn quick_check(&mut self, now: Instant) {
        self.next_quick_check = now + QUICK_CHECK_PERIOD;
        if self.address_watch.as_mut().is_some_and(|watch| watch.changed(now)) {
            self.check_host(now);
        }
        self.clean_flows_again(now);
        if self.quick_check_not_before > now {
            return;
        }
        let drift = self.backend.check_drift_quickly(now);
        self.repair(0, drift, now);
    }

    fn clean_flows_again(&mut self, now: Instant) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let Some(cleaner) = &mut self.cleaner else { return };
        if let Some(cleaned) = cleaner.clean_again(&self.tracker.snapshot(node_ip), now) {
            self.observer.cleaned(&cleaned);
        }
    }

    /// Reads host addresses and sysctls, and requests a full sync if they changed.
    fn check_host(&mut self, now: Instant) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let changed = self.backend.host_changed(&self.tracker.snapshot(node_ip));
        // Flows may be stale at a lost address although the rules are unchanged.
        let left = self.cleaner.as_mut().is_some_and(|cleaner| cleaner.lost_node_port_address(node_ip));
        if changed || left {
            debug!("{}: starting a full sync: node addresses or sysctls changed", self.family);
            self.request_full_sync_for_host(now);
        }
    }

    /// Requests a full sync if there is drift. Logs failed checks once, each kind separately.
    fn repair(&mut self, kind: usize, drift: Result<Option<String>, SyncError>, now: Instant) {
        let failure = match drift {
            Ok(drift) => {
                if let Some(drift) = drift {
                    // It is detected again until `minSyncPeriod` allows the sync that repairs it.
                    if drift != self.drift {
                        warn!("{}: repairing drift: {drift}", self.family);
                        self.drift = drift;
                    }
                    self.repairing = true;
                    self.request_full_sync_for_host(now);
                }
                String::new()
            }
            Err(error) => error.0,
        };
        if !failure.is_empty() && failure != self.check_failures[kind] {
            warn!("{}: cannot check for drift, retrying: {failure}", self.family);
        }
        self.check_failures[kind] = failure;
    }

    pub(super) fn check(&mut self, now: Instant) {
        self.next_check = now + self.config.periods.sync;
        if self.cleaner.as_ref().is_some_and(FlowCleaner::needs_retry) {
            self.clean_flows(&Scope::Full, BTreeSet::new());
        }
        self.check_host(now);
        self.wake_leftovers();
        let drift = self.backend.check_drift(now);
        kernel::memory::release();
        self.repair(1, drift, now);
    }
}
