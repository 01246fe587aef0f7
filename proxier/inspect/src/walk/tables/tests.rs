//! For arbitrary tables, the probabilities of all paths sum to 1 and nothing panics.

use std::collections::BTreeMap;

use netfilter::IpFamily;
use netfilter::kernel::nftables::any_expression;
use netfilter::nft::ruleset::{Chain, Element, Elements, KeyField, Rule, Ruleset, Set, Table, TableId};
use netfilter::nft::{
    BaseChain, ChainType, Expression, Hook, Load, Name, Register, SetOperation, Translation, Value, Verdict,
};
use proptest::prelude::*;

use crate::rules;
use crate::walk::{ConnState, Node, NodeRules, Origin, Packet, RecentLists, Trace};
use proxier::model::Protocol;

const CHAINS: [&str; 4] = ["c0", "c1", "c2", "c3"];
const SETS: [&str; 3] = ["s0", "s1", "s2"];

fn packet() -> Packet {
    Packet {
        source: "192.0.2.9:40000".parse().expect("an address"),
        destination: "192.0.2.1:80".parse().expect("an address"),
        protocol: Protocol::Tcp,
        origin: Origin::Interface("eth0".to_owned()),
        state: ConnState::New,
    }
}

fn trace(table: Table) -> Result<Trace, String> {
    let mut nftables = Ruleset::new(IpFamily::V4);
    nftables.tables.insert(TableId::of(IpFamily::V4, "t"), table);
    let node = Node {
        addresses: vec!["192.0.2.2".parse().expect("an address")],
        routes: vec![("0.0.0.0/0".parse().expect("a net"), "eth0".to_owned())],
        ..Node::default()
    };
    let iptables = rules::Ruleset::new(IpFamily::V4);
    NodeRules { iptables: &iptables, other: None, nftables: Some(&nftables) }.trace(
        &packet(),
        &node,
        &RecentLists::new(),
    )
}

#[test]
fn choices_that_multiply_beyond_counting_are_not_followed() {
    let choose = |to| Expression::Load { from: Load::Random { modulus: 4096, offset: 0 }, width: 4, to: Register(to) };
    let expressions = (0..8).map(choose).chain([Expression::Verdict(Verdict::Drop)]).collect();
    let rule = Rule { handle: 1, expressions, comment: None, counters: None };
    let base = Some(BaseChain { kind: ChainType::Filter, hook: Hook::Prerouting, priority: 0, drop: false });
    let chain = Chain { handle: 1, base, comment: None, rules: Some(vec![rule]) };
    let traced = trace(Table { chains: [("c".into(), chain)].into(), ..Table::default() }).expect("a trace");
    let sum: f64 = traced.branches.iter().map(|branch| branch.outcome.probability).sum();
    assert!((sum - 1.0).abs() < 1e-6 && traced.branches.iter().any(|branch| !branch.doubts.is_empty()), "{sum}");
}

/// An expression changed to refer to existing chains and sets, and to choose among few numbers.
fn at_home(expression: Expression, nth: usize) -> Expression {
    let chain = || Name::from(CHAINS[nth % CHAINS.len()]);
    let name = || Name::from(SETS[nth % SETS.len()]);
    let few = |modulus: u32| modulus % 4;
    match expression {
        Expression::Verdict(Verdict::Jump(_)) => Expression::Verdict(Verdict::Jump(chain())),
        Expression::Verdict(Verdict::Goto(_)) => Expression::Verdict(Verdict::Goto(chain())),
        Expression::Lookup { key, to, verdict, not, .. } => Expression::Lookup { set: name(), key, to, verdict, not },
        Expression::Dynset { operation, key, timeout, .. } => {
            Expression::Dynset { set: name(), operation, key, timeout }
        }
        Expression::Load { from: Load::Random { modulus, offset }, width, to } => {
            Expression::Load { from: Load::Random { modulus: few(modulus), offset }, width, to }
        }
        Expression::Load { from: Load::Incremental { modulus, offset }, width, to } => {
            Expression::Load { from: Load::Incremental { modulus: few(modulus), offset }, width, to }
        }
        Expression::Hash { of, to, modulus, seed, offset } => {
            Expression::Hash { of, to, modulus: few(modulus), seed, offset }
        }
        other => other,
    }
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let expressions = prop::collection::vec((any_expression(), any::<prop::sample::Index>()), 0..5);
    let expressions = expressions.prop_map(|all| all.into_iter().map(|(e, nth)| at_home(e, nth.index(12))).collect());
    prop::collection::vec(expressions, 0..4).prop_map(|rules: Vec<Vec<Expression>>| {
        let rule = |(expressions, handle)| Rule { handle, expressions, comment: None, counters: None };
        rules.into_iter().zip(1..).map(rule).collect()
    })
}

