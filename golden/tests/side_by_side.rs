//! nftables mode beside the real one's recordings: two nodes, the same connections, the same ends.
//!
//! In: the cases. Out: for every address and port that either table knows, and some that none does, from pods, from
//! outside and from the node itself, where packets of a real kernel end. It needs root and nft, which loads both tables.
//!
//! A sample of the cases; CASES=regex asks for others, `CASES=.` for all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use golden::case::{Case, Mode, cases, differences, folder};
use golden::probe::packet::{SCTP, TCP, UDP};
use golden::probe::{Asked, From, Outcomes, Probe};
use golden::replay::Replay;
use regex::Regex;

/// Each of them has something that the others lack.
const SAMPLE: &str =
    "^(005|009|022|103|205|207|210|213|220|301|402|404|410|502|551|601|700|703|712|726|805|806|808|824)-";

/// How often a connection is tried at first, and then in each round while the ends differ.
const TRIES: [usize; 2] = [6, 30];
const ROUNDS: usize = 8;
/// Over how many endpoints chance is not tried out.
const MANY: usize = 12;

/// From where, who, and the address of the nth of them.
type Clients = (From, &'static str, fn(usize) -> String);

/// Those who connect, of whom there are many: with session affinity each has one endpoint.
fn clients(v6: bool) -> Vec<Clients> {
    if v6 {
        vec![
            (From::Outside, "a pod of this node", |n| format!("fd00:10:244:1::1:{n:x}")),
            (From::Outside, "a pod of another node", |n| format!("fd00:10:244:2::1:{n:x}")),
            (From::Outside, "an allowed client", |n| format!("2001:db8:3::{:x}", n + 1)),
            (From::Outside, "a client", |n| format!("2001:db8:f::{:x}", n + 1)),
            (From::Host, "the node", |n| format!("fd00:99::{:x}", n % HOSTS + 1)),
        ]
    } else {
        vec![
            (From::Outside, "a pod of this node", |n| format!("10.244.1.{}", n % 120 + 100)),
            (From::Outside, "a pod of another node", |n| format!("10.244.2.{}", n % 120 + 100)),
            (From::Outside, "an allowed client", |n| format!("198.51.100.{}", n % 120 + 1)),
            (From::Outside, "a client", |n| format!("8.8.{}.{}", n / 250, n % 250 + 1)),
            (From::Host, "the node", |n| format!("10.99.0.{}", n % HOSTS + 1)),
        ]
    }
}

/// How many addresses of its own the node has to connect from.
const HOSTS: usize = 60;

fn parse(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// Every address and port that a table mentions as a key.
fn destinations(tables: &str) -> BTreeSet<(u8, SocketAddr)> {
    let protocol = |name: &str| match name {
        "tcp" => TCP,
        "udp" => UDP,
        _ => SCTP,
    };
    let mut found = BTreeSet::new();
    let service = Regex::new(r"([0-9a-f:.]+) \. (tcp|udp|sctp) \. ([0-9]+)( comment [^ ]+)? :").expect("a regex");
    let node_port = Regex::new(r"(?:\{ |^[ \t]+)(tcp|udp|sctp) \. ([0-9]+)( comment [^ ]+)? :").expect("a regex");
    let nodes = ["192.168.50.2", "192.168.60.2", "fd00:50::2", "fd00:60::2"].map(parse);
    for line in tables.lines() {
        if let Some(parts) = service.captures(line) {
            let port: u16 = parts[3].parse().expect("a port");
            found.insert((protocol(&parts[2]), (parse(&parts[1]), port).into()));
            // A port that nobody has.
            found.insert((protocol(&parts[2]), (parse(&parts[1]), 9).into()));
        } else if let Some(parts) = node_port.captures(line) {
            let port: u16 = parts[2].parse().expect("a port");
            found.extend(nodes.map(|node| (protocol(&parts[1]), (node, port).into())));
        }
    }
    found.extend(nodes.map(|node| (TCP, (node, 39_999).into())));
    found.extend(
        ["10.96.200.200", "9.9.9.8", "fd00:10:96::ffff", "2001:db8:ffff::1"].map(|ip| (TCP, (parse(ip), 80).into())),
    );
    found
}

/// Endpoints on this node, which may connect to themselves.
fn hairpins(recorded: &str) -> BTreeSet<IpAddr> {
    let hairpin = Regex::new(r"([0-9a-f:.]+) \. ([0-9a-f:.]+) \. (tcp|udp|sctp) \. [0-9]+").expect("a regex");
    hairpin.captures_iter(recorded).filter(|parts| parts[1] == parts[2]).map(|parts| parse(&parts[1])).collect()
}

/// A connection that is compared: who, to where.
type Key = (From, String, u8, SocketAddr);

struct Pair {
    sides: [Asked; 2],
}

impl Pair {
    fn new() -> Self {
        let sides = [(); 2].map(|()| Asked::new());
        for side in &sides {
            // What the node masquerades to on its way to itself: none of those who connect.
            ["10.98.0.1", "fd00:98::1"].into_iter().for_each(|address| side.add_address(parse(address)));
            for n in 0..HOSTS {
                for v6 in [false, true] {
                    let (.., address) = clients(v6).pop().expect("the last is the node");
                    side.add_address(parse(&address(n)));
                }
            }
        }
        Self { sides }
    }

    /// Tries a connection so often from each side; adds where it ended.
    fn ask(
        &mut self,
        asked: &mut BTreeMap<Key, ([Outcomes; 2], usize)>,
        tries: usize,
        sources: &dyn Fn(&Key, usize) -> IpAddr,
    ) {
        for side in 0..2 {
            let mut probes = Vec::new();
            for (key, (_, before)) in asked.iter() {
                let (from, _, protocol, destination) = key.clone();
                let one = |n| Probe { from, protocol, source: sources(key, before + n), destination };
                probes.extend((0..tries).map(one));
            }
            let outcomes: Vec<Outcomes> = probes.chunks(4000).flat_map(|probes| self.sides[side].ask(probes)).collect();
            for ((seen, _), of_key) in asked.values_mut().zip(outcomes.chunks(tries)) {
                seen[side].extend(of_key.iter().flatten().cloned());
            }
        }
        asked.values_mut().for_each(|(_, before)| *before += tries);
    }
}

fn compare(pair: &mut Pair, case: &Case, step: usize, ours: &str) -> usize {
    let recorded = case.recorded_tables(step);
    pair.sides[0].load(&recorded);
    pair.sides[1].load(ours);
    let sticky = recorded.contains("affinity-");
    let mut sources: BTreeMap<String, fn(usize) -> String> = BTreeMap::new();
    let mut asked: BTreeMap<Key, ([Outcomes; 2], usize)> = BTreeMap::new();
    for (protocol, destination) in destinations(&recorded).union(&destinations(ours)).copied() {
        for (from, who, address) in clients(destination.is_ipv6()) {
            sources.insert(format!("{who}{}", destination.is_ipv6()), address);
            asked.insert((from, who.to_owned(), protocol, destination), Default::default());
        }
        // With affinity each would stay with the endpoint that it chose first.
        for ip in hairpins(&recorded).into_iter().filter(|ip| !sticky && ip.is_ipv6() == destination.is_ipv6()) {
            asked.insert((From::Outside, ip.to_string(), protocol, destination), Default::default());
        }
    }
    let source = |key: &Key, n: usize| {
        let (_, who, _, destination) = key;
        sources.get(&format!("{who}{}", destination.is_ipv6())).map_or_else(|| parse(who), |address| parse(&address(n)))
    };
    let total = asked.len();
    pair.ask(&mut asked, TRIES[0], &source);
    for _ in 0..ROUNDS {
        asked.retain(|_, (outcomes, _)| outcomes[0] != outcomes[1]);
        let many = |outcomes: &[Outcomes; 2]| outcomes.iter().all(|ends| ends.len() > MANY);
        asked.retain(|_, (outcomes, _)| !many(outcomes));
        if asked.is_empty() {
            return total;
        }
        pair.ask(&mut asked, TRIES[1], &source);
    }
    asked.retain(|_, (outcomes, _)| outcomes[0] != outcomes[1]);
    let differing: Vec<String> = asked
        .iter()
        .map(|((_, who, protocol, to), ([real, ours], n))| {
            format!("{who} to {to} (protocol {protocol}), {n} times:\n  real {real:?}\n  ours {ours:?}")
        })
        .collect();
    assert!(differing.is_empty(), "{} step {step:02} ({}):\n{}", case.name, case.why, differing.join("\n"));
    total
}

#[test]
fn connections_end_where_the_real_one_lets_them_end() {
    let wanted = std::env::var("CASES").unwrap_or_else(|_| SAMPLE.to_owned());
    let wanted = Regex::new(&wanted).expect("CASES is a regex");
    let differences = differences(&folder());
    let mut pair = Pair::new();
    let (mut compared, mut steps) = (0, 0);
    for case in cases().iter().filter(|case| case.has(Mode::Nftables) && wanted.is_match(&case.name)) {
        if differences.contains_key(&format!("{}/nftables", case.name)) {
            continue;
        }
        let mut replay = Replay::new(case, Mode::Nftables);
        for (step, objects) in case.stored.iter().enumerate() {
            replay.step(objects);
            compared += compare(&mut pair, case, step, &replay.tables());
            steps += 1;
        }
    }
    assert!(compared > steps * 20 && steps > 0, "{compared} connections in {steps} steps");
}
