//! Rules that refuse a Service's packets, or send them to another destination, or may.

use proxier::nftables::{TABLE, is_localhost_reject};
use proxier_inspect::neighbours::owner;
use proxier_inspect::node::paths::NO_IPV6;
use proxier_inspect::services::ServicePortView;
use proxier_inspect::walk::{Branch, Doubt, DoubtKind, Origin, Packet, Step, Unrouted, Verdict};

use super::finding::{Cause, Finding};
use super::{forwarding, loopback};

const NEXT: &str = "look at the network policies that apply, or at the firewall that wrote the rule; kube-proxy trace shows \
                    the way";

/// Words of rules that give a packet another destination, in iptables and in nftables.
const DIVERTING: [&str; 6] = ["-j DNAT", "-j REDIRECT", "-j TPROXY", "dnat", "redirect", "tproxy"];

/// What to do about rules that the proxy mends.
const MENDED: &str = "find out what changed them (nft monitor shows changes as they are made); the proxy mends them within \
                      its sync period if it runs";

/// How a finding about a packet that the routing code stopped begins.
pub const NOT_ROUTED: &str = "the kernel does not route";

/// Owners whose chains hold the policies of single pods.
const POD_POLICIES: [&str; 7] = ["Calico", "Cilium", "kube-router", "Antrea", "Weave Net", "Azure NPM", "AWS VPC CNI"];

impl Finding {
    /// Whether a network policy of a pod may have refused the packets.
    pub fn of_pod_policy(&self) -> bool {
        POD_POLICIES.iter().any(|owner| self.what.contains(owner))
    }
}

/// A packet for the Service that another program's rule sends to what is no endpoint of it.
pub fn diverted(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let Verdict::Delivered(to) = branch.outcome.verdict else { return None };
    let mut endpoints = view.endpoints.iter().filter(|endpoint| endpoint.exists()).peekable();
    if endpoints.peek().is_none() || endpoints.any(|endpoint| endpoint.address == Some(to)) || to == packet.destination
    {
        return None;
    }
    let mut steps = branch.steps.iter().rev();
    let rule = steps.find(|step| DIVERTING.iter().any(|word| step.rule.contains(word)));
    let whose = rule.and_then(|step| owner(chain_of(step)?));
    let whose =
        whose.map_or_else(|| "a rule that is not kube-proxy's".to_owned(), |owner| format!("a rule of {owner}"));
    let what =
        format!("{} ({}): {whose} sends {packet} to {to}, which is no endpoint of the Service", view.name, view.family);
    if view.addresses.iter().any(|address| address.ip == Some(to.ip()) && address.port == to.port()) {
        // OVN-Kubernetes sends node ports to the cluster IP, which its own switch translates.
        let what = format!("{what}, but an address of it: what translates that is not on this way");
        let next = "see whether the network plugin translates that address outside of the rules (OVN-Kubernetes does)";
        return Some(Finding::suspect(Cause::DivertedByOthers, what, next));
    }
    let next = "find out whose rule that is (a pod's hostPort, a port forward of a firewall) and take it out, or give the \
                Service another port";
    let finding = Finding::certain(Cause::DivertedByOthers, what, next);
    let finding = match rule {
        Some(step) => finding.shown_by(format!("{}: {}", step.hook, step.rule)),
        None => finding,
    };
    Some(Finding { certain: branch.is_certain(), ..finding })
}

/// The chain of a rule of iptables.
fn chain_of(step: &Step) -> Option<&str> {
    step.rule.strip_prefix("-A ")?.split(' ').next()
}

