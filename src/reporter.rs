//! Reports what a family's proxier does to health, health checks and metrics.

use std::sync::Arc;

use netfilter::IpFamily;
use proxier::cleaner::CleanupStats;
use proxier::proxier::{Observer, SyncReport};
use proxier::track::Kind;

use crate::health::Health;
use crate::health_checks::HealthCheckSender;
use crate::metrics::Metrics;

/// The observer of one family.
pub struct Reporter {
    family: IpFamily,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    checks: HealthCheckSender,
}

impl Reporter {
    /// Creates the observer and marks the family as started.
    pub fn new(family: IpFamily, health: Arc<Health>, metrics: Arc<Metrics>, checks: HealthCheckSender) -> Self {
        health.started(family);
        metrics.queued(family);
        Self { family, health, metrics, checks }
    }
}

impl Observer for Reporter {
    fn changed(&mut self, kind: Kind, pending: usize) {
        self.metrics.changed(self.family, kind, pending);
    }

    fn queued(&mut self) {
        self.health.queued(self.family);
        self.metrics.queued(self.family);
    }

    fn synced(&mut self, report: &SyncReport<'_>) {
        if report.result.is_ok() {
            self.health.synced(self.family);
        }
        self.metrics.synced(self.family, report);
        if let Some(checks) = &report.health_checks {
            // The receiver outlives the families.
            let _ = self.checks.send((self.family, checks.clone()));
        }
    }

    fn cleaned(&mut self, cleaned: &CleanupStats) {
        self.metrics.cleaned(self.family, cleaned);
    }
}
