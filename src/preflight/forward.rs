//! Whether the firewall forwards connections to pods without the chain KUBE-FORWARD.
//!
//! iptables and IPVS mode accept them there, before the policy or a last rule of FORWARD drops them. nftables mode leaves
//! the firewall alone. Only rules of iptables are walked: an accept there does not override other tables' base chains, so
//! what those drop is dropped in every mode.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netfilter::IpFamily;
use proxier::ipvs::ObservedState;
use proxier::model::{Mode, Protocol};
use proxier::track::Tracker;
use proxier_inspect::node::facts::Facts;
use proxier_inspect::node::paths::{CLIENT_PORT, answer_sets, node_of};
use proxier_inspect::node::{FamilyRules, Unread};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{Branch, ConnState, Node, Origin, Packet, RecentLists, Trace, Verdict};

use crate::inspect::NodeInspection;
use crate::trace::OUTSIDE;

/// The most pods that connections are followed to, each behind another interface.
const MAX_PODS: usize = 20;

/// What happens to forwarded packets in nftables mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardCheck {
    /// Packets that the firewall will refuse and does not now, each with what refuses it.
    pub refused: Vec<String>,
    /// What could not be decided.
    pub unread: Vec<Unread>,
}

impl ForwardCheck {
    /// Follows connections through the rules of each family that was read.
    pub fn of(inspection: &NodeInspection, mode: Mode, facts: &Facts) -> Self {
        let mut check = Self::default();
        for rules in &inspection.rules.families {
            let tracker = inspection.objects.as_ref().and_then(|objects| objects.get(&rules.family));
            let mut node = node_of(rules);
            // Virtual servers and their sets go with IPVS mode.
            (node.held, node.unwalked) = (ObservedState::default(), Vec::new());
            let pods = pods(rules.family, tracker, facts, inspection, &node);
            let walk = FirewallWalk {
                mode,
                mark: inspection.settings.proxier.masquerade_mark(),
                node,
                client: SocketAddr::new(outside(rules.family), CLIENT_PORT),
                pods,
            };
            check.add(rules, walk);
        }
        check
    }

    fn add(&mut self, rules: &FamilyRules, walk: FirewallWalk) {
        if !may_refuse(&rules.ruleset) {
            return;
        }
        let unread = |why: String| Unread::new(&format!("what the firewall forwards in {}", rules.family), why);
        if walk.pods.is_empty() {
            self.unread.push(unread(
                "no pod is known to follow packets to: give --kubeconfig, --config or --objects".to_owned(),
            ));
            return;
        }
        match walk.run(&rules.ruleset) {
            Ok((refused, undecided)) => {
                self.refused.extend(refused.into_iter().map(|refused| format!("{}: {refused}", rules.family)));
                self.unread.extend(undecided.into_iter().map(unread));
            }
            Err(why) => self.unread.push(unread(why)),
        }
    }
}

/// Whether FORWARD has a policy or rules besides kube-proxy's.
fn may_refuse(ruleset: &Ruleset) -> bool {
    let forward = |table| ruleset.chain(table, "FORWARD");
    ["mangle", "filter", "security"].into_iter().filter_map(forward).any(|chain| {
        let drops = chain.policy == Some(proxier_inspect::rules::Policy::Drop);
        drops || chain.rules.iter().any(|rule| !rule.jump_target().is_some_and(super::node::is_of_proxy))
    })
}

/// An address outside the cluster that has no route of its own.
fn outside(family: IpFamily) -> IpAddr {
    OUTSIDE[usize::from(family == IpFamily::V6)].parse().unwrap_or_else(|_| family.localhost())
}

/// An address of a Service, for a connection that no Service of the node has.
fn service_address(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(203, 0, 113, 254).into(),
        IpFamily::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe).into(),
    }
}

/// Endpoints of Services, or else pods by their routes, or else an address of the cluster's networks: one for each
/// interface that packets leave by.
fn pods(
    family: IpFamily,
    tracker: Option<&Tracker>,
    facts: &Facts,
    inspection: &NodeInspection,
    node: &Node,
) -> Vec<SocketAddr> {
    let of_objects = tracker.map(|tracker| {
        let snapshot = tracker.snapshot(family.localhost());
        let endpoints = snapshot.ports.keys().flat_map(|name| snapshot.endpoints.of(name));
        endpoints.map(|endpoint| endpoint.address).collect::<Vec<_>>()
    });
    let by_route = facts.pods.iter().filter(|ip| IpFamily::of(ip) == family).map(|ip| SocketAddr::new(*ip, 80));
    let cidrs =
        inspection.settings.file.cluster_cidr.split(',').filter_map(|cidr| cidr.trim().parse::<ipnet::IpNet>().ok());
    let of_cluster = cidrs.filter(|net| IpFamily::of_net(net) == family).filter_map(|net| net.hosts().nth(1));
    let candidates = of_objects.into_iter().flatten().chain(by_route);
    let candidates = candidates.chain(of_cluster.map(|ip| SocketAddr::new(ip, 80)));
    let mut interfaces = BTreeSet::new();
    let pods = candidates.filter(|pod| !node.is_local(pod.ip()));
    let pods = pods.filter(|pod| node.out_interface(pod.ip()).is_some_and(|name| interfaces.insert(name.to_owned())));
    pods.take(MAX_PODS).collect()
}

