//! Pods that are sent to themselves.

use std::net::SocketAddr;

use proxier_inspect::node::facts::Facts;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Origin, Packet, Verdict};

use super::finding::{Cause, Finding};
use super::node::BRIDGED;

/// A pod that is sent to itself must not see its own address on both ends, and its packets must get back to it.
pub fn hairpin(facts: &Facts, view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    if to.ip() != packet.source.ip() || packet.origin == Origin::Host {
        return None;
    }
    if branch.outcome.masqueraded {
        return no_way_back(facts, view, packet, to);
    }
    // That another program's rule keeps it from being masqueraded is a finding of its own.
    if super::masquerade::culprit(branch).is_some() {
        return None;
    }
    Some(Finding::certain(
        Cause::Hairpin,
        format!(
            "{} ({}): {to} is sent to itself with its own address as the sender: it does not take that for an answer",
            view.name, view.family
        ),
        "the rule that marks such packets for masquerading is missing: see kube-proxy dump",
    ))
}

/// Where bridges show packets to the rules, one for the pod it came from stays in the bridge: it has to leave by the
/// port it came in at. Without that, it is routed, and comes back from the node.
fn no_way_back(facts: &Facts, view: &ServicePortView, packet: &Packet, to: SocketAddr) -> Option<Finding> {
    let Origin::Interface(bridge) = &packet.origin else { return None };
    let (_, sysctl) = BRIDGED.iter().find(|(family, _)| *family == view.family)?;
    facts.sysctls.get(*sysctl).filter(|value| **value != 0)?;
    // Old kernels show a promiscuous bridge's packets to the node as well.
    facts.links.iter().find(|link| link.name == *bridge && !link.promiscuous)?;
    let ports = facts.ports_to(to.ip(), bridge);
    let off = ports.iter().all(|port| port.hairpin == Some(false));
    let names: Vec<&str> = ports.iter().map(|port| &*port.name).collect();
    (off && !names.is_empty()).then(|| {
        Finding::certain(
            Cause::Hairpin,
            format!(
                "{} ({}): {to} is sent to itself, and hairpin mode is off at {} of bridge {bridge}: packets do not leave \
                 by the port they came in at, so its connections to itself time out",
                view.name,
                view.family,
                names.join(", ")
            ),
            format!(
                "set hairpinMode in the network plugin's configuration; at once, and until the pod is made anew: ip link \
                 set {} type bridge_slave hairpin on",
                names[0]
            ),
        )
    })
}
