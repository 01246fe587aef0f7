//! What is written over netlink is what nft prints; what is printed is what nft reads.

use std::sync::Arc;

use ipnet::IpNet;
use netfilter::IpFamily;
use netfilter::nft::{
    Address, Chain, ChainType, Element, Field, HashedClient, Hook, Key, Operation, Rule, Set, SetOperation, Statement,
    Table, Transaction, Verdict,
};

use super::kernel::Real;

/// Addresses of a family that are easy to write.
fn address(family: IpFamily, last: u8) -> std::net::IpAddr {
    let text = match family {
        IpFamily::V4 => format!("10.0.0.{last}"),
        IpFamily::V6 => format!("fd00::{last:x}"),
    };
    text.parse().expect("an address")
}

fn net(family: IpFamily, text: [&str; 2]) -> IpNet {
    text[usize::from(family == IpFamily::V6)].parse().expect("a network")
}

fn sets(family: IpFamily) -> Vec<(Set, Vec<Element>)> {
    let to = Field::Destination(family);
    let service = vec![to, Field::Protocol, Field::Port];
    let key = |last| Key::default().address(address(family, last)).protocol(6).port(80);
    let ranges = [(10, 0_u8, 255_u8), (11, 4, 7), (12, 3, 9)];
    let mut numbered = service.clone();
    numbered.push(Field::random(65535));
    let mut from = service.clone();
    from.push(Field::Source(family));
    let commented = Element { comment: Some("ns/web:http".into()), ..Element::verdict(key(2).build(), Verdict::Drop) };
    let range = |(last, first, end): (u8, u8, u8)| Element {
        end: Some(key(last).address(address(family, end)).build()),
        ..Element::member(key(last).address(address(family, first)).build())
    };
    let mut ranged = Set { interval: true, ..Set::of("allowed", from.clone()) };
    ranged.comment = Some("who may".into());
    vec![
        (
            Set::of("ips", [to]).comment("Active"),
            vec![Element::member(Key::default().address(address(family, 1)).build())],
        ),
        (
            Set::verdicts("services", service),
            vec![Element::verdict(key(1).build(), Verdict::Goto("plain".into())), commented],
        ),
        (
            Set::verdicts("choices", numbered.clone()),
            vec![Element::verdict(key(1).number(7).build(), Verdict::Goto("plain".into()))],
        ),
        (
            Set::map("endpoints", numbered, [to, Field::Port]),
            (0..3)
                .map(|n| {
                    let value = Key::default().address(address(family, 100)).port(8080).build();
                    Element::data(key(1).number(n).build(), value)
                })
                .collect(),
        ),
        (ranged, ranges.into_iter().map(range).collect()),
        (
            Set { dynamic: true, size: Some(1000), ..Set::of("sticky", client(family, Field::random(65535))) },
            Vec::new(),
        ),
    ]
}

/// What a client is remembered by.
fn client(family: IpFamily, service: Field) -> Vec<Field> {
    vec![Field::Source(family), service]
}

fn rules(family: IpFamily) -> Vec<Rule> {
    let to = Field::Destination(family);
    let service = vec![to, Field::Protocol, Field::Port];
    let with = |field| [&service[..], &[field]].concat();
    let inside = |address, not, text| Statement::AddressIn { address, not, net: net(family, text) };
    let input = |name: &str, prefix, not| Statement::InputInterface { name: name.into(), prefix, not };
    let returns = Statement::Verdict(Verdict::Return);
    let dnat = |field| Statement::Dnat { family, key: with(field), map: "endpoints".into() };
    vec![
        Rule::new([inside(Address::Source, true, ["10.244.0.0/17", "fd00:10::/65"]), Statement::SetMark(0x4000)])
            .comment("masquerade \u{b7} traffic"),
        Rule::new([inside(Address::Destination, false, ["127.0.0.0/8", "::1/128"]), returns.clone()]),
        Rule::new([inside(Address::Destination, true, ["10.1.2.3/32", "fd00::/8"]), returns.clone()]),
        Rule::new([input("veth", true, false), returns.clone()]),
        Rule::new([input("cni0", false, true), returns.clone()]),
        Rule::new([Statement::CtStateNew, Statement::Verdict(Verdict::Jump("empty".into()))]),
        Rule::new([Statement::AddressIsLocal(Address::Source), Statement::Counter, Statement::Verdict(Verdict::Drop)]),
        Rule::new([Statement::AddressIsLocal(Address::Destination), Statement::NamedCounter("seen".into())]),
        Rule::new([Statement::HasMark(0x4000), Statement::FlipMark(0x4000), returns]),
        Rule::new([
            Statement::Lookup { key: with(Field::Source(family)), set: "allowed".into(), not: true },
            Statement::Verdict(Verdict::Accept),
        ]),
        Rule::new([
            Statement::Lookup { key: vec![to], set: "ips".into(), not: false },
            Statement::VerdictMap { key: service.clone(), map: "services".into() },
        ]),
        Rule::new([Statement::UpdateSet {
            operation: SetOperation::Update,
            set: "sticky".into(),
            key: client(family, Field::constant(77)),
            timeout: Some(10_800),
        }]),
        Rule::new([Statement::UpdateSet {
            operation: SetOperation::Delete,
            set: "sticky".into(),
            key: client(family, Field::constant(77)),
            timeout: None,
        }]),
        Rule::new([
            Statement::Lookup { key: client(family, Field::constant(0)), set: "sticky".into(), not: false },
            Statement::Verdict(Verdict::Jump("empty".into())),
        ]),
        Rule::new([dnat(Field::random(3))]),
        Rule::new([dnat(Field::constant(2))]),
        Rule::new([dnat(Field::Hash { of: HashedClient::Address(family), modulus: 16381, seed: 0x6d61_676c })]),
        Rule::new([dnat(Field::Hash { of: HashedClient::AddressAndPort(family), modulus: 7, seed: 1 })]),
        Rule::new([Statement::Reject(family)]),
    ]
}

