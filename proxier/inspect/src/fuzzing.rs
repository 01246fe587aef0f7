//! The decoders of untrusted bytes as functions that fuzz targets call. Not a public interface.

use crate::rules::Ruleset;
use crate::walk::{ConnState, Node, NodeRules, Origin, Packet, RecentLists};
use crate::{neighbours, services};
use netfilter::IpFamily;
use netfilter::nft::ruleset;
use netfilter::{SavedTable, reference};
use proxier::model::Protocol;

pub use netfilter::kernel::fuzzing::{conntrack, ipset, ipvs, links, netlink, proc};

/// Parses the output of iptables tools and `uname`: errors, versions, saved tables, kernel releases.
///
/// # Panics
/// If an error names a line beyond the text, or arguments are longer than the text.
pub fn tool(bytes: &[u8]) {
    netfilter::kernel::fuzzing::tool(bytes);
    let _ = proxier::nftables::check_release(&String::from_utf8_lossy(bytes));
}

/// The most rules that a walk evaluates, so that no single input is slow.
const MOST_RULES: usize = 100_000;

/// Decodes an nf_tables datagram, prints its objects, reads Services from them and traces a packet.
///
/// # Panics
/// If an object differs after encoding and decoding, or the probabilities of a trace do not sum to 1.
pub fn nf_tables(datagram: &[u8]) {
    let ruleset = netfilter::kernel::fuzzing::ruleset(datagram);
    for (id, table) in &ruleset.tables {
        let rules = table.chains.values().flat_map(|chain| chain.rules.iter().flatten());
        rules.for_each(|rule| _ = rule.text(id, table));
        for set in table.sets.values() {
            set.elements.iter().for_each(|element| _ = set.text(element).to_string());
        }
        let views = services::from_nftables(IpFamily::V4, table, None, &|_| true);
        assert!(views.iter().all(|view| !view.name.is_empty()), "{views:?}");
        let _ = (services::node_port_ips(table), services::unused_chains_of_table(table));
        let _ = services::owner_in_table(table, packet(IpFamily::V4).destination, Protocol::Tcp, false);
    }
    let iptables = Ruleset::new(IpFamily::V4);
    let _ = (neighbours::nftables::hooks(&ruleset, &iptables), neighbours::nftables::sizes(&ruleset));
    walk(&iptables, Some(&ruleset));
}

/// Parses `iptables-save` output as a ruleset and as table states, reads Services from it and traces a packet. The first
/// byte selects the family.
///
/// # Panics
/// If rules are lost, or the probabilities of a trace do not sum to 1.
pub fn rules(input: &[u8]) {
    let Some((first, bytes)) = input.split_first() else { return };
    let family = if first % 2 == 0 { IpFamily::V4 } else { IpFamily::V6 };
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter(|line| line.starts_with("-A ")).count();
    let saved = SavedTable::read(bytes).expect("bytes can be read");
    let counted: usize = saved.chains.values().map(|chain| chain.rules as usize).sum();
    assert!(counted + saved.builtin.len() <= lines, "more rules than lines");
    text.lines().for_each(|line| _ = reference(line));

    let mut ruleset = Ruleset::new(family);
    let problems = ruleset.read(&text);
    assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
    let mut strict = Ruleset::new(family);
    let _ = (Ruleset::parse(family, &text), strict.read_chains("nat", &text));
    let _ = (neighbours::hooks(&ruleset), neighbours::sizes(&ruleset), neighbours::not_understood(&ruleset));
    let views = services::from_iptables(&ruleset, &|_, _| true);
    assert!(views.iter().all(|view| !view.name.is_empty()), "{views:?}");
    let _ = services::unused_chains(&ruleset);
    walk(&ruleset, None);
}

fn packet(family: IpFamily) -> Packet {
    let (source, destination) = match family {
        IpFamily::V4 => ("198.51.100.7:40000", "10.96.10.11:80"),
        IpFamily::V6 => ("[2001:db8::7]:40000", "[fd00:10:96::a11]:80"),
    };
    Packet {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        protocol: Protocol::Tcp,
        origin: Origin::Interface("eth0".to_owned()),
        state: ConnState::New,
    }
}

fn walk(iptables: &Ruleset, nftables: Option<&ruleset::Ruleset>) {
    let address = packet(iptables.family()).source.ip();
    let node = Node { addresses: vec![address], ..Node::default() };
    let rules = NodeRules { iptables, other: None, nftables };
    for origin in [Origin::Interface("eth0".to_owned()), Origin::Host] {
        let packet = Packet { origin, ..packet(iptables.family()) };
        let Ok(trace) = rules.trace_limited(MOST_RULES, &packet, &node, &RecentLists::new()) else { continue };
        let sum: f64 = trace.branches.iter().map(|branch| branch.outcome.probability).sum();
        assert!((sum - 1.0).abs() < 1e-6, "the ways of a packet add up to {sum}");
        let _ = (trace.to_string(), trace.outcomes());
    }
}
