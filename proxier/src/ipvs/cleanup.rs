//! Removes all state of IPVS mode and nothing else.
//!
//! The mode's sets and addresses identify its virtual servers, so those of other programs stay. Where neither its
//! device nor its chains exist, nothing is requested that would load a kernel module.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::ipset::{Entry, IpPortProto, SetName};
use netfilter::iptables::Table;
use netfilter::ipvs::{ServerKey, TCP, UDP};
use netfilter::kernel::{
    AddressOperation, IpSetError, IpSets, IptablesTool, IpvsError, IpvsTable, LinkError, Links, Operation,
    SetOperation, ToolError,
};

use super::graceful;
use super::kernel::bound;
use super::names::{DEVICE, IPVS_FILTER, SetId};
use super::rules::{CHAINS, jumps};
use crate::backend::SyncError;
use crate::xtables::ModeChains;

/// The jumps and chains that the mode may have made.
#[must_use]
pub fn mode_chains() -> ModeChains {
    ModeChains { jumps: jumps(), chains: CHAINS.to_vec(), services: Vec::new() }
}

/// Whether IPVS mode has run here, judged by its chains, without loading a module.
///
/// Call it before the tables are cleaned.
///
/// # Errors
/// If the tool fails.
pub fn was_here(tool: &mut dyn IptablesTool) -> Result<bool, ToolError> {
    tool.has_chain(Table::Filter, IPVS_FILTER)
}

/// Whether the mode's device exists.
///
/// # Errors
/// If the kernel cannot be read.
pub fn has_device(links: &mut dyn Links) -> Result<bool, SyncError> {
    Ok(links.device(DEVICE)?.is_some())
}

/// The kernel interfaces needed to remove IPVS mode's state, as far as they exist.
#[derive(Debug)]
pub struct IpvsCleanup<'a> {
    /// Virtual servers.
    pub table: Option<&'a mut dyn IpvsTable>,
    /// Sets.
    pub sets: &'a mut dyn IpSets,
    /// The dummy device.
    pub links: &'a mut dyn Links,
}

impl IpvsCleanup<'_> {
    /// Removes the mode's state in one family, after its rules.
    ///
    /// The device goes last, after the other family's state. With `wait_for_connections`, a virtual server with open
    /// connections stays, and so does its address; another mode serves new ones meanwhile.
    ///
    /// # Errors
    /// All failures, and what stays; everything that can be removed is removed.
    pub fn remove(&mut self, family: IpFamily, wait_for_connections: bool) -> Result<(), Vec<SyncError>> {
        let mut errors = Vec::new();
        let found = Leftovers::find(self, family)
            .and_then(|leftovers| Ok((servers(self, family, &leftovers, wait_for_connections)?, leftovers)));
        match found {
            Ok(((used, unused), leftovers)) => {
                let kept: HashSet<IpAddr> = used.iter().map(|key| key.address.ip()).collect();
                // Unbind first: packets must not arrive here without a virtual server.
                let steps = [unbind(self, family, &kept), remove_servers(self, &unused)];
                errors.extend(steps.into_iter().filter_map(Result::err));
                if !used.is_empty() {
                    let count = used.len();
                    errors.push(SyncError(format!(
                        "cannot delete {count} virtual servers yet: they have open connections"
                    )));
                } else if errors.is_empty() {
                    // Until then the sets identify the mode's virtual servers.
                    errors.extend(destroy(self, &leftovers.sets));
                }
            }
            Err(error) => errors.push(error),
        }
        errors.extend(remove_device(self).err());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}

/// The state that identifies virtual servers of this mode.
#[derive(Debug, Default)]
struct Leftovers {
    bound: HashSet<IpAddr>,
    sets: Vec<SetName>,
    places: HashSet<IpPortProto>,
    node_ports: HashSet<(u8, u16)>,
}

