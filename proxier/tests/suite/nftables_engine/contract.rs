//! What the fake promises is what the kernel does.

use std::cell::Cell;
use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::kernel::NftTables;
use netfilter::kernel::nftables::NftError;
use netfilter::nft::{
    Chain, ChainType, Element, Field, Hook, Key, Name, Operation, Rule, Set, Statement, Table, Transaction, Verdict,
};
use netfilter::testing::FakeNftables;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::kernel::Real;

fn table() -> Table {
    Table { family: IpFamily::V4, name: "kube-proxy".into() }
}

/// A transaction, or what an operation does to names that there are few of.
fn transaction(operations: &[Operation]) -> Transaction {
    let mut transaction = Transaction::on(table());
    operations.iter().cloned().for_each(|operation| transaction.push(operation));
    transaction
}

fn chain(at: usize) -> Name {
    ["one", "two", "three"][at % 3].into()
}

fn set(at: usize) -> Arc<Set> {
    let port = [Field::Protocol, Field::Port];
    Arc::new(match at % 3 {
        0 => Set::of("members", port),
        1 => Set::verdicts("verdicts", port),
        _ => Set::map("values", port, [Field::Destination(IpFamily::V4), Field::Port]),
    })
}

fn element(at: usize, port: u16, value: usize) -> Element {
    let key = Key::default().protocol(6).port(port).build();
    match at % 3 {
        0 => Element::member(key),
        1 => Element::verdict(key, Verdict::Goto(chain(value))),
        _ => {
            let address = std::net::IpAddr::from([10, 0, 0, 1]);
            let port = u16::try_from(value).expect("small");
            Element::data(key, Key::default().address(address).port(port).build())
        }
    }
}

/// A rule with a lookup, or with a jump to a later chain.
fn rule(at: usize, to: usize) -> Rule {
    let key = vec![Field::Protocol, Field::Port];
    Rule::new(match to % 4 {
        0 => vec![Statement::Lookup { key, set: set(0).name.clone(), not: false }, Statement::Verdict(Verdict::Drop)],
        1 if at == 0 => vec![Statement::VerdictMap { key, map: set(1).name.clone() }],
        2 => vec![Statement::Dnat { family: IpFamily::V4, key, map: set(2).name.clone() }],
        _ if at == 0 => vec![Statement::Verdict(Verdict::Jump(chain(1 + to / 4)))],
        _ => vec![Statement::Verdict(Verdict::Return)],
    })
}

/// The fake and the real one side by side.
struct Pair {
    fake: FakeNftables,
    real: Box<dyn NftTables>,
}

impl Pair {
    fn new() -> Self {
        Self { fake: FakeNftables::default(), real: Real::new().engine() }
    }

    /// The operations that each refuses, with the reasons. Afterwards both hold the same.
    fn apply(&mut self, operations: &[Operation]) -> [Vec<(Option<usize>, i32)>; 2] {
        let transaction = transaction(operations);
        let refusals = |result| match result {
            Ok(()) => Vec::new(),
            Err(NftError::Refused(refusals)) => refusals
                .iter()
                .map(|refusal: &netfilter::kernel::nftables::Refusal| (refusal.operation, refusal.errno))
                .collect(),
            Err(error) => panic!("{error}"),
        };
        let checked = [refusals(self.fake.check(&transaction)), refusals(self.real.check(&transaction))];
        let applied = [
            refusals(NftTables::apply(&mut self.fake, &transaction, None).map(drop)),
            refusals(self.real.apply(&transaction, None).map(drop)),
        ];
        assert_eq!(checked, applied, "{transaction}");
        let [fake, real] = [&mut self.fake as &mut dyn NftTables, self.real.as_mut()].map(|engine| {
            assert_eq!(engine.tables(IpFamily::V6).expect("a list").len(), 0);
            let mut read = engine.table(&table()).expect("it can be read")?;
            // Handles are not compared.
            read.chains.values_mut().flat_map(|(_, rules)| rules).for_each(|rule| rule.handle = 0);
            let mut elements = Vec::new();
            let counts = std::mem::take(&mut read.counts);
            for set in (0..3).map(set).filter(|set| read.sets.contains_key(&set.name)) {
                let mut of_set = Vec::new();
                engine.elements(&table(), &set, &mut |element| of_set.push(element)).expect("they can be read");
                of_set.sort_by(|a, b| a.key.cmp(&b.key));
                // Kernels before 6.18 do not tell.
                assert!(counts.get(&set.name).is_none_or(|count| *count == of_set.len()), "{counts:?} of {of_set:?}");
                assert_eq!(looked_up(engine, &set, &of_set), of_set);
                elements.push((set.name.clone(), of_set));
            }
            Some((read, elements))
        });
        assert_eq!(fake, real, "after {transaction}");
        applied
    }
}