/// A refusal that the Service itself does not explain.
pub fn refusal(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    if !matches!(branch.outcome.verdict, Verdict::Dropped | Verdict::Rejected) {
        return None;
    }
    // A rule that is not understood may have accepted it.
    let certain = branch.is_certain();
    if let Some(unrouted) = &branch.unrouted {
        return (!forwarding::is_off(unrouted)).then(|| lost(view, packet, unrouted, certain));
    }
    let last = branch.steps.last();
    if let Some(policy) = &branch.policy {
        return Some(by_policy(view, packet, policy, last, certain));
    }
    let last = last?;
    if last.hook.starts_with("ipvs ") {
        // A virtual server without real ones has a finding of its own.
        return None;
    }
    let place = Refuser::of(last);
    if place.is_source_ranges() {
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
    if place.is_localhost_reject() {
        return Some(Finding { certain, ..loopback::rejected(view, packet, last) });
    }
    let by_policy = last.handle == Some(0);
    // No endpoints, or none here, has a finding of its own.
    if !by_policy && place.is_kube_proxy() {
        return None;
    }
    let Refuser { chain, table, .. } = &place;
    let what = if by_policy {
        format!("{packet} is dropped by the policy of chain {chain} of {table}, as no rule accepts it")
    } else {
        format!("{packet} is refused by a rule of {} in chain {chain} of {table}", place.owner())
    };
    let found: Vec<String> = last.elements.clone();
    let found = if found.is_empty() { String::new() } else { format!(" (found: {})", found.join(", ")) };
    let what = format!("{} ({}): {what}", view.name, view.family);
    let finding = Finding::certain(Cause::RefusedByOthers, what, NEXT).shown_by(format!("{}{found}", last.rule));
    Some(Finding { certain, ..finding })
}

/// A refusal by kube-proxy's own rules of what they should send to endpoints.
pub fn own_refusal(view: &ServicePortView, packet: &Packet, branch: &Branch) -> Option<Finding> {
    let last = branch.steps.last().filter(|_| branch.unrouted.is_none() && branch.policy.is_none())?;
    let refused = matches!(branch.outcome.verdict, Verdict::Dropped | Verdict::Rejected);
    let place = Refuser::of(last);
    if !refused || !place.is_kube_proxy() || place.is_source_ranges() || place.is_localhost_reject() {
        return None;
    }
    let what = format!(
        "{} ({}): {packet} is refused by kube-proxy's own rules in chain {}, which have endpoints for it: part of them is missing",
        view.name, view.family, place.chain
    );
    let finding = Finding::certain(Cause::RulesAltered, what, MENDED).shown_by(&*last.rule);
    Some(Finding { certain: branch.is_certain(), ..finding })
}

/// The routing code did not pass it on.
fn lost(view: &ServicePortView, packet: &Packet, unrouted: &Unrouted, certain: bool) -> Finding {
    let Unrouted { to, why } = unrouted;
    let what = format!("{} ({}): {NOT_ROUTED} {packet} to {to}: {why}", view.name, view.family);
    let next = match &packet.origin {
        Origin::Interface(_) if *why == NO_IPV6 => "sysctl net.ipv6.conf | grep disable_ipv6".to_owned(),
        Origin::Host => format!("ip route get {} from {}; ip rule", to.ip(), packet.source.ip()),
        Origin::Interface(name) => format!("ip route get {} from {} iif {name}; ip rule", to.ip(), packet.source.ip()),
    };
    Finding { certain, ..Finding::certain(Cause::NoRoute, what, next) }
}

/// A built-in chain of iptables drops what no rule accepts.
fn by_policy(view: &ServicePortView, packet: &Packet, policy: &str, last: Option<&Step>, certain: bool) -> Finding {
    let what = format!(
        "{} ({}): {packet} is dropped by the policy of a built-in chain of iptables, {policy}: no rule accepts it",
        view.name, view.family
    );
    let shown =
        last.map_or_else(|| "no rule matched".to_owned(), |step| format!("the last rule it met: {}", step.rule));
    Finding { certain, ..Finding::certain(Cause::RefusedByOthers, what, NEXT).shown_by(shown) }
}

/// Where a refusing rule stands.
struct Refuser<'a> {
    table: String,
    chain: &'a str,
    /// Whether it is in a table of nf_tables that iptables did not make.
    in_table: bool,
    of_proxy_table: bool,
}

impl<'a> Refuser<'a> {
    fn of(step: &'a Step) -> Self {
        let words: Vec<&str> = step.hook.splitn(3, ' ').collect();
        if step.handle.is_some() {
            // Table, chain and hook.
            let chain = words.get(2).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
            let table = format!("table {}", words[..2.min(words.len())].join(" "));
            return Self { table, chain, in_table: true, of_proxy_table: words.get(1) == Some(&TABLE) };
        }
        let hook = step.hook.rsplit_once(' ').map_or(&*step.hook, |(table, _)| table);
        let chain = chain_of(step).unwrap_or("a built-in chain");
        Self { table: format!("table {hook} of iptables"), chain, in_table: false, of_proxy_table: false }
    }

    fn is_source_ranges(&self) -> bool {
        let firewall = ["KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL"].contains(&self.chain);
        firewall || (self.of_proxy_table && self.chain.starts_with("firewall-"))
    }

    fn is_localhost_reject(&self) -> bool {
        self.of_proxy_table && is_localhost_reject(self.chain)
    }

    fn is_kube_proxy(&self) -> bool {
        self.of_proxy_table || (!self.in_table && owner(self.chain) == Some("kube-proxy"))
    }

    fn owner(&self) -> &str {
        owner(self.chain).unwrap_or(if self.in_table { "another program" } else { "no known owner" })
    }
}

/// What a packet meets that cannot be decided.
pub fn undecided(packet: &Packet, doubt: &Doubt) -> Finding {
    let Doubt { hook, rule, .. } = doubt;
    let (what, next) = match doubt.kind {
        DoubtKind::Rule => (
            format!("{packet} meets a rule in {hook} that is not understood here: {rule}"),
            "see what that rule does, and whose it is".to_owned(),
        ),
        DoubtKind::Chain => (
            format!("{packet}, or its reply, meets chain {hook}, whose rules are not followed here"),
            format!("see what its rules do, and whose they are: nft list chain {hook}"),
        ),
        DoubtKind::Order | DoubtKind::TableOrder => {
            let ends: Vec<String> = doubt.otherwise.iter().map(ToString::to_string).collect();
            let next = match doubt.kind {
                DoubtKind::Order => {
                    "move all rules of this node to one flavour of iptables (update-alternatives --config iptables)"
                }
                _ => {
                    "see which chain such packets meet first (meta nftrace set 1, nft monitor trace), or give one of them another priority"
                }
            };
            (format!("{packet} ends otherwise ({}) if {rule}: {}", ends.join(", "), doubt.why), next.to_owned())
        }
    };
    Finding::suspect(Cause::NotUnderstood, what, next)
}
