//! iptables mode in the real kernel, both flavours: partial syncs end in the same state as a fresh start.
//!
//! Runs random operations and compares iptables-save output with a namespace that was filled at once. Shorter runs than
//! with the fake. Needs root and both flavours of iptables.

use std::cell::Cell;

use netfilter::Restore;
use netfilter::iptables::{Chain, Rule, Table, Target};
use netfilter::kernel::{Host, IptablesTool};
use netfilter::testing::FakeHost;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::common::cluster::{Operation, operations};
use crate::common::real::{FLAVOURS, Real};
use crate::common::run::{Kernel, Run};

impl Kernel for Real {
    fn tool(&self) -> Box<dyn IptablesTool> {
        self.tools()
    }

    fn host(&self) -> Box<dyn Host> {
        Box::new(FakeHost::default())
    }

    fn fresh(&self) -> Self {
        Self::new((self.flavour, self.infix))
    }

    fn damage(&self, nth: usize) -> bool {
        let saved = self.saved();
        let mut place = "";
        let mut filled = Vec::new();
        for line in saved.lines() {
            match line.strip_prefix('*') {
                Some(table) => place = table,
                None => filled.extend(line.strip_prefix("-A KUBE-").map(|rule| (place, rule.split(' ').next()))),
            }
        }
        let Some((table, Some(chain))) = filled.get(nth % filled.len().max(1)) else { return false };
        let status = self.program("").args(["-w", "5", "-t", table, "-F", &format!("KUBE-{chain}")]).status();
        status.expect("iptables can be run").success()
    }

    fn refuse(&self, _: Option<&str>, _: bool) {
        // The kernel does not take orders.
    }

    fn text(&self) -> String {
        self.saved()
    }
}

/// What the fake proves at every step is proved here for the last one: each look costs a dozen programs.
fn live(flavour: usize) {
    let cases =
        std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).map_or(15, |n: u32| n.div_ceil(20));
    let config = ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 50, ..ProptestConfig::default() };
    let nothing = Real::new(FLAVOURS[flavour]);
    let sequences = (operations(30, false), any::<usize>());
    let endpoints = Cell::new(0);
    let result = TestRunner::new(config).run(&sequences, |(operations, nth)| {
        let mut run = Run::new(nothing.fresh());
        for operation in operations {
            run.apply(operation);
        }
        run.sync();
        let mended = run.apply(Operation::Damage(nth)).expect("there are rules that can be damaged");
        prop_assert!(mended.scope.is_none() && !mended.transactions.is_empty(), "{:?}", mended);
        let mut fresh = run.afresh();
        fresh.sync();
        let (incremental, fresh) = (run.kernel.text(), fresh.kernel.text());
        endpoints.set(endpoints.get() + fresh.matches("--to-destination").count());
        prop_assert_eq!(incremental, fresh);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(endpoints.get() > 0, "no sequence ended with endpoints");
}

#[test]
fn incremental_is_full_in_nf_tables() {
    live(0);
}

#[test]
fn incremental_is_full_in_legacy_tables() {
    live(1);
}

#[test]
fn incremental_is_full_without_the_programs() {
    live(2);
}

/// The generation ID shows that no other program has changed anything.
#[test]
fn each_table_that_is_written_is_one_change_of_nf_tables() {
    [0, 2].into_iter().for_each(each_table_is_one_change);
    assert_eq!(Real::new(FLAVOURS[1]).tools().generation(), None, "the legacy flavour has none");
}

fn each_table_is_one_change(flavour: usize) {
    let (real, chain) = (Real::new(FLAVOURS[flavour]), Chain::new("KUBE-X"));
    let mut tool = real.tools();
    let drop = Rule { target: Some(Target::Drop), ..Rule::default() };
    let mut number = tool.generation().expect("nf_tables tells");
    for tables in [&[Table::Filter][..], &[Table::Filter, Table::Mangle], &[Table::Mangle]] {
        let mut restore = Restore::default();
        tables.iter().for_each(|table| restore.chain(*table, chain, std::slice::from_ref(&drop), None));
        assert_eq!(restore.tables(), tables.len());
        tool.restore(&restore).expect("it is taken");
        number += u32::try_from(tables.len()).expect("few");
        assert_eq!(tool.generation(), Some(number), "{tables:?}");
    }
    tool.save(Table::Filter).expect("it can be read");
    tool.has_chain(Table::Filter, chain).expect("an answer");
    assert_eq!(tool.generation(), Some(number), "to look is no change");
    assert!(real.program("").args(["-w", "5", "-F", "KUBE-X"]).status().expect("iptables").success());
    assert_ne!(tool.generation(), Some(number), "a foreign change");
}
