//! Routes packets between hooks, by the kernel's route lookups or else by the node's routing table.
//!
//! An incoming packet is routed after PREROUTING. A packet from the node itself is routed before OUTPUT, and again after it
//! if rules changed its destination or mark; in OUTPUT all rules see the interface of the first route.

use std::net::SocketAddr;

use netfilter::nft::ChainType;
use netfilter::route::{RouteDecision, RouteQuery};

use super::chains::{Decision, TracedPacket};
use super::path::PathWalk;
use super::stages::HookChain;
use super::{Assumption, Doubt, KnownClient, Node, Origin, Step};

/// A packet that routing stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrouted {
    /// Its destination at that point.
    pub to: SocketAddr,
    /// The reason.
    pub why: &'static str,
}

/// Whether the kernel reroutes packets from the node itself that these rules change.
pub(super) fn reroutes(rules: HookChain<'_>) -> bool {
    match rules {
        HookChain::Iptables(table, ..) => matches!(table, "mangle" | "nat"),
        HookChain::Nftables(_, _, _, chain) => {
            chain.base.as_ref().is_some_and(|base| matches!(base.kind, ChainType::Route | ChainType::Nat))
        }
    }
}

/// The decision about a packet that reached its interface: one that is down, or without carrier, drops it.
pub(super) fn sent(traced: &mut TracedPacket, decision: Decision, node: &Node) -> Decision {
    let to = traced.packet.destination;
    let by_table = || node.out_interface(to.ip()).filter(|_| !node.is_local(to.ip()));
    let down = traced.out.as_deref().or_else(by_table).and_then(|name| Some((name, *node.down.get(name)?)));
    let Some((name, why)) = down.filter(|_| decision == Decision::Accept) else { return decision };
    traced.steps.push(Step::of("routing".to_owned(), &format!("{to} by {name}: {why}"), 1.0));
    traced.unrouted = Some(Unrouted { to, why });
    Decision::Drop
}

/// The protocol and the ports of a lookup. IPVS looks its routes up without (`do_output_route4`).
fn transport(traced: &TracedPacket) -> (u8, u16, u16) {
    let packet = &traced.packet;
    match traced.server {
        None => (packet.protocol.number(), packet.source.port(), packet.destination.port()),
        Some(_) => (0, 0, 0),
    }
}

impl PathWalk<'_> {
    /// Ends all packets that came in on an interface which takes none, before they meet any rule.
    pub(super) fn take_in(&mut self, name: &str) {
        let Some(why) = self.node.closed.get(name).copied() else { return };
        for mut traced in std::mem::take(&mut self.under_way) {
            let to = traced.packet.destination;
            traced.steps.push(Step::of("routing".to_owned(), &format!("{to} on {name}: {why}"), 1.0));
            traced.unrouted = Some(Unrouted { to, why });
            self.ended.push((traced, Decision::Drop));
        }
    }

    /// Records what policy rules choose by that is not known of the packet, or assumed.
    fn note_selectors(&self, traced: &mut TracedPacket) {
        let (policy, to) = (self.node.policy, traced.packet.destination.ip());
        let (hook, rule) = ("routing".to_owned(), format!("policy rules for {to}"));
        if policy.by_user && traced.packet.origin == Origin::Host {
            let what = "this node's own packets come from a process of root".to_owned();
            traced.assumed.push(Assumption { hook: hook.clone(), rule: rule.clone(), what, otherwise: Vec::new() });
        }
        if policy.by_source_port && self.node.client != KnownClient::AddressAndPort {
            let why = "one of them chooses by the client's port, which is not known";
            traced.doubt(Doubt::new(hook, rule, why));
        }
    }

    /// Routes all current packets and sets their outgoing interfaces. Returns the packets for this node and the forwarded
    /// ones; packets that routing stops end.
    pub(super) fn route(&mut self, in_interface: Option<&str>) -> (Vec<TracedPacket>, Vec<TracedPacket>) {
        let (mut local, mut leaving) = (Vec::new(), Vec::new());
        for traced in std::mem::take(&mut self.under_way) {
            if let Some(routed) = self.routed(traced, in_interface) {
                let stays = routed.out.as_deref() == Some("lo");
                if stays { &mut local } else { &mut leaving }.push(routed);
            }
        }
        (local, leaving)
    }

    /// Routes packets from the node itself before any rule.
    pub(super) fn route_own(&mut self) {
        let (local, leaving) = self.route(None);
        self.under_way = [local, leaving].concat();
    }

    /// Routes packets again that rules changed.
    pub(super) fn reroute(&mut self) {
        for traced in std::mem::take(&mut self.under_way) {
            let routed = if traced.reroute { self.routed(traced, None) } else { Some(traced) };
            self.under_way.extend(routed);
        }
    }

    fn routed(&mut self, traced: TracedPacket, in_interface: Option<&str>) -> Option<TracedPacket> {
        let to = traced.packet.destination;
        let mut traced = TracedPacket { reroute: false, ..traced };
        let query = RouteQuery {
            to: to.ip(),
            // IPVS chooses the source of its packets later.
            from: traced.server.is_none().then(|| traced.packet.source.ip()),
            mark: traced.mark,
            type_of_service: traced.type_of_service,
            transport: transport(&traced),
            in_interface: in_interface.map(str::to_owned),
        };
        if let Some(why) = traced.mark_unknown.clone().filter(|_| self.node.policy.any) {
            traced.doubt(Doubt::new("routing".to_owned(), format!("policy rules for {to}"), why));
        }
        self.note_selectors(&mut traced);
        let decided = match self.node.route_answers.get(&query) {
            Some(Ok(decision)) => Some(decision.clone()),
            Some(Err(why)) => {
                traced.doubt(Doubt::new("routing".to_owned(), format!("the route to {to}"), why.clone()));
                None
            }
            None => {
                self.routes.insert(query);
                None
            }
        };
        let (decision, why) = match decided.unwrap_or_else(|| self.by_table(&traced)) {
            RouteDecision::Local => {
                traced.out = Some("lo".to_owned());
                return Some(traced);
            }
            RouteDecision::Leaves(name) => {
                traced.out = Some(name).filter(|name| !name.is_empty());
                return Some(traced);
            }
            RouteDecision::Dropped(why) => (Decision::Drop, why),
            RouteDecision::Refused(why) => (Decision::Reject, why),
        };
        traced.steps.push(Step::of(
            "routing".to_owned(),
            &format!("{to} from {}: {why}", traced.packet.source.ip()),
            1.0,
        ));
        traced.unrouted = Some(Unrouted { to, why });
        self.ended.push((traced, decision));
        None
    }

    /// Looks up the node's routing table; an empty interface name: unknown.
    fn by_table(&self, traced: &TracedPacket) -> RouteDecision {
        let to = traced.packet.destination.ip();
        if self.node.is_local(to) {
            return RouteDecision::Local;
        }
        RouteDecision::Leaves(self.node.out_interface(to).unwrap_or_default().to_owned())
    }
}
