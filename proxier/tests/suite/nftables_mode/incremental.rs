//! Whatever happened, and in whatever order, the table is as a fresh start would make it.
//!
//! Which number an endpoint has depends on the history, and means nothing.

use std::cell::Cell;

use proptest::test_runner::TestRunner;

use super::fake::Fake;
use super::meaning;
use crate::common::cases::configuration;
use crate::common::cluster::{self, Operation};
use crate::common::run::{Kernel, Run};

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
    let result = TestRunner::new(configuration(80)).run(&cluster::operations(40, trouble), |operations| {
        history(operations, |text| {
            compared.set(compared.get() + 1);
            endpoints.set(endpoints.get() + text.matches(" . 808").count());
        });
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    // Nothing is proven by clusters in which nothing comes together.
    assert!(endpoints.get() > compared.get(), "{} endpoints in {} comparisons", endpoints.get(), compared.get());
}

fn history(operations: Vec<Operation>, mut seen: impl FnMut(&str)) {
    let mut run = Run::new(Fake::default());
    let mut refuses = false;
    for operation in operations.into_iter().chain([Operation::Refuse(None), Operation::Sync]) {
        if let Operation::Refuse(what) = &operation {
            refuses = what.is_some();
        }
        let Some(written) = run.apply(operation) else { continue };
        assert!(written.transactions.is_empty(), "iptables is not needed: {written:?}");
        if refuses {
            continue;
        }
        let text = run.kernel.text();
        seen(&text);
        nothing_is_unused(&text);
        let mut fresh = run.afresh();
        fresh.sync();
        let because = format!("after a sync of {:?}", written.scope);
        meaning::compare(&text, &fresh.kernel.text(), &because);
    }
}

/// Asserts that each regular chain has a jump to it, and each set of clients a lookup.
fn nothing_is_unused(text: &str) {
    let names = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let kind = words.next().filter(|kind| ["chain", "set"].contains(kind))?;
        let name = words.next()?;
        words.next().map(|_| (kind, name))
    });
    let words: std::collections::HashSet<&str> = text.split([' ', ',', '\n']).collect();
    let mut base = "";
    let bases: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            if let Some(name) = line.trim().strip_prefix("chain ") {
                base = name.trim_end_matches(" {");
            }
            line.contains(" hook ").then_some(base)
        })
        .collect();
    for (kind, name) in names {
        let used = match kind {
            "chain" if bases.contains(&name) => true,
            "chain" => ["jump", "goto"].iter().any(|word| {
                text.contains(&format!("{word} {name}\n"))
                    || text.contains(&format!("{word} {name},"))
                    || text.contains(&format!("{word} {name} "))
            }),
            _ => !name.starts_with("clients-") || words.contains(format!("@{name}").as_str()),
        };
        let always = ["reject-chain", "external-local", "nodeport-local", "firewall-source-ranges"].contains(&name)
            || ["1", "2", "4", "6", "8", "12", "16", "24", "32"].iter().any(|most| name == format!("endpoints-{most}"));
        assert!(used || always, "nothing uses {kind} {name}:\n{text}");
    }
}
