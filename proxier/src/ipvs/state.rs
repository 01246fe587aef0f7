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
use super::ledger::Ledger;
use super::names::SetId;
use super::plan::Image;
use super::render::{Server, Wanted};
use super::settings::Settings;
use crate::model::{NamespacedName, ServicePortName};
use crate::xtables::Place;

/// A virtual server: who wants it, and what the kernel holds.
#[derive(Debug, Default)]
struct Slot {
    /// The first one has it; others of the same address, port and protocol wait for it to go, as in iptables mode.
    claims: Vec<ServicePortName>,
    /// `None` if it is not there, as far as is known.
    image: Option<Image>,
}

/// The whole.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What the last sync was made with.
    pub settings: Option<Settings>,
    ports: HashMap<ServicePortName, Wanted>,
    slots: HashMap<ServerKey, Slot>,
    touched: BTreeSet<ServerKey>,
    /// Virtual servers that the kernel may hold otherwise than is known.
    pub uncertain: BTreeSet<ServerKey>,
    /// Virtual servers that nobody wants, kept with their address for connections that live.
    kept: BTreeSet<ServerKey>,
    pub draining: Draining,
    pub addresses: Ledger<IpAddr>,
    pub entries: [Ledger<Entry>; SetId::ALL.len()],
    /// Sets of another type have the names of these, with the reason in words.
    pub unusable: BTreeMap<SetId, String>,
    pub barred: Ledger<ServerKey>,
    /// Which sets had entries when the rules were written.
    pub used: Option<[bool; SetId::ALL.len()]>,
    /// The chains as they were written.
    pub chains: HashMap<Place, SavedChain>,
    lacking: [BTreeMap<NamespacedName, usize>; 2],
}

impl State {
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
    pub fn want(&mut self, name: &ServicePortName, wanted: Option<Wanted>, again: bool) {
        let old = self.ports.get(name);
        if old == wanted.as_ref() && !again {
            return;
        }
        let old = self.ports.remove(name).unwrap_or_default();
        let new = wanted.as_ref();
        let same_terms = new.is_some_and(|new| new.persistence == old.persistence);
        let nothing: &[Server] = &[];
        let servers = new.map_or(nothing, |new| &new.servers);
        for server in servers {
            self.claim(server.key, name);
        }
        for server in &old.servers {
            if !servers.iter().any(|other| other.key == server.key) {
                self.renounce(server.key, name);
            }
        }
        for server in servers.iter().filter(|server| again || !same_terms || !old.servers.contains(server)) {
            self.touched.insert(server.key);
        }
        // What is wanted again is not released in between, so that nothing is touched that stays.
        if let Some(new) = new {
            self.account(new, Ledger::want, Ledger::want, Ledger::want);
            self.lack(name, new, true);
        }
        self.account(&old, Ledger::release, Ledger::release, Ledger::release);
        self.lack(name, &old, false);
        if let Some(new) = wanted {
            if again {
                self.account(&new, Ledger::touch, Ledger::touch, Ledger::touch);
            }
            self.ports.insert(name.clone(), new);
        }
    }

    /// Does the same to every thing that a Service port wants.
    fn account(
        &mut self,
        wanted: &Wanted,
        address: fn(&mut Ledger<IpAddr>, IpAddr),
        entry: fn(&mut Ledger<Entry>, Entry),
        bar: fn(&mut Ledger<ServerKey>, ServerKey),
    ) {
        for server in wanted.servers.iter().filter(|server| server.bound) {
            let ip = server.key.address.ip();
            address(&mut self.addresses, ip);
            entry(&mut self.entries[SetId::BoundIps as usize], Entry::Ip(ip));
        }
        wanted.entries.iter().for_each(|(id, one)| entry(&mut self.entries[*id as usize], *one));
        wanted.barred.iter().for_each(|key| bar(&mut self.barred, *key));
    }

