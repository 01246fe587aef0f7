//! Reads the connections and refused packets that the elements of service metrics have counted.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::kernel::nftables::{NftError, NftReader};
use netfilter::nft::Bytes;
use netfilter::nft::ruleset::{Element, Scope, Set, TableId};

use super::names::{Policy, RefusedFor, SetId, TABLE, VipOrNodePort};
use super::read;
use crate::model::config::ServiceMetrics;
use crate::model::{NamespacedName, Protocol, ServicePortName};
use crate::traffic::{CountedTraffic, RefusalReason, RefusalSample, RefusedBy, TrafficSample, connections};

/// The protocol and the port at the end of a destination's key, 4 bytes each.
const PROTOCOL_AND_PORT: usize = 8;

/// Reads the connections of all Service ports of a family, and of their endpoints if those are counted.
///
/// Sets that do not exist have counted nothing.
///
/// # Errors
/// If the sets cannot be read, or changed during every attempt.
pub fn read_connections(family: IpFamily, metrics: ServiceMetrics) -> io::Result<Vec<TrafficSample>> {
    CounterReader::new(family, metrics).connections().map(|(samples, _)| samples)
}

/// Reads the connections as [`read_connections`] does, and the refused packets.
///
/// # Errors
/// If the sets cannot be read, or changed during every attempt.
pub fn read_traffic(family: IpFamily, metrics: ServiceMetrics) -> io::Result<CountedTraffic> {
    let mut reader = CounterReader::new(family, metrics);
    let (connections, services) = reader.connections()?;
    Ok(CountedTraffic { connections, refused: reader.refused(services)? })
}

/// Services by their cluster IPs and other addresses, as bytes.
type ServicesByAddress = HashMap<Bytes, NamespacedName>;

