//! Reads what virtual servers have counted, and real servers for endpoints.
//!
//! A virtual server counts as long as it exists, whatever happens to its real servers. Virtual servers have no names:
//! those of other programs are left out because no Service port has their destination.

use netfilter::IpFamily;
use netfilter::ipvs::{ListedServer, ServerKey, Statistics};
use netfilter::kernel::{IpvsError, IpvsTable};

use crate::model::ServicePortName;
use crate::model::config::ServiceMetrics;
use crate::traffic::TrafficSample;

/// Reads the traffic of all virtual servers of a family that have a name, and with [`ServiceMetrics::Endpoints`] of their
/// endpoints, at the cost of a query for each virtual server.
///
/// The kernel lists by position: a server may be missed while another program writes.
///
/// # Errors
/// If the table cannot be listed.
pub fn read_traffic(
    table: &mut dyn IpvsTable,
    family: IpFamily,
    metrics: ServiceMetrics,
    name: &dyn Fn(ServerKey) -> Option<ServicePortName>,
) -> Result<Vec<TrafficSample>, IpvsError> {
    let mut servers = Vec::new();
    table.list(family, &mut |listed| {
        if let ListedServer::Server(server, counts) = listed
            && let Some(port) = name(server.key)
        {
            servers.push((server.key, port, counts));
        }
    })?;
    let mut samples = Vec::with_capacity(servers.len());
    for (key, port, counts) in servers {
        if metrics == ServiceMetrics::Endpoints {
            table.list_real(key, &mut |real, _, counts| {
                let source = format!("{key:?} {}", real.address).into_bytes().into();
                let endpoint = Some(real.address);
                let (port, is_draining) = (port.clone(), real.weight == 0);
                samples.push(TrafficSample { source, port, endpoint, adds_to_port: false, is_draining, counts });
            })?;
        }
        samples.push(of_port(key, port, counts));
    }
    Ok(samples)
}

fn of_port(key: ServerKey, port: ServicePortName, counts: Statistics) -> TrafficSample {
    let source = format!("{key:?}").into_bytes().into();
    TrafficSample { source, port, endpoint: None, adds_to_port: true, is_draining: false, counts }
}