fn any_set() -> impl Strategy<Value = Set> {
    let value = prop_oneof![
        Just(None),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| Some(Value::Data(bytes.into()))),
        prop::sample::select(CHAINS.to_vec()).prop_map(|chain| Some(Value::Verdict(Verdict::Jump(chain.into())))),
        Just(Some(Value::Verdict(Verdict::Drop))),
    ];
    let key = prop::collection::vec(0_u8..4, 0..5);
    let elements = prop::collection::vec((key.clone(), prop::option::of(key), value), 0..6);
    (0_u32..256, prop::collection::vec((0_u32..45, 0_usize..5), 0..3), elements, any::<bool>()).prop_map(
        |(flags, parts, elements, whole)| {
            let list = elements.into_iter().map(|(key, end, value)| Element {
                end: end.map(Into::into),
                value,
                ..Element::member(key.into())
            });
            let elements = if whole { Elements::complete(list.collect()) } else { Elements::default() };
            let key = parts.into_iter().map(|(kind, width)| KeyField { kind, width }).collect();
            Set { flags, key, elements, ..Set::default() }
        },
    )
}

proptest! {
    #[test]
    fn probabilities_sum_to_one_for_any_table(
        chains in prop::collection::vec((any_rules(), prop::option::of((0_usize..5, any::<bool>(), -400..200, any::<bool>()))), 4),
        sets in prop::collection::vec(any_set(), 3),
    ) {
        let chains = chains.into_iter().zip(CHAINS).map(|((rules, base), name)| {
            let base = base.map(|(hook, nat, priority, drop)| {
                BaseChain { kind: if nat { ChainType::Nat } else { ChainType::Filter }, hook: Hook::ALL[hook], priority, drop }
            });
            (name.into(), Chain { handle: 1, base, comment: None, rules: Some(rules) })
        });
        let sets = sets.into_iter().zip(SETS).map(|(set, name)| (name.into(), set));
        let table = Table { chains: chains.collect(), sets: sets.collect(), ..Table::default() };
        // Chains that jump in a circle are refused, as the kernel refuses them.
        match trace(table) {
            Ok(trace) => {
                let total: f64 = trace.branches.iter().map(|branch| branch.outcome.probability).sum();
                prop_assert!((total - 1.0).abs() < 1e-9, "{}: {}", total, trace);
            }
            Err(why) => prop_assert!(why.contains("circle") || why.contains("ways"), "{}", why),
        }
    }
}

fn rule(expressions: Vec<Expression>) -> Rule {
    Rule { handle: 7, expressions, comment: None, counters: None }
}

/// A table with one chain that all packets come by.
fn table(rules: Vec<Rule>, sets: BTreeMap<Name, Set>) -> Table {
    let base = Some(BaseChain { kind: ChainType::Filter, hook: Hook::Prerouting, priority: 0, drop: false });
    let chain = Chain { handle: 1, base, comment: None, rules: Some(rules) };
    Table { chains: BTreeMap::from([("c".into(), chain)]), sets, ..Table::default() }
}

const AT: Register = Register(0);

fn chance(modulus: u32) -> Expression {
    Expression::Load { from: Load::Random { modulus, offset: 0 }, width: 4, to: AT }
}

#[test]
fn runs_with_equal_results_are_merged() {
    let below = Expression::Compare { register: AT, not: false, value: 3_u32.to_ne_bytes().to_vec() };
    let drop = Expression::Verdict(Verdict::Drop);
    let trace = trace(table(vec![rule(vec![chance(1000), below, drop])], BTreeMap::new())).expect("a trace");
    let ends: Vec<String> = trace.branches.iter().map(|branch| branch.outcome.to_string()).collect();
    assert_eq!(ends, ["drop (0.1%)", "untouched (99.9%)"]);
    assert_eq!(trace.branches[0].steps[0].handle, Some(7));
    assert_eq!(trace.branches[0].steps[0].rule, "numgen random mod 1000 3 drop");
}