/// Packets of one family that are followed through its firewall.
struct FirewallWalk {
    mode: Mode,
    /// The mark of packets to be masqueraded, which KUBE-FORWARD accepts.
    mark: u32,
    node: Node,
    client: SocketAddr,
    pods: Vec<SocketAddr>,
}

impl FirewallWalk {
    /// The packets that the rules refuse without KUBE-FORWARD and not with it, and those of which that is not known.
    fn run(mut self, ruleset: &Ruleset) -> Result<(Vec<String>, Vec<String>), String> {
        let [now, later] = [false, true].map(|removed| self.rules(ruleset, removed));
        let (mut refused, mut undecided) = (Vec::new(), Vec::new());
        for (words, packet) in self.packets() {
            // In IPVS mode new connections do not pass FORWARD: virtual servers take them before.
            let passes_now = self.mode == Mode::Iptables || packet.state != ConnState::New;
            let before = if passes_now { Some(self.trace(&now, &packet)?) } else { None };
            if before.as_ref().is_some_and(|trace| refusing(trace).is_some()) {
                continue;
            }
            let after = self.trace(&later, &packet)?;
            let certain = |trace: &Trace| trace.is_certain();
            match refusing(&after) {
                Some(branch) if certain(&after) => refused.push(format!("{words} ({})", refusal(branch))),
                None if certain(&after) || !before.as_ref().is_none_or(certain) => {}
                _ => undecided.push(format!("{words}: {}", doubt(&after))),
            }
        }
        Ok((refused, undecided))
    }

    /// The firewall, with or without kube-proxy's chains, behind rules that translate connections to the pods.
    fn rules(&self, ruleset: &Ruleset, without_proxy: bool) -> Ruleset {
        let mut rules = ruleset.without_nat(|chain| without_proxy && super::node::is_of_proxy(chain));
        let (mark, mut text) = (self.mark, String::new());
        let to = service_address(ruleset.family());
        let _ = writeln!(text, "-A PREROUTING -d {to} -j MARK --set-xmark {mark:#x}/{mark:#x}");
        for (number, pod) in (1..).zip(&self.pods) {
            let _ =
                writeln!(text, "-A PREROUTING -d {to} -p tcp -m tcp --dport {number} -j DNAT --to-destination {pod}");
        }
        let problems = rules.read_chains("nat", &text);
        debug_assert!(problems.is_empty(), "{problems:?}");
        rules
    }

    /// For each pod: a connection from outside through a Service, what it answers, and an answer to the pod.
    fn packets(&self) -> Vec<(String, Packet)> {
        let Some(uplink) = self.node.out_interface(self.client.ip()).map(str::to_owned) else { return Vec::new() };
        let mut packets = Vec::new();
        for (number, pod) in (1_u16..).zip(&self.pods) {
            let Some(link) = self.node.out_interface(pod.ip()).map(str::to_owned) else { continue };
            let service = SocketAddr::new(service_address(IpFamily::of(&pod.ip())), number);
            let packet = |source, destination, name: &str, state| Packet {
                source,
                destination,
                protocol: Protocol::Tcp,
                origin: Origin::Interface(name.to_owned()),
                state,
            };
            let (client, pod) = (self.client, *pod);
            packets.push((
                format!("connections from outside to Services with endpoint {pod}"),
                packet(client, service, &uplink, ConnState::New),
            ));
            packets.push((
                format!("answers of endpoint {pod} to clients outside"),
                packet(pod, client, &link, ConnState::EstablishedDnat),
            ));
            packets.push((
                format!("answers from outside to pod {}", pod.ip()),
                packet(
                    SocketAddr::new(client.ip(), 443),
                    SocketAddr::new(pod.ip(), CLIENT_PORT),
                    &uplink,
                    ConnState::Established,
                ),
            ));
        }
        packets
    }

    fn trace(&mut self, rules: &Ruleset, packet: &Packet) -> Result<Trace, String> {
        loop {
            let trace = rules.trace(packet, &self.node, &RecentLists::new())?;
            if !answer_sets(&mut self.node, &trace) {
                return Ok(trace);
            }
        }
    }
}

/// A way on which the packet is refused.
fn refusing(trace: &Trace) -> Option<&Branch> {
    let refused = |branch: &&Branch| matches!(branch.outcome.verdict, Verdict::Dropped | Verdict::Rejected);
    trace.branches.iter().find(refused)
}

