//! The model of one family, and which Service ports changed since the last sync.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::change::{Change, Kind, ObjectKey, SliceContent};
use super::copy::{CopyError, CopyRequest};
use super::pending::PendingChanges;
use super::strings::StringInterner;
use crate::model::{
    Destination, Endpoints, NamespacedName, NodeInfo, Protocol, Scope, ServicePort, ServicePortName, Slice, Snapshot,
};
use crate::traffic::DestinationNames;

/// Holds the model of one family and its pending changes.
#[derive(Debug, Default)]
pub struct Tracker {
    ports: BTreeMap<ServicePortName, ServicePort>,
    endpoints: Endpoints,
    /// The Service of each slice: its label may change (behaviour.yaml I20).
    slices: HashMap<NamespacedName, Arc<str>>,
    node: NodeInfo,
    service_cidrs: BTreeMap<NamespacedName, Vec<IpNet>>,
    /// All ServiceCIDR networks without duplicates (behaviour.yaml I7), sorted.
    nets: Vec<IpNet>,
    pending: BTreeSet<ServicePortName>,
    everything: bool,
    waiting: PendingChanges,
    /// Destinations that UDP Service ports have released since last taken.
    gone: BTreeSet<Destination>,
    /// Objects that the current list has not contained yet.
    unseen: HashMap<Kind, HashSet<NamespacedName>>,
    listed: HashSet<Kind>,
    strings: StringInterner,
}

