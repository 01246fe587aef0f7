//! Where the kernel sends packets for endpoints: routes that are missing or refuse, and links that are down.

use std::net::IpAddr;

use netfilter::IpFamily;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::lookups::{Link, Route, RouteLookups};
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Origin, Packet, Verdict};

use super::finding::{Cause, Finding};

/// Lookups that were made.
#[derive(Default)]
pub struct Routes(RouteLookups);

impl Routes {
    /// The route that packets of this node to an address take; `None` if the kernel does not answer.
    pub fn to(&mut self, ip: IpAddr) -> Option<Route> {
        self.0.to(ip)
    }

    /// Whether a lookup for packets of this node holds for that one: rules by sender, mark or interface may send others
    /// elsewhere.
    pub fn decides(&mut self, packet: &Packet) -> bool {
        let family = IpFamily::of(&packet.destination.ip());
        packet.origin == Origin::Host || !self.0.has_policy_rules(family)
    }

    /// An endpoint that the packet is sent to and does not reach.
    pub fn lost(&mut self, view: &ServicePortView, packet: &Packet, branch: &Branch, facts: &Facts) -> Option<Finding> {
        let to = match (&branch.unrouted, branch.outcome.verdict) {
            (Some(unrouted), _) => unrouted.to,
            (None, Verdict::Delivered(to)) => to,
            _ => return None,
        };
        let of_view = format!("{} ({}): packets for endpoint {to}", view.name, view.family);
        let share = branch.outcome.probability * 100.0;
        let certain = self.decides(packet);
        let refused = |how: &str| {
            let what = format!("{of_view} {how}: {share:.0} % of connections fail");
            let next = format!(
                "ip route get {}; find out who made that route (the network plugin's agent keeps them)",
                to.ip()
            );
            Some(Finding { certain, ..Finding::certain(Cause::NoRoute, what, next) })
        };
        match self.0.to(to.ip())? {
            Route::Blackhole => refused("meet a blackhole route and are dropped"),
            Route::Unreachable => refused("meet an unreachable route"),
            Route::Prohibited => refused("meet a prohibit route"),
            Route::Missing => refused("have no route"),
            Route::Local => None,
            Route::Leaves { device, default } => {
                let link = facts.links.iter().find(|link| link.name == device)?;
                let down = !link.up || !link.carrier;
                if down {
                    let is = if link.up { "has no carrier" } else { "is down" };
                    let what = format!("{of_view} leave by {device}, which {is}: {share:.0} % of connections fail");
                    let next = format!("ip link show {device}; if its other end is a pod, see whether the pod runs");
                    return Some(Finding { certain, ..Finding::certain(Cause::LinkDown, what, next) });
                }
                if default { self.lost_its_link(view, to.ip(), facts, &device) } else { None }
            }
        }
    }

    /// The kernel removes the routes of a link that goes down: packets for its pod then take the default route.
    fn lost_its_link(&mut self, view: &ServicePortView, ip: IpAddr, facts: &Facts, device: &str) -> Option<Finding> {
        let down: Vec<&str> =
            facts.links.iter().filter(|link| is_pods(link) && !link.up).map(|link| &*link.name).collect();
        let endpoint = view.endpoints.iter().find(|endpoint| endpoint.address.is_some_and(|to| to.ip() == ip));
        let local = endpoint.and_then(|endpoint| endpoint.state).map(|state| state.local);
        // Without objects, pods of the same network that have routes of their own tell that it is one of this node.
        let is_here = local.unwrap_or_else(|| facts.pods.iter().any(|pod| *pod != ip && same_network(*pod, ip)));
        if down.is_empty() || !is_here {
            return None;
        }
        let what = format!(
            "{} ({}): endpoint {ip} is a pod of this node, but its packets leave by the default route on {device}; down is {}",
            view.name,
            view.family,
            down.join(", ")
        );
        let next = format!("ip link set {} up; the network plugin then has to restore the route to {ip}", down[0]);
        // Another program may have taken the route, and the link that is down may be another pod's.
        Some(Finding::suspect(Cause::LinkDown, what, next))
    }
}

/// Whether pods may be behind that link.
pub fn is_pods(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("veth" | "bridge" | "ipvlan" | "macvlan" | "netkit")) && link.master.is_none()
}

/// Whether both are in the same network of the size that nodes get for their pods by default.
pub fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.octets()[..8] == b.octets()[..8],
        _ => false,
    }
}
