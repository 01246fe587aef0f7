//! The differences between a node's mode and nftables mode.

use std::net::IpAddr;

use netfilter::IpFamily;
use proxier::model::config::NodePortMatch;
use proxier::model::{Mode, Protocol, ServicePort, ServicePortName};
use serde::Serialize;

use super::node::NodeState;
use crate::config::ValidatedConfig;
use crate::config::gates::LOCALHOST_NODE_PORTS;

/// How much a difference matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// nftables mode cannot run, or breaks other programs.
    Blocks,
    /// Something that works now will not, unless it is set.
    Changes,
    /// Something to know; nothing stops working.
    Note,
}

impl Severity {
    /// Its word in the text.
    pub fn word(self) -> &'static str {
        match self {
            Self::Blocks => "BLOCKS",
            Self::Changes => "CHANGES",
            Self::Note => "NOTE",
        }
    }
}

/// A difference in behaviour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// A name that stays the same.
    pub id: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What will be otherwise.
    pub what: String,
    /// What to set or do.
    pub set: Option<String>,
    /// The Services concerned, each with its node port or address.
    pub services: Vec<String>,
}

impl Difference {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        Self { id, severity, what: what.into(), set: None, services: Vec::new() }
    }

    fn set(self, set: impl Into<String>) -> Self {
        Self { set: Some(set.into()), ..self }
    }

    fn of(self, services: Vec<String>) -> Self {
        Self { services, ..self }
    }
}

/// All differences, the worst first.
pub fn check(node: &NodeState) -> Vec<Difference> {
    if node.mode == Mode::Nftables {
        return Vec::new();
    }
    let mut found: Vec<Difference> = node.lacking.iter().map(kernel).collect();
    found.extend(foreign_jumps(node));
    found.extend(node_port_addresses(node));
    found.extend(localhost(node));
    found.extend(firewall(node));
    found.extend(other_sections(node));
    if node.mode == Mode::Ipvs {
        found.extend(ipvs(node));
    } else {
        found.extend(invalid_packets(node));
    }
    found.extend(affinity(node));
    found.extend(iptables_users(node));
    found.sort_by_key(|difference| difference.severity);
    found
}

fn kernel((family, lacking): (&IpFamily, &String)) -> Difference {
    let what = format!("{family}: nftables mode cannot run here: {lacking}");
    Difference::new("kernel", Severity::Blocks, what).set("Linux 5.13 or later, with nf_tables and its modules")
}

fn foreign_jumps(node: &NodeState) -> Option<Difference> {
    let first = node.foreign_jumps.first()?;
    let count = node.foreign_jumps.len();
    let what = format!(
        "{count} rules of other programs jump to chains of {} mode, which nftables mode removes once nothing refers to \
         them, and which then do nothing: {first}",
        node.mode
    );
    let set = "a version or setting of that program (a CNI, mostly) that supports kube-proxy's nftables mode";
    Some(Difference::new("foreign-jumps", Severity::Blocks, what).set(set))
}

