//! Causes that a packet meets on its way.
//!
//! In: Service ports, whose connection fails. Out: findings, from walking the packet through the rules in the kernel.
//! Must not know: how rules are read.

use std::net::SocketAddr;

use proxier::inspect::neighbours::owner;
use proxier::inspect::services::{Address, AddressKind, Fate, ServicePortView};
use proxier::inspect::walk::{Branch, Packet, Trace, Verdict};
use proxier::model::Protocol;
use proxier::nftables::TABLE;

use super::finding::{Cause, Finding};
use crate::inspect::Look;
use crate::inspect::paths::Paths;
use crate::trace::sender;

/// Walks a packet to each address, or to the one asked for.
pub fn of(
    seen: &mut Look,
    views: &[ServicePortView],
    from: Option<&str>,
    only: Option<(SocketAddr, Protocol)>,
    findings: &mut Vec<Finding>,
) -> Result<(), String> {
    for view in views {
        let Some(protocol) = Protocol::of_name(view.protocol) else { continue };
        let Some(rules) = seen.rules.families.iter_mut().find(|rules| rules.family.name() == view.family) else {
            continue;
        };
        let node_ip = rules.node_port_ip();
        let mut paths = Paths::of(rules);
        for address in view.addresses.iter().filter(|address| address.kind != AddressKind::HealthCheckNodePort) {
            let Some(ip) = address.ip.or(node_ip) else { continue };
            let mut to = (SocketAddr::new(ip, address.port), protocol);
            if let Some(only) = only {
                let is_it = only == to || (address.ip.is_none() && only.0.port() == address.port && only.1 == protocol);
                if !is_it {
                    continue;
                }
                to = only;
            }
            // Whose connection it is nobody said: one that any client could open.
            let from = from.unwrap_or(if address.kind == AddressKind::ClusterIp { "host" } else { "outside" });
            let packet = sender(from, to.0).and_then(|from| paths.packet(from, to, None));
            let packet = match packet {
                Ok(packet) => packet,
                // That the node has no route is no cause for what fails elsewhere.
                Err(_) if only.is_none() => continue,
                Err(problem) => return Err(problem),
            };
            let trace = paths.trace(&packet)?;
            findings.extend(met(view, address, &packet, &trace));
        }
    }
    Ok(())
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
    findings.extend(trace.branches.iter().find_map(|branch| hairpin(view, packet, branch)));
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

/// A pod that is sent to itself must not see its own address on both ends.
fn hairpin(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    (to.ip() == packet.source.ip() && !branch.outcome.masqueraded).then(|| {
        Finding::certain(
            Cause::Hairpin,
            format!("{} ({}): {to} is sent to itself with its own address as the sender: it does not take that for an answer", view.name, view.family),
            "the rule that marks such packets for masquerading is missing: see kube-proxy dump",
        )
    })
}

/// A refusal that the Service itself does not explain.
fn refusal(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    if !matches!(branch.outcome.verdict, Verdict::Dropped | Verdict::Rejected) {
        return None;
    }
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
        return Some(Finding::certain(
            Cause::SourceRangeRefuses,
            format!(
                "{} ({}): {} is in none of loadBalancerSourceRanges ({}), so its packets are dropped",
                view.name,
                view.family,
                packet.source.ip(),
                ranges.join(", ")
            ),
            "add the client's network to spec.loadBalancerSourceRanges, or see whether something on the way changes the \
             client's address",
        ));
    }
    if of_proxy || (chain.starts_with("KUBE-") && owner(chain) != Some("kube-router")) {
        // No endpoints, or none here: told already.
        return None;
    }
    let words = if in_table.is_some() { ["drop", "reject"] } else { [" -j DROP", " -j REJECT"] };
    let ends = words.iter().any(|end| rule.contains(end));
    let of_table =
        in_table.as_ref().map(|place| format!("table {}", place.iter().take(2).copied().collect::<Vec<_>>().join(" ")));
    let whose = of_table.unwrap_or_else(|| owner(chain).unwrap_or("no known owner").to_owned());
    let what = if ends {
        format!("{packet} is refused by a rule of {whose}: {rule}")
    } else {
        format!("{packet} is dropped by the policy of a built-in chain, as no rule accepts it; the last it met: {rule}")
    };
    Some(Finding::certain(
        Cause::RefusedByOthers,
        what,
        "look at the network policies that apply, or at the firewall that wrote the rule; kube-proxy trace shows the way",
    ))
}
