//! Reads the kernel state that IPVS mode uses, of this and other programs, without changing it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto, SetName, SetType};
use netfilter::ipvs::{Connections, ListedServer, RealServer, Scheduler, ServerKey, Statistics, VirtualServer};
use netfilter::kernel::{IpSets, IpvsTable, Links};

use super::kernel::bound;
use super::names::DEVICE;
use crate::backend::SyncError;

/// An observed virtual server with its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    /// The virtual server itself.
    pub server: VirtualServer,
    /// Its real servers.
    pub reals: BTreeMap<SocketAddr, ObservedRealServer>,
    /// Its traffic counters.
    pub statistics: Statistics,
}

/// An observed real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedRealServer {
    /// The real server itself.
    pub server: RealServer,
    /// Its connection counts.
    pub connections: Connections,
    /// Its traffic counters.
    pub statistics: Statistics,
}

impl ObservedServer {
    /// Whether all its real servers are terminating.
    #[must_use]
    pub fn drains(&self) -> bool {
        !self.reals.is_empty() && self.reals.values().all(|real| real.server.weight == 0)
    }
}

/// An observed set with its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its type.
    pub set_type: SetType,
    /// The entries.
    pub entries: BTreeSet<Entry>,
}

impl ObservedSet {
    /// Whether the set matches a packet. `of_source`: for each dimension, whether it is the source.
    #[must_use]
    pub fn has(&self, [source, destination]: [SocketAddr; 2], protocol: u8, of_source: &[bool]) -> bool {
        let part = |at: usize| if of_source.get(at) == Some(&true) { source } else { destination };
        let place = IpPortProto { ip: part(0).ip(), protocol, port: part(1).port() };
        match self.set_type {
            SetType::HashIpPort => self.entries.contains(&Entry::IpPort(place)),
            SetType::HashIpPortIp => self.entries.contains(&Entry::IpPortIp(place, part(2).ip())),
            SetType::HashIpPortNet => self.entries.iter().any(
                |entry| matches!(entry, Entry::IpPortNet(one, net) if *one == place && net.contains(&part(2).ip())),
            ),
            SetType::HashIp => self.entries.contains(&Entry::Ip(part(0).ip())),
            SetType::BitmapPort => self.entries.contains(&Entry::Port(part(0).port())),
        }
    }
}

/// Sets by name.
pub type ObservedSets = BTreeMap<String, ObservedSet>;

/// All observed state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedState {
    /// The virtual servers.
    pub servers: BTreeMap<ServerKey, ObservedServer>,
    /// Virtual servers of firewall marks with their schedulers; kube-proxy makes none.
    pub marks: BTreeMap<u32, Scheduler>,
    /// All sets of the types that kube-proxy uses.
    pub sets: ObservedSets,
    /// The addresses of the device; `None` without a device.
    pub bound: Option<BTreeSet<IpAddr>>,
}

impl ObservedState {
    /// Reads the state. What cannot be read stays empty, with an error.
    #[must_use]
    pub fn read(
        family: IpFamily,
        table: Option<&mut dyn IpvsTable>,
        sets: Option<&mut dyn IpSets>,
        links: &mut dyn Links,
    ) -> (Self, Vec<SyncError>) {
        let (mut held, mut errors) = (Self::default(), Vec::new());
        if let Some(table) = table {
            errors.extend(held.read_servers(family, table).err());
        }
        if let Some(sets) = sets {
            errors.extend(held.read_sets(family, sets).err());
        }
        errors.extend(held.read_addresses(family, links).err());
        (held, errors)
    }

    fn read_servers(&mut self, family: IpFamily, table: &mut dyn IpvsTable) -> Result<(), SyncError> {
        let mut servers = Vec::new();
        table.list(family, &mut |listed| match listed {
            ListedServer::Server(server, statistics) => servers.push((server, statistics)),
            ListedServer::FirewallMark(mark, scheduler) => _ = self.marks.insert(mark, scheduler),
        })?;
        for (server, statistics) in servers {
            let mut reals = BTreeMap::new();
            table.list_real(server.key, &mut |server, connections, statistics| {
                reals.insert(server.address, ObservedRealServer { server, connections, statistics });
            })?;
            self.servers.insert(server.key, ObservedServer { server, reals, statistics });
        }
        Ok(())
    }

    fn read_sets(&mut self, family: IpFamily, sets: &mut dyn IpSets) -> Result<(), SyncError> {
        let mut found: Vec<(SetName, SetType)> = Vec::new();
        sets.sets(&mut |one| {
            let set = one.set.filter(|set| set.family.is_none_or(|of| of == family));
            found.extend(set.map(|set| (one.name, set.set_type)));
        })?;
        for (name, set_type) in found {
            let mut entries = BTreeSet::new();
            sets.entries(name, &mut |entry| _ = entries.insert(entry))?;
            self.sets.insert(name.to_string(), ObservedSet { set_type, entries });
        }
        Ok(())
    }

    fn read_addresses(&mut self, family: IpFamily, links: &mut dyn Links) -> Result<(), SyncError> {
        if links.device(DEVICE)?.is_some() {
            self.bound = Some(bound(links, family)?.iter().map(ipnet::IpNet::addr).collect());
        }
        Ok(())
    }

    /// The node's addresses without those of the device.
    ///
    /// An address that another device has too is listed twice in `all`, and stays.
    #[must_use]
    pub fn node_addresses(&self, all: &[IpAddr]) -> Vec<IpAddr> {
        let mut rest = all.to_vec();
        for ours in self.bound.iter().flatten() {
            if let Some(at) = rest.iter().position(|ip| ip == ours) {
                rest.remove(at);
            }
        }
        rest
    }
}
