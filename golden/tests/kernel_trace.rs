//! Compares the walk through iptables rules with the kernel: real packets through recorded rules.
//!
//! For each packet of the flow tables, the rules whose counters it increased and its conntrack entry must be those of
//! one branch of the walk; for many packets, the probabilities must fit. Requires root.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use golden::flavour::Flavour;
use golden::flows::{self, FlowTable};
use golden::netns::{Netns, veth};
use golden::{case, wire};
use netfilter::Flow;
use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost, for_each_flow, last_seen, node};
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{Branch, ConnState, Node, Origin, Packet, RecentLists, Trace, Verdict};

/// Interfaces of the recorded node, with the address that packets to it are sent to on the wire.
const LINKS: [&str; 4] = ["eth1", "eth0", "cbr0", "cbr01"];
const ADDRESSES: [(&str, &str); 4] =
    [("eth1", "192.168.60.2/24"), ("eth1", "fd00:60::2/64"), ("eth0", "192.168.50.2/24"), ("eth0", "fd00:50::2/64")];

/// The recorded node, with something that never answers behind each interface.
struct Machine {
    node: Netns,
    behind: BTreeMap<&'static str, Netns>,
    flavour: Flavour,
    lock: std::path::PathBuf,
}

impl Machine {
    fn new(case: &str, flavour: Flavour) -> Self {
        let node = Netns::new();
        let mut behind = BTreeMap::new();
        for link in LINKS {
            let other = Netns::new();
            veth(&node, link, &other, "wire");
            // Without ARP, because the neighbours do not answer.
            node.run(&format!("ip link set {link} arp off"));
            behind.insert(link, other);
        }
        for (link, address) in ADDRESSES {
            node.run(&format!("ip addr add {address} dev {link} nodad"));
        }
        for line in [
            "ip route add default dev eth0",
            "ip -6 route add default dev eth0",
            "ip route add 10.244.1.0/24 dev cbr0",
            "ip -6 route add fd00:10:244:1::/64 dev cbr0",
        ] {
            node.run(line);
        }
        let lock = std::env::temp_dir().join(format!("kernel-trace-{}-{case}-{flavour}.lock", std::process::id()));
        let machine = Self { node, behind, flavour, lock };
        for (link, other) in &machine.behind {
            machine.aim(link, other);
        }
        machine.prepare(case);
        machine
    }

    /// Whatever is sent from behind a link goes to the node.
    fn aim(&self, link: &str, other: &Netns) {
        let listed = self.node.run(&format!("ip -o link show {link}"));
        let mac = listed.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        for line in [
            // What is for a loopback address is to go to the node too.
            "ip addr del 127.0.0.1/8 dev lo".to_owned(),
            "ip link set wire arp on".to_owned(),
            "ip route add default via 192.0.2.1 dev wire onlink".to_owned(),
            format!("ip neigh add 192.0.2.1 lladdr {mac} dev wire nud permanent"),
            "ip -6 route add default via fe80::1 dev wire onlink".to_owned(),
            format!("ip -6 neigh add fe80::1 lladdr {mac} dev wire nud permanent"),
        ] {
            other.run(&line);
        }
    }

