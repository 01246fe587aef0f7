//! Node ports at loopback addresses, which each mode serves otherwise, or not at all.

use proxier::model::Protocol;
use proxier_inspect::node::NFTABLES;
use proxier_inspect::node::lookups::Listener;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Packet, Step};

use super::finding::{Cause, Finding};
use crate::config::gates::LOCALHOST_NODE_PORTS;

/// A packet that nftables mode's rule for node ports without a proxy rejected (KEP-6032).
pub fn rejected(view: &ServicePortView, packet: &Packet, rule: &Step) -> Finding {
    let what = format!(
        "{} ({}): {packet} is rejected: node ports of {} are not served at loopback addresses here",
        view.name,
        view.family,
        protocol_name(packet)
    );
    // The rule is only there while the feature gate is on.
    let next = next_in_nftables_mode(packet, "");
    Finding::certain(Cause::NotTranslated, what, next).shown_by(format!("{}: {}", rule.hook, rule.rule))
}

/// What decides whether node ports are served at loopback addresses.
pub struct LocalhostFacts<'a> {
    /// The mode of the rules.
    pub mode: Option<&'a str>,
    /// The processes that are a kube-proxy.
    pub proxies: &'a [u32],
    /// Whether the configuration has kube-proxy listen there, in nftables mode.
    pub is_configured: bool,
}

impl LocalhostFacts<'_> {
    /// Who listens where a packet is sent to.
    pub fn listener(&self, packet: &Packet) -> Listener {
        Listener::at(packet.destination, packet.protocol, self.proxies)
    }

    /// Whether the proxy of nftables mode takes a packet to a loopback address.
    pub fn is_served(&self, packet: &Packet) -> bool {
        self.mode == Some(NFTABLES) && packet.destination.ip().is_loopback() && self.listener(packet) == Listener::Proxy
    }
}

/// A packet to the node port of `name` that no rule translates on a node. In nftables mode kube-proxy listens itself where
/// it serves a node port.
pub fn untranslated(name: &str, packet: &Packet, facts: &LocalhostFacts<'_>) -> Option<Finding> {
    let nftables = facts.mode == Some(NFTABLES);
    let listener = facts.listener(packet);
    let no_process = match &listener {
        Listener::Proxy if nftables => return None,
        Listener::Other(pid, process) => return Some(taken(name, packet, *pid, process, facts)),
        Listener::None => ", and no process listens there",
        Listener::Proxy | Listener::Unknown(_) => "",
    };
    let what =
        format!("no rule takes {packet}{no_process}: node ports of {name} do not work at loopback addresses here");
    let is_tcp = packet.protocol == Protocol::Tcp;
    let next = match (facts.mode, packet.destination.is_ipv4()) {
        (Some(NFTABLES), _) if facts.is_configured && is_tcp && facts.proxies.is_empty() => {
            "no kube-proxy runs on this node: start it, and it listens there as its configuration says".to_owned()
        }
        (Some(NFTABLES), _) if facts.is_configured && is_tcp => {
            "see what the log of kube-proxy says of this port: its configuration has it listen there".to_owned()
        }
        (Some(NFTABLES), _) => {
            next_in_nftables_mode(packet, &format!(" and enable the feature gate {LOCALHOST_NODE_PORTS}"))
        }
        (Some("iptables"), true) => "use an address of the node, or see that iptables.localhostNodePorts is true and \
                                     nodePortAddresses includes 127.0.0.0/8"
            .to_owned(),
        (Some("iptables"), false) => "use an address of the node: iptables mode serves no node ports at ::1".to_owned(),
        _ => "use an address of the node: this mode serves no node ports at loopback addresses".to_owned(),
    };
    let finding = Finding::certain(Cause::NotTranslated, what, next);
    Some(match listener {
        Listener::Unknown(why) => Finding { certain: false, ..finding.shown_by(format!("not known: {why}")) },
        _ => finding,
    })
}

/// A node port at a loopback address where another process listens.
fn taken(name: &str, packet: &Packet, pid: u32, process: &str, facts: &LocalhostFacts<'_>) -> Finding {
    let to = packet.destination;
    let instead = if facts.is_configured { ", so kube-proxy cannot listen there" } else { "" };
    let what =
        format!("process {pid} ({process}), which is no kube-proxy, takes {packet}, the node port of {name}{instead}");
    let next = format!(
        "stop that process (ss -lntup 'sport = :{}' shows it), or give the node port another number",
        to.port()
    );
    Finding::certain(Cause::DivertedByOthers, what, next)
}

/// What to do in nftables mode, where only TCP can be served at loopback addresses; `gate`: how to enable that.
fn next_in_nftables_mode(packet: &Packet, gate: &str) -> String {
    match packet.protocol {
        Protocol::Tcp => format!(
            "use an address of the node, or add localhost to nodePortAddresses{gate}: kube-proxy then listens there \
             (Kubernetes 1.37)"
        ),
        Protocol::Udp | Protocol::Sctp => format!(
            "use an address of the node: nftables mode never serves {} at loopback addresses",
            protocol_name(packet)
        ),
    }
}

fn protocol_name(packet: &Packet) -> String {
    packet.protocol.name().to_uppercase()
}
