//! Adds up what the kernel counts, so that no total ever decreases.
//!
//! The kernel's counts end with the rule, element or virtual server that has them, and begin again at zero with the next
//! of the same name. A total keeps what was read before; what an object counted between the last read and its end is
//! lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netfilter::ipvs::Statistics;
use proxier::model::{NamespacedName, ServicePortName};
use proxier::traffic::TrafficSample;

use super::SelectedServices;
use super::admission::{Total, admit};
use crate::metrics::{FamilyTraffic, PortTraffic};

/// How long totals are kept and shown after the kernel's last count: endpoints that come back go on where they were.
pub(super) const KEPT: Duration = Duration::from_hours(1);
/// The limit of endpoints, as a multiple of that of Service ports.
const ENDPOINTS_PER_PORT: usize = 10;

/// What is shown.
#[derive(Clone, Default)]
pub struct TrafficSelection {
    /// The namespaces of Services; empty: all.
    pub namespaces: BTreeSet<Arc<str>>,
    /// The Services of the label selector; `None`: all.
    pub services: Option<SelectedServices>,
    /// The most Service ports of a family. Of endpoints there are ten times as many at most.
    pub limit: usize,
    /// Whether endpoints are shown.
    pub endpoints: bool,
    /// Whether the kernel counts packets and bytes, too, and a read may miss objects: in IPVS mode.
    pub ipvs: bool,
}

impl TrafficSelection {
    /// Whether a Service is shown.
    #[must_use]
    pub fn is_selected(&self, service: &NamespacedName) -> bool {
        let has_namespace = self.namespaces.is_empty() || self.namespaces.contains(&service.namespace);
        has_namespace && self.services.as_ref().is_none_or(|services| services.contains(service))
    }
}

/// The totals of one family.
#[derive(Debug, Default)]
pub struct FamilyTotals {
    /// The last count of each of the kernel's objects.
    last: HashMap<Box<[u8]>, LastCounts>,
    ports: BTreeMap<ServicePortName, PortTotal>,
    endpoints: usize,
    omitted_ports: usize,
    omitted_endpoints: usize,
}

#[derive(Clone, Copy, Debug)]
struct LastCounts {
    counts: Statistics,
    seen: Instant,
}

#[derive(Debug)]
struct PortTotal {
    counts: Statistics,
    seen: Instant,
    endpoints: BTreeMap<SocketAddr, EndpointTotal>,
}

impl Total for PortTotal {
    fn new(now: Instant) -> Self {
        Self { counts: Statistics::default(), seen: now, endpoints: BTreeMap::new() }
    }

    fn seen(&self) -> Instant {
        self.seen
    }
}

#[derive(Debug)]
struct EndpointTotal {
    counts: Statistics,
    seen: Instant,
}

impl FamilyTotals {
    /// Adds a complete read of the kernel at `now`.
    pub fn add(&mut self, selection: &TrafficSelection, mut samples: Vec<TrafficSample>, now: Instant) {
        samples.retain(|sample| selection.is_selected(&sample.port.service));
        self.admit(selection, &samples, now);
        let mut last = HashMap::with_capacity(samples.len());
        let mut omitted_endpoints = BTreeSet::new();
        for TrafficSample { source, port: name, endpoint, adds_to_port, counts, .. } in samples {
            let Some(port) = self.ports.get_mut(&name) else { continue };
            let known = self.last.get(&source);
            let new = known.map_or(counts, |known| increase(known.counts, counts));
            last.insert(source, LastCounts { counts, seen: now });
            port.seen = now;
            if adds_to_port {
                add(&mut port.counts, new);
            }
            let Some(address) = endpoint.filter(|_| selection.endpoints) else { continue };
            if !port.endpoints.contains_key(&address) {
                if self.endpoints >= selection.limit.saturating_mul(ENDPOINTS_PER_PORT) {
                    omitted_endpoints.insert((name, address));
                    continue;
                }
                self.endpoints += 1;
            }
            let total =
                port.endpoints.entry(address).or_insert(EndpointTotal { counts: Statistics::default(), seen: now });
            add(&mut total.counts, new);
            total.seen = now;
        }
        if selection.ipvs {
            // A missed server must not count as a new one when it is seen again.
            let missed = self.last.drain().filter(|(_, last)| now.saturating_duration_since(last.seen) < KEPT);
            missed.for_each(|(source, counts)| _ = last.entry(source).or_insert(counts));
        }
        self.last = last;
        self.omitted_endpoints = omitted_endpoints.len();
    }

    /// Forgets what is gone for long, and admits new Service ports up to the limit, in the order of their names.
    fn admit(&mut self, selection: &TrafficSelection, samples: &[TrafficSample], now: Instant) {
        self.ports.retain(|_, port| now.saturating_duration_since(port.seen) < KEPT);
        for port in self.ports.values_mut() {
            port.endpoints.retain(|_, endpoint| now.saturating_duration_since(endpoint.seen) < KEPT);
        }
        let present: BTreeSet<&ServicePortName> = samples.iter().map(|sample| &sample.port).collect();
        self.omitted_ports = admit(&mut self.ports, &present, selection.limit, now);
        self.endpoints = self.ports.values().map(|port| port.endpoints.len()).sum();
    }

    /// The totals, to be shown.
    #[must_use]
    pub fn shown(&self) -> FamilyTraffic {
        let ports = self.ports.iter().map(|(name, port)| PortTraffic {
            port: name.clone(),
            counts: port.counts,
            endpoints: port.endpoints.iter().map(|(address, total)| (*address, total.counts)).collect(),
        });
        FamilyTraffic {
            ports: ports.collect(),
            omitted_ports: self.omitted_ports,
            omitted_endpoints: self.omitted_endpoints,
            ..FamilyTraffic::default()
        }
    }
}

/// What was counted between two reads. Lower counts are those of an object that was made anew.
fn increase(before: Statistics, now: Statistics) -> Statistics {
    let fields =
        |counts: Statistics| [counts.connections, counts.packets, counts.bytes, counts.packets_back, counts.bytes_back];
    if fields(now).iter().zip(fields(before)).any(|(now, before)| *now < before) {
        return now;
    }
    Statistics {
        connections: now.connections - before.connections,
        packets: now.packets - before.packets,
        bytes: now.bytes - before.bytes,
        packets_back: now.packets_back - before.packets_back,
        bytes_back: now.bytes_back - before.bytes_back,
    }
}

fn add(total: &mut Statistics, new: Statistics) {
    total.connections = total.connections.saturating_add(new.connections);
    total.packets = total.packets.saturating_add(new.packets);
    total.bytes = total.bytes.saturating_add(new.bytes);
    total.packets_back = total.packets_back.saturating_add(new.packets_back);
    total.bytes_back = total.bytes_back.saturating_add(new.bytes_back);
}

#[cfg(test)]
#[path = "totals_tests.rs"]
mod tests;