    fn prepare(&self, case: &str) {
        self.node.enter(|| {
            for counter in [INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER] {
                SystemHost.ensure_counter(counter).expect("nfacct");
            }
            for (name, value) in [
                ("net/ipv4/ip_forward", 1),
                ("net/ipv6/conf/all/forwarding", 1),
                ("net/ipv4/conf/all/route_localnet", 1),
                ("net/ipv4/conf/all/accept_local", 1),
                ("net/ipv4/conf/all/rp_filter", 0),
            ] {
                SystemHost.set_sysctl(name, value).unwrap_or_else(|e| panic!("{name}: {e}"));
            }
            for link in LINKS {
                SystemHost.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), 0).expect("rp_filter");
            }
        });
        for family in IpFamily::ALL {
            let file = format!("expected/iptables/00.{}", family.iptables());
            let rules = std::fs::read_to_string(case::folder().join(case).join(file)).unwrap();
            self.restore(family, &rules);
            // What the node says about a packet, and what its neighbours say on their own, would count too.
            let icmp = if family == IpFamily::V4 { "icmp" } else { "ipv6-icmp" };
            let quiet = format!(
                "*raw\n-A PREROUTING -p {icmp} -j DROP\n-A OUTPUT -p {icmp} -j DROP\n-A OUTPUT -p tcp -m tcp --tcp-flags RST RST -j DROP\nCOMMIT\n"
            );
            self.restore(family, &quiet);
        }
    }

    fn restore(&self, family: IpFamily, text: &str) {
        let mut tool = self.node.command(&format!("{}-{}-restore", family.iptables(), self.flavour));
        tool.arg("--noflush").env("XTABLES_LOCKFILE", &self.lock).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut tool = tool.spawn().unwrap();
        tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = tool.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sends a packet from where it comes from.
    fn send(&self, packet: &Packet) {
        let from = match &packet.origin {
            Origin::Host => &self.node,
            Origin::Interface(name) => &self.behind[name.as_str()],
        };
        wire::send(from, packet.protocol, packet.source, packet.destination);
    }

    /// The rules of a family as they are now.
    fn rules(&self, family: IpFamily) -> Ruleset {
        self.flavour.ruleset(&self.node, family)
    }

    fn as_met(&self, family: IpFamily) -> Node {
        self.node.enter(|| {
            let mut addresses = SystemHost.addresses(family).unwrap();
            addresses.retain(|ip| !ip.is_loopback());
            Node { addresses, routes: node::routes(family), ..Node::default() }
        })
    }

    /// The flow that began with this packet.
    fn flow(&self, packet: &Packet) -> Option<Flow> {
        self.node.enter(|| {
            let mut found = None;
            let mut look = |live: &netfilter::kernel::LiveFlow| {
                let original = live.flow.original;
                let same = (original.source, original.destination) == (packet.source, packet.destination);
                if same && live.flow.protocol == packet.protocol.number() {
                    found = Some(live.flow);
                }
            };
            for_each_flow(IpFamily::of(&packet.source.ip()), &mut look).unwrap();
            found
        })
    }

    /// The trace, with whom the kernel remembers.
    fn trace(&self, rules: &Ruleset, packet: &Packet, node: &Node) -> Trace {
        let first = rules.trace(packet, node, &RecentLists::new()).unwrap();
        let memory: RecentLists = self.node.enter(|| {
            let seen = |list: &String| Some((list.clone(), last_seen(list, packet.source.ip()).unwrap()?));
            first.asked.iter().filter_map(seen).collect()
        });
        if memory.is_empty() { first } else { rules.trace(packet, node, &memory).unwrap() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.lock);
    }
}

type Counts = BTreeMap<(String, String), u64>;

/// What each rule counted: by table and text, as two rules of a chain may read the same.
fn counts(rules: &Ruleset) -> Counts {
    let mut counts = Counts::new();
    for table in ["mangle", "nat", "filter"] {
        for rule in rules.chains(table).flat_map(|(_, chain)| &chain.rules) {
            *counts.entry((table.to_owned(), rule.text.to_string())).or_default() += rule.counters.packets;
        }
    }
    counts
}

fn met(before: &Counts, after: &Counts) -> BTreeSet<(String, String)> {
    after.iter().filter(|(rule, count)| before.get(*rule) < Some(count)).map(|(rule, _)| rule.clone()).collect()
}

fn rules_of(branch: &Branch) -> BTreeSet<(String, String)> {
    let table = |hook: &str| hook.split(' ').next().unwrap_or_default().to_owned();
    let steps = branch.steps.iter().map(|step| (table(&step.hook), step.rule.clone()));
    steps.filter(|(table, _)| table != "raw").collect()
}