/// The elements looked up by key, among keys that do not exist.
fn looked_up(engine: &mut dyn NftTables, set: &Set, elements: &[Element]) -> Vec<Element> {
    let nobodys = Key::default().protocol(17).port(9999).build();
    let with_end = |list: &[Element]| list.iter().map(|element| element.key.clone()).chain([nobodys.clone()]).collect();
    let mut lists = [vec![nobodys.clone()], Vec::new()].into_iter().chain(elements.chunks(2).map(with_end));
    let mut found = Vec::new();
    engine.lookup(&table(), set, &mut lists, &mut |element| found.push(element)).expect("they can be looked up");
    found.sort_by(|a: &Element, b| a.key.cmp(&b.key));
    found
}

#[test]
fn any_number_of_elements_is_looked_up() {
    let (mut engine, set) = (Real::new().engine(), set(2));
    let elements: Vec<Element> = (0..1000).map(|port| element(2, port, usize::from(port))).collect();
    let operations = [&ground()[..], &[Operation::AddElements(set.clone(), elements.clone())]].concat();
    engine.apply(&transaction(&operations), None).expect("the kernel takes it");
    let found = looked_up(engine.as_mut(), &set, &elements);
    assert_eq!(found.len(), 1000);
    // In one list.
    let mut found = Vec::new();
    let keys = elements.iter().map(|element| element.key.clone()).collect();
    engine.lookup(&table(), &set, &mut [keys].into_iter(), &mut |element| found.push(element)).expect("all are there");
    assert_eq!(found, elements);
}

fn ground() -> Vec<Operation> {
    let mut ground = vec![Operation::AddTable { comment: Some("ground".into()) }];
    ground.extend((0..3).map(|at| Operation::AddChain(Chain::plain(chain(at)))));
    ground.extend((0..3).map(|at| Operation::AddSet(set(at))));
    ground
}

#[test]
fn refused_transactions_have_the_same_reason_in_both_and_change_nothing() {
    use Operation::{
        AddChain, AddElements, AddRule, AddSet, AddTable, DeleteChain, DeleteElements, DeleteSet, DeleteTable,
    };
    let mut pair = Pair::new();
    let nothing: [Vec<(Option<usize>, i32)>; 2] = [Vec::new(), Vec::new()];
    // Without a table there is nothing.
    for operation in [DeleteTable, AddChain(Chain::plain("one")), AddSet(set(0)), DeleteChain(chain(0))] {
        let refused = pair.apply(std::slice::from_ref(&operation));
        assert_eq!(refused, [vec![(Some(0), libc::ENOENT)], vec![(Some(0), libc::ENOENT)]], "{operation:?}");
    }
    assert_eq!(pair.apply(&ground()), nothing);
    assert_eq!(
        pair.apply(&[
            AddRule { chain: chain(0), rule: rule(0, 3) },
            AddRule { chain: chain(1), rule: rule(1, 0) },
            AddElements(set(1), vec![element(1, 80, 2)]),
            AddElements(set(2), vec![element(2, 80, 1), element(2, 81, 1)]),
        ]),
        nothing
    );
    let missing = Rule::new([Statement::Lookup { key: vec![Field::Port], set: "nowhere".into(), not: false }]);
    let lost = Rule::new([Statement::Verdict(Verdict::Jump("nowhere".into()))]);
    for (operation, errno) in [
        (AddRule { chain: chain(0), rule: missing }, libc::ENOENT),
        (AddRule { chain: chain(0), rule: lost }, libc::ENOENT),
        (AddRule { chain: "nowhere".into(), rule: rule(1, 3) }, libc::ENOENT),
        (
            AddElements(set(1), vec![Element::verdict(element(1, 90, 0).key, Verdict::Goto("nowhere".into()))]),
            libc::ENOENT,
        ),
        (AddElements(set(2), vec![element(2, 80, 2)]), libc::EEXIST),
        (DeleteElements(set(0), vec![element(0, 80, 0)]), libc::ENOENT),
        (DeleteElements(set(2), vec![element(2, 80, 1), element(2, 90, 1)]), libc::ENOENT),
        (AddElements(set(0), vec![Element::member(Key::default().port(80).build())]), libc::EINVAL),
        // In use: by a rule, by an element.
        (DeleteChain(chain(1)), libc::EBUSY),
        (DeleteChain(chain(2)), libc::EBUSY),
        (DeleteSet(set(0)), libc::EBUSY),
        (DeleteChain("nowhere".into()), libc::ENOENT),
    ] {
        // What stands before it and after it is refused with it.
        let before = AddChain(Chain::plain("new"));
        let after = AddElements(set(0), vec![element(0, 7, 0)]);
        let refused = pair.apply(&[before, operation.clone(), after]);
        assert_eq!(refused, [vec![(Some(1), errno)], vec![(Some(1), errno)]], "{operation:?}");
    }
    // All errors are reported at once.
    let refused = pair.apply(&[DeleteChain("nowhere".into()), AddTable { comment: None }, DeleteSet(set(0))]);
    assert_eq!(refused[0], [(Some(0), libc::ENOENT), (Some(2), libc::EBUSY)]);
    assert_eq!(refused[0], refused[1]);
    // The rules of a chain that is in use no longer hold the set.
    let refused = pair.apply(&[DeleteChain(chain(1)), DeleteSet(set(0))]);
    assert_eq!(refused, [vec![(Some(0), libc::EBUSY)], vec![(Some(0), libc::EBUSY)]]);
    assert_eq!(pair.apply(&[DeleteTable]), nothing);
}

