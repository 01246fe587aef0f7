//! The fake of iptables behaves like the real tools, in both flavours: equal results, equal tables.
//!
//! Applies fixed and random transactions, valid and invalid ones. Needs root and both flavours of iptables.

mod halfway;
pub mod ipset;
pub mod ipvs;
pub mod link;

use std::cell::Cell;

use netfilter::Restore;
use netfilter::iptables::{Chain, Match, Negatable, Rule, Table, Target};
use netfilter::kernel::{Flavour, IptablesTool};
use netfilter::testing::FakeIptables;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const CHAINS: [Chain; 4] = [Chain::new("ONE"), Chain::new("TWO"), Chain::new("KUBE-SVC-THREE"), Chain::new("FOUR")];

/// One line of a transaction.
#[derive(Clone, Debug)]
enum Line {
    Declare(Table, Chain),
    Append(Table, Chain, Target),
    Insert(Table, &'static str, Target),
    Remove(Table, &'static str, Target),
    /// In the order of the lines; the chain is emptied before anything else of the table.
    Delete(Table, Chain),
}

use Line::{Append, Declare, Delete, Insert, Remove};

use crate::common::real::{FLAVOURS, NATIVE, Real};

fn rule(target: Target) -> Rule {
    Rule { matches: vec![Match::Mark(Negatable::new(0x4000))], target: Some(target), ..Rule::default() }
}

fn transaction(lines: &[Line]) -> Restore {
    let mut restore = Restore::default();
    for line in lines.iter().cloned() {
        match line {
            Declare(table, chain) => restore.declare(table, chain, None),
            Append(table, chain, target) => restore.append(table, chain, &rule(target), None),
            Insert(table, builtin, target) => restore.insert(table, builtin, &rule(target)),
            Remove(table, builtin, target) => restore.remove(table, builtin, &rule(target)),
            Delete(table, chain) => restore.delete(table, chain),
        }
    }
    restore
}

/// The fake and the real one side by side.
struct Pair {
    fake: FakeIptables,
    real: Box<dyn IptablesTool>,
}

impl Pair {
    fn new(real: &Real) -> Self {
        Self { fake: FakeIptables::default(), real: real.tools() }
    }

    /// The lines that each refuses, if it refuses anything. Afterwards both hold the same and answer the same.
    fn restore(&mut self, restore: &Restore) -> [Option<Vec<usize>>; 2] {
        let lines = [
            IptablesTool::restore(&mut self.fake, restore).err().map(|error| error.lines),
            self.real.restore(restore).err().map(|error| error.lines),
        ];
        for table in Table::ALL {
            let real = self.real.save(table).expect("the real one can be read");
            assert_eq!(IptablesTool::save(&mut self.fake, table).expect("the fake too"), real, "after {restore}");
            for chain in CHAINS {
                let answers = [&mut self.fake as &mut dyn IptablesTool, self.real.as_mut()]
                    .map(|tool| tool.has_chain(table, chain).expect("an answer"));
                assert_eq!(answers[0], answers[1], "{chain} in {} after {restore}", table.name());
            }
        }
        lines
    }
}

fn jump(chain: usize) -> Target {
    Target::Jump(CHAINS[chain])
}

/// Transactions that are refused, in this order: the lines, and the line that is named by the fake, the nf_tables
/// flavour and the legacy one.
fn refusals() -> Vec<(Vec<Line>, usize, usize, usize)> {
    use Table::{Filter, Nat};
    let [one, two, _, four] = CHAINS;
    vec![
        // The nf_tables flavour looks for the chains of jumps at COMMIT.
        (vec![Declare(Nat, one), Append(Nat, one, jump(3)), Append(Nat, one, Target::Accept)], 3, 5, 3),
        (vec![Append(Nat, four, Target::Accept)], 2, 2, 2),
        (vec![Delete(Nat, two)], 3, 3, 3),
        (vec![Append(Nat, two, Target::Accept), Delete(Nat, two)], 4, 4, 4),
        (vec![Remove(Nat, "OUTPUT", jump(0))], 2, 2, 2),
        (vec![Remove(Nat, "POSTROUTING", Target::Accept)], 2, 2, 2),
        // Nothing would be left of it, but the rule is checked.
        (vec![Insert(Nat, "OUTPUT", jump(3)), Remove(Nat, "OUTPUT", jump(3))], 2, 4, 2),
        // Tables before the one that is refused are changed.
        (vec![Append(Filter, one, Target::Drop), Delete(Nat, two)], 6, 6, 6),
    ]
}

#[test]
fn refused_transactions_are_refused_by_every_backend_and_change_nothing() {
    for (flavour, infix) in FLAVOURS {
        let mut pair = Pair::new(&Real::new((flavour, infix)));
        let ground = [
            Declare(Table::Nat, CHAINS[0]),
            Declare(Table::Nat, CHAINS[1]),
            Append(Table::Nat, CHAINS[0], jump(1)),
            Declare(Table::Filter, CHAINS[0]),
        ];
        assert_eq!(pair.restore(&transaction(&ground)), [None, None]);
        let in_vain = [Insert(Table::Nat, "OUTPUT", jump(1)), Remove(Table::Nat, "OUTPUT", jump(1))];
        assert_eq!(pair.restore(&transaction(&in_vain)), [None, None], "{flavour}");
        for (lines, fake, nft, legacy) in refusals() {
            let real = match (flavour, infix) {
                // The kernel names the line itself.
                (_, NATIVE) => fake,
                (Flavour::Nft, _) => nft,
                (Flavour::Legacy, _) => legacy,
            };
            let refused = pair.restore(&transaction(&lines));
            assert_eq!(refused, [Some(vec![fake]), Some(vec![real])], "{flavour}: {lines:?}");
        }
    }
}

#[test]
fn rule_is_found_by_its_text() {
    for flavour in FLAVOURS {
        let mut pair = Pair::new(&Real::new(flavour));
        let lines = [Declare(Table::Nat, CHAINS[0]), Insert(Table::Nat, "OUTPUT", jump(0))];
        assert_eq!(pair.restore(&transaction(&lines)), [None, None]);
        for tool in [&mut pair.fake as &mut dyn IptablesTool, pair.real.as_mut()] {
            for (table, builtin, target, expected) in [
                (Table::Nat, "OUTPUT", jump(0), true),
                (Table::Nat, "PREROUTING", jump(0), false),
                (Table::Nat, "OUTPUT", Target::Accept, false),
                (Table::Filter, "OUTPUT", Target::Accept, false),
            ] {
                let found = tool.has_rule(table, builtin, &rule(target.clone())).expect("an answer");
                assert_eq!(found, expected, "{flavour:?}: {tool:?}: {} {builtin} {target:?}", table.name());
            }
        }
    }
}

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let table = || prop_oneof![Just(Table::Nat), Just(Table::Filter)];
    let chain = || (0..CHAINS.len()).prop_map(|at| CHAINS[at]);
    let builtin = || Just("OUTPUT");
    let target = || {
        prop_oneof![
            // Only forward jumps: some kernels refuse loops.
            2 => Just(Target::Accept),
            1 => Just(Target::Return),
        ]
    };
    let jumps = (table(), 0..CHAINS.len(), 0..CHAINS.len())
        .prop_filter("forwards", |(_, from, to)| from < to)
        .prop_map(|(table, from, to)| Append(table, CHAINS[from], jump(to)));
    let line = prop_oneof![
        5 => (table(), chain()).prop_map(|(table, chain)| Declare(table, chain)),
        3 => (table(), chain(), target()).prop_map(|(table, chain, target)| Append(table, chain, target)),
        4 => jumps,
        2 => (table(), builtin(), 0..CHAINS.len()).prop_map(|(table, builtin, to)| Insert(table, builtin, jump(to))),
        1 => (table(), builtin(), 0..CHAINS.len()).prop_map(|(table, builtin, to)| Remove(table, builtin, jump(to))),
        3 => (table(), chain()).prop_map(|(table, chain)| Delete(table, chain)),
    ];
    vec(line, 1..8)
}

/// Lines a table's COMMIT stands in.
fn commits(restore: &Restore) -> Vec<usize> {
    let text = restore.to_string();
    text.lines().enumerate().filter(|(_, line)| *line == "COMMIT").map(|(at, _)| at + 1).collect()
}

#[test]
fn random_transactions_have_the_same_result() {
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).map_or(8, |n: u32| n.div_ceil(40));
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 100, ..ProptestConfig::default() };
    for flavour in FLAVOURS {
        let (taken, refused) = (Cell::new(0), Cell::new(0));
        let result = TestRunner::new(config.clone()).run(&vec(lines(), 12), |transactions| {
            let mut pair = Pair::new(&Real::new(flavour));
            for lines in transactions {
                let restore = transaction(&lines);
                match pair.restore(&restore) {
                    [None, None] => taken.set(taken.get() + 1),
                    [Some(fake), Some(real)] => {
                        refused.set(refused.get() + 1);
                        // The nf_tables flavour looks at some things only at COMMIT, and at what comes before first.
                        let end = commits(&restore).into_iter().find(|end| *end >= fake[0]).expect("a COMMIT");
                        let named = !real.is_empty() && real.iter().all(|line| (fake[0]..=end).contains(line));
                        prop_assert!(named, "{fake:?} and {real:?} are named of\n{restore}");
                    }
                    other => prop_assert!(false, "one of them refuses: {other:?}\n{restore}"),
                }
            }
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{flavour:?}: {failure}"));
        assert!(taken.get() > 0 && refused.get() > 0, "{taken:?} were taken, {refused:?} refused");
    }
}
