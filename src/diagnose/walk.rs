//! Causes that a packet meets on its way.
//!
//! In: Service ports, whose connection fails. Out: findings, from walking the packet through the rules in the kernel.
//! Must not know: how rules are read.

use std::net::{IpAddr, SocketAddr};

use proxier::model::Protocol;
use proxier::nftables::TABLE;
use proxier_inspect::neighbours::owner;
use proxier_inspect::services::{Address, AddressKind, Fate, ServicePortView};
use proxier_inspect::walk::{Branch, Origin, Packet, Trace, Verdict};

use super::finding::{Cause, Finding};
use super::node::BRIDGED;
use crate::inspect::Look;
use crate::inspect::facts::Facts;
use crate::inspect::paths::Paths;
use crate::inspect::report::Unread;
use crate::trace::sender;

/// This node as a sender, as `--from` spells it.
const HOST: &str = "host";

/// Which connections were followed through the rules.
#[derive(Debug, Default)]
pub struct Walks {
    /// Sender and destination of each, as in `host -> 10.96.0.10:80/tcp`.
    pub followed: Vec<String>,
    /// Those that were not, and why.
    pub not_followed: Vec<Unread>,
}

/// Follows a connection to each address, or to the one asked for: from the sender asked for, or from those that are
/// usual for that kind of address.
///
/// # Errors
/// If no connection to the address that was asked for can be followed.
pub fn of(
    seen: &mut Look,
    facts: &Facts,
    views: &[ServicePortView],
    (from, only): (Option<&str>, Option<(SocketAddr, Protocol)>),
    findings: &mut Vec<Finding>,
) -> Result<Walks, String> {
    let mut following = Following { facts, from, walks: Walks::default(), findings };
    for view in views {
        let Some(protocol) = Protocol::of_name(view.protocol) else { continue };
        let Some(rules) = seen.rules.families.iter_mut().find(|rules| rules.family.name() == view.family) else {
            continue;
        };
        let node_ip = rules.node_port_ip();
        let mut paths = Paths::of(rules);
        for address in view.addresses.iter().filter(|address| address.kind != AddressKind::HealthCheckNodePort) {
            let Some(to) = destination(address, protocol, node_ip, only) else { continue };
            for sender in senders(from, view, address) {
                following.follow(view, address, &sender, to, &mut paths)?;
            }
        }
    }
    match following.walks.not_followed.first() {
        Some(skipped) if only.is_some() && following.walks.followed.is_empty() => Err(skipped.why.clone()),
        _ => Ok(following.walks),
    }
}

/// Where to send to for an address of a Service port: for a node port to the node's address. `None` if another
/// destination was asked for.
fn destination(
    address: &Address,
    protocol: Protocol,
    node_ip: Option<IpAddr>,
    only: Option<(SocketAddr, Protocol)>,
) -> Option<(SocketAddr, Protocol)> {
    let to = (SocketAddr::new(address.ip.or(node_ip)?, address.port), protocol);
    let Some(only) = only else { return Some(to) };
    let any_address = address.ip.is_none() && only.0.port() == address.port && only.1 == protocol;
    (only == to || any_address).then_some(only)
}

/// Whose connections are followed to an address.
fn senders(from: Option<&str>, view: &ServicePortView, address: &Address) -> Vec<String> {
    match (from, address.kind) {
        (Some(from), _) => vec![from.to_owned()],
        (None, AddressKind::ClusterIp) => {
            let pod = local_pod(view).map(|ip| ip.to_string());
            [HOST.to_owned()].into_iter().chain(pod).collect()
        }
        (None, _) => vec!["outside".to_owned()],
    }
}

struct Following<'a> {
    facts: &'a Facts,
    /// The sender that was asked for.
    from: Option<&'a str>,
    walks: Walks,
    findings: &'a mut Vec<Finding>,
}

