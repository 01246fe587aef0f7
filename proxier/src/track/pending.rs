//! Counts changes that wait for a sync, and their trigger times, for metrics.

use std::collections::HashSet;
use std::time::SystemTime;

use super::change::Kind;
use crate::model::NamespacedName;

/// The maximum number of trigger times kept while syncs fail; later ones are not measured.
const MAX_TRIGGERS: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    services: HashSet<NamespacedName>,
    slices: usize,
    triggers: Vec<SystemTime>,
}

impl PendingChanges {
    /// Counts a changed Service.
    pub fn service(&mut self, name: &NamespacedName) {
        self.services.insert(name.clone());
    }

    /// Counts a changed EndpointSlice, with its trigger time.
    pub fn slice(&mut self, trigger: Option<SystemTime>) {
        self.slices += 1;
        if self.triggers.len() < MAX_TRIGGERS {
            self.triggers.extend(trigger);
        }
    }

    /// The number of pending changes of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices,
            Kind::Node | Kind::ServiceCidr => 0,
        }
    }

    /// Clears the counts when a sync starts. Trigger times stay until a sync succeeds.
    pub fn taken(&mut self) {
        // After a list there is one per Service: release the memory.
        self.services = HashSet::new();
        self.slices = 0;
    }

    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        std::mem::take(&mut self.triggers)
    }
}
