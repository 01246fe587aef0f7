//! Reads the packets that were refused, which sets of service metrics have counted.
//!
//! IPVS counts only packets that it sends somewhere, and the rules of this mode know no Services. Entries of sets have no
//! names: their Service ports are found by destination.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use netfilter::IpFamily;
use netfilter::ipset::{Entry, SetName};
use netfilter::kernel::{IpSetError, IpSets};

use super::names::SetId;
use crate::model::{Destination, NamespacedName};
use crate::traffic::{DestinationNames, RefusalReason, RefusalSample, RefusedBy, name_at};

/// The sets whose entries are destinations.
const BY_PORT: [(SetId, RefusalReason); 3] = [
    (SetId::RefusedNoEndpoints, RefusalReason::NoEndpoints),
    (SetId::RefusedNoLocalEndpoints, RefusalReason::NoLocalEndpoints),
    (SetId::RefusedSources, RefusalReason::SourceRange),
];

/// Reads the refused packets of a family, of those destinations that have a name.
///
/// Sets that do not exist have counted nothing.
///
/// # Errors
/// If a set cannot be listed.
pub fn read_refusals(
    sets: &mut dyn IpSets,
    family: IpFamily,
    names: &DestinationNames,
) -> Result<Vec<RefusalSample>, IpSetError> {
    let mut samples = Vec::new();
    for (id, reason) in BY_PORT {
        read(sets, id, family, &mut |entry, packets| {
            let Entry::IpPort(place) = entry else { return };
            let port = name_at(names, SocketAddr::new(place.ip, place.port), place.protocol);
            samples.extend(port.map(|port| sample(id, entry, RefusedBy::Port(port), reason, packets)));
        })?;
    }
    let mut unknown = Vec::new();
    read(sets, SetId::RefusedPorts, family, &mut |entry, packets| unknown.push((entry, packets)))?;
    unknown.retain(|(_, packets)| *packets > 0);
    if !unknown.is_empty() {
        let services = services(names);
        samples.extend(unknown.into_iter().filter_map(|(entry, packets)| {
            let Entry::Ip(ip) = entry else { return None };
            let by = RefusedBy::Service((*services.get(&ip)?).clone());
            Some(sample(SetId::RefusedPorts, entry, by, RefusalReason::UnknownPort, packets))
        }));
    }
    Ok(samples)
}

/// Passes the entries of a set with their packets to `each`, each once.
fn read(
    sets: &mut dyn IpSets,
    id: SetId,
    family: IpFamily,
    each: &mut dyn FnMut(Entry, u64),
) -> Result<(), IpSetError> {
    let mut found = HashMap::new();
    // The kernel may list an entry twice.
    let result = sets.counted_entries(SetName::new(id.name(family)), &mut |entry, counters| {
        found.insert(entry, counters.packets);
    });
    match result {
        Err(IpSetError::NotFound(_)) => return Ok(()),
        result => result?,
    }
    found.into_iter().for_each(|(entry, packets)| each(entry, packets));
    Ok(())
}

fn services(names: &DestinationNames) -> HashMap<IpAddr, &NamespacedName> {
    let by_address = names.iter().filter_map(|((destination, _), port)| match destination {
        Destination::Address(address) => Some((address.ip(), &port.service)),
        Destination::NodePort(_) => None,
    });
    by_address.collect()
}

fn sample(id: SetId, entry: Entry, by: RefusedBy, reason: RefusalReason, packets: u64) -> RefusalSample {
    // Another Service port's entry with the same address counts from zero.
    let source = format!("{id:?} {entry} {by:?}").into_bytes().into();
    RefusalSample { source, by, reason, packets }
}
