//! Reports what a family's proxier does to health, health checks, the localhost proxy and metrics.

use std::sync::Arc;

use netfilter::IpFamily;
use proxier::cleaner::CleanupStats;
use proxier::proxier::{Observer, SyncReport};
use proxier::track::Kind;

use crate::health::Health;
use crate::health_checks::HealthCheckSender;
use crate::localhost_proxy::LocalhostSender;
use crate::metrics::Metrics;

/// The observer of one family.
pub struct Reporter {
    family: IpFamily,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    checks: HealthCheckSender,
    localhost: Option<LocalhostSender>,
}

impl Reporter {
    /// Creates the observer and marks the family as started.
    pub fn new(family: IpFamily, health: Arc<Health>, metrics: Arc<Metrics>, checks: HealthCheckSender) -> Self {
        health.started(family);
        metrics.queued(family);
        Self { family, health, metrics, checks, localhost: None }
    }

    /// The same with a localhost proxy.
    pub fn with_localhost(self, localhost: Option<LocalhostSender>) -> Self {
        Self { localhost, ..self }
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
        if let (Some(localhost), Some(ports)) = (&self.localhost, &report.localhost_ports) {
            // So does the proxy's thread.
            let _ = localhost.send((self.family, ports.clone()));
        }
    }

    fn cleaned(&mut self, cleaned: &CleanupStats) {
        self.metrics.cleaned(self.family, cleaned);
    }

    fn ended(&mut self, connections: usize) {
        self.metrics.ended(self.family, connections);
    }
}
