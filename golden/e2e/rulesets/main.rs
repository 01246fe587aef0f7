//! The rulesets of nodes that people have, beside a kube-proxy's: where `trace` says that packets end against where the
//! kernel's real packets end, and `diagnose` against both.
//!
//! A run tries each ruleset in one flavour or mode, in turn; `RULESETS_ALL=1` tries all, `RULESETS=regex` selects some.

mod base;
mod outages;
mod recorded;
mod walked;

use std::sync::Mutex;

use golden::flavour::Flavour;
use golden::rulesets::{self, Base, Layout};
use regex::Regex;

use self::walked::Tally;

/// The rulesets that RULESETS selects.
fn chosen() -> Vec<Layout> {
    let pattern = std::env::var("RULESETS").unwrap_or_default();
    let pattern = Regex::new(&pattern).expect("RULESETS is a pattern");
    rulesets::all().into_iter().filter(|layout| pattern.is_match(&layout.name)).collect()
}

/// Each with the rules of a kube-proxy in each way they can be beside each other.
fn trials(layouts: &[Layout]) -> Vec<(&Layout, Flavour, Base)> {
    let [iptables, nftables] = base::both();
    let mut trials = Vec::new();
    for (at, layout) in layouts.iter().enumerate() {
        let second = match layout.has_iptables() {
            true => (layout, Flavour::Legacy, iptables.clone()),
            false => (layout, Flavour::Nft, nftables.clone()),
        };
        let both = [(layout, Flavour::Nft, iptables.clone()), second];
        let all = std::env::var_os("RULESETS_ALL").is_some();
        trials.extend(
            both.into_iter().enumerate().filter(|(number, _)| all || number % 2 == at % 2).map(|(_, trial)| trial),
        );
    }
    trials
}

#[test]
fn packets_end_where_trace_says_and_working_connections_have_no_cause() {
    let layouts = chosen();
    let trials = Mutex::new(trials(&layouts));
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((layout, flavour, base)) = trials.lock().expect("a lock").pop() else { return };
                    let tally = walked::check(layout, flavour, &base);
                    let mode = if base.nft.is_empty() { "iptables" } else { "nftables" };
                    println!("{} ({flavour}, {mode}): {tally}", layout.name);
                    tally.failures.iter().for_each(|failure| println!("  {failure}"));
                    total.lock().expect("a lock").add(tally);
                }
            });
        }
    });
    let total = total.into_inner().expect("a lock");
    println!("{} rulesets: {total}", layouts.len());
    assert!(total.failures.is_empty(), "{} failures:\n{}", total.failures.len(), total.failures.join("\n"));
}

#[test]
fn every_ruleset_names_its_model() {
    let all = rulesets::all();
    assert!(all.len() >= 30, "{}", all.len());
    for layout in all {
        assert!(layout.about.from.len() > 10, "{} does not say what it is made after", layout.name);
    }
}
