//! Reads what virtual servers have counted, and real servers for endpoints.
//!
//! A virtual server counts as long as it exists, whatever happens to its real servers. Virtual servers have no names:
//! those of other programs are left out because no Service port has their destination.

use netfilter::IpFamily;
use netfilter::ipvs::{ListedServer, ServerKey, Statistics};
use netfilter::kernel::{IpvsError, IpvsTable};

use crate::model::config::ServiceMetrics;
use crate::model::{Destination, Protocol, ServicePortName};
use crate::traffic::{DestinationNames, TrafficSample};

/// Reads the traffic of all Service ports of a family, and with [`ServiceMetrics::Endpoints`] of their endpoints, at the
/// cost of a query for each virtual server.
///
/// The kernel lists by position: a server may be missed while another program writes.
///
/// # Errors
/// If the table cannot be listed.
pub fn read_traffic(
    table: &mut dyn IpvsTable,
    family: IpFamily,
    metrics: ServiceMetrics,
    names: &DestinationNames,
) -> Result<Vec<TrafficSample>, IpvsError> {
    let mut servers = Vec::new();
    table.list(family, &mut |listed| {
        if let ListedServer::Server(server, counts) = listed
            && let Some(port) = port_name(names, server.key)
        {
            servers.push((server.key, port.clone(), counts));
        }
    })?;
    let mut samples = Vec::with_capacity(servers.len());
    for (key, port, counts) in servers {
        if metrics == ServiceMetrics::Endpoints {
            table.list_real(key, &mut |real, _, counts| {
                let source = format!("{key:?} {}", real.address).into_bytes().into();
                let endpoint = Some(real.address);
                samples.push(TrafficSample { source, port: port.clone(), endpoint, adds_to_port: false, counts });
            })?;
        }
        samples.push(of_port(key, port, counts));
    }
    Ok(samples)
}

fn of_port(key: ServerKey, port: ServicePortName, counts: Statistics) -> TrafficSample {
    TrafficSample { source: format!("{key:?}").into_bytes().into(), port, endpoint: None, adds_to_port: true, counts }
}

fn port_name(names: &DestinationNames, key: ServerKey) -> Option<&ServicePortName> {
    let protocol = Protocol::of_number(key.protocol)?;
    let at = |destination| names.get(&(destination, protocol));
    at(Destination::Address(key.address)).or_else(|| at(Destination::NodePort(key.address.port())))
}
