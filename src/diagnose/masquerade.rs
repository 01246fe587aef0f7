//! Rules of other programs that keep kube-proxy from masquerading, or give packets another source.

use proxier::nftables::TABLE;
use proxier_inspect::neighbours::owner;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Node, Origin, Packet, Step, Verdict};

use super::finding::{Cause, Finding};

/// What to do about such a rule.
const NEXT: &str = "find out whose rule that is, and have it leave packets with kube-proxy's mark alone (-m mark ! --mark \
                    0x4000/0x4000) or stand behind KUBE-POSTROUTING";

/// The rule that kept a packet from being masqueraded which kube-proxy had marked for it.
pub fn culprit(branch: &Branch) -> Option<&Step> {
    if branch.outcome.masqueraded {
        return None;
    }
    let marked = branch.steps.iter().position(is_mark)?;
    let later = &branch.steps[marked + 1..];
    let last = later.iter().rfind(|step| step.hook.ends_with("nat POSTROUTING"));
    let skips = last.filter(|step| step.rule.ends_with("-j ACCEPT") || is_source(step)).filter(|step| !is_own(step));
    let unmarks = |step: &&Step| !is_own(step) && changes_mark(step);
    skips.or_else(|| later.iter().rfind(unmarks))
}

/// Packets that keep their source because of such a rule, and whose answers therefore do not come back this way.
pub fn skipped(view: &ServicePortView, packet: &Packet, branch: &Branch, node: &Node) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let rule = culprit(branch)?;
    let endpoint = view.endpoints.iter().find(|endpoint| endpoint.address == Some(to));
    let local = endpoint.and_then(|endpoint| endpoint.state).map(|state| state.local);
    let (so, certain) = match &packet.origin {
        _ if packet.source.ip() == to.ip() => ("it does not take a packet from its own address for an answer", true),
        Origin::Host if packet.source.ip().is_loopback() && !to.ip().is_loopback() => {
            ("it cannot answer a loopback address", true)
        }
        Origin::Interface(name) if comes_by_uplink(name, to.ip(), node) && local != Some(true) => {
            ("its answers go to the client directly and not back through this node", local == Some(false))
        }
        _ => return None,
    };
    let owner = chain_of(rule).and_then(owner).unwrap_or("no known owner");
    let what = format!(
        "{} ({}): a rule of {owner} keeps {packet} from being masqueraded, so {to} sees {} as its client: {so}",
        view.name,
        view.family,
        packet.source.ip()
    );
    let finding = Finding::certain(Cause::MasqueradeSkipped, what, NEXT);
    let finding = finding.shown_by(format!("{}: {}", rule.hook, rule.rule));
    Some(Finding { certain: certain && branch.is_certain(), ..finding })
}

/// Packets that get a source that is no address of this node.
pub fn foreign_source(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let source = branch.foreign_source?;
    let endpoint = view.endpoints.iter().find(|endpoint| endpoint.address == Some(to));
    // What a pod of this node answers passes it, whatever address it answers to.
    if endpoint.and_then(|endpoint| endpoint.state).is_some_and(|state| state.local) {
        return None;
    }
    let rule = branch.steps.iter().rfind(|step| is_source(step) && !is_own(step))?;
    let owner = chain_of(rule).and_then(owner).unwrap_or("no known owner");
    let what = format!(
        "{} ({}): a rule of {owner} gives {packet} the source {source}, which is no address of this node: answers of {to} \
         go there, and come back only if {source} is routed to this node",
        view.name, view.family
    );
    Some(Finding::suspect(Cause::MasqueradeSkipped, what, NEXT).shown_by(format!("{}: {}", rule.hook, rule.rule)))
}

/// Whether a client that comes in there is not a pod of this node: its packets come by an interface with a default route, or
/// by the one that the endpoint is behind.
fn comes_by_uplink(name: &str, to: std::net::IpAddr, node: &Node) -> bool {
    let default = node.routes.iter().any(|(net, other)| net.prefix_len() == 0 && other == name);
    default || node.out_interface(to) == Some(name)
}

fn chain_of(step: &Step) -> Option<&str> {
    step.rule.strip_prefix("-A ")?.split(' ').next()
}

fn is_own(step: &Step) -> bool {
    match step.handle {
        Some(_) => step.hook.split(' ').nth(1) == Some(TABLE),
        None => chain_of(step).and_then(owner) == Some("kube-proxy"),
    }
}

fn is_mark(step: &Step) -> bool {
    is_own(step) && (step.rule.starts_with("-A KUBE-MARK-MASQ ") || step.rule.contains("meta mark set meta mark |"))
}

fn changes_mark(step: &Step) -> bool {
    ["-j MARK", "-j CONNMARK", "meta mark set"].iter().any(|word| step.rule.contains(word))
}

fn is_source(step: &Step) -> bool {
    ["-j SNAT", "-j MASQUERADE", "-j NETMAP", "snat ", "masquerade"].iter().any(|word| step.rule.contains(word))
}