impl Leftovers {
    fn find(kernel: &mut IpvsCleanup<'_>, family: IpFamily) -> Result<Self, SyncError> {
        let mut leftovers =
            Self { bound: bound(kernel.links, family)?.iter().map(IpNet::addr).collect(), ..Self::default() };
        for id in SetId::ALL {
            let name = SetName::new(id.name(family));
            let mut entries = Vec::new();
            match kernel.sets.entries(name, &mut |entry| entries.push(entry)) {
                Ok(()) => {}
                Err(IpSetError::NotFound(_)) => continue,
                // A kernel without ipsets has no sets of this mode.
                Err(IpSetError::Missing) => break,
                // Another program made this set: no set of this mode has its type.
                Err(IpSetError::Refused { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            let found = kernel.sets.set(name)?.and_then(|found| found.set);
            if found.is_none_or(|found| found.set_type != id.set_type()) {
                continue;
            }
            leftovers.sets.push(name);
            for entry in entries {
                leftovers.add(id, entry);
            }
        }
        Ok(leftovers)
    }

    fn add(&mut self, id: SetId, entry: Entry) {
        match (id, entry) {
            (SetId::NodePortTcp, Entry::Port(port)) => _ = self.node_ports.insert((TCP, port)),
            (SetId::NodePortUdp, Entry::Port(port)) => _ = self.node_ports.insert((UDP, port)),
            (_, Entry::IpPort(place)) => _ = self.places.insert(place),
            (SetId::BoundIps, Entry::Ip(ip)) => _ = self.bound.insert(ip),
            _ => {}
        }
    }

    fn has(&self, key: ServerKey) -> bool {
        let ServerKey { address, protocol } = key;
        let place = IpPortProto { ip: address.ip(), protocol, port: address.port() };
        self.bound.contains(&address.ip())
            || self.places.contains(&place)
            || self.node_ports.contains(&(protocol, address.port()))
    }
}

/// The mode's virtual servers: the ones in use, and the ones to delete.
fn servers(
    kernel: &mut IpvsCleanup<'_>,
    family: IpFamily,
    leftovers: &Leftovers,
    wait_for_connections: bool,
) -> Result<(Vec<ServerKey>, Vec<ServerKey>), SyncError> {
    let Some(table) = &mut kernel.table else { return Ok(Default::default()) };
    // The kernel may list a server twice.
    let (mut keys, mut used, mut unused) = (BTreeSet::new(), Vec::new(), Vec::new());
    table.virtual_servers(family, &mut |server| _ = keys.insert(server.key))?;
    for key in keys.into_iter().filter(|key| leftovers.has(*key)) {
        let mut open = false;
        if wait_for_connections && graceful::is_graceful(key.protocol) {
            table.real_servers(key, &mut |_, connections| open |= connections.active > 0)?;
        }
        if open { used.push(key) } else { unused.push(key) }
    }
    Ok((used, unused))
}

fn unbind(kernel: &mut IpvsCleanup<'_>, family: IpFamily, kept: &HashSet<IpAddr>) -> Result<(), SyncError> {
    let bound = bound(kernel.links, family)?.into_iter().filter(|net| !kept.contains(&net.addr()));
    let operations: Vec<_> = bound.map(AddressOperation::Delete).collect();
    if operations.is_empty() {
        return Ok(());
    }
    let mut failure = None;
    kernel.links.apply(DEVICE, &operations, &mut |_, error| {
        if !matches!(error, LinkError::NotFound { .. }) {
            failure.get_or_insert(error);
        }
    })?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn remove_servers(kernel: &mut IpvsCleanup<'_>, keys: &[ServerKey]) -> Result<(), SyncError> {
    let Some(table) = &mut kernel.table else { return Ok(()) };
    let operations: Vec<_> = keys.iter().map(|key| Operation::DeleteVirtual(*key)).collect();
    let mut failure = None;
    table.apply(&operations, &mut |_, error| {
        if !matches!(error, IpvsError::NotFound(_)) {
            failure.get_or_insert(error);
        }
    })?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Destroys sets. A set that a foreign rule refers to stays, emptied.
fn destroy(kernel: &mut IpvsCleanup<'_>, sets: &[SetName]) -> Vec<SyncError> {
    let operations: Vec<_> = sets.iter().map(|name| SetOperation::Destroy(*name)).collect();
    let (mut errors, mut in_use) = (Vec::new(), Vec::new());
    let result = kernel.sets.apply(&operations, &mut |index, error| match error {
        IpSetError::NotFound(_) => {}
        error => {
            if matches!(error, IpSetError::InUse(_)) {
                in_use.push(SetOperation::Flush(sets[index]));
            }
            errors.push(error.into());
        }
    });
    let flushed = kernel.sets.apply(&in_use, &mut |_, _| ());
    errors.extend([result, flushed].into_iter().filter_map(Result::err).map(SyncError::from));
    errors
}

fn has_sets(sets: &mut dyn IpSets, family: IpFamily) -> Result<bool, SyncError> {
    for id in SetId::ALL {
        match sets.set(SetName::new(id.name(family))) {
            Ok(Some(found)) if found.set.is_some_and(|set| set.set_type == id.set_type()) => return Ok(true),
            Ok(_) => {}
            Err(IpSetError::Missing) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Deletes the device unless state of either family is left, which it marks for the next cleanup.
fn remove_device(kernel: &mut IpvsCleanup<'_>) -> Result<(), SyncError> {
    if kernel.links.device(DEVICE)?.is_none() {
        return Ok(());
    }
    for family in IpFamily::ALL {
        if !bound(kernel.links, family)?.is_empty() || has_sets(kernel.sets, family)? {
            return Ok(());
        }
    }
    Ok(kernel.links.delete_dummy(DEVICE)?)
}
