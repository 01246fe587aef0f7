//! A node whose kernel traces packets, and the walk through its tables.

use std::net::SocketAddr;

use golden::flows::entry;
use golden::nftrace::{Event, Listener};
use golden::probe::{Node, Outcome, Probe, Stage, Transport};
use netfilter::IpFamily;
use netfilter::kernel::{Host, NftReader, SystemHost, node};
use netfilter::nft::ruleset;
use proxier::model::Protocol;
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{self, Branch, ConnState, Origin, Packet, RecentLists, Trace, Verdict, trace_and_supply};

/// Traces probe packets, but no answers and no packets that the node sends about them.
const TRACED: &str = "\
table inet tracing {
	chain in {
		type filter hook prerouting priority -350;
		meta l4proto { tcp, udp, sctp } th sport 50000-59999 meta nftrace set 1
	}
	chain out {
		type filter hook output priority -350;
		meta l4proto { tcp, udp, sctp } th sport 50000-59999 meta nftrace set 1
	}
}
";
const FIRST_PORT: u16 = 50000;

/// The outcome of a packet, whether its source was translated, and the kernel's trace events.
pub type Sent = (Outcome, bool, Vec<Event>);

/// A node with tables, and a listener to the kernel's trace.
pub struct Machine {
    pub node: Node,
    listener: Listener,
    port: u16,
}

impl Machine {
    pub fn new() -> Self {
        let node = Node::new();
        let listener = Listener::new(node.netns());
        Self { node, listener, port: FIRST_PORT }
    }

    pub fn load(&self, rules: &str) {
        self.node.clear();
        self.node.feed("nft", &["-f", "-"], rules).unwrap();
        self.node.feed("nft", &["-f", "-"], TRACED).unwrap();
    }

    pub fn as_met(&self, family: IpFamily) -> walk::Node {
        self.node.netns().enter(|| {
            let mut addresses = SystemHost.addresses(family).unwrap();
            addresses.retain(|ip| !ip.is_loopback());
            let (routes, interfaces) = (node::routes(family), node::interfaces().unwrap());
            walk::Node { addresses, routes, interfaces, ..walk::Node::default() }
        })
    }

    /// Reads all tables of a family.
    pub fn whole(&self, family: IpFamily) -> ruleset::Ruleset {
        let (ruleset, problems) = self.node.netns().enter(|| NftReader::new(family).read_all().unwrap());
        assert_eq!(problems, [""; 0]);
        ruleset
    }

    /// Walks a packet, reading tables as the walk needs them.
    pub fn walk(&self, packet: &Packet, node: &walk::Node) -> Trace {
        let family = IpFamily::of(&packet.source.ip());
        self.node.netns().enter(|| {
            let mut reader = NftReader::new(family);
            let mut ruleset = reader.read_outline().unwrap();
            let met = (packet, node, &RecentLists::new());
            let mut supply =
                |ruleset: &mut ruleset::Ruleset, lack: &ruleset::UnreadPart| reader.read_part(ruleset, lack);
            trace_and_supply((&Ruleset::new(family), None), &mut ruleset, met, &mut supply).unwrap()
        })
    }

    pub fn next(&mut self, packet: &Packet) -> Packet {
        self.port += 1;
        if self.port == 59_999 {
            self.node.forget();
            self.port = FIRST_PORT;
        }
        // Packets on lo were sent by the node.
        let origin = match &packet.origin {
            Origin::Interface(name) if name == "lo" => Origin::Host,
            origin => origin.clone(),
        };
        Packet { source: SocketAddr::new(packet.source.ip(), self.port), origin, ..packet.clone() }
    }

    pub fn send(&self, packet: &Packet) -> Sent {
        let _ = self.listener.take();
        let probe = (entry(&packet.origin).unwrap(), probe(packet));
        let (outcome, replaced) = self.node.send_and_compare(&[probe]).remove(0);
        (outcome, replaced, self.listener.take())
    }
}

pub fn probe(packet: &Packet) -> Probe {
    let transport = match packet.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    };
    let stage = if packet.state == ConnState::Invalid { Stage::Nowhere } else { Stage::First };
    Probe { from: packet.source, to: packet.destination, transport, tag: u32::from(packet.source.port()), stage }
}

/// Whether the walk matched the kernel's rules and outcome.
pub fn agrees(branch: &Branch, packet: &Packet, (outcome, replaced, events): &Sent) -> bool {
    // Masquerading gives it any port, which the rules that have it traced ask for when it comes in again.
    let is_watched = |chain: &str| !chain.starts_with("inet tracing ");
    let rules = events.iter().filter_map(|event| Some((event.chain.as_str(), event.rule?)));
    let rules = rules.filter(|(chain, _)| is_watched(chain));
    let steps = branch
        .steps
        .iter()
        // A policy is no rule.
        .filter(|step| step.handle != Some(0))
        .map(|step| (step.hook.rsplit_once(" (").map_or("", |(chain, _)| chain), step.handle.unwrap_or_default()))
        .filter(|(chain, _)| is_watched(chain));
    let ended = events.last().is_some_and(|event| event.drops);
    let (same, masqueraded) = (rules.eq(steps), branch.outcome.masqueraded == *replaced);
    same && match (branch.outcome.verdict, outcome) {
        (Verdict::Delivered(to), Outcome::Arrived { at, .. }) => to == *at && masqueraded && !ended,
        (Verdict::Untouched, Outcome::Arrived { at, .. }) => packet.destination == *at && masqueraded && !ended,
        (Verdict::Rejected, Outcome::Refused(_)) | (Verdict::Dropped, Outcome::Dropped) => ended,
        _ => false,
    }
}