/// Why the end of a packet is not certain.
fn doubt(trace: &Trace) -> String {
    let doubt = trace.branches.iter().flat_map(|branch| &branch.doubts).next();
    doubt.map_or_else(
        || "not all rules on the way were read".to_owned(),
        |doubt| format!("it depends on a rule of {} ({}): {}", doubt.hook, doubt.why, doubt.rule),
    )
}

/// What refuses a packet: a policy, or the last rule that it met.
fn refusal(branch: &Branch) -> String {
    match (&branch.policy, branch.steps.last()) {
        (Some(policy), _) => format!("policy of {policy}"),
        (None, Some(step)) => format!("{}: {}", step.hook, step.rule),
        (None, None) => "no rule accepts it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "10.244.1.5:8080";
    const KUBE: &str = "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n";
    const CHAIN: &str = "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
                         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";

    /// What is refused and undecided on a node with that policy and rules of FORWARD behind kube-proxy's.
    fn run(mode: Mode, policy: &str, rules: &str) -> (Vec<String>, Vec<String>) {
        run_with(mode, policy, "", rules)
    }

    /// The same with rules in front of kube-proxy's.
    fn run_with(mode: Mode, policy: &str, first: &str, rules: &str) -> (Vec<String>, Vec<String>) {
        let text =
            format!("*filter\n:FORWARD {policy} [0:0]\n:KUBE-FORWARD - [0:0]\n{first}{KUBE}{CHAIN}{rules}COMMIT\n");
        let mut ruleset = Ruleset::new(IpFamily::V4);
        assert_eq!(ruleset.read(&text), []);
        let route = |net: &str, link: &str| (net.parse().expect("a network"), link.to_owned());
        let node = Node {
            addresses: vec!["192.168.50.2".parse().expect("an address")],
            routes: vec![route("0.0.0.0/0", "eth0"), route("10.244.1.5/32", "pod5")],
            ..Node::default()
        };
        let client = SocketAddr::new(outside(IpFamily::V4), CLIENT_PORT);
        let walk = FirewallWalk { mode, mark: 0x4000, node, client, pods: vec![POD.parse().expect("an address")] };
        assert_eq!(may_refuse(&ruleset), policy == "DROP" || !first.is_empty() || !rules.is_empty());
        walk.run(&ruleset).expect("walked")
    }

    #[test]
    fn policy_and_last_rules_that_refuse_are_found() {
        let last = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n";
        for (policy, rules, by) in [
            ("DROP", "", "policy of filter FORWARD"),
            ("ACCEPT", last, "filter FORWARD: -A FORWARD -j REJECT --reject-with icmp-port-unreachable"),
            ("ACCEPT", "-A FORWARD -j DROP\n", "filter FORWARD: -A FORWARD -j DROP"),
        ] {
            for mode in [Mode::Iptables, Mode::Ipvs] {
                let (refused, undecided) = run(mode, policy, rules);
                assert_eq!((refused.len(), undecided.len()), (3, 0), "{policy} {rules}: {refused:?} {undecided:?}");
                let expected = format!("connections from outside to Services with endpoint {POD} ({by})");
                assert_eq!(refused[0], expected, "{mode}");
            }
        }
    }

    #[test]
    fn firewall_that_accepts_translated_connections_refuses_none() {
        let accept = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT\n";
        let by_pod = "-A FORWARD -s 10.244.0.0/16 -j ACCEPT\n-A FORWARD -d 10.244.0.0/16 -j ACCEPT\n";
        for rules in [accept, by_pod, "-A FORWARD -o pod5 -j ACCEPT\n-A FORWARD -i pod5 -j ACCEPT\n"] {
            assert_eq!(run(Mode::Iptables, "DROP", rules), Default::default(), "{rules}");
        }
        assert_eq!(run(Mode::Iptables, "ACCEPT", ""), Default::default());
        // Answers to pods that opened a connection are no translated ones.
        let (refused, _) = run(Mode::Iptables, "DROP", "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\n");
        assert_eq!(refused, ["answers from outside to pod 10.244.1.5 (policy of filter FORWARD)"]);
    }

    #[test]
    fn packets_that_are_refused_in_both_modes_are_no_difference() {
        let first = "-A FORWARD -d 10.244.1.5/32 -j DROP\n";
        let (refused, _) = run_with(Mode::Iptables, "ACCEPT", first, "");
        assert_eq!(refused, [""; 0]);
        // In IPVS mode, new connections do not meet it.
        let (refused, _) = run_with(Mode::Ipvs, "ACCEPT", first, "");
        assert_eq!(refused.len(), 1, "{refused:?}");
    }

    #[test]
    fn rules_that_are_not_understood_are_no_certain_difference() {
        let (refused, undecided) =
            run(Mode::Iptables, "DROP", "-A FORWARD -m mac --mac-source 00:00:5e:00:53:01 -j ACCEPT\n");
        assert_eq!(refused, [""; 0]);
        assert!(undecided.len() == 3 && undecided[0].contains("-m mac"), "{undecided:?}");
    }
}
