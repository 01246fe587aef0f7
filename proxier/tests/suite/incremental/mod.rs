//! Partial syncs end in the same state as a fresh start, whatever happened before.
//!
//! Runs random operations and compares the fake kernel after every sync with one that was filled at once, and with what
//! each sync may write. Runs without root.

mod fake;
mod large;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use netfilter::iptables::Table;
use proptest::test_runner::TestRunner;

use self::fake::{Fake, Tables};
use crate::common::cases::configuration;
use crate::common::cluster;
use crate::common::cluster::Operation;
use crate::common::run::{Run, Written};

#[test]
fn partial_syncs_equal_a_fresh_start() {
    check(false);
}

#[test]
fn partial_syncs_equal_a_fresh_start_despite_drift_failures_and_refusals() {
    check(true);
}

fn check(trouble: bool) {
    let (compared, endpoints) = (Cell::new(0), Cell::new(0));
    let result = TestRunner::new(configuration(300)).run(&cluster::operations(60, trouble), |operations| {
        // A fresh start writes whole chains in either case.
        let kernel = if compared.get() % 2 == 0 { Fake::editing() } else { Fake::default() };
        live(kernel, operations, |tables| {
            compared.set(compared.get() + 1);
            endpoints.set(endpoints.get() + text(tables).matches("--to-destination").count());
        });
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    // Nothing is proven by clusters in which nothing comes together.
    assert!(endpoints.get() > compared.get(), "{} endpoints in {} comparisons", endpoints.get(), compared.get());
}

fn live(kernel: Fake, operations: Vec<Operation>, mut compared: impl FnMut(&Tables)) {
    let mut run = Run::new(kernel);
    for operation in operations.into_iter().chain([Operation::Refuse(None), Operation::Sync]) {
        let before = run.kernel.tables();
        let mended = matches!(operation, Operation::Damage(_));
        let Some(written) = run.apply(operation) else { continue };
        let after = run.kernel.tables();
        every_chain_is_used(&after);
        // What was programmed before it was refused may be there still.
        if run.kernel.refuses() {
            continue;
        }
        compared(&after);
        let mut fresh = run.afresh();
        fresh.sync();
        assert_eq!(text(&after), text(&fresh.kernel.tables()), "left: incremental, right: fresh");
        if !mended {
            only_what_changed_is_written(&written, &before, &after);
        }
    }
}

fn text(tables: &Tables) -> String {
    let mut text = String::new();
    for ((table, chain), rules) in tables {
        text += &format!("{} {chain}\n", table.name());
        rules.iter().for_each(|rule| text += &format!("  {rule}\n"));
    }
    text
}

/// Whether it is one of a Service port's own.
fn is_own(chain: &str) -> bool {
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-"].iter().any(|prefix| chain.starts_with(prefix))
}

fn jumps(rules: &[String]) -> impl Iterator<Item = &str> {
    rules.iter().filter_map(|rule| rule.rsplit_once("-j ")?.1.split(' ').next())
}

/// From the kernel's own chains one gets to each Service port's chain, and all that is jumped to is there.
fn every_chain_is_used(tables: &Tables) {
    let mut reached: BTreeSet<(Table, &str)> = BTreeSet::new();
    let mut next: Vec<(Table, &str)> =
        tables.keys().filter(|(_, chain)| !chain.starts_with("KUBE-")).map(|(t, c)| (*t, c.as_str())).collect();
    while let Some((table, chain)) = next.pop() {
        if reached.insert((table, chain)) {
            let rules = tables.get(&(table, chain.to_owned())).unwrap_or_else(|| panic!("there is no chain {chain}"));
            next.extend(jumps(rules).filter(|target| target.starts_with("KUBE-")).map(|target| (table, target)));
        }
    }
    let unused: Vec<_> = tables.keys().filter(|(t, c)| is_own(c) && !reached.contains(&(*t, c.as_str()))).collect();
    assert!(unused.is_empty(), "no reference to {unused:?}");
}

/// A chain is written only if it is another afterwards, and by a partial sync only if it is one of the Service ports
/// that the sync was for.
fn only_what_changed_is_written(written: &Written, before: &Tables, after: &Tables) {
    let owners: BTreeMap<&str, &str> =
        before.iter().chain(after).filter_map(|((_, chain), rules)| owner(chain, rules)).collect();
    // Ports that differ by protocol only are named alike: one may have taken the other's rule over.
    let distinct = |scope: &Vec<String>| scope.iter().collect::<BTreeSet<_>>().len();
    let twins = written.scope.as_ref().is_some_and(|scope| distinct(scope) < scope.len());
    for transaction in &written.transactions {
        let mut table = Table::Nat;
        for line in transaction.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name).expect("a table");
            }
            let Some(chain) = line.strip_prefix(':').and_then(|line| line.split(' ').next()) else { continue };
            let place = (table, chain.to_owned());
            let probed = chain == "KUBE-PROXY-PROBE" || written.transactions.len() > 1;
            let alike = !is_own(chain) && twins;
            assert!(
                probed || alike || before.get(&place) != after.get(&place),
                "{chain} is written as it was:\n{transaction}"
            );
            if let Some(scope) = written.scope.as_ref().filter(|_| is_own(chain) && !probed) {
                let owner = owners.get(chain).expect("a chain that is written was or is there");
                assert!(scope.iter().any(|name| name == owner), "{chain} of {owner} is written in a sync of {scope:?}");
            }
        }
    }
}

/// Whose chain it is, by the comments of its rules.
fn owner<'a>(chain: &'a str, rules: &'a [String]) -> Option<(&'a str, &'a str)> {
    let mut words = rules.iter().flat_map(|rule| rule.split([' ', '"']));
    Some((chain, words.find(|word| is_own(chain) && word.contains("/svc-"))?))
}
