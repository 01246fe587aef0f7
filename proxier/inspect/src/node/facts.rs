//! The node's facts beside its rules: sysctls, links, conntrack, hooks, table sizes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netfilter::IpFamily;
use netfilter::kernel::node::{self, Link};
use serde::Serialize;

use super::paths::pod_routes;
use super::{FamilyRules, NodeRulesets};
use crate::neighbours::{Hook, TableSize, hooks, nftables, sizes};

/// Numbers in `/proc/sys` that decide whether packets for Services get through.
pub const SYSCTLS: [&str; 13] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/vs/conntrack",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
];

/// The conntrack table's use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    /// Entries.
    pub count: i64,
    /// The limit.
    pub max: i64,
}

/// The node.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The proxy's mode, as far as its rules tell.
    pub mode: Option<&'static str>,
    /// The flavour of iptables that was read.
    pub flavour: String,
    /// Why that one.
    pub flavour_reason: String,
    /// Families whose rules are in the flavour that is not in use.
    pub rules_in_other_flavour: Vec<&'static str>,
    /// What the flavour that is not in use has, in words: packets meet it too.
    pub other_flavour: Vec<String>,
    /// The conntrack table.
    pub conntrack: Option<Conntrack>,
    /// Tables, as far as they were read.
    pub tables: Vec<TableSize>,
    /// Whose rules stand where, in the order in which packets meet them.
    pub hooks: Vec<Hook>,
    /// Numbers in `/proc/sys`; missing ones are left out.
    pub sysctls: BTreeMap<String, i64>,
    /// Packets that reverse path filters dropped.
    pub reverse_path_drops: Option<u64>,
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses with a route of their own to an interface that pods may be behind.
    #[serde(skip)]
    pub pods: Vec<IpAddr>,
}

/// An IPv4 setting of an interface as it takes effect: the greater of its own and that of all interfaces. 0 if it cannot be
/// read.
#[must_use]
pub fn ipv4_setting(link: &str, name: &str) -> i64 {
    let number = |of: &str| node::sysctl(&format!("net/ipv4/conf/{of}/{name}")).unwrap_or_default();
    number("all").max(number(link))
}

impl Facts {
    /// The port of a bridge behind which an address is, by the kernel's forwarding database; all ports if it does not know.
    #[must_use]
    pub fn ports_to(&self, ip: IpAddr, bridge: &str) -> Vec<&Link> {
        let known = node::bridge_port(ip).ok().flatten();
        let ports = self.links.iter().filter(|link| link.up && link.master.as_deref() == Some(bridge));
        ports.filter(|link| known.as_ref().is_none_or(|name| link.name == *name)).collect()
    }

    /// The interfaces where `rp_filter` is strict: the greater number of the interface's own and that of all counts.
    #[must_use]
    pub fn strict_links(&self, all: i64) -> Vec<&str> {
        let own = |link: &&Link| node::sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name)).unwrap_or_default();
        let links = self.links.iter().filter(|link| link.up && link.name != "lo");
        links.filter(|link| own(link).max(all) == 1).map(|link| &*link.name).collect()
    }

    /// Collects them.
    #[must_use]
    pub fn of(rules: &NodeRulesets) -> Self {
        let sysctls: BTreeMap<String, i64> =
            SYSCTLS.iter().filter_map(|name| Some(((*name).to_owned(), node::sysctl(name)?))).collect();
        let of = |name: &str| sysctls.get(&format!("net/netfilter/nf_conntrack_{name}")).copied();
        let conntrack = of("count").zip(of("max")).map(|(count, max)| Conntrack { count, max });
        let whole = rules.families.iter().map(|family| {
            let mut sizes = sizes(&family.ruleset);
            // The tool prints tables that are not there as empty ones.
            sizes.retain(|size| size.rules > 0 || size.canary == Some(true));
            sizes.iter_mut().for_each(|size| size.read_in_part = !family.whole && size.table == "nat");
            sizes.extend(nftables::sizes(&family.nftables));
            sizes
        });
        Self {
            mode: rules.mode(),
            flavour: rules.flavour.to_string(),
            flavour_reason: rules.choice.reason.clone(),
            rules_in_other_flavour: rules
                .in_other
                .iter()
                .filter(|_| rules.choice.flavour.is_none_or(|chosen| chosen == rules.flavour))
                .map(|family| IpFamily::name(*family))
                .collect(),
            other_flavour: rules.families.iter().filter_map(FamilyRules::other_in_words).collect(),
            conntrack,
            tables: whole.flatten().collect(),
            hooks: rules
                .families
                .iter()
                .flat_map(|family| {
                    let of_tables = nftables::hooks(&family.nftables, &family.ruleset);
                    hooks(&family.ruleset).into_iter().chain(of_tables)
                })
                .collect(),
            sysctls,
            reverse_path_drops: node::tcp_counter("IPReversePathFilter"),
            pods: rules.families.iter().flat_map(|family| pod_routes(family.family)).map(|(ip, _)| ip).collect(),
            links: node::links().unwrap_or_default(),
        }
    }
}