/// The Service ports with a node port that `wanted` accepts, of both families once.
fn node_ports(node: &NodeState, wanted: impl Fn(&ServicePortName, &ServicePort) -> bool) -> Vec<String> {
    let ports = node.ports.iter().flatten().flat_map(|(_, ports)| ports);
    let mut names: Vec<String> = ports
        .filter(|(name, port)| port.node_port != 0 && wanted(name, port))
        .map(|(name, port)| format!("{name} {}/{}", port.node_port, name.protocol.name()))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Unset means all addresses in other modes, and the Node's own in nftables mode.
fn node_port_addresses(node: &NodeState) -> Option<Difference> {
    if !node.settings.file.node_port_addresses.is_empty() {
        return None;
    }
    let own = IpFamily::ALL.map(|family| node.settings.proxier.node_ip(family, &node.node));
    let others: Vec<&IpAddr> = node.addresses.iter().filter(|ip| !ip.is_loopback() && !own.contains(ip)).collect();
    if others.is_empty() {
        return None;
    }
    let list = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let services = node_ports(node, |_, _| true);
    let known_to_be_none = node.ports.is_some() && services.is_empty();
    let severity = if known_to_be_none { Severity::Note } else { Severity::Changes };
    let what = format!(
        "nodePortAddresses is unset: node ports are served at all addresses now, and only at the Node's own in nftables \
         mode, not at {list}"
    );
    let set = "nodePortAddresses: [0.0.0.0/0, \"::/0\"] to keep all of them, or only the networks that clients use";
    Some(Difference::new("node-port-addresses", severity, what).set(set).of(services))
}

/// Whether node ports are served on 127.0.0.1 now.
fn serves_localhost(node: &NodeState) -> bool {
    let config = &node.settings.proxier;
    let selector = config.node_port_addresses.resolve(IpFamily::V4, config.node_ip(IpFamily::V4, &node.node));
    node.mode == Mode::Iptables && config.localhost_node_ports && selector.covers_loopback(IpFamily::V4)
}

/// Node ports on 127.0.0.1. nftables mode can serve those of TCP alone (KEP-6032).
fn localhost(node: &NodeState) -> Vec<Difference> {
    if !serves_localhost(node) {
        return Vec::new();
    }
    let of = |wanted: &dyn Fn(Protocol) -> bool| node_ports(node, |name, _| wanted(name.protocol));
    let (tcp, others) = (of(&|protocol| protocol == Protocol::Tcp), of(&|protocol| protocol != Protocol::Tcp));
    let counted = match node.localhost_packets {
        Some(0) => "; none was sent there since this was first counted".to_owned(),
        Some(packets) => format!("; {packets} packets were sent there"),
        None => String::new(),
    };
    let unused = node.localhost_packets == Some(0);
    let severity = |services: &[String]| match node.ports.is_some() && services.is_empty() {
        _ if unused => Severity::Note,
        true => Severity::Note,
        false => Severity::Changes,
    };
    let mut found = Vec::new();
    if let Some(set) = set_for_localhost(node) {
        let what = format!("node ports are served on 127.0.0.1 now, and not in nftables mode{counted}");
        found.push(Difference::new("localhost-node-ports", severity(&tcp), what).set(set).of(tcp));
    }
    if !others.is_empty() {
        let what =
            format!("UDP and SCTP node ports are served on 127.0.0.1 now, and cannot be in nftables mode{counted}");
        let set = "another address of the node in their clients";
        found.push(Difference::new("localhost-udp", severity(&others), what).set(set).of(others));
    }
    found
}

/// What nftables mode lacks to serve node ports of TCP on 127.0.0.1; `None`: nothing.
fn set_for_localhost(node: &NodeState) -> Option<String> {
    let (mut lacking, selected) = (Vec::new(), &node.settings.proxier.node_port_addresses);
    if !selected.names_localhost(IpFamily::V4) {
        let all = matches!(selected.resolve(IpFamily::V4, IpFamily::V4.localhost()), NodePortMatch::All);
        let addresses = if all { "[primary, localhost]" } else { "localhost added to the list" };
        lacking.push(format!("nodePortAddresses: {addresses}"));
    }
    if !node.settings.gates.enabled(LOCALHOST_NODE_PORTS) {
        lacking.push(format!("the feature gate {LOCALHOST_NODE_PORTS} (Kubernetes 1.37)"));
    }
    (!lacking.is_empty()).then(|| lacking.join(", and "))
}

/// Other modes accept forwarded packets in KUBE-FORWARD before the firewall refuses them; nftables mode does not.
fn firewall(node: &NodeState) -> Option<Difference> {
    let list = node.forward_drops.join("; ");
    let what = format!(
        "{} mode accepts forwarded packets in chain KUBE-FORWARD, and nftables mode leaves that to the firewall, which \
         refuses: {list}",
        node.mode
    );
    let set =
        "a rule of the firewall in front of it: -A FORWARD -m conntrack --ctstate DNAT,RELATED,ESTABLISHED -j ACCEPT";
    let found = Difference::new("forward-drop", Severity::Changes, what).set(set);
    (!node.forward_drops.is_empty()).then_some(found)
}

/// Settings that nftables mode takes from its own section, and that are not the same there.
fn other_sections(node: &NodeState) -> Vec<Difference> {
    let Some(there) = &node.in_nftables_mode else { return Vec::new() };
    let (here, there) = (&node.settings, there);
    let of_rules = if node.mode == Mode::Ipvs { "ipvs" } else { "iptables" };
    let ([sync, min], [sync_there, min_there]) = (periods(here), periods(there));
    let [here, there] = [&here.proxier, &there.proxier];
    let settings = [
        ("masqueradeAll", "iptables", here.masquerade_all.to_string(), there.masquerade_all.to_string()),
        ("masqueradeBit", "iptables", here.masquerade_bit.to_string(), there.masquerade_bit.to_string()),
        ("syncPeriod", of_rules, sync, sync_there),
        ("minSyncPeriod", of_rules, min, min_there),
    ];
    let differing = settings.into_iter().filter(|(.., here, there)| here != there);
    let found = differing.map(|(field, section, here, there)| {
        let what = format!("{field} is {here} in the section {section}, and will be {there} from the section nftables");
        Difference::new("section", Severity::Changes, what).set(format!("nftables.{field}: {here}"))
    });
    found.collect()
}

/// `syncPeriod` and `minSyncPeriod` of the mode, as written in a file.
fn periods(settings: &ValidatedConfig) -> [String; 2] {
    let (sync, min) = settings.file.sync_periods();
    [sync, min].map(|period| period.to_string())
}

fn ipvs(node: &NodeState) -> Vec<Difference> {
    let (ipvs, mut found) = (&node.settings.ipvs, Vec::new());
    let scheduler = &*ipvs.scheduler;
    match scheduler {
        "" | "rr" | "wrr" => {
            let what = "endpoints are chosen at random instead of in turn; each gets the same share";
            found.push(Difference::new("scheduler", Severity::Note, what));
        }
        "sh" | "mh" => {
            let what =
                format!("scheduler {scheduler} sends a client to the same endpoint; nftables mode chooses at random");
            let set = "sessionAffinity: ClientIP in the Services that rely on it";
            found.push(Difference::new("scheduler", Severity::Changes, what).set(set));
        }
        other => {
            let what =
                format!("scheduler {other} has no counterpart: nftables mode chooses at random, whatever the load");
            found.push(Difference::new("scheduler", Severity::Changes, what));
        }
    }
    if !ipvs.exclude_cidrs.is_empty() {
        let list = ipvs.exclude_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what = format!(
            "ipvs.excludeCIDRs ({list}) has no effect: nftables mode has no virtual servers. This kube-proxy removes those \
             of its IPVS mode only; upstream's removes every virtual server when it leaves IPVS mode"
        );
        found.push(Difference::new("exclude-cidrs", Severity::Note, what));
    }
    if ipvs.strict_arp {
        let what = "strictARP is not needed: nftables mode gives no device the addresses of Services. \
                    net.ipv4.conf.all.arp_ignore and arp_announce stay as they are until something sets them";
        found.push(Difference::new("strict-arp", Severity::Note, what));
    }
    let timeouts = [ipvs.tcp_timeout, ipvs.tcp_fin_timeout, ipvs.udp_timeout];
    if timeouts.iter().any(|timeout| !timeout.is_zero()) {
        let what = "ipvs.tcpTimeout, tcpFinTimeout and udpTimeout have no effect: conntrack's own timeouts count";
        let set = "conntrack.tcpEstablishedTimeout, tcpCloseWaitTimeout and udpTimeout";
        found.push(Difference::new("ipvs-timeouts", Severity::Changes, what).set(set));
    }
    let what = "addresses of Services are on no device: nothing answers a ping to them, and programs on the node cannot \
                bind to them";
    found.push(Difference::new("no-dummy-device", Severity::Note, what));
    found
}

/// iptables mode drops packets that conntrack calls invalid, which kernels before 6.1 need (kubernetes 74839).
fn invalid_packets(node: &NodeState) -> Option<Difference> {
    let packets = node.invalid_packets.filter(|packets| *packets > 0 && !node.liberal)?;
    let what = format!(
        "iptables mode has dropped {packets} packets that conntrack called invalid; nftables mode does not, and connections \
         may be reset on kernels before 6.1"
    );
    Some(Difference::new("conntrack-invalid", Severity::Changes, what).set("conntrack.tcpBeLiberal: true"))
}

fn affinity(node: &NodeState) -> Option<Difference> {
    let ports = node.ports.iter().flatten().flat_map(|(_, ports)| ports);
    let mut services: Vec<String> =
        ports.filter(|(_, port)| port.affinity_seconds.is_some()).map(|(name, _)| name.to_string()).collect();
    services.sort();
    services.dedup();
    let what = "clients of Services with session affinity may get another endpoint once, when the mode changes";
    let found = Difference::new("affinity", Severity::Note, what);
    (!services.is_empty()).then(|| found.of(services))
}

fn iptables_users(node: &NodeState) -> Option<Difference> {
    let users: Vec<&str> = node.iptables_users.iter().copied().collect();
    let what = format!(
        "these have chains in iptables, which stay and work beside nftables mode; look whether their documentation says \
         more: {}",
        users.join(", ")
    );
    (!users.is_empty()).then(|| Difference::new("iptables-users", Severity::Note, what))
}
