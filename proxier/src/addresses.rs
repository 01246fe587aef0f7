//! The node's addresses as they were last read.
//!
//! An address list that cannot be read is unknown, not empty: an empty one would delete every node port.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::kernel::DeviceName;
use tracing::{info, warn};

use crate::model::NodeInfo;

/// The device of IPVS mode that virtual IPs are bound to, so that their packets come in here and meet IPVS. Its addresses
/// are not the node's.
pub const VIRTUAL_IP_DEVICE: DeviceName = DeviceName::new("kube-ipvs0");

/// The last known addresses of the node's interfaces in one family.
#[derive(Debug)]
pub struct NodeAddresses {
    family: IpFamily,
    known: Option<Vec<IpAddr>>,
    /// Reading fails, and the log says so.
    failing: bool,
}

impl NodeAddresses {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, known: None, failing: false }
    }

    /// Takes what reading gave and returns the addresses to use.
    ///
    /// After a failure these are the last known ones; before any success, those of the Node object and the loopback
    /// address, because kube-proxy's own answer (none) would close node ports that the kernel still serves after a restart.
    /// The same addresses in another order count as unchanged: rules are made in this order.
    pub fn update<E: Display>(&mut self, read: Result<Vec<IpAddr>, E>, node: &NodeInfo) -> Vec<IpAddr> {
        match read {
            Ok(found) => {
                if std::mem::take(&mut self.failing) {
                    info!("{}: this node's addresses can be read again", self.family);
                }
                let known = self.known.get_or_insert_default();
                if !same(known, &found) {
                    *known = found;
                }
                known.clone()
            }
            Err(error) => {
                let used = if self.known.is_some() { "the last known ones" } else { "those of the Node" };
                if !std::mem::replace(&mut self.failing, true) {
                    warn!("{}: cannot read this node's addresses, using {used}, trying again: {error}", self.family);
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
    fn after_a_failure_the_last_known_addresses_are_used() {
        let mut addresses = NodeAddresses::new(IpFamily::V4);
        let node = NodeInfo { addresses: ips(&["192.0.2.1", "fd00::1"]), ..NodeInfo::default() };
        assert_eq!(addresses.update(Err("no memory"), &node), ips(&["127.0.0.1", "192.0.2.1"]));
        let known = ips(&["192.0.2.1", "192.0.2.99"]);
        assert_eq!(addresses.update(Ok::<_, &str>(known.clone()), &node), known);
        assert_eq!(addresses.update(Err("no memory"), &node), known);
        assert_eq!(addresses.update(Ok::<_, &str>(Vec::new()), &node), [] as [IpAddr; 0]);
        assert_eq!(addresses.update(Err("no memory"), &node), [] as [IpAddr; 0], "none were read, so none are known");
    }

    #[test]
    fn another_order_is_no_change() {
        let (mut addresses, node) = (NodeAddresses::new(IpFamily::V4), NodeInfo::default());
        let first = addresses.update(Ok::<_, &str>(ips(&["192.0.2.2", "192.0.2.1"])), &node);
        assert_eq!(addresses.update(Ok::<_, &str>(ips(&["192.0.2.1", "192.0.2.2"])), &node), first);
        let fewer = ips(&["192.0.2.1"]);
        assert_eq!(addresses.update(Ok::<_, &str>(fewer.clone()), &node), fewer);
    }
}
