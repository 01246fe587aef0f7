//! The node's addresses, with the last known ones kept while reading fails.
//!
//! A failed read must not look like an empty list: an empty list would delete every node port.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::kernel::{DeviceName, Host};
use tracing::{info, warn};

use crate::model::{NodeInfo, NodePortAddresses};

/// The dummy device that IPVS mode binds virtual IPs to.
///
/// The kernel delivers packets for these addresses locally, where IPVS sees them. They are not node addresses.
pub const VIRTUAL_IP_DEVICE: DeviceName = DeviceName::new("kube-ipvs0");

/// The node's addresses at which node ports apply now.
///
/// Virtual IPs, which IPVS mode binds to a device of its own, serve no node ports.
///
/// # Errors
/// If the addresses cannot be listed.
pub fn node_port_addresses(
    host: &mut dyn Host,
    config: &NodePortAddresses,
    family: IpFamily,
    node_ip: IpAddr,
) -> io::Result<Vec<IpAddr>> {
    let own = host.addresses_but(VIRTUAL_IP_DEVICE.as_str(), family)?;
    Ok(config.resolve(family, node_ip).select(&own))
}

/// The last known addresses of the node's interfaces in one family.
#[derive(Debug)]
pub struct NodeAddresses {
    family: IpFamily,
    known: Option<Vec<IpAddr>>,
    /// Whether the last read failed and the failure is logged.
    failing: bool,
}

impl NodeAddresses {
    /// Creates a cache without addresses.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, known: None, failing: false }
    }

    /// Updates the cache from a read and returns the addresses to use.
    ///
    /// After a failure these are the last known ones; before any success, the addresses of the Node object and the
    /// loopback address. kube-proxy uses none then, which would close node ports that the kernel still serves after a
    /// restart. The same addresses in another order count as unchanged, because rules are rendered in this order.
    pub fn update<E: Display>(&mut self, read: Result<Vec<IpAddr>, E>, node: &NodeInfo) -> Vec<IpAddr> {
        match read {
            Ok(found) => {
                if std::mem::take(&mut self.failing) {
                    info!("{}: read node addresses again", self.family);
                }
                let known = self.known.get_or_insert_default();
                if !same(known, &found) {
                    *known = found;
                }
                known.clone()
            }
            Err(error) => {
                let used =
                    if self.known.is_some() { "the last known addresses" } else { "the addresses of the Node object" };
                if !std::mem::replace(&mut self.failing, true) {
                    warn!("{}: cannot read node addresses, using {used} and retrying: {error}", self.family);
                }
                self.known.clone().unwrap_or_else(|| self.of_node(node))
            }
        }
    }

    fn of_node(&self, node: &NodeInfo) -> Vec<IpAddr> {
        let own = node.addresses.iter().copied().filter(|ip| IpFamily::of(ip) == self.family);
        [self.family.localhost()].into_iter().chain(own).collect()
    }
}

fn same(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a == b || (a.len() == b.len() && a.iter().collect::<BTreeSet<_>>() == b.iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn node_addresses_when_reading_fails_are_the_last_known_ones() {
        let mut addresses = NodeAddresses::new(IpFamily::V4);
        let node = NodeInfo { addresses: ips(&["192.0.2.1", "fd00::1"]), ..NodeInfo::default() };
        assert_eq!(addresses.update(Err("no memory"), &node), ips(&["127.0.0.1", "192.0.2.1"]));
        let known = ips(&["192.0.2.1", "192.0.2.99"]);
        assert_eq!(addresses.update(Ok::<_, &str>(known.clone()), &node), known);
        assert_eq!(addresses.update(Err("no memory"), &node), known);
        assert_eq!(addresses.update(Ok::<_, &str>(Vec::new()), &node), [] as [IpAddr; 0]);
        assert_eq!(
            addresses.update(Err("no memory"), &node),
            [] as [IpAddr; 0],
            "a successful read of an empty list counts as known"
        );
    }

    #[test]
    fn node_addresses_in_another_order_are_unchanged() {
        let (mut addresses, node) = (NodeAddresses::new(IpFamily::V4), NodeInfo::default());
        let first = addresses.update(Ok::<_, &str>(ips(&["192.0.2.2", "192.0.2.1"])), &node);
        assert_eq!(addresses.update(Ok::<_, &str>(ips(&["192.0.2.1", "192.0.2.2"])), &node), first);
        let fewer = ips(&["192.0.2.1"]);
        assert_eq!(addresses.update(Ok::<_, &str>(fewer.clone()), &node), fewer);
    }
}
