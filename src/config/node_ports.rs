//! `nodePortAddresses`: networks, and the keywords `primary`, `localhost` and `all` in any combination.
//!
//! Until 1.36 kube-proxy took `primary` alone or networks; what those releases took means the same here.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netfilter::IpFamily;
use proxier::model::NodePortAddresses;

use super::net;

/// What an item selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `primary`: the node's own address of each family.
    Primary,
    /// A network, or the networks of both families of `localhost` and `all`.
    Networks(Vec<IpNet>),
}

/// Parses an item; `None`: neither a keyword, which is case-sensitive, nor a network.
#[must_use]
pub fn item(text: &str) -> Option<Item> {
    Some(match text {
        "primary" => Item::Primary,
        "localhost" => Item::Networks(IpFamily::ALL.map(IpFamily::loopback).to_vec()),
        "all" => Item::Networks(vec![Ipv4Net::default().into(), Ipv6Net::default().into()]),
        other => Item::Networks(vec![net::cidr(other)?]),
    })
}

/// The addresses that validated items select.
#[must_use]
pub fn addresses(items: &[String]) -> NodePortAddresses {
    let mut addresses = NodePortAddresses::default();
    for item in items.iter().filter_map(|text| item(text)) {
        match item {
            Item::Primary => addresses.primary = true,
            Item::Networks(networks) => addresses.networks.extend(networks),
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_and_networks_may_be_combined_in_any_order() {
        let of = |items: &[&str]| addresses(&items.iter().map(ToString::to_string).collect::<Vec<_>>());
        let within = |primary: bool, nets: &[&str]| NodePortAddresses {
            primary,
            networks: nets.iter().map(|net| net.parse().expect("a network")).collect(),
        };
        assert_eq!(of(&[]), within(false, &[]));
        assert_eq!(of(&["primary"]), within(true, &[]));
        assert_eq!(of(&["localhost"]), within(false, &["127.0.0.0/8", "::1/128"]));
        assert_eq!(of(&["all"]), within(false, &["0.0.0.0/0", "::/0"]));
        assert_eq!(of(&["10.0.0.0/8", "primary"]), within(true, &["10.0.0.0/8"]));
        assert_eq!(of(&["localhost", "primary"]), within(true, &["127.0.0.0/8", "::1/128"]));
        let three = of(&["all", "primary", "localhost", "fd00::/8"]);
        assert_eq!(three, within(true, &["0.0.0.0/0", "::/0", "127.0.0.0/8", "::1/128", "fd00::/8"]));
        for wrong in ["Primary", "LOCALHOST", " all", "", "127.0.0.1", "loopback"] {
            assert_eq!(item(wrong), None, "{wrong:?}");
        }
    }
}