impl Tracker {
    /// Applies a change; returns whether a sync is needed.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(name, mut ports) => {
                self.seen(Kind::Service, &name);
                for (port, _) in &mut ports {
                    let ServicePortName { service, port, .. } = port;
                    [&mut service.namespace, &mut service.name, port].into_iter().for_each(|s| self.strings.share(s));
                }
                self.set_service(&name, ports)
            }
            Change::Slice(mut name, mut content) => {
                self.seen(Kind::EndpointSlice, &name);
                if let Some(SliceContent { service, slice, .. }) = &mut content {
                    let ports = slice.ports.iter_mut().map(|port| &mut port.name);
                    [&mut name.namespace, service].into_iter().chain(ports).for_each(|s| self.strings.share(s));
                }
                self.set_slice(name, content)
            }
            Change::Node(node) => {
                let differs = self.node != node;
                self.everything |= differs;
                self.node = node;
                differs
            }
            Change::ServiceCidr(name, nets) => {
                self.seen(Kind::ServiceCidr, &name);
                self.set_service_cidr(name, nets)
            }
            Change::Kept(ObjectKey { kind, name }) => {
                self.seen(kind, &name);
                false
            }
            Change::Listing(kind) => {
                let known = match kind {
                    Kind::Service => self.ports.keys().map(|port| port.service.clone()).collect(),
                    Kind::EndpointSlice => self.slices.keys().cloned().collect(),
                    Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
                    Kind::Node => HashSet::new(),
                };
                self.unseen.insert(kind, known);
                false
            }
            Change::Listed(kind) => self.end_list(kind),
            Change::ListedInPart(kind) => {
                self.unseen.remove(&kind);
                self.end_list(kind)
            }
        }
    }

    /// Whether Services and EndpointSlices have been listed; before, nothing may be programmed.
    #[must_use]
    pub fn complete(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice].into_iter().all(|kind| self.listed(kind))
    }

    /// Whether the own Node is known, or known to be missing.
    #[must_use]
    pub fn node_listed(&self) -> bool {
        self.listed(Kind::Node)
    }

    /// Whether objects of that kind have been listed.
    #[must_use]
    pub fn listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// The own Node as last known.
    #[must_use]
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }

    /// Borrows the model. `node_ip` is the node's address in this family.
    #[must_use]
    pub fn snapshot(&self, node_ip: IpAddr) -> Snapshot<'_> {
        let service_cidrs = &self.nets;
        Snapshot { ports: &self.ports, endpoints: &self.endpoints, node: &self.node, node_ip, service_cidrs }
    }

    /// The number of changes of that kind that wait for a sync.
    #[must_use]
    pub fn waiting(&self, kind: Kind) -> usize {
        self.waiting.count(kind)
    }

    /// The trigger times of changes since last taken.
    pub fn take_triggers(&mut self) -> Vec<SystemTime> {
        self.waiting.take_triggers()
    }

    /// Takes the scope of the next sync. If that fails, request a full sync.
    pub fn take_scope(&mut self) -> Scope {
        self.waiting.taken();
        let pending = std::mem::take(&mut self.pending);
        if std::mem::take(&mut self.everything) { Scope::Full } else { Scope::Changed(pending) }
    }

    /// Requests a full sync.
    pub fn request_full_sync(&mut self) {
        self.everything = true;
    }

    /// Includes Service ports in the next sync.
    pub fn request_sync_of(&mut self, ports: impl IntoIterator<Item = ServicePortName>) {
        self.pending.extend(ports);
    }

    /// Takes the destinations that UDP Service ports may have released: flows to them outlive their rules.
    pub fn take_gone(&mut self) -> BTreeSet<Destination> {
        std::mem::take(&mut self.gone)
    }

    /// Copies the model without pending changes: a copy is never synced.
    ///
    /// # Errors
    /// If the model is not complete, or too large.
    pub fn copy(&self, CopyRequest { only, max_ports }: &CopyRequest) -> Result<Self, CopyError> {
        if !self.complete() {
            return Err(CopyError::Incomplete);
        }
        let wanted = |name: &NamespacedName| only.as_ref().is_none_or(|only| only == name);
        let ports = self.ports.iter().filter(|(port, _)| wanted(&port.service));
        let count = ports.clone().count();
        if count > *max_ports {
            return Err(CopyError::TooMany(count));
        }
        Ok(Self {
            ports: ports.map(|(name, port)| (name.clone(), port.clone())).collect(),
            endpoints: self.endpoints.copy(wanted),
            node: self.node.clone(),
            service_cidrs: self.service_cidrs.clone(),
            nets: self.nets.clone(),
            listed: self.listed.clone(),
            ..Self::default()
        })
    }

    /// The Service ports by destination. Of several that claim one, the first by name has it.
    #[must_use]
    pub fn destination_names(&self) -> DestinationNames {
        let mut names = DestinationNames::with_capacity(self.ports.len());
        for (name, port) in &self.ports {
            for destination in port.destinations() {
                names.entry((destination, name.protocol)).or_insert_with(|| name.clone());
            }
        }
        names
    }

    fn seen(&mut self, kind: Kind, name: &NamespacedName) {
        if let Some(unseen) = self.unseen.get_mut(&kind) {
            unseen.remove(name);
        }
    }

    fn end_list(&mut self, kind: Kind) -> bool {
        // No sync waits for the list of ServiceCIDRs.
        let mut changed = self.listed.insert(kind) && kind != Kind::ServiceCidr;
        for name in self.unseen.remove(&kind).unwrap_or_default() {
            changed |= match kind {
                Kind::Service => self.set_service(&name, Vec::new()),
                Kind::EndpointSlice => self.set_slice(name, None),
                Kind::ServiceCidr => self.set_service_cidr(name, Vec::new()),
                Kind::Node => false,
            };
        }
        changed
    }

    fn set_service_cidr(&mut self, name: NamespacedName, nets: Vec<IpNet>) -> bool {
        if nets.is_empty() {
            self.service_cidrs.remove(&name);
        } else {
            self.service_cidrs.insert(name, nets);
        }
        let nets: BTreeSet<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        let differs = !nets.iter().eq(&self.nets);
        self.everything |= differs;
        self.nets = nets.into_iter().collect();
        differs
    }

    fn set_service(&mut self, name: &NamespacedName, ports: Vec<(ServicePortName, ServicePort)>) -> bool {
        let before = self.pending.len();
        let mut differs = false;
        let old: Vec<ServicePortName> = self.ports_of(name).cloned().collect();
        for gone in old.into_iter().filter(|old| !ports.iter().any(|(new, _)| new == old)) {
            let facts = self.ports.remove(&gone);
            self.give_up(&gone, facts);
            self.pending.insert(gone);
            differs = true;
        }
        for (port, facts) in ports {
            if self.ports.get(&port) != Some(&facts) {
                self.pending.insert(port.clone());
                let old = self.ports.insert(port.clone(), facts);
                self.give_up(&port, old);
                differs = true;
            }
        }
        let differs = differs || self.pending.len() != before;
        if differs {
            self.waiting.service(name);
        }
        differs
    }

    fn give_up(&mut self, port: &ServicePortName, facts: Option<ServicePort>) {
        if port.protocol == Protocol::Udp {
            self.gone.extend(facts.iter().flat_map(ServicePort::destinations));
        }
    }

    fn ports_of(&self, service: &NamespacedName) -> impl Iterator<Item = &ServicePortName> {
        let first = ServicePortName::first_of(service);
        let service = service.clone();
        self.ports.range(first..).map(|(name, _)| name).take_while(move |name| name.service == service)
    }

    fn set_slice(&mut self, name: NamespacedName, content: Option<SliceContent>) -> bool {
        let service = |label: &Arc<str>| NamespacedName { namespace: name.namespace.clone(), name: label.clone() };
        let old_service = self.slices.get(&name).map(service);
        let new_service = content.as_ref().map(|content| service(&content.service));
        let trigger = content.as_ref().and_then(|content| content.trigger);
        let mut touched = BTreeSet::new();
        if let Some(old) = &old_service
            && old_service != new_service
        {
            if let Some(slice) = self.endpoints.slice(old, &name.name) {
                touched.extend(names(old, &slice));
            }
            self.endpoints.remove(old, &name.name);
        }
        match (new_service, content) {
            (Some(service), Some(SliceContent { service: label, slice, .. })) => {
                let old = self.endpoints.slice(&service, &name.name).unwrap_or_default();
                if old != slice {
                    touched.extend(difference(&service, &old, &slice));
                    self.endpoints.insert(service, name.name.clone(), slice);
                }
                self.slices.insert(name, label);
            }
            _ => {
                self.slices.remove(&name);
            }
        }
        self.touch(touched, trigger)
    }

    fn touch(&mut self, mut touched: BTreeSet<ServicePortName>, trigger: Option<SystemTime>) -> bool {
        // An endpoint behind any port affects the health checks of its Service.
        let checked = |name: &ServicePortName| self.ports[name].health_check_node_port != 0;
        let unknown = touched.iter().filter(|port| !self.ports.contains_key(*port));
        let extra: Vec<_> =
            unknown.filter_map(|port| self.ports_of(&port.service).find(|name| checked(name)).cloned()).collect();
        touched.extend(extra);
        // A Service that is not known yet is new when it comes.
        touched.retain(|port| self.ports.contains_key(port));
        let differs = !touched.is_empty();
        if differs {
            self.waiting.slice(trigger);
        }
        self.pending.extend(touched);
        differs
    }
}

fn names<'a>(service: &'a NamespacedName, slice: &'a Slice) -> impl Iterator<Item = ServicePortName> + 'a {
    slice.ports.iter().map(|port| ServicePortName {
        service: service.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    })
}

/// The Service ports whose endpoints differ between two versions of a slice.
fn difference(service: &NamespacedName, old: &Slice, new: &Slice) -> BTreeSet<ServicePortName> {
    if old.endpoints != new.endpoints {
        return names(service, old).chain(names(service, new)).collect();
    }
    let changed = |a: &Slice, b: &Slice| {
        let ports = a.ports.iter().filter(|port| !b.ports.contains(port)).cloned().collect();
        names(service, &Slice { ports, endpoints: Box::default() }).collect::<Vec<_>>()
    };
    changed(old, new).into_iter().chain(changed(new, old)).collect()
}
