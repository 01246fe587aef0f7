//! The combined desired state of all Service ports, and what of it the kernel has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use netfilter::SavedChain;
use netfilter::ipset::Entry;
use netfilter::iptables::Table;
use netfilter::ipvs::{ServerKey, VirtualServer};

use super::graceful::{Draining, Retained};
use super::names::SetId;
use super::plan::ServerSpec;
use super::ref_counts::RefCounts;
use super::render::{DesiredPort, DesiredServer};
use super::settings::IpvsSettings;
use crate::model::{NamespacedName, ServicePortName};
use crate::xtables::TableChain;

/// A virtual server: the Service ports that claim it, and its last synced state.
#[derive(Debug, Default)]
struct Slot {
    /// Sorted by name: the first owns it, the next takes over when that is gone, as in iptables mode.
    claimants: Vec<ServicePortName>,
    /// `None` if the kernel has no such server, as far as is known.
    spec: Option<ServerSpec>,
}

/// The state of IPVS mode in one family.
#[derive(Debug, Default)]
pub(super) struct IpvsState {
    /// The settings of the last sync.
    pub settings: Option<IpvsSettings>,
    ports: HashMap<ServicePortName, DesiredPort>,
    slots: HashMap<ServerKey, Slot>,
    dirty: BTreeSet<ServerKey>,
    /// Virtual servers whose kernel state is uncertain.
    pub uncertain: BTreeSet<ServerKey>,
    /// Unclaimed virtual servers that are kept, with their address, for live connections.
    kept: BTreeSet<ServerKey>,
    pub draining: Draining,
    pub addresses: RefCounts<IpAddr>,
    pub entries: [RefCounts<Entry>; SetId::ALL.len()],
    /// Sets whose names foreign sets of another type have, with the reason.
    pub unusable: BTreeMap<SetId, String>,
    pub barred: RefCounts<ServerKey>,
    /// Which sets had entries when the rules were last written.
    pub used: Option<[bool; SetId::ALL.len()]>,
    /// The chains as last written.
    pub chains: HashMap<TableChain, SavedChain>,
    no_local_endpoints: [BTreeMap<NamespacedName, usize>; 2],
}

impl IpvsState {
    /// All known Service ports.
    pub fn names(&self) -> impl Iterator<Item = &ServicePortName> {
        self.ports.keys()
    }