/// Whether the family's table counts connections: it has a set for that, which may be empty.
///
/// # Errors
/// If the set cannot be read.
pub fn counts_connections(family: IpFamily) -> io::Result<bool> {
    let id = SetId::Connections(VipOrNodePort::Address);
    let table = TableId { scope: Scope::Family(family), name: TABLE.into() };
    let set = Set::of(&id.definition(family, ServiceMetrics::Services));
    match NftReader::new(family).elements(&table, id.name(), &set) {
        Ok(_) => Ok(true),
        Err(NftError::Netlink(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct CounterReader {
    family: IpFamily,
    metrics: ServiceMetrics,
    table: TableId,
    kernel: NftReader,
}

impl CounterReader {
    fn new(family: IpFamily, metrics: ServiceMetrics) -> Self {
        let table = TableId { scope: Scope::Family(family), name: TABLE.into() };
        Self { family, metrics, table, kernel: NftReader::new(family) }
    }

    /// Reads the connections; returns the Services at their addresses, too.
    fn connections(&mut self) -> io::Result<(Vec<TrafficSample>, ServicesByAddress)> {
        let (mut samples, mut services) = (Vec::new(), HashMap::new());
        for place in VipOrNodePort::ALL {
            let ports = self.ports(place, &mut samples)?;
            if self.metrics == ServiceMetrics::Endpoints {
                for policy in [Policy::Cluster, Policy::Local] {
                    self.endpoints(SetId::OnlyEndpoint(place, policy), &ports, &mut samples)?;
                    self.endpoints(SetId::Endpoints(place, policy), &ports, &mut samples)?;
                }
            }
            if place == VipOrNodePort::Address {
                let service = |(key, port): (Bytes, ServicePortName)| Some((address(&key)?, port.service));
                services.extend(ports.into_iter().filter_map(service));
            }
        }
        Ok((samples, services))
    }

    /// Reads the refused packets. Of unknown ports, which any cluster IP may count, only those that were counted.
    fn refused(&mut self, mut services: ServicesByAddress) -> io::Result<Vec<RefusalSample>> {
        let mut samples = Vec::new();
        let of = |reason| match reason {
            RefusedFor::NoEndpoints => RefusalReason::NoEndpoints,
            RefusedFor::NoLocalEndpoints => RefusalReason::NoLocalEndpoints,
        };
        let by_place = VipOrNodePort::ALL.into_iter().flat_map(|place| RefusedFor::ALL.map(|reason| (place, reason)));
        let sets = by_place.map(|(place, reason)| (SetId::Refused(place, reason), of(reason)));
        for (id, reason) in sets.chain([(SetId::RefusedSources, RefusalReason::SourceRange)]) {
            self.elements(id, |set, element| {
                let Some(port) = port_name(element) else { return };
                if !matches!(set, SetId::Refused(VipOrNodePort::NodePort, _)) {
                    services.extend(address(&element.key).map(|address| (address, port.service.clone())));
                }
                samples.push(refusal(set, element, RefusedBy::Port(port), reason));
            })?;
        }
        self.elements(SetId::RefusedPorts, |set, element| {
            let service = services.get(&element.key).filter(|_| packets(element) > 0);
            let by = service.map(|service| RefusedBy::Service(service.clone()));
            samples.extend(by.map(|by| refusal(set, element, by, RefusalReason::UnknownPort)));
        })?;
        Ok(samples)
    }

    /// Reads the Service ports by their keys at one kind of destination.
    fn ports(
        &mut self,
        place: VipOrNodePort,
        samples: &mut Vec<TrafficSample>,
    ) -> io::Result<HashMap<Bytes, ServicePortName>> {
        let mut ports = HashMap::new();
        self.elements(SetId::Connections(place), |set, element| {
            let Some(name) = port_name(element) else { return };
            samples.push(sample(set, element, &name, None));
            ports.insert(element.key.clone(), name);
        })?;
        Ok(ports)
    }

    fn endpoints(
        &mut self,
        set: SetId,
        ports: &HashMap<Bytes, ServicePortName>,
        samples: &mut Vec<TrafficSample>,
    ) -> io::Result<()> {
        self.elements(set, |set, element| {
            // Elements count for endpoints only on demand.
            if element.counters.is_none() {
                return;
            }
            // The number follows the destination.
            let end =
                element.key.len() - if matches!(set, SetId::Endpoints(..)) { 4.min(element.key.len()) } else { 0 };
            let (Some(name), Some(value)) = (ports.get(&element.key[..end]), &element.value) else { return };
            samples.extend(read::endpoint(value).map(|endpoint| sample(set, element, name, Some(endpoint))));
        })
    }

    fn elements(&mut self, id: SetId, mut each: impl FnMut(SetId, &Element)) -> io::Result<()> {
        let set = Set::of(&id.definition(self.family, self.metrics));
        let elements = match self.kernel.elements(&self.table, id.name(), &set) {
            Err(NftError::Netlink(error)) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            elements => elements?,
        };
        if self.kernel.take_interrupted() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, NftError::Interrupted.to_string()));
        }
        elements.iter().for_each(|element| each(id, element));
        Ok(())
    }
}

/// The Service port in an element's comment. The longest names are cut there, as everywhere in the table.
fn port_name(element: &Element) -> Option<ServicePortName> {
    let from = element.key.len().checked_sub(PROTOCOL_AND_PORT)?;
    ServicePortName::parse(element.comment.as_deref()?, Protocol::of_number(element.key[from])?)
}

/// The address that a destination's key begins with.
fn address(key: &Bytes) -> Option<Bytes> {
    Some(key.get(..key.len().checked_sub(PROTOCOL_AND_PORT)?)?.into())
}

fn packets(element: &Element) -> u64 {
    element.counters.as_ref().map_or(0, |counters| counters.packets)
}

fn refusal(set: SetId, element: &Element, by: RefusedBy, reason: RefusalReason) -> RefusalSample {
    // Another Service port's element with the same key counts from zero.
    let name = element.comment.as_deref().unwrap_or_default();
    let source = [set.name().as_bytes(), b" ", &element.key, name.as_bytes()].concat().into();
    RefusalSample { source, by, reason, packets: packets(element) }
}

fn sample(set: SetId, element: &Element, port: &ServicePortName, endpoint: Option<SocketAddr>) -> TrafficSample {
    // An element that is replaced counts from zero for another endpoint.
    let endpoint_text = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    TrafficSample {
        source: [set.name().as_bytes(), b" ", &element.key, endpoint_text.as_bytes()].concat().into(),
        port: port.clone(),
        endpoint,
        adds_to_port: endpoint.is_none(),
        is_draining: false,
        counts: connections(packets(element)),
    }
}
