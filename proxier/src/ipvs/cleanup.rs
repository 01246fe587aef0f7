//! Removing every trace of IPVS mode, and nothing else.
//!
//! In: the kernel, networks whose virtual servers are somebody else's. Out: no virtual server, address, rule or set of
//! ours. Must not know: Services.
//!
//! Which virtual servers are ours is told by our own sets and addresses, so those of others stay, whatever the host
//! uses IPVS for. Where neither device nor chain of ours is, nothing is asked that would load a module.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::kernel::Kernel;
use super::names::{DEVICE, IPVS_FILTER, SetId};
use super::rules::{CHAINS, jumps};
use crate::backend::SyncError;
use crate::family::IpFamily;
use crate::kernel::{AddressOperation, IpSetError, IpvsError, Operation, SetOperation};
use crate::netfilter::ipset::{Entry, Place, SetName};
use crate::netfilter::iptables::Table;
use crate::netfilter::ipvs::{ServerKey, TCP, UDP};
use crate::xtables::Owned;

/// All that the mode may have made in the tables.
#[must_use]
pub fn owned() -> Owned {
    Owned { jumps: jumps(), chains: CHAINS.to_vec(), is_of_service: |_| false }
}

/// Removes what the mode made in one family, but for chains that `other` has too. The device goes with its last
/// address.
///
/// # Errors
/// All that went wrong; what could be removed is removed.
pub fn cleanup(
    kernel: &mut Kernel,
    family: IpFamily,
    exclude: &[IpNet],
    other: Option<&Owned>,
) -> Result<(), Vec<SyncError>> {
    let was_here = was_here(kernel);
    let mut errors = owned().remove(kernel.tool.as_mut(), other);
    let mut note = |result: Result<(), SyncError>| errors.extend(result.err());
    let traces = was_here.and_then(|here| if here { Traces::find(kernel, family) } else { Ok(Traces::default()) });
    match traces {
        Ok(traces) if traces.is_empty() => {}
        Ok(traces) => {
            // Packets stop coming here before there is nowhere to send them.
            note(unbind(kernel, &traces.bound));
            note(remove_servers(kernel, family, exclude, &traces));
            note(destroy(kernel, &traces.sets));
        }
        Err(error) => note(Err(error)),
    }
    note(remove_device(kernel));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Whether it is worth asking for sets, which loads their module.
fn was_here(kernel: &mut Kernel) -> Result<bool, SyncError> {
    Ok(kernel.links.device(DEVICE)?.is_some() || kernel.tool.has_chain(Table::Filter, IPVS_FILTER)?)
}

/// What tells that the mode was here.
#[derive(Debug, Default)]
struct Traces {
    bound: HashSet<IpAddr>,
    sets: Vec<SetName>,
    places: HashSet<Place>,
    node_ports: HashSet<(u8, u16)>,
}

impl Traces {
    fn find(kernel: &mut Kernel, family: IpFamily) -> Result<Self, SyncError> {
        let mut traces = Self { bound: kernel.bound(family)?.into_iter().collect(), ..Self::default() };
        for id in SetId::ALL {
            let name = SetName::new(id.name(family));
            let mut entries = Vec::new();
            match kernel.sets.entries(name, &mut |entry| entries.push(entry)) {
                Ok(()) => {}
                Err(IpSetError::NotFound(_)) => continue,
                // A kernel without ipsets has none of ours.
                Err(IpSetError::Missing) => break,
                Err(error) => return Err(error.into()),
            }
            traces.sets.push(name);
            for entry in entries {
                traces.add(id, entry);
            }
        }
        Ok(traces)
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

    fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.sets.is_empty()
    }

    fn has(&self, key: ServerKey) -> bool {
        let ServerKey { address, protocol } = key;
        let place = Place { ip: address.ip(), protocol, port: address.port() };
        self.bound.contains(&address.ip())
            || self.places.contains(&place)
            || self.node_ports.contains(&(protocol, address.port()))
    }
}

fn unbind(kernel: &mut Kernel, bound: &HashSet<IpAddr>) -> Result<(), SyncError> {
    let operations: Vec<_> = bound.iter().map(|&ip| AddressOperation::Delete(IpNet::from(ip))).collect();
    if kernel.links.device(DEVICE)?.is_none() || operations.is_empty() {
        return Ok(());
    }
    let mut failure = None;
    kernel.links.apply(DEVICE, &operations, &mut |_, error| {
        if !matches!(error, crate::kernel::LinkError::NotFound { .. }) {
            failure.get_or_insert(error);
        }
    })?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn remove_servers(kernel: &mut Kernel, family: IpFamily, exclude: &[IpNet], traces: &Traces) -> Result<(), SyncError> {
    let mut operations = Vec::new();
    let excluded = |ip: IpAddr| exclude.iter().any(|net| net.contains(&ip));
    let listed = kernel.table.virtual_servers(family, &mut |server| {
        if traces.has(server.key) && !excluded(server.key.address.ip()) {
            operations.push(Operation::DeleteVirtual(server.key));
        }
    });
    match listed {
        Ok(()) => {}
        Err(IpvsError::Missing { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let mut failure = None;
    kernel.table.apply(&operations, &mut |_, error| _ = failure.get_or_insert(error))?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

fn destroy(kernel: &mut Kernel, sets: &[SetName]) -> Result<(), SyncError> {
    let operations: Vec<_> = sets.iter().map(|name| SetOperation::Destroy(*name)).collect();
    let mut failure = None;
    kernel.sets.apply(&operations, &mut |_, error| _ = failure.get_or_insert(error))?;
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// Deletes the device, unless the other family still has addresses there.
fn remove_device(kernel: &mut Kernel) -> Result<(), SyncError> {
    if kernel.links.device(DEVICE)?.is_none() {
        return Ok(());
    }
    for family in IpFamily::ALL {
        if !kernel.bound(family)?.is_empty() {
            return Ok(());
        }
    }
    Ok(kernel.links.delete_dummy(DEVICE)?)
}
