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
const LOOK_PERIOD: Duration = Duration::from_millis(250);

impl Proxier {
    /// Looks for what costs microseconds to see: addresses that came or went, and damage such as a flushed table.
    pub(super) fn look(&mut self, now: Instant) {
        self.next_look = now + LOOK_PERIOD;
        if self.address_watch.as_mut().is_some_and(|watch| watch.changed(now)) {
            self.read_facts(now);
        }
        if self.next_quick_look > now {
            return;
        }
        let damage = self.backend.quick_damage(now);
        self.repair(0, damage, now);
    }

    /// Reads what rules depend on besides objects, and has everything looked at if it is not as in the last sync.
    fn read_facts(&mut self, now: Instant) {
        let node_ip = self.config.node_ip(self.family, self.tracker.node());
        let changed = self.backend.facts_changed(&self.tracker.snapshot(node_ip));
        // Flows may be stale at an address that left, though the rules are as they should be.
        let left = self.cleaner.as_mut().is_some_and(|cleaner| cleaner.left_addresses(node_ip));
        if changed || left {
            debug!("{}: this node's addresses or sysctls changed", self.family);
            self.want_everything(now);
        }
    }

    /// Has everything looked at if there is damage. Failures to look are logged once, each kind by itself.
    fn repair(&mut self, kind: usize, damage: Result<Option<String>, SyncError>, now: Instant) {
        let complaint = match damage {
            Ok(damage) => {
                if let Some(damage) = damage {
                    // It is seen again until `minSyncPeriod` allows the sync that repairs it.
                    if damage != self.damage {
                        warn!("{}: not as the last sync left it: {damage}", self.family);
                        self.damage = damage;
                    }
                    self.repairing = true;
                    self.want_everything(now);
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
        if self.cleaner.as_ref().is_some_and(FlowCleaner::owes) {
            self.clean_flows(&Scope::Full, BTreeSet::new());
        }
        self.read_facts(now);
        self.wake_leftovers();
        let damage = self.backend.damage(now);
        kernel::memory::release();
        self.repair(1, damage, now);
    }
}