#[test]
fn elements_at_fault_are_named() {
    let mut pair = Pair::new();
    pair.apply(&ground());
    let elements = (0..3000).map(|port| element(1, port, if port == 2345 { 9 } else { 1 })).map(|mut element| {
        if element.value == self::element(1, 0, 9).value {
            element.value = Element::verdict(element.key.clone(), Verdict::Goto("nowhere".into())).value;
        }
        element
    });
    // Chain number 9 is number 0, which is there; the odd one leads nowhere.
    let bad = transaction(&[Operation::AddElements(set(1), elements.collect())]);
    for engine in [&mut pair.fake as &mut dyn NftTables, pair.real.as_mut()] {
        let error = engine.apply(&bad, None).expect_err("one leads nowhere");
        let NftError::Refused(refusals) = &error else { panic!("{error}") };
        let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
        assert_eq!((refusal.operation, refusal.errno), (Some(0), libc::ENOENT), "{engine:?}");
    }
    let error = pair.real.apply(&bad, None).expect_err("one leads nowhere").to_string();
    assert!(
        error.contains("add element ip kube-proxy verdicts { tcp . 2345 : goto nowhere }: No such file"),
        "{error}"
    );
}

#[test]
fn a_foreign_change_is_detected() {
    let mut pair = Pair::new();
    pair.apply(&ground());
    for engine in [&mut pair.fake as &mut dyn NftTables, pair.real.as_mut()] {
        let before = engine.generation().expect("a number");
        assert_eq!(engine.generation().expect("a number"), before, "nothing happened");
        let add = |port| transaction(&[Operation::AddElements(set(0), vec![element(0, port, 0)])]);
        engine.apply(&add(1), Some(before)).expect("no other change came first");
        let after = engine.generation().expect("a number");
        assert_eq!(after, before + 1);
        let error = engine.apply(&add(2), Some(before)).expect_err("another change came first");
        assert!(matches!(error, NftError::Changed), "{error}");
        engine.apply(&add(2), Some(after)).expect("that is the right number");
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let at = || 0_usize..3;
    let operation = prop_oneof![
        2 => at().prop_map(|at| Operation::AddChain(Chain::plain(chain(at)))),
        1 => Just(Operation::AddChain(Chain::base("base", ChainType::Nat, Hook::Output, -100))),
        1 => (at(), 0_usize..4).prop_map(|(at, to)| {
            let to = if to == 3 { "base".into() } else { chain(to.max(at + 1)) };
            let rule = Rule::new([Statement::Verdict(Verdict::Goto(to))]);
            Operation::AddRule { chain: chain(at), rule }
        }),
        3 => at().prop_map(|at| Operation::AddSet(set(at))),
        4 => (at(), 0_usize..8).prop_map(|(at, to)| Operation::AddRule { chain: chain(at), rule: rule(at, to) }),
        8 => (at(), vec((1_u16..6, 1_usize..3), 1..4)).prop_map(|(at, elements)| {
            Operation::AddElements(set(at), elements.into_iter().map(|(port, value)| element(at, port, value)).collect())
        }),
        3 => (at(), 1_u16..6).prop_map(|(at, port)| Operation::DeleteElements(set(at), vec![element(at, port, 0)])),
        1 => at().prop_map(|at| Operation::FlushSet(set(at))),
        1 => at().prop_map(|at| Operation::FlushChain(chain(at))),
        1 => at().prop_map(|at| Operation::DeleteChain(chain(at))),
        1 => at().prop_map(|at| Operation::DeleteSet(set(at))),
    ];
    vec(operation, 1..7)
}

#[test]
fn random_transactions_have_the_same_result() {
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).map_or(12, |n: u32| n.div_ceil(20));
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 500, ..ProptestConfig::default() };
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(config).run(&vec(operations(), 15), |transactions| {
        let mut pair = Pair::new();
        pair.apply(&ground());
        for operations in transactions {
            let [fake, real] = pair.apply(&operations);
            let count = if fake.is_empty() { &taken } else { &refused };
            count.set(count.get() + 1);
            prop_assert_eq!(fake, real, "{}", transaction(&operations));
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(taken.get() > 0 && refused.get() > 0, "{taken:?} were taken, {refused:?} refused");
}
