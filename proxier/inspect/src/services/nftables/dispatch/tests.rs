//! Following terminates for arbitrary chains.

use super::{Destination, summarize};
use netfilter::IpFamily;
use netfilter::nft::ruleset::{Chain, Element, Elements, KeyField, Rule, Set, Table};
use netfilter::nft::{Expression, Load, Register, Value, Verdict};

#[test]
fn chains_that_choose_or_remember_in_a_circle_end() {
    let key = Register(0);
    let chance = Expression::Load { from: Load::Random { modulus: 100, offset: 0 }, width: 4, to: key };
    let map = |verdict| Expression::Lookup { set: "s".into(), key, to: None, verdict, not: false };
    let again = Expression::Verdict(Verdict::Goto("c".into()));
    let to = Destination { ip: None, protocol: 6, port: 80 };
    for (flags, expressions) in [(0x8, vec![chance, map(true)]), (0x20, vec![map(false), again])] {
        let rule = Rule { handle: 1, expressions, comment: None, counters: None };
        let chain = Chain { handle: 1, base: None, comment: None, rules: Some(vec![rule.clone(), rule]) };
        let goto = Value::Verdict(Verdict::Goto("c".into()));
        let element = |n: u32| Element { value: Some(goto.clone()), ..Element::member(n.to_ne_bytes().into()) };
        let elements = Elements::complete((0..100).map(element).collect());
        let set = Set { flags, key: vec![KeyField { kind: 0, width: 4 }], elements, ..Set::default() };
        let (chains, sets) = ([("c".into(), chain)].into(), [("s".into(), set)].into());
        let table = Table { chains, sets, ..Table::default() };
        assert_eq!(summarize(IpFamily::V4, &table, to, &"c".into()).chains, ["c".into()]);
    }
}

#[test]
fn keys_of_many_fields_are_looked_up_or_passed_over() {
    let lookup = Expression::Lookup { set: "s".into(), key: Register(0), to: None, verdict: true, not: false };
    let load = |to| Expression::Load { from: Load::Protocol, width: 1, to: Register(to) };
    let expressions = [0, 200].map(load).into_iter().chain([lookup]).collect();
    let rule = Rule { handle: 1, expressions, comment: None, counters: None };
    let chain = Chain { handle: 1, base: None, comment: None, rules: Some(vec![rule]) };
    let set = Set { key: vec![KeyField { kind: 0, width: 800 }; 3], ..Set::default() };
    let table = Table { chains: [("c".into(), chain)].into(), sets: [("s".into(), set)].into(), ..Table::default() };
    let to = Destination { ip: None, protocol: 6, port: 80 };
    assert!(summarize(IpFamily::V4, &table, to, &"c".into()).elements.is_empty());
}

#[test]
fn choices_of_any_size_are_read_or_passed_over() {
    for (modulus, offset) in [(3, u32::MAX), (u32::MAX, 7), (0, 0)] {
        let key = Register(0);
        let choice = Expression::Load { from: Load::Random { modulus, offset }, width: 4, to: key };
        let lookup = Expression::Lookup { set: "s".into(), key, to: None, verdict: true, not: false };
        let rule = Rule { handle: 1, expressions: vec![choice, lookup], comment: None, counters: None };
        let chain = Chain { handle: 1, base: None, comment: None, rules: Some(vec![rule]) };
        let key = vec![KeyField { kind: 0, width: 4 }];
        let set = Set { key, elements: Elements::complete(Vec::new()), ..Set::default() };
        let (chains, sets) = ([("c".into(), chain)].into(), [("s".into(), set)].into());
        let table = Table { chains, sets, ..Table::default() };
        let to = Destination { ip: None, protocol: 6, port: 80 };
        let summary = summarize(IpFamily::V4, &table, to, &"c".into());
        assert!(summary.elements.is_empty() && summary.choosers.iter().all(|chooser| chooser.choices.is_empty()));
    }
}