    /// The number of this mode's rules in a table.
    pub fn rules(&self, table: Table) -> usize {
        let chains = self.chains.iter().filter(|((of, _), _)| *of == table);
        chains.map(|(_, chain)| usize::try_from(chain.rules).unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
    }

    /// Replaces the desired state of a Service port.
    ///
    /// With `again`, all its objects are marked dirty, even unchanged ones.
    pub fn set_desired(&mut self, name: &ServicePortName, desired: Option<DesiredPort>, again: bool) {
        let old = self.ports.get(name);
        if old == desired.as_ref() && !again {
            return;
        }
        let old = self.ports.remove(name).unwrap_or_default();
        let new = desired.as_ref();
        let terms = |port: &DesiredPort| (port.persistence, port.hash, port.retained.clone());
        let same_terms = new.is_some_and(|new| terms(new) == terms(&old));
        let nothing: &[DesiredServer] = &[];
        let servers = new.map_or(nothing, |new| &new.servers);
        for server in servers {
            self.add_claimant(server.key, name);
        }
        for server in &old.servers {
            if !servers.iter().any(|other| other.key == server.key) {
                self.remove_claimant(server.key, name);
            }
        }
        for server in servers.iter().filter(|server| again || !same_terms || !old.servers.contains(server)) {
            self.dirty.insert(server.key);
        }
        // Acquire before releasing, so that objects that stay are not dirty.
        if let Some(new) = new {
            self.for_each_item(new, RefCounts::acquire, RefCounts::acquire, RefCounts::acquire);
            self.count_no_local(name, new, true);
        }
        self.for_each_item(&old, RefCounts::release, RefCounts::release, RefCounts::release);
        self.count_no_local(name, &old, false);
        if let Some(new) = desired {
            if again {
                self.for_each_item(&new, RefCounts::mark_dirty, RefCounts::mark_dirty, RefCounts::mark_dirty);
            }
            self.ports.insert(name.clone(), new);
        }
    }

    /// Applies the same function to every object that a Service port needs.
    fn for_each_item(
        &mut self,
        desired: &DesiredPort,
        address: fn(&mut RefCounts<IpAddr>, IpAddr),
        entry: fn(&mut RefCounts<Entry>, Entry),
        bar: fn(&mut RefCounts<ServerKey>, ServerKey),
    ) {
        for server in desired.servers.iter().filter(|server| server.bound) {
            let ip = server.key.address.ip();
            address(&mut self.addresses, ip);
            entry(&mut self.entries[SetId::BoundIps as usize], Entry::Ip(ip));
        }
        desired.entries.iter().for_each(|(id, one)| entry(&mut self.entries[*id as usize], *one));
        desired.barred.iter().for_each(|key| bar(&mut self.barred, *key));
    }

    fn count_no_local(&mut self, name: &ServicePortName, desired: &DesiredPort, more: bool) {
        let lacks = [desired.lacks_internal_local, desired.lacks_external_local];
        for (count, _) in self.no_local_endpoints.iter_mut().zip(lacks).filter(|(_, lacks)| *lacks) {
            let ports = count.entry(name.service.clone()).or_default();
            *ports = if more { *ports + 1 } else { ports.saturating_sub(1) };
            if *ports == 0 {
                count.remove(&name.service);
            }
        }
    }

    /// The number of Services with endpoints but none on this node under policy `Local`: internal, external.
    pub fn no_local_endpoints(&self) -> [usize; 2] {
        [self.no_local_endpoints[0].len(), self.no_local_endpoints[1].len()]
    }

    fn add_claimant(&mut self, key: ServerKey, name: &ServicePortName) {
        let claimants = &mut self.slots.entry(key).or_default().claimants;
        if let Err(at) = claimants.binary_search(name) {
            claimants.insert(at, name.clone());
            self.dirty.insert(key);
        }
    }

    fn remove_claimant(&mut self, key: ServerKey, name: &ServicePortName) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.claimants.retain(|claim| claim != name);
            self.dirty.insert(key);
        }
    }

    /// Marks virtual servers dirty.
    pub fn mark_dirty(&mut self, keys: impl IntoIterator<Item = ServerKey>) {
        self.dirty.extend(keys);
    }

    /// The dirty virtual servers. None is dirty afterwards.
    pub fn take_dirty(&mut self) -> BTreeSet<ServerKey> {
        std::mem::take(&mut self.dirty)
    }

    /// The desired state of a virtual server, if it is claimed.
    pub fn desired_server(&self, key: ServerKey, settings: &IpvsSettings) -> Option<ServerSpec> {
        let winner = self.slots.get(&key)?.claimants.first()?;
        let desired = self.ports.get(winner)?;
        let server = desired.servers.iter().find(|server| server.key == key)?;
        let persistence = desired.persistence;
        let (scheduler, flags) = settings.scheduler(desired.hash);
        let virtual_server = VirtualServer { key, scheduler, flags, persistence };
        Some(ServerSpec { server: virtual_server, reals: server.reals.clone() })
    }

    /// The real servers of a virtual server that keep connections after their removal, if its Service names them.
    pub fn retained(&self, key: ServerKey) -> Option<Arc<[SocketAddr]>> {
        let owner = self.slots.get(&key)?.claimants.first()?;
        self.ports.get(owner)?.retained.clone()
    }

    /// Ends the wait of terminating real servers of Service ports that do not retain them.
    ///
    /// Returns their virtual servers.
    pub fn expire_draining(&mut self, ports: &BTreeSet<ServicePortName>, now: Instant) -> Vec<ServerKey> {
        let mut keys: Vec<ServerKey> = self.draining.keys().into_iter().collect();
        keys.retain(|key| self.claimants(*key).first().is_some_and(|owner| ports.contains(owner)));
        keys.retain(|key| {
            self.retained(*key).is_some_and(|only| self.draining.expire(*key, Retained::Only(&only), now))
        });
        keys
    }

    /// The last synced state of a virtual server.
    pub fn spec(&self, key: ServerKey) -> Option<&ServerSpec> {
        self.slots.get(&key)?.spec.as_ref()
    }

    /// The last synced state of all virtual servers.
    pub fn specs(&self) -> impl Iterator<Item = &ServerSpec> {
        self.slots.values().filter_map(|slot| slot.spec.as_ref())
    }

    /// All virtual servers that are claimed or last synced.
    pub fn all_keys(&self) -> Vec<ServerKey> {
        self.slots.keys().copied().collect()
    }

    /// Records the state of a virtual server.
    pub fn set_spec(&mut self, key: ServerKey, spec: Option<ServerSpec>) {
        match spec {
            Some(spec) => self.slots.entry(key).or_default().spec = Some(spec),
            None => {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.spec = None;
                    if slot.claimants.is_empty() {
                        self.slots.remove(&key);
                    }
                }
            }
        }
    }

    /// Keeps or releases an unclaimed virtual server with live connections, and its address.
    pub fn keep(&mut self, key: ServerKey, keep: bool) {
        let ip = key.address.ip();
        let bound = &mut self.entries[SetId::BoundIps as usize];
        if keep && self.addresses.is_present(&ip) && self.kept.insert(key) {
            self.addresses.acquire(ip);
            bound.acquire(Entry::Ip(ip));
        } else if !keep && self.kept.remove(&key) {
            self.addresses.release(ip);
            bound.release(Entry::Ip(ip));
        }
    }

    /// The Service ports that claim a virtual server, the owner first.
    pub fn claimants(&self, key: ServerKey) -> &[ServicePortName] {
        self.slots.get(&key).map_or(&[], |slot| &slot.claimants)
    }

    /// The Service ports whose desired state fulfils a condition. Visits all: only for refusals.
    pub fn ports_where(&self, wants: impl Fn(&DesiredPort) -> bool) -> Vec<ServicePortName> {
        self.ports.iter().filter(|(_, desired)| wants(desired)).map(|(name, _)| name.clone()).collect()
    }

    /// Passes the desired state of each Service port to `each`.
    pub fn for_each_desired(&self, mut each: impl FnMut(&ServicePortName, &DesiredPort)) {
        self.ports.iter().for_each(|(name, desired)| each(name, desired));
    }

    /// Whether a set has entries.
    pub fn is_used(&self, id: SetId) -> bool {
        self.is_usable(id) && self.entries[id as usize].has_references()
    }

    /// Whether rules may match a set.
    pub fn is_usable(&self, id: SetId) -> bool {
        !self.unusable.contains_key(&id)
    }
}
