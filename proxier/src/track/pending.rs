//! How many changes wait for a sync, and since when: for metrics only.
//!
//! In: changes that make a difference. Out: their number by kind; when that happened which they are about.
//! Must not know: what a change is.

use std::collections::HashSet;
use std::time::SystemTime;

use super::change::Kind;
use crate::model::NamespacedName;

/// So many times are kept while syncs fail; what comes after them is not measured.
const MOST_TRIGGERS: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    services: HashSet<NamespacedName>,
    slices: usize,
    triggers: Vec<SystemTime>,
}

impl PendingChanges {
    /// A Service changed.
    pub fn service(&mut self, name: &NamespacedName) {
        self.services.insert(name.clone());
    }

    /// An EndpointSlice changed, because of something that happened then.
    pub fn slice(&mut self, trigger: Option<SystemTime>) {
        self.slices += 1;
        if self.triggers.len() < MOST_TRIGGERS {
            self.triggers.extend(trigger);
        }
    }

    /// How many wait.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::EndpointSlice => self.slices,
            Kind::Node | Kind::ServiceCidr => 0,
        }
    }

    /// A sync takes what waits. The times stay until it is known to have succeeded.
    pub fn taken(&mut self) {
        // After a list there are as many as Services: their room is given back.
        self.services = HashSet::new();
        self.slices = 0;
    }

    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        std::mem::take(&mut self.triggers)
    }
}
