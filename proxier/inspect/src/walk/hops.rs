//! TTL and hop limit of a packet.
//!
//! A router drops a packet that comes with 1 and sends an ICMP error (`ip_forward`, `ip6_forward`; IPVS does the same). Only
//! a limit that rules changed is followed: that of packets from elsewhere is not known, and high enough as a rule.

use super::chains::{Decision, TracedPacket};
use super::path::PathWalk;
use super::{Doubt, Node, Origin, Step, Unrouted};
use crate::rules::HopChange;

/// The limit of packets from this node (`net.ipv4.ip_default_ttl`).
const OWN: u8 = 64;

/// The range that a packet's TTL or hop limit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HopLimit {
    least: u8,
    most: u8,
    changed: bool,
}

impl HopLimit {
    /// That of a packet that no rule has changed.
    pub(super) fn of(origin: &Origin) -> Self {
        let (least, most) = if *origin == Origin::Host { (OWN, OWN) } else { (1, u8::MAX) };
        Self { least, most, changed: false }
    }

    /// Whether rules changed it.
    pub(super) fn is_changed(self) -> bool {
        self.changed
    }

    /// Whether rules left none.
    pub(super) fn is_used_up(self) -> bool {
        self.changed && self.most <= 1
    }

    /// Its least and greatest value.
    pub(super) fn range(self) -> (u32, u32) {
        (self.least.into(), self.most.into())
    }

    /// Changes it as a target does.
    pub(super) fn apply(&mut self, change: HopChange) {
        let changed = |hops: u8| match change {
            HopChange::Set(to) => to,
            HopChange::Increase(by) => hops.saturating_add(by),
            HopChange::Decrease(by) => hops.saturating_sub(by),
        };
        *self = Self { least: changed(self.least), most: changed(self.most), changed: true };
    }
}

/// Why a packet ends whose limit is used up.
const USED_UP: &str = "a rule left it a TTL (hop limit) of 1 or less, with which the kernel forwards no packet";

impl PathWalk<'_> {
    /// Takes one hop of all packets that are forwarded. Those that rules left none end here.
    pub(super) fn count_hop(&mut self) {
        for mut traced in std::mem::take(&mut self.under_way) {
            let HopLimit { least, most, changed } = traced.hops;
            let to = traced.packet.destination;
            if traced.hops.is_used_up() {
                traced.steps.push(Step::of("routing".to_owned(), &format!("{to}: {USED_UP}"), 1.0));
                traced.unrouted = Some(Unrouted { to, why: USED_UP });
                self.ended.push((traced, Decision::Reject));
                continue;
            }
            if changed && least <= 1 {
                let why = "which TTL a rule leaves it depends on the sender's; with 1 or less it is not forwarded";
                traced.doubt(Doubt::new("routing".to_owned(), format!("the TTL of packets to {to}"), why));
            }
            traced.hops = HopLimit { least: least.saturating_sub(1), most: most.saturating_sub(1), changed };
            self.under_way.push(traced);
        }
    }
}

/// Records a doubt about a packet that leaves with a limit that the next router does not forward. By an interface without a
/// default route the next one is mostly the destination.
pub(super) fn note_last(traced: &mut TracedPacket, decision: Decision, node: &Node) {
    let is_uplink = |name: &str| node.routes.iter().any(|(net, other)| net.prefix_len() == 0 && other == name);
    let leaves = decision == Decision::Accept && traced.out.as_deref().is_some_and(is_uplink);
    if leaves && traced.hops.changed && traced.hops.most <= 1 {
        let why = "it leaves with a TTL of 1 or less, so a router on its way drops it";
        let to = traced.packet.destination;
        traced.doubt(Doubt::new("routing".to_owned(), format!("the TTL of packets to {to}"), why));
    }
}