/// Whether the flow, or that there is none, fits the verdict.
fn fits(branch: &Branch, packet: &Packet, flow: Option<Flow>) -> bool {
    // The host's own packets keep their address, but get another port: the recorded rules say --random-fully.
    let masqueraded = |flow: Flow| flow.reply.destination != packet.source;
    match (branch.outcome.verdict, flow) {
        (Verdict::Dropped | Verdict::Rejected, None) => true,
        // What the host sends to itself was let out before it was refused on its way in.
        (Verdict::Dropped | Verdict::Rejected, Some(_)) => {
            branch.steps.iter().any(|step| step.hook == "nat POSTROUTING")
        }
        (Verdict::Delivered(to), Some(flow)) => {
            flow.reply.source == to && masqueraded(flow) == branch.outcome.masqueraded
        }
        (Verdict::Untouched, Some(flow)) => {
            flow.reply.source == packet.destination && masqueraded(flow) == branch.outcome.masqueraded
        }
        _ => false,
    }
}

#[derive(Debug, Default)]
struct Tally {
    packets: BTreeMap<&'static str, usize>,
    verdicts: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

/// Sends some packets of a case's flow table and compares: every `step`th of those of each family.
fn check(case: &str, flavour: Flavour, step: usize, tally: &mut Tally) {
    let machine = Machine::new(case, flavour);
    let table = FlowTable::load(case).unwrap();
    let asked = |packet: &Packet| {
        let interface = match &packet.origin {
            Origin::Host => true,
            // The kernel itself throws away what comes from elsewhere to ::1, before it meets any rule.
            Origin::Interface(name) => {
                let never = packet.destination.is_ipv6() && packet.destination.ip().is_loopback();
                LINKS.contains(&name.as_str()) && !never
            }
        };
        interface && packet.state == ConnState::New
    };
    for family in IpFamily::ALL {
        let node = machine.as_met(family);
        let mut rules = machine.rules(family);
        let of_family = table.flows.iter().filter(|flow| IpFamily::of(&flow.packet.source.ip()) == family);
        let mut port = 20000;
        for flow in of_family.filter(|flow| flow.remembers.is_none() && asked(&flow.packet)).step_by(step) {
            port += 1;
            let packet = Packet { source: SocketAddr::new(flow.packet.source.ip(), port), ..flow.packet.clone() };
            let trace = machine.trace(&rules, &packet, &node);
            let before = counts(&rules);
            machine.send(&packet);
            rules = machine.rules(family);
            let (met, flow) = (met(&before, &counts(&rules)), machine.flow(&packet));
            let total: f64 = trace.branches.iter().map(|branch| branch.outcome.probability).sum();
            let fitting = trace.branches.iter().find(|branch| rules_of(branch) == met && fits(branch, &packet, flow));
            *tally.packets.entry(family.name()).or_default() += 1;
            match fitting {
                Some(branch) if (total - 1.0).abs() < 1e-9 => {
                    let verdict = match branch.outcome.verdict {
                        Verdict::Delivered(_) => "delivered",
                        Verdict::Rejected => "rejected",
                        // The machine's own rules let no error out.
                        Verdict::Dropped if branch.silenced.is_some() => "rejected",
                        Verdict::Dropped => "dropped",
                        Verdict::Untouched => "untouched",
                        Verdict::Forwarded(..) => "forwarded",
                    };
                    *tally.verdicts.entry(verdict).or_default() += 1;
                }
                _ => tally.failures.push(format!(
                    "{case} ({flavour}) {packet}: the kernel met {met:#?} and made {flow:?}, odds {total}; expected\n{trace}"
                )),
            }
        }
    }
}

fn check_all(cases: &[&str], flavour: Flavour, step: usize) -> Tally {
    let tallies = std::thread::scope(|scope| {
        let halves = cases.chunks(cases.len().div_ceil(2)).map(|half| {
            scope.spawn(move || {
                let mut tally = Tally::default();
                half.iter().for_each(|case| check(case, flavour, step, &mut tally));
                tally
            })
        });
        halves.collect::<Vec<_>>().into_iter().map(|half| half.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = Tally::default();
    for tally in tallies {
        tally.packets.into_iter().for_each(|(family, count)| *all.packets.entry(family).or_default() += count);
        tally.verdicts.into_iter().for_each(|(verdict, count)| *all.verdicts.entry(verdict).or_default() += count);
        all.failures.extend(tally.failures);
    }
    println!("{flavour}: {:?}, {:?}", all.packets, all.verdicts);
    all
}

/// Cases with a rule of each kind among them.
const TELLING: [&str; 12] = [
    "009-protocols-on-one-port",
    "101-nodeport-no-endpoints",
    "103-nodeport-etp-local",
    "210-lb-source-ranges",
    "402-both-local",
    "404-etp-local-no-detector",
    "502-affinity-local-policies",
    "601-ipv6-only-services",
    "700-masquerade-all",
    "712-detect-local-bridge",
    "720-nodeport-addresses-cidrs",
    "733-sync-periods",
];

#[test]
fn packets_take_the_path_that_trace_reports() {
    // TRACE_ALL=1 takes every packet of every case: some 3,000, in minutes.
    let all = std::env::var_os("TRACE_ALL").is_some();
    let cases = flows::cases().unwrap();
    let cases: Vec<&str> = if all { cases.iter().map(String::as_str).collect() } else { TELLING.to_vec() };
    let tally = check_all(&cases, Flavour::Nft, if all { 1 } else { 3 });
    assert!(tally.failures.is_empty(), "{} failures, the first: {}", tally.failures.len(), tally.failures[0]);
    assert!(tally.packets.values().sum::<usize>() >= 200, "{:?}", tally.packets);
    assert!(tally.packets.len() == 2 && tally.packets.values().all(|count| *count > 50), "{:?}", tally.packets);
    for verdict in ["delivered", "rejected", "dropped", "untouched"] {
        assert!(tally.verdicts.get(verdict).is_some_and(|count| *count > 10), "{verdict}: {:?}", tally.verdicts);
    }
}

#[test]
fn packets_take_the_traced_path_through_legacy_rules() {
    let cases =
        ["009-protocols-on-one-port", "103-nodeport-etp-local", "210-lb-source-ranges", "501-affinity-external"];
    let tally = check_all(&cases, Flavour::Legacy, 4);
    assert!(tally.failures.is_empty(), "{} failures, the first: {}", tally.failures.len(), tally.failures[0]);
    assert!(tally.packets.values().sum::<usize>() > 20, "{:?}", tally.packets);
}

/// 1,200 connections from outside to a node port with three endpoints: each gets its share, as far as chance goes.
#[test]
fn traced_probabilities_are_those_of_the_kernel() {
    let machine = Machine::new("102-nodeport-protocols", Flavour::Nft);
    let table = FlowTable::load("102-nodeport-protocols").unwrap();
    let node = machine.as_met(IpFamily::V4);
    let rules = machine.rules(IpFamily::V4);
    let choice = table.flows.iter().find(|flow| flow.expect.len() == 3 && flow.packet.source.is_ipv4()).unwrap();
    let outcomes = machine.trace(&rules, &choice.packet, &node).outcomes();
    const COUNT: u16 = 1200;
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    for port in 0..COUNT {
        let source = SocketAddr::new(choice.packet.source.ip(), 10000 + port);
        machine.send(&Packet { source, ..choice.packet.clone() });
    }
    machine.node.enter(|| {
        for_each_flow(IpFamily::V4, &mut |live| {
            if live.flow.original.destination == choice.packet.destination {
                *seen.entry(live.flow.reply.source).or_default() += 1;
            }
        })
        .unwrap();
    });
    assert_eq!(seen.values().sum::<u32>(), u32::from(COUNT), "{seen:?}");
    assert_eq!(seen.len(), outcomes.len());
    for outcome in outcomes {
        let Verdict::Delivered(to) = outcome.verdict else { panic!("{outcome}") };
        let expected = outcome.probability * f64::from(COUNT);
        // Six standard deviations: one false alarm in a billion.
        let room = 6.0 * (expected * (1.0 - outcome.probability)).sqrt();
        assert!((f64::from(seen[&to]) - expected).abs() < room, "{to}: {} of {COUNT}, {outcome}", seen[&to]);
    }
}
