//! IPsec policies on a packet's way.
//!
//! The kernel looks up policies of forwarded packets by their addresses before NAT (`nf_nat_decode_session`), and those of
//! packets that leave by the addresses that they have, once more if their source was translated.

use netfilter::xfrm::{XfrmAction, XfrmDirection, XfrmPolicy};

use super::chains::{Decision, TracedPacket};
use super::path::PathWalk;
use super::{Doubt, Node, Origin, Step, Unrouted};

/// Why a packet ends at a policy.
const BLOCKED: &str = "an IPsec policy (ip xfrm policy) blocks it";

/// The place of steps and doubts.
const HOOK: &str = "xfrm";

/// The policy that decides about a packet.
fn deciding<'a>(traced: &TracedPacket, direction: XfrmDirection, node: &'a Node) -> Option<&'a XfrmPolicy> {
    let packet = &traced.packet;
    let (source, destination) = match direction {
        XfrmDirection::Out => (packet.source, packet.destination),
        XfrmDirection::In | XfrmDirection::Forward => traced.sent,
    };
    let number = packet.protocol.number();
    let fits =
        |policy: &&XfrmPolicy| policy.direction == direction && policy.is_for(source, destination, number, traced.mark);
    node.policies.iter().filter(fits).min_by_key(|policy| policy.priority)
}

/// Applies the policies of a direction. Returns whether one blocks the packet.
fn is_blocked(traced: &mut TracedPacket, direction: XfrmDirection, node: &Node) -> bool {
    if let Some(why) = &node.policies_unread {
        note(traced, "all IPsec policies", why);
    }
    let Some(policy) = deciding(traced, direction, node) else { return false };
    let why = match policy.action {
        _ if policy.of_interface => "it is for one interface, which is not followed",
        XfrmAction::Allow => return false,
        XfrmAction::Block => {
            traced.steps.push(Step::of(HOOK.to_owned(), &policy.text(), 1.0));
            return true;
        }
        XfrmAction::Transform if direction == XfrmDirection::Out => {
            "it has IPsec transform the packet, and where that goes is not followed"
        }
        XfrmAction::Transform => "it takes only packets that came by IPsec",
    };
    note(traced, &policy.text(), why);
    false
}

/// Records a doubt once: a packet that leaves is looked up twice.
fn note(traced: &mut TracedPacket, rule: &str, why: &str) {
    if !traced.doubts.iter().any(|known| known.doubt.hook == HOOK && known.doubt.rule == rule) {
        traced.doubt(Doubt::new(HOOK.to_owned(), rule, why));
    }
}

impl PathWalk<'_> {
    /// Applies the policies of a direction to all packets that leave, or for `In` to those for this node.
    pub(super) fn apply_policies(&mut self, direction: XfrmDirection) {
        for mut traced in std::mem::take(&mut self.under_way) {
            let for_here = traced.out.as_deref() == Some("lo");
            // Packets by way of lo meet none (`disable_policy`, `disable_xfrm`).
            let applies = match direction {
                XfrmDirection::In => for_here && traced.packet.origin != Origin::Host,
                XfrmDirection::Out | XfrmDirection::Forward => !for_here,
            };
            if applies && is_blocked(&mut traced, direction, self.node) {
                traced.unrouted = Some(Unrouted { to: traced.packet.destination, why: BLOCKED });
                self.ended.push((traced, Decision::Drop));
            } else {
                self.under_way.push(traced);
            }
        }
    }
}