    fn lack(&mut self, name: &ServicePortName, wanted: &Wanted, more: bool) {
        let lacks = [wanted.lacks_internal_local, wanted.lacks_external_local];
        for (count, _) in self.lacking.iter_mut().zip(lacks).filter(|(_, lacks)| *lacks) {
            let ports = count.entry(name.service.clone()).or_default();
            *ports = if more { *ports + 1 } else { ports.saturating_sub(1) };
            if *ports == 0 {
                count.remove(&name.service);
            }
        }
    }

    /// How many Services have endpoints but none here, under policy `Local`: internal, external.
    pub fn lacking(&self) -> [usize; 2] {
        [self.lacking[0].len(), self.lacking[1].len()]
    }

    fn claim(&mut self, key: ServerKey, name: &ServicePortName) {
        let claims = &mut self.slots.entry(key).or_default().claims;
        if let Err(at) = claims.binary_search(name) {
            claims.insert(at, name.clone());
            self.touched.insert(key);
        }
    }

    fn renounce(&mut self, key: ServerKey, name: &ServicePortName) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.claims.retain(|claim| claim != name);
            self.touched.insert(key);
        }
    }

    /// Has virtual servers looked at.
    pub fn touch(&mut self, keys: impl IntoIterator<Item = ServerKey>) {
        self.touched.extend(keys);
    }

    /// The virtual servers to look at. None is touched any more.
    pub fn take_touched(&mut self) -> BTreeSet<ServerKey> {
        std::mem::take(&mut self.touched)
    }

    /// What a virtual server has to be, if anybody wants it.
    pub fn wanted(&self, key: ServerKey, settings: &Settings) -> Option<Image> {
        let winner = self.slots.get(&key)?.claims.first()?;
        let wanted = self.ports.get(winner)?;
        let server = wanted.servers.iter().find(|server| server.key == key)?;
        let persistence = wanted.persistence;
        let virtual_server = VirtualServer { key, scheduler: settings.scheduler, flags: settings.flags(), persistence };
        Some(Image { server: virtual_server, reals: server.reals.clone() })
    }

    /// A virtual server as the last sync left it.
    pub fn image(&self, key: ServerKey) -> Option<&Image> {
        self.slots.get(&key)?.image.as_ref()
    }

    /// Every virtual server that the last sync left.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.slots.values().filter_map(|slot| slot.image.as_ref())
    }

    /// Every virtual server that is wanted or was left.
    pub fn all_keys(&self) -> Vec<ServerKey> {
        self.slots.keys().copied().collect()
    }

    /// A virtual server is like this now.
    pub fn set_image(&mut self, key: ServerKey, image: Option<Image>) {
        match image {
            Some(image) => self.slots.entry(key).or_default().image = Some(image),
            None => {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.image = None;
                    if slot.claims.is_empty() {
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
        if keep && self.addresses.holds(&ip) && self.kept.insert(key) {
            self.addresses.want(ip);
            bound.want(Entry::Ip(ip));
        } else if !keep && self.kept.remove(&key) {
            self.addresses.release(ip);
            bound.release(Entry::Ip(ip));
        }
    }

    /// Who wants a virtual server.
    pub fn claims(&self, key: ServerKey) -> &[ServicePortName] {
        self.slots.get(&key).map_or(&[], |slot| &slot.claims)
    }

    /// Who wants a set entry, or an address. All are asked: only for those that are refused.
    pub fn wanting(&self, wants: impl Fn(&Wanted) -> bool) -> Vec<ServicePortName> {
        self.ports.iter().filter(|(_, wanted)| wants(wanted)).map(|(name, _)| name.clone()).collect()
    }

    /// Hands over what each Service port wants.
    pub fn each_wanted(&self, mut each: impl FnMut(&ServicePortName, &Wanted)) {
        self.ports.iter().for_each(|(name, wanted)| each(name, wanted));
    }

    /// Whether a set has entries.
    pub fn is_used(&self, id: SetId) -> bool {
        self.is_usable(id) && self.entries[id as usize].is_used()
    }

    /// Whether rules may ask a set.
    pub fn is_usable(&self, id: SetId) -> bool {
        !self.unusable.contains_key(&id)
    }
}
