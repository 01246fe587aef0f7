//! Reads the connections that the elements of service metrics have counted.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use netfilter::IpFamily;
use netfilter::kernel::nftables::{NftError, NftReader};
use netfilter::nft::Bytes;
use netfilter::nft::ruleset::{Element, Scope, Set, TableId};

use super::names::{Policy, SetId, TABLE, VipOrNodePort};
use super::read;
use crate::model::config::ServiceMetrics;
use crate::model::{Protocol, ServicePortName};
use crate::traffic::{TrafficSample, connections};

/// The protocol and the port at the end of a destination's key, 4 bytes each.
const PROTOCOL_AND_PORT: usize = 8;

/// Reads the connections of all Service ports of a family, and of their endpoints if those are counted.
///
/// Sets that do not exist have counted nothing.
///
/// # Errors
/// If the sets cannot be read, or changed during every attempt.
pub fn read_connections(family: IpFamily, metrics: ServiceMetrics) -> io::Result<Vec<TrafficSample>> {
    let mut reader = ConnectionReader {
        family,
        metrics,
        table: TableId { scope: Scope::Family(family), name: TABLE.into() },
        kernel: NftReader::new(family),
    };
    let mut samples = Vec::new();
    for place in VipOrNodePort::ALL {
        let ports = reader.ports(place, &mut samples)?;
        if metrics == ServiceMetrics::Endpoints {
            for policy in [Policy::Cluster, Policy::Local] {
                reader.endpoints(SetId::OnlyEndpoint(place, policy), &ports, &mut samples)?;
                reader.endpoints(SetId::Endpoints(place, policy), &ports, &mut samples)?;
            }
        }
    }
    Ok(samples)
}

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

struct ConnectionReader {
    family: IpFamily,
    metrics: ServiceMetrics,
    table: TableId,
    kernel: NftReader,
}

impl ConnectionReader {
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

fn sample(set: SetId, element: &Element, port: &ServicePortName, endpoint: Option<SocketAddr>) -> TrafficSample {
    // An element that is replaced counts from zero for another endpoint.
    let endpoint_text = endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    TrafficSample {
        source: [set.name().as_bytes(), b" ", &element.key, endpoint_text.as_bytes()].concat().into(),
        port: port.clone(),
        endpoint,
        adds_to_port: endpoint.is_none(),
        is_draining: false,
        counts: connections(element.counters.as_ref().map_or(0, |counters| counters.packets)),
    }
}
