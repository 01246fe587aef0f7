//! Node ports at addresses of the node that the configuration leaves out.

use std::net::IpAddr;

use netfilter::IpFamily;
use proxier::model::{NodePortMatch, Protocol};
use proxier_inspect::services::{Address, AddressKind, ServicePortView};

use super::TargetAddress;
use super::finding::{Cause, Finding};
use crate::inspect::NodeInspection;

/// The node's addresses that serve node ports of a family, by `nodePortAddresses`.
pub struct NodePortSetting {
    matched: NodePortMatch,
    words: String,
}

/// That no virtual server has an address of the node for a node port, because the setting leaves the address out.
pub fn without_server(seen: &NodeInspection, views: &[ServicePortView], asked: &TargetAddress) -> Option<Finding> {
    let (ip, port) = (asked.to.ip(), asked.to.port());
    let family = IpFamily::of(&ip);
    let is_node_port = |address: &Address| address.kind == AddressKind::NodePort && address.port == port;
    let is_it = |view: &&ServicePortView| {
        Protocol::of_name(view.protocol) == Some(asked.protocol)
            && view.family == family.name()
            && view.addresses.iter().any(is_node_port)
    };
    let view = views.iter().find(is_it)?;
    seen.rules.of(family).filter(|rules| rules.addresses.contains(&ip))?;
    NodePortSetting::of(seen, family)?.excludes(ip, (&view.name, view.family), port)
}

impl NodePortSetting {
    /// Resolves the setting of the node's configuration. `None`: it depends on the node's own address, which is unknown.
    pub fn of(seen: &NodeInspection, family: IpFamily) -> Option<Self> {
        let proxier = &seen.settings.proxier;
        let setting = &proxier.node_port_addresses;
        let tracker = seen.objects.as_ref().and_then(|objects| objects.get(&family));
        let own = tracker.map(|tracker| proxier.node_ip(family, tracker.node())).filter(|ip| !ip.is_loopback());
        if setting.primary && own.is_none() {
            return None;
        }
        let mut words: Vec<String> = setting.networks.iter().map(ToString::to_string).collect();
        if setting.primary {
            words.insert(0, "primary".to_owned());
        }
        let matched = setting.resolve(family, own.unwrap_or_else(|| family.localhost()));
        Some(Self { matched, words: words.join(", ") })
    }

    /// That a node port is not served at an address, because the setting leaves the address out.
    pub fn excludes(&self, ip: IpAddr, (name, family): (&str, &str), port: u16) -> Option<Finding> {
        let NodePortMatch::Within(nets) = &self.matched else { return None };
        if nets.iter().any(|net| net.contains(&ip)) {
            return None;
        }
        let served: Vec<String> = nets.iter().map(ToString::to_string).collect();
        let served = if served.is_empty() { "no address".to_owned() } else { served.join(", ") };
        let what = format!(
            "{name} ({family}): node port {port} is not served at {ip}: nodePortAddresses ({}) leaves that address out and \
             includes {served}",
            self.words
        );
        let next = "connect to an address of the node that is included, or add this one's network to nodePortAddresses in \
                    kube-proxy's configuration (--nodeport-addresses)";
        Some(Finding::certain(Cause::NotTranslated, what, next))
    }
}