impl Following<'_> {
    /// Follows one connection and notes what it meets, or why it cannot be followed.
    fn follow(
        &mut self,
        view: &ServicePortView,
        address: &Address,
        from: &str,
        to: (SocketAddr, Protocol),
        paths: &mut Paths<'_>,
    ) -> Result<(), String> {
        let way = format!("{from} -> {}/{}", to.0, to.1.name().to_lowercase());
        let packet = match sender(from, to.0).and_then(|from| paths.packet(from, to, None)) {
            Ok(packet) => packet,
            // That the node has no route is no cause for what fails elsewhere.
            Err(problem) => {
                self.walks.not_followed.push(Unread::new(&way, problem));
                return Ok(());
            }
        };
        let trace = paths.trace(&packet)?;
        self.findings.extend(met(view, address, &packet, &trace));
        // A pod that was not asked for may never call its own Service.
        if self.from.is_some() || from == HOST {
            let mut branches = trace.branches.iter();
            self.findings.extend(branches.find_map(|branch| hairpin(self.facts, view, &packet, branch)));
        }
        self.walks.followed.push(way);
        Ok(())
    }
}

/// A pod on this node that a connection could come from: an endpoint of the Service port itself.
fn local_pod(view: &ServicePortView) -> Option<IpAddr> {
    let mut local = view.endpoints.iter().filter(|endpoint| endpoint.state.is_some_and(|state| state.local));
    local.find_map(|endpoint| endpoint.address).map(|address| address.ip())
}

fn met(view: &ServicePortView, address: &Address, packet: &Packet, trace: &Trace) -> Vec<Finding> {
    let mut findings: Vec<Finding> = trace.branches.iter().filter_map(|branch| refusal(view, packet, branch)).collect();
    let lost: f64 =
        trace.branches.iter().filter(|b| b.outcome.verdict == Verdict::Untouched).map(|b| b.outcome.probability).sum();
    if lost > 0.0 && address.fate == Fate::Endpoints {
        findings.push(Finding::certain(
            Cause::NotTranslated,
            format!(
                "{:.0} % of connections {packet} are sent on untranslated: no rule gives them an endpoint",
                lost * 100.0
            ),
            "see the way with kube-proxy trace, and what differs with kube-proxy dump",
        ));
    }
    findings.extend(trace.branches.iter().find_map(|branch| forwarded(view, branch)));
    findings.extend(trace.branches.iter().find_map(|branch| diverted(view, packet, branch)));
    let doubts = trace.branches.iter().flat_map(|branch| &branch.doubts);
    findings.extend(doubts.map(|doubt| {
        Finding::suspect(
            Cause::NotUnderstood,
            format!("{packet} meets a rule in {} that is not understood here: {}", doubt.hook, doubt.rule),
            "see what that rule does, and whose it is",
        )
    }));
    findings
}

/// Words of rules that give a packet another destination, in iptables and in nftables.
const DIVERTING: [&str; 6] = ["-j DNAT", "-j REDIRECT", "-j TPROXY", "dnat", "redirect", "tproxy"];

/// A packet for the Service that another program's rule sends to what is no endpoint of it.
fn diverted(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let is_endpoint = view.endpoints.iter().any(|endpoint| endpoint.address == Some(to));
    if is_endpoint || view.endpoints.is_empty() || to == packet.destination {
        return None;
    }
    let mut steps = branch.steps.iter().rev();
    let rule = steps.find(|step| DIVERTING.iter().any(|word| step.rule.contains(word)));
    let by = rule.map_or_else(String::new, |step| format!(" by a rule in {}: {}", step.hook, step.rule));
    Some(Finding {
        certain: branch.doubts.is_empty(),
        ..Finding::certain(
            Cause::DivertedByOthers,
            format!("{packet} is sent to {to}, which is no endpoint of {} ({}){by}", view.name, view.family),
            "find out whose rule that is (a published container port, a port forward of a firewall) and take it out, or \
             give the Service another port; kube-proxy trace shows the way",
        )
    })
}

