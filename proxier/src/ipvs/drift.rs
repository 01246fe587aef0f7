//! Detects drift of IPVS mode: rules, sets, addresses and servers that differ from the last sync.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use ipnet::IpNet;
use netfilter::ipset::{Set, SetName};
use netfilter::iptables::Table;
use netfilter::ipvs::RealServer;
use netfilter::kernel::IpSetError;

use super::Ipvs;
use super::graceful::Deadlines;
use super::names::SetId;
use super::plan::real;
use super::rules;
use crate::backend::SyncError;
use crate::xtables::ObservedTables;

/// Collects differences: the first one in words, and their number.
#[derive(Debug, Default)]
struct Notes {
    first: Option<String>,
    count: usize,
}

impl Notes {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(text);
    }

    fn result(self) -> Option<String> {
        let first = self.first?;
        Some(if self.count > 1 { format!("{first}, and {} more differences", self.count - 1) } else { first })
    }
}

impl Ipvs {
    /// Describes the first difference of the rules and counts the others.
    pub(super) fn changed_rules(&mut self) -> Result<Option<String>, SyncError> {
        let start = Instant::now();
        let tables = self.read_tables()?;
        self.reading = start.elapsed();
        let expected = self.state.chains.iter().map(|(place, chain)| (*place, *chain));
        Ok(self.formatting.drift(expected, &tables))
    }

    /// Reads the tables that this mode writes.
    pub(super) fn read_tables(&mut self) -> Result<ObservedTables, SyncError> {
        let (tool, tables) = (self.kernel.tool.as_mut(), [Table::Nat, Table::Filter]);
        self.tables.check(self.family, tool, &tables)?;
        Ok(ObservedTables::read(tool, &tables, rules::jumps())?)
    }

    /// The same for sets, addresses and servers.
    pub(super) fn changed_rest(&mut self) -> Result<Option<String>, SyncError> {
        let mut notes = Notes::default();
        self.compare_sets(&mut notes)?;
        self.compare_addresses(&mut notes)?;
        self.compare_servers(&mut notes)?;
        Ok(notes.result())
    }

    fn compare_sets(&mut self, notes: &mut Notes) -> Result<(), SyncError> {
        for id in SetId::existing(self.config.service_metrics) {
            let name = SetName::new(id.name(self.family));
            if !self.state.is_usable(id) {
                let found = self.kernel.sets.set(name)?;
                let usable = |set: Set| id.set(self.family).is_satisfied_by(&set);
                if found.is_none_or(|found| found.set.is_some_and(usable)) {
                    notes.add(|| format!("ipset {name} became usable"));
                }
                continue;
            }
            let counts = &self.state.entries[id as usize];
            let (mut found, mut strays) = (HashSet::new(), 0_usize);
            let read = self.kernel.sets.entries(name, &mut |entry| {
                if counts.is_present(&entry) {
                    found.insert(entry);
                } else {
                    strays += 1;
                }
            });
            match read {
                Ok(()) => {
                    let missing = counts.present().filter(|entry| !found.contains(entry)).count();
                    if missing > 0 {
                        notes.add(|| format!("{missing} entries of ipset {name} were deleted"));
                    }
                    if strays > 0 {
                        notes.add(|| format!("ipset {name} has {strays} foreign entries"));
                    }
                }
                Err(IpSetError::NotFound(_)) => notes.add(|| format!("ipset {name} was deleted")),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn compare_addresses(&mut self, notes: &mut Notes) -> Result<(), SyncError> {
        let bound: BTreeSet<_> = self.kernel.bound(self.family)?.iter().map(IpNet::addr).collect();
        let expected: BTreeSet<_> = self.state.addresses.present().collect();
        if let Some(ip) = expected.difference(&bound).next() {
            notes.add(|| format!("address {ip} was deleted from the device"));
        } else if let Some(ip) = bound.difference(&expected).next() {
            notes.add(|| format!("foreign address {ip} was added to the device"));
        }
        Ok(())
    }

    fn compare_servers(&mut self, notes: &mut Notes) -> Result<(), SyncError> {
        let mut found = self.virtual_servers()?;
        for spec in self.state.specs() {
            let key = spec.server.key;
            if found.remove(&key) != Some(spec.server) {
                notes.add(|| format!("virtual server {key} was deleted or changed"));
                continue;
            }
            let draining = self.state.draining.of(key);
            let expected = |address: &SocketAddr, found: &RealServer| {
                let active = spec.reals.binary_search(address).is_ok();
                let waits = draining.is_some_and(|draining| draining.contains_key(address));
                (active && *found == real(*address, 1)) || (waits && found.weight == 0)
            };
            // The kernel may list a server twice.
            let (mut as_left, mut strays) = (BTreeSet::new(), 0_usize);
            self.kernel.table.real_servers(key, &mut |server, _| {
                if expected(&server.address, &server) {
                    as_left.insert(server.address);
                } else {
                    strays += 1;
                }
            })?;
            if as_left.len() != spec.reals.len() + draining.map_or(0, Deadlines::len) || strays > 0 {
                notes.add(|| format!("real servers of {key} were changed"));
            }
        }
        if let Some(key) = found.into_keys().filter(|key| !self.is_excluded(key.address.ip())).min() {
            notes.add(|| format!("virtual server {key} is foreign"));
        }
        Ok(())
    }
}
