//! Chains at interfaces that packets meet but that a walk does not follow.

use super::chains::{Decision, TracedPacket};
use super::{Doubt, DoubtKind, Node, Origin};

/// What the rules of such a chain are called.
const ALL_RULES: &str = "all rules of the chain";

/// Records a doubt for each such chain at an interface that the packet passed. Replies pass the same interfaces.
pub(super) fn note(traced: &mut TracedPacket, decision: Decision, node: &Node) {
    let to = traced.packet.destination.ip();
    let incoming = match &traced.packet.origin {
        Origin::Interface(name) => Some(name.clone()),
        Origin::Host => None,
    };
    let leaves = decision == Decision::Accept && traced.unrouted.is_none();
    let routed = || if node.is_local(to) { Some("lo") } else { node.out_interface(to) };
    let outgoing = traced.out.clone().or_else(|| routed().map(str::to_owned)).filter(|_| leaves);
    for unwalked in &node.unwalked {
        let meets = |name: &String| unwalked.interfaces.is_empty() || unwalked.interfaces.contains(name);
        if [&incoming, &outgoing].into_iter().flatten().any(meets) {
            let why = "a trace does not go through this chain";
            let doubt = Doubt::new(unwalked.chain.clone(), ALL_RULES, why);
            traced.doubt(Doubt { kind: DoubtKind::Chain, ..doubt });
        }
    }
}
