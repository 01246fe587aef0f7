//! Node ports at loopback addresses, which each mode serves otherwise, or not at all.

use proxier::model::Protocol;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Packet, Step};

use super::finding::{Cause, Finding};
use crate::config::gates::LOCALHOST_NODE_PORTS;
use crate::inspect::NFTABLES;

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

/// A packet to the node port of `name` that no rule translates on a node with rules of that mode.
///
/// `listens`: whether a process listens there; `None`: the kernel does not tell. In nftables mode kube-proxy listens itself
/// where it serves a node port.
pub fn untranslated(name: &str, packet: &Packet, listens: Option<bool>, mode: Option<&str>) -> Option<Finding> {
    if listens == Some(true) {
        return None;
    }
    let no_process = if listens.is_some() { ", and no process listens there" } else { "" };
    let what =
        format!("no rule takes {packet}{no_process}: node ports of {name} do not work at loopback addresses here");
    let next = match (mode, packet.destination.is_ipv4()) {
        (Some(NFTABLES), _) => {
            next_in_nftables_mode(packet, &format!(" and enable the feature gate {LOCALHOST_NODE_PORTS}"))
        }
        (Some("iptables"), true) => "use an address of the node, or see that iptables.localhostNodePorts is true and \
                                     nodePortAddresses includes 127.0.0.0/8"
            .to_owned(),
        (Some("iptables"), false) => "use an address of the node: iptables mode serves no node ports at ::1".to_owned(),
        _ => "use an address of the node: this mode serves no node ports at loopback addresses".to_owned(),
    };
    Some(Finding { certain: listens.is_some(), ..Finding::certain(Cause::NotTranslated, what, next) })
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
