//! What a [`Proxier`] looks at by itself, without any change of an object: facts of the host, and the kernel's state.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use netfilter::kernel;
use tracing::{debug, warn};

use super::Proxier;
use crate::backend::SyncError;
use crate::cleaner::FlowCleaner;
use crate::model::Scope;

/// How often what costs microseconds is looked at.
const QUICK_CHECK_PERIOD: Duration = Duration::from_millis(250);

impl Proxier {
    /// Looks for what costs microseconds to see: addresses that came or went, and damage such as a flushed table.
    pub(super) fn quick_check(&mut self, now: Instant) {
        self.next_quick_check = now + QUICK_CHECK_PERIOD;
        if self.address_watch.as_mut().is_some_and(|watch| watch.changed(now)) {
            self.check_host(now);
        }
        if self.quick_check_not_before > now {
            return;
        }
        let drift = self.backend.check_drift_quickly(now);
        self.repair(0, drift, now);
    }

    /// Reads what rules depend on besides objects, and has everything looked at if it is not as in the last sync.
    fn check_host(&mut self, now: Instant) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let changed = self.backend.host_changed(&self.tracker.snapshot(node_ip));
        // Flows may be stale at an address that left, though the rules are as they should be.
        let left = self.cleaner.as_mut().is_some_and(|cleaner| cleaner.left_addresses(node_ip));
        if changed || left {
            debug!("{}: this node's addresses or sysctls changed", self.family);
            self.request_full_sync(now);
        }
    }

    /// Has everything looked at if there is damage. Failures to look are logged once, each kind by itself.
    fn repair(&mut self, kind: usize, drift: Result<Option<String>, SyncError>, now: Instant) {
        let complaint = match drift {
            Ok(drift) => {
                if let Some(drift) = drift {
                    // It is seen again until `minSyncPeriod` allows the sync that repairs it.
                    if drift != self.drift {
                        warn!("{}: not as the last sync left it: {drift}", self.family);
                        self.drift = drift;
                    }
                    self.repairing = true;
                    self.request_full_sync(now);
                }
                String::new()
            }
            Err(error) => error.0,
        };
        if !complaint.is_empty() && complaint != self.complaints[kind] {
            warn!("{}: cannot check the rules, trying again: {complaint}", self.family);
        }
        self.complaints[kind] = complaint;
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
