//! Routes packets between hooks, as the kernel answered for them, or else by the node's routing table.
//!
//! A packet that comes in is routed after PREROUTING. One of the node itself is routed before OUTPUT, and again behind it
//! if rules changed its destination or mark: in OUTPUT all rules see the interface of the first route.

use std::net::SocketAddr;

use netfilter::nft::ChainType;
use netfilter::route::{RouteDecision, RouteQuery};

use super::chains::{Decision, TracedPacket};
use super::path::PathWalk;
use super::stages::HookChain;
use super::{Doubt, Step};

/// A packet that the routing code did not pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrouted {
    /// Its destination then.
    pub to: SocketAddr,
    /// Why.
    pub why: &'static str,
}

/// Whether a change that these rules make to a packet of the node itself has it routed again.
pub(super) fn reroutes(rules: HookChain<'_>) -> bool {
    match rules {
        HookChain::Iptables(table, ..) => matches!(table, "mangle" | "nat"),
        HookChain::Nftables(_, _, _, chain) => {
            chain.base.as_ref().is_some_and(|base| matches!(base.kind, ChainType::Route | ChainType::Nat))
        }
    }
}

impl PathWalk<'_> {
    /// Routes all packets under way and notes where they leave: those for this node, and the others. What is not passed on
    /// ends.
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

    /// Routes what the node itself sends before any rule.
    pub(super) fn route_own(&mut self) {
        let (local, leaving) = self.route(None);
        self.under_way = [local, leaving].concat();
    }

    /// Routes again what rules changed.
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
            // A virtual server's packet has its source chosen later.
            from: traced.server.is_none().then(|| traced.packet.source.ip()),
            mark: traced.mark,
            in_interface: in_interface.map(str::to_owned),
        };
        if let Some(why) = traced.mark_unknown.clone().filter(|_| self.node.has_policy_rules) {
            traced.doubt(Doubt::new("routing".to_owned(), format!("policy rules for {to}"), why));
        }
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

    /// What the node's table says; an empty name: not known.
    fn by_table(&self, traced: &TracedPacket) -> RouteDecision {
        let to = traced.packet.destination.ip();
        if self.node.is_local(to) {
            return RouteDecision::Local;
        }
        RouteDecision::Leaves(self.node.out_interface(to).unwrap_or_default().to_owned())
    }
}