#[test]
fn unknown_field_is_a_doubt_where_it_decides() {
    let unknown = || Expression::Unknown("osf".into());
    let (drop, counter) = (Expression::Verdict(Verdict::Drop), Expression::Counter);
    let doubts = |expressions| {
        let trace = trace(table(vec![rule(expressions)], BTreeMap::new())).expect("a trace");
        trace.branches[0].doubts.iter().map(|doubt| format!("{}: {}", doubt.rule, doubt.why)).collect::<Vec<_>>()
    };
    assert_eq!(doubts(vec![unknown(), drop.clone()]), ["[osf] drop: osf is not known here"]);
    let limit = || Expression::Unknown("limit".into());
    assert_eq!(doubts(vec![limit(), counter]).len(), 0, "it only counts");
    assert_eq!(doubts(vec![limit(), drop.clone()]).len(), 1);
    let set_option = || [Expression::Unknown("rt".into()), Expression::Unknown("exthdr".into())].to_vec();
    assert_eq!(doubts(set_option()).len(), 0, "a TCP option decides nothing");
    assert_eq!(doubts([set_option(), vec![drop]].concat()).len(), 1);
}

#[test]
fn unread_parts_are_reported() {
    let load = Expression::Load { from: Load::Protocol, width: 1, to: AT };
    let lookup = Expression::Lookup { set: "s".into(), key: AT, to: None, verdict: false, not: false };
    let rules = vec![rule(vec![load, lookup, Expression::Verdict(Verdict::Drop)])];
    assert_eq!(trace(table(rules.clone(), BTreeMap::new())).expect("a trace").lacks.len(), 1);
    let mut set = Set { key: vec![KeyField { kind: 12, width: 1 }], ..Set::default() };
    let sets = |set: &Set| BTreeMap::from([("s".into(), set.clone())]);
    assert_eq!(trace(table(rules.clone(), sets(&set))).expect("a trace").lacks.len(), 1);
    set.elements.record(&[6], Some(Element::member([6].into())));
    let trace = trace(table(rules, sets(&set))).expect("a trace");
    assert_eq!((trace.lacks.len(), trace.outcomes()[0].to_string()), (0, "drop".to_owned()));
    assert_eq!(trace.branches[0].steps[0].elements, ["tcp"]);
}

#[test]
fn deleting_a_missing_element_does_not_end_the_rule() {
    let load = Expression::Load { from: Load::Protocol, width: 1, to: AT };
    let delete = Expression::Dynset { set: "s".into(), operation: SetOperation::Delete, key: AT, timeout: 0 };
    let key = vec![KeyField { kind: 12, width: 1 }];
    let set = Set { key, elements: Elements::complete(Vec::new()), ..Set::default() };
    let rules = vec![rule(vec![load, delete, Expression::Verdict(Verdict::Drop)])];
    let trace = trace(table(rules, BTreeMap::from([("s".into(), set)]))).expect("a trace");
    assert_eq!(trace.outcomes()[0].to_string(), "drop");
}

#[test]
fn a_translation_in_a_table_of_both_families_is_done() {
    let ends = |family| {
        let port = Expression::Immediate { to: AT, value: 8080_u16.to_be_bytes().to_vec() };
        let (kind, port_only) = (Translation::Destination, Some((AT, AT)));
        let to = Expression::Translate { kind, family, address: None, port: port_only, flags: 0 };
        let mut table = table(vec![rule(vec![port, to])], BTreeMap::new());
        let chain = table.chains.get_mut("c").expect("the chain");
        chain.base = Some(BaseChain { kind: ChainType::Nat, hook: Hook::Prerouting, priority: -100, drop: false });
        trace(table).expect("a trace").outcomes()[0].to_string()
    };
    assert_eq!([0, 1, 2].map(ends), ["192.0.2.1:8080"; 3]);
    assert_eq!(ends(10), "untouched");
}

#[test]
fn a_policy_that_drops_is_a_step() {
    let mut table = table(Vec::new(), BTreeMap::new());
    table.chains.get_mut("c").expect("the chain").base.as_mut().expect("a base").drop = true;
    let trace = trace(table).expect("a trace");
    let steps = &trace.branches[0].steps;
    assert_eq!((&*steps[0].hook, &*steps[0].rule, steps[0].handle), ("ip t c (prerouting)", "policy drop", Some(0)));
    assert_eq!((steps.len(), trace.outcomes()[0].to_string()), (1, "drop".to_owned()));
}