/// A pod that is sent to itself must not see its own address on both ends, and its packets must get back to it.
fn hairpin(facts: &Facts, view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    if to.ip() != packet.source.ip() || packet.origin == Origin::Host {
        return None;
    }
    if branch.outcome.masqueraded {
        return no_way_back(facts, view, packet, to);
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

/// A real server that gets packets as they are.
fn forwarded(view: &ServicePortView, branch: &Branch) -> Option<Finding> {
    let Verdict::Forwarded(to, how) = branch.outcome.verdict else { return None };
    let what = format!(
        "{} ({}): connections go to {to} by {} and not by translation: its pod does not know their address",
        view.name,
        view.family,
        how.name()
    );
    Some(Finding::certain(
        Cause::RulesAltered,
        what,
        "no kube-proxy sets that up: find out who changed the real server (ipvsadm), and delete it there, so that the \
         proxy adds it again",
    ))
}

/// A refusal that the Service itself does not explain.
fn refusal(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    if !matches!(branch.outcome.verdict, Verdict::Dropped | Verdict::Rejected) {
        return None;
    }
    // A rule that is not understood may have accepted it.
    let certain = branch.doubts.is_empty();
    let last = branch.steps.last();
    if last.is_some_and(|step| step.hook.starts_with("ipvs ")) {
        // A virtual server without real ones: told already.
        return None;
    }
    // In nftables a step's place is table, chain and hook.
    let in_table = last.filter(|step| step.handle.is_some()).map(|step| step.hook.splitn(3, ' ').collect::<Vec<_>>());
    let of_proxy = in_table.as_ref().is_some_and(|place| place.get(1) == Some(&TABLE));
    let table_chain = in_table.as_ref().and_then(|place| place.get(2)?.split(' ').next());
    let chain = last.and_then(|step| step.rule.split(' ').nth(1)).unwrap_or("the policy of a built-in chain");
    let chain = table_chain.unwrap_or(chain);
    let rule = last.map(|step| step.rule.as_str()).unwrap_or_default();
    let by_ranges = of_proxy && chain.starts_with("firewall-");
    if by_ranges || ["KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL"].contains(&chain) {
        let ranges: Vec<String> = view.source_ranges.iter().map(ToString::to_string).collect();
        let what = format!(
            "{} ({}): {} is in none of loadBalancerSourceRanges ({}), so its packets are dropped",
            view.name,
            view.family,
            packet.source.ip(),
            ranges.join(", ")
        );
        let next = "add the client's network to spec.loadBalancerSourceRanges, or see whether something on the way \
                    changes the client's address";
        return Some(Finding { certain, ..Finding::certain(Cause::SourceRangeRefuses, what, next) });
    }
    let by_policy = last.is_some_and(|step| step.handle == Some(0));
    let words = if in_table.is_some() { ["drop", "reject"] } else { [" -j DROP", " -j REJECT"] };
    let texts = last.into_iter().flat_map(|step| step.elements.iter().chain([&step.rule]));
    // A chain of iptables that drops by its policy leaves no step.
    let ends = !by_policy && texts.into_iter().any(|text| words.iter().any(|end| text.contains(end)));
    if ends && (of_proxy || (chain.starts_with("KUBE-") && owner(chain) != Some("kube-router"))) {
        // No endpoints, or none here: told already.
        return None;
    }
    let of_table = in_table.as_ref().map(|place| format!("table {}", place[..2.min(place.len())].join(" ")));
    let whose = of_table.unwrap_or_else(|| owner(chain).unwrap_or("no known owner").to_owned());
    let what = match () {
        () if by_policy => {
            format!("{packet} is dropped by the policy of chain {chain} of {whose}, as no rule accepts it")
        }
        () if ends || (in_table.is_some() && !of_proxy) => {
            let found: Vec<String> = last.into_iter().flat_map(|step| &step.elements).cloned().collect();
            let found = if found.is_empty() { String::new() } else { format!(" (found: {})", found.join(", ")) };
            format!("{packet} is refused by a rule of {whose}: {rule}{found}")
        }
        () => {
            format!(
                "{packet} is dropped by the policy of a built-in chain, as no rule accepts it; the last it met: {rule}"
            )
        }
    };
    let next = "look at the network policies that apply, or at the firewall that wrote the rule; kube-proxy trace shows the way";
    Some(Finding { certain, ..Finding::certain(Cause::RefusedByOthers, what, next) })
}
