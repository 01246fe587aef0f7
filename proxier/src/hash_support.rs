//! Whether the kernel can choose endpoints by a hash, and the Services that go without.

use std::collections::BTreeSet;

use netfilter::IpFamily;
use tracing::warn;

use crate::model::{NamespacedName, ServicePort, ServicePortName, Snapshot};

/// What is known about the kernel's support, for one family.
#[derive(Debug, Default)]
pub(crate) struct HashSupport {
    /// `None` until the first Service port asks for a hash.
    is_supported: Option<bool>,
    /// Services that ask for a hash and go without.
    without: BTreeSet<NamespacedName>,
    /// Whether their warnings are written elsewhere.
    is_quiet: bool,
}

impl HashSupport {
    /// A mode that never hashes; the tracker warns of the Services.
    pub(crate) fn never() -> Self {
        Self { is_supported: Some(false), is_quiet: true, ..Self::default() }
    }

    /// How many Services ask for a hash and go without.
    pub(crate) fn services_without(&self) -> usize {
        self.without.len()
    }

    /// Whether hashes are rendered. Until the first request they are.
    pub(crate) fn is_supported(&self) -> bool {
        self.is_supported.unwrap_or(true)
    }

    /// Checks the kernel when a Service port of a sync is the first to ask for a hash.
    ///
    /// `changed` has the Service ports of a partial sync. `check` returns what the kernel lacks. A Service that goes
    /// without is logged once, until it no longer asks.
    pub(crate) fn update(
        &mut self,
        family: IpFamily,
        snapshot: &Snapshot<'_>,
        changed: Option<&BTreeSet<ServicePortName>>,
        check: impl FnOnce() -> Result<(), String>,
    ) {
        let of = |name: &ServicePortName| (name.service.clone(), snapshot.ports.get(name).is_some_and(asks));
        let asking: Vec<(NamespacedName, bool)> = match changed {
            Some(changed) => changed.iter().map(of).collect(),
            None => {
                let all = snapshot.ports.iter().filter(|(_, port)| asks(port));
                all.map(|(name, _)| (name.service.clone(), true)).collect()
            }
        };
        let mut lacks = None;
        if self.is_supported.is_none() && asking.iter().any(|(_, asks)| *asks) {
            lacks = check().err();
            self.is_supported = Some(lacks.is_none());
        }
        if self.is_supported() {
            return;
        }
        let next = lacks.map(|lacks| format!(": {lacks}")).unwrap_or_default();
        if changed.is_none() {
            let asking: BTreeSet<&NamespacedName> = asking.iter().map(|(service, _)| service).collect();
            self.without.retain(|service| asking.contains(service));
        }
        let still_asks =
            |service: &NamespacedName| snapshot.ports.iter().any(|(name, port)| name.service == *service && asks(port));
        for (service, does_ask) in asking {
            if !does_ask {
                // One of its ports may be gone alone.
                if self.without.contains(&service) && !still_asks(&service) {
                    self.without.remove(&service);
                }
            } else if self.without.insert(service.clone()) && !self.is_quiet {
                warn!("{family}: cannot choose endpoints of Service {service} by a hash, choosing as for others{next}");
            }
        }
    }
}

fn asks(port: &ServicePort) -> bool {
    port.endpoint_hash().is_some()
}
