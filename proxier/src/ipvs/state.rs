//! What all Service ports want together, and what of it is in the kernel.
//!
//! In: what each Service port wants, what was seen or done. Out: which virtual servers to look at, and the ledgers of
//! addresses and set entries. Must not know: who talks to the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netfilter::SavedChain;
use netfilter::ipset::Entry;
use netfilter::iptables::Table;
use netfilter::ipvs::{ServerKey, VirtualServer};

use super::graceful::Draining;
use super::names::SetId;
use super::plan::ServerSpec;
use super::ref_counts::RefCounts;
use super::render::{DesiredPort, DesiredServer};
use super::settings::IpvsSettings;
use crate::model::{NamespacedName, ServicePortName};
use crate::xtables::TableChain;

/// A virtual server: who wants it, and what the kernel holds.
#[derive(Debug, Default)]
struct Slot {
    /// The first one has it; others of the same address, port and protocol wait for it to go, as in iptables mode.
    claimants: Vec<ServicePortName>,
    /// `None` if it is not there, as far as is known.
    spec: Option<ServerSpec>,
}

/// The whole.
#[derive(Debug, Default)]
pub(super) struct IpvsState {
    /// What the last sync was made with.
    pub settings: Option<IpvsSettings>,
    ports: HashMap<ServicePortName, DesiredPort>,
    slots: HashMap<ServerKey, Slot>,
    dirty: BTreeSet<ServerKey>,
    /// Virtual servers that the kernel may hold otherwise than is known.
    pub uncertain: BTreeSet<ServerKey>,
    /// Virtual servers that nobody wants, kept with their address for connections that live.
    kept: BTreeSet<ServerKey>,
    pub draining: Draining,
    pub addresses: RefCounts<IpAddr>,
    pub entries: [RefCounts<Entry>; SetId::ALL.len()],
    /// Sets of another type have the names of these, with the reason in words.
    pub unusable: BTreeMap<SetId, String>,
    pub barred: RefCounts<ServerKey>,
    /// Which sets had entries when the rules were written.
    pub used: Option<[bool; SetId::ALL.len()]>,
    /// The chains as they were written.
    pub chains: HashMap<TableChain, SavedChain>,
    no_local_endpoints: [BTreeMap<NamespacedName, usize>; 2],
}

impl IpvsState {
    /// Every Service port that is known.
    pub fn names(&self) -> impl Iterator<Item = &ServicePortName> {
        self.ports.keys()
    }

    /// Rules of ours in a table.
    pub fn rules(&self, table: Table) -> usize {
        let chains = self.chains.iter().filter(|((of, _), _)| *of == table);
        chains.map(|(_, chain)| usize::try_from(chain.rules).unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
    }

    /// A Service port wants this now, or nothing any more. With `again`, all of it is looked at whether it is new or
    /// not.
    pub fn set_desired(&mut self, name: &ServicePortName, desired: Option<DesiredPort>, again: bool) {
        let old = self.ports.get(name);
        if old == desired.as_ref() && !again {
            return;
        }
        let old = self.ports.remove(name).unwrap_or_default();
        let new = desired.as_ref();
        let same_terms = new.is_some_and(|new| new.persistence == old.persistence);
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
        // What is wanted again is not released in between, so that nothing is touched that stays.
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

    /// Does the same to every thing that a Service port wants.
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

    /// How many Services have endpoints but none here, under policy `Local`: internal, external.
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

    /// Has virtual servers looked at.
    pub fn mark_dirty(&mut self, keys: impl IntoIterator<Item = ServerKey>) {
        self.dirty.extend(keys);
    }

    /// The virtual servers to look at. None is touched any more.
    pub fn take_dirty(&mut self) -> BTreeSet<ServerKey> {
        std::mem::take(&mut self.dirty)
    }

    /// What a virtual server has to be, if anybody wants it.
    pub fn desired_server(&self, key: ServerKey, settings: &IpvsSettings) -> Option<ServerSpec> {
        let winner = self.slots.get(&key)?.claimants.first()?;
        let desired = self.ports.get(winner)?;
        let server = desired.servers.iter().find(|server| server.key == key)?;
        let persistence = desired.persistence;
        let virtual_server = VirtualServer { key, scheduler: settings.scheduler, flags: settings.flags(), persistence };
        Some(ServerSpec { server: virtual_server, reals: server.reals.clone() })
    }

    /// A virtual server as the last sync left it.
    pub fn spec(&self, key: ServerKey) -> Option<&ServerSpec> {
        self.slots.get(&key)?.spec.as_ref()
    }

    /// Every virtual server that the last sync left.
    pub fn specs(&self) -> impl Iterator<Item = &ServerSpec> {
        self.slots.values().filter_map(|slot| slot.spec.as_ref())
    }

    /// Every virtual server that is wanted or was left.
    pub fn all_keys(&self) -> Vec<ServerKey> {
        self.slots.keys().copied().collect()
    }

    /// A virtual server is like this now.
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

    /// Whether a virtual server that nobody wants stays for its connections. Its address stays bound, if it is.
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

    /// Who wants a virtual server.
    pub fn claimants(&self, key: ServerKey) -> &[ServicePortName] {
        self.slots.get(&key).map_or(&[], |slot| &slot.claimants)
    }

    /// Who wants a set entry, or an address. All are asked: only for those that are refused.
    pub fn ports_where(&self, wants: impl Fn(&DesiredPort) -> bool) -> Vec<ServicePortName> {
        self.ports.iter().filter(|(_, desired)| wants(desired)).map(|(name, _)| name.clone()).collect()
    }

    /// Hands over what each Service port wants.
    pub fn for_each_desired(&self, mut each: impl FnMut(&ServicePortName, &DesiredPort)) {
        self.ports.iter().for_each(|(name, desired)| each(name, desired));
    }

    /// Whether a set has entries.
    pub fn is_used(&self, id: SetId) -> bool {
        self.is_usable(id) && self.entries[id as usize].has_references()
    }

    /// Whether rules may ask a set.
    pub fn is_usable(&self, id: SetId) -> bool {
        !self.unusable.contains_key(&id)
    }
}