/// Everything there is, once.
fn everything(family: IpFamily) -> Transaction {
    let mut all = Transaction::on(Table { family, name: "kube-proxy".into() });
    all.push(Operation::AddTable { comment: Some("rules for kube-proxy".into()) });
    all.push(Operation::AddCounter("seen".into()));
    let mut plain = Chain::plain("plain");
    plain.comment = Some("helper".into());
    let (nat, filter) = (ChainType::Nat, ChainType::Filter);
    for chain in [
        plain,
        Chain::plain("empty"),
        Chain::base("before", filter, Hook::Prerouting, -110),
        Chain::base("in", filter, Hook::Input, 0),
        Chain::base("through", filter, Hook::Forward, 0),
        Chain::base("out", nat, Hook::Output, -100),
        Chain::base("after", nat, Hook::Postrouting, 100),
    ] {
        all.push(Operation::AddChain(chain));
    }
    let sets: Vec<(Arc<Set>, Vec<Element>)> = sets(family).into_iter().map(|(set, e)| (Arc::new(set), e)).collect();
    sets.iter().for_each(|(set, _)| all.push(Operation::AddSet(set.clone())));
    for (set, elements) in sets.into_iter().filter(|(_, elements)| !elements.is_empty()) {
        all.push(Operation::AddElements(set, elements));
    }
    for rule in rules(family) {
        all.push(Operation::AddRule { chain: "plain".into(), rule });
    }
    let masquerade = [Statement::CtStatusDnat, Statement::Masquerade { random: true }];
    all.push(Operation::AddRule { chain: "after".into(), rule: Rule::new(masquerade) });
    all.push(Operation::AddRule { chain: "after".into(), rule: Rule::new([Statement::Masquerade { random: false }]) });
    all
}

/// nft's list without what is in the braces of elements, whose order is the kernel's.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().map(|line| line.trim().trim_end_matches([',', '}', ' ']).to_owned()).collect();
    for line in &mut lines {
        *line = line.replace("elements = { ", "").replace(" packets 0 bytes 0", "");
    }
    lines.retain(|line| !line.is_empty());
    let mut elements: Vec<String> =
        lines.extract_if(.., |line| line.contains(" . ") && !line.contains("type")).collect();
    elements.retain(|line| !line.contains('@'));
    elements.sort();
    lines.extend(elements);
    lines
}

#[test]
fn nft_prints_what_was_written_and_reads_what_is_printed() {
    for family in IpFamily::ALL {
        let all = everything(family);
        let ours = Real::new();
        ours.engine().apply(&all, None).expect("the kernel takes everything");
        let theirs = Real::new();
        theirs.nft_reads(&all.to_string());
        let printed = ours.nft("list ruleset");
        assert_eq!(lines(&printed), lines(&theirs.nft("list ruleset")), "{family}");
        // Each rule in exactly our words.
        for rule in rules(family) {
            let text = rule.to_string();
            let wanted = text.replace("counter drop", "counter packets 0 bytes 0 drop");
            assert!(printed.contains(&format!("\t\t{wanted}\n")), "{family}: {wanted}\n{printed}");
        }
        for (set, elements) in sets(family) {
            let definition = set.to_string();
            let missing = definition.lines().find(|line| !printed.contains(&format!("{line}\n")));
            assert_eq!(missing, None, "{family}: {printed}");
            for element in elements {
                assert!(printed.contains(&element.of(&set).to_string()), "{family}: {}\n{printed}", element.of(&set));
            }
        }
        // And the engine reads it back as it was written.
        let read = ours.engine().table(&all.table).expect("it can be read").expect("it is there");
        let (_, held) = &read.chains["plain"];
        assert_eq!(held.len(), rules(family).len());
        for (held, rule) in held.iter().zip(rules(family)) {
            assert!(held.is(&rule), "{held:?} is not {rule}");
        }
        for (set, elements) in sets(family) {
            assert_eq!(read.sets[&set.name], netfilter::kernel::nftables::ReadSet::of(&set), "{}", set.name);
            let mut held = Vec::new();
            ours.engine().elements(&all.table, &set, &mut |e| held.push(e)).expect("they can be read");
            held.sort_by(|a, b| a.key.cmp(&b.key));
            let mut elements = elements;
            elements.sort_by(|a, b| a.key.cmp(&b.key));
            assert_eq!(held, elements, "{}", set.name);
        }
    }
}
