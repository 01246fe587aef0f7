//! iptables rules written over netlink: what the programs cannot do, or do in another way.
//!
//! Needs root, iptables-nft and nft.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use netfilter::iptables::{Chain, Match, Negatable, Rule, Table, Target};
use netfilter::kernel::iptables_nft::{DecodedRule, NftRules, ReadRule};
use netfilter::{EditedChain, IpFamily, Restore, RuleEdit, SavedChain};

use crate::common::real::{FLAVOURS, Real};

const LONG: Chain = Chain::new("KUBE-SERVICES");

fn real() -> Real {
    Real::new(FLAVOURS[2])
}

fn nft(real: &Real, command: &str) -> bool {
    real.enter();
    Command::new("nft").arg(command).status().expect("nft can be run").success()
}

/// The rule for one of many addresses.
fn rule(number: u32) -> Rule {
    let address = IpNet::from(std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + number)));
    Rule { destination: Some(Negatable::new(address)), target: Some(Target::Return), ..Rule::default() }
}

fn write(tool: &mut dyn netfilter::kernel::IptablesTool, numbers: impl IntoIterator<Item = u32>) {
    let rules: Vec<Rule> = numbers.into_iter().map(rule).collect();
    let mut restore = Restore::default();
    restore.chain(Table::Nat, LONG, &rules, None);
    tool.restore(&restore).expect("it is taken");
}

fn read(real: &Real) -> Vec<ReadRule> {
    real.enter();
    NftRules::new(IpFamily::V4).chain("nat", LONG.as_str()).expect("readable")
}

fn texts(rules: &[ReadRule]) -> Vec<String> {
    let text = |read: &ReadRule| match &read.rule {
        DecodedRule::Known(rule) => rule.to_string(),
        DecodedRule::Unknown(unknown) => format!("{unknown:?}"),
    };
    rules.iter().map(text).collect()
}

#[test]
fn a_rule_more_or_less_leaves_all_others_of_a_long_chain_in_place() {
    let real = real();
    let mut tool = real.tools();
    write(tool.as_mut(), 0..2000);
    let before = read(&real);
    assert_eq!(before.len(), 2000);
    // The first, the last and two in the middle go; some come, before, between and after the others.
    let gone = [0, 700, 701, 1999];
    let numbers: Vec<u32> = [5000, 5001]
        .into_iter()
        .chain((0..1000).filter(|number| !gone.contains(number)))
        .chain([6000, 6001])
        .chain((1000..2000).filter(|number| !gone.contains(number)))
        .chain([7000])
        .collect();
    write(tool.as_mut(), numbers.iter().copied());
    let after = read(&real);
    let expected: Vec<String> = numbers.iter().map(|number| rule(*number).to_string()).collect();
    assert_eq!(texts(&after), expected);
    let handles = |rules: &[ReadRule]| rules.iter().map(|rule| rule.handle).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(handles(&before).intersection(&handles(&after)).count(), 1996, "they have their handles and counters");

    // Everything else is rewritten.
    write(tool.as_mut(), 10_000..13_000);
    assert_eq!(read(&real).len(), 3000);
    write(tool.as_mut(), []);
    assert_eq!(read(&real), []);
}

#[test]
fn a_chain_is_edited_by_handles_that_the_kernel_told_and_not_after_others_changed_it() {
    let real = real();
    let mut tool = real.tools();
    write(tool.as_mut(), 0..2000);
    let mut numbers: Vec<u32> = (0..2000).collect();
    let content = |numbers: &[u32]| SavedChain::of(&numbers.iter().map(|number| rule(*number)).collect::<Vec<_>>());
    let mut edit = |numbers: &mut Vec<u32>, edits: &[(usize, usize, &[u32])]| {
        let (mut restore, before) = (Restore::default(), content(numbers));
        let mut after = numbers.clone();
        edits.iter().for_each(|(at, gone, new)| _ = after.splice(*at..at + gone, new.iter().copied()));
        restore.begin_edits(Table::Nat, EditedChain { chain: LONG, before, after: content(&after) });
        for (at, gone, new) in edits {
            let inserted: Vec<Rule> = new.iter().map(|number| rule(*number)).collect();
            let u32 = |number: usize| u32::try_from(number).expect("small");
            let edit = RuleEdit { after: u32(*at), deleted: u32(*gone), inserted: &inserted };
            restore.edit(Table::Nat, LONG, &edit, None);
        }
        let result = tool.restore(&restore);
        if result.is_ok() {
            *numbers = after;
        }
        result
    };
    let all = |numbers: &[u32]| numbers.iter().map(|number| rule(*number).to_string()).collect::<Vec<_>>();
    let before = read(&real);
    // The first edit reads the chain, the others know it.
    for round in 0..3 {
        let new = [10_000 + round, 20_000 + round];
        let edits: [(usize, usize, &[u32]); 4] =
            [(0, 1, &new[..1]), (500, 0, &new), (900, 3, &[]), (1990, 1, &new[1..])];
        edit(&mut numbers, &edits).expect("it is as it was written");
        assert_eq!(texts(&read(&real)), all(&numbers), "round {round}");
    }
    let kept = read(&real).iter().filter(|rule| before.contains(rule)).count();
    assert!(kept > 1980, "only {kept} rules are the same ones");

    // A known chain that others changed: a rule that is needed is gone.
    let handle = read(&real)[500].handle;
    assert!(nft(&real, &format!("delete rule ip nat {LONG} handle {handle}")));
    let error = edit(&mut numbers, &[(500, 1, &[])]).expect_err("that rule is gone").to_string();
    assert!(error.contains("chain KUBE-SERVICES of table nat was changed by another program"), "{error}");
    write(tool.as_mut(), numbers.iter().copied());
    assert_eq!(texts(&read(&real)), all(&numbers), "written as a whole, it is right again");
}

#[test]
fn a_table_with_rules_of_nft_is_reported_and_left_alone() {
    let real = real();
    let mut tool = real.tools();
    assert!(nft(
        &real,
        "add table ip nat; add chain ip nat OTHERS; add rule ip nat OTHERS fib daddr type local counter"
    ));
    let error = tool.save(Table::Nat).expect_err("iptables cannot read it either").to_string();
    assert!(error.contains("table nat is incompatible with iptables") && error.contains("OTHERS"), "{error}");
    assert!(tool.save(Table::Filter).expect("another table").chains.is_empty());
}

#[test]
fn unknown_rules_are_never_equal_to_others() {
    let real = real();
    let mut tool = real.tools();
    for command in
        ["-N KUBE-X", "-A KUBE-X -m limit --limit 5/sec", "-A KUBE-X -o eth0 -j ACCEPT", "-I INPUT -m time -j KUBE-X"]
    {
        let status = real.program("").args(command.split(' ')).status().expect("iptables can be run");
        assert!(status.success(), "{command}");
    }
    let chain = Chain::new("KUBE-X");
    let saved = tool.save(Table::Filter).expect("readable");
    assert_eq!((saved.chains[&chain].rules, saved.builtin.len()), (2, 1));
    let references = tool.references(Table::Filter, &|of| *of == chain).expect("readable");
    // There are no words of iptables for a match that was not decoded.
    assert_eq!(references[&chain], "ip filter INPUT: [match] counter packets 0 bytes 0 jump KUBE-X (in nft syntax)");
    let jump = Rule { target: Some(Target::Jump(chain)), ..Rule::default() };
    assert!(!tool.has_rule(Table::Filter, "INPUT", &jump).expect("an answer"));
}

/// Sets its flag when dropped.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn concurrent_writers_neither_lose_rules_nor_block_ours() {
    let real = real();
    let mut tool = real.tools();
    let (stop, others) = (AtomicBool::new(false), real.clone());
    std::thread::scope(|scope| {
        // After a failure, too: the scope waits for the writer.
        let stopping = Stopping(&stop);
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                let comment = format!("-t nat -A OUTPUT -d 192.0.2.{} -j RETURN", written % 250);
                assert!(others.program("").args(comment.split(' ')).status().expect("iptables").success());
                written += 1;
            }
            written
        });
        let jump =
            Rule { matches: vec![Match::DestinationIsLocal], target: Some(Target::Jump(LONG)), ..Rule::default() };
        for number in 0..30 {
            write(tool.as_mut(), (0..100).filter(|other| *other != number % 100));
            let mut restore = Restore::default();
            restore.insert(Table::Nat, "OUTPUT", &jump);
            tool.restore(&restore).expect("inserted");
            let mut restore = Restore::default();
            restore.remove(Table::Nat, "OUTPUT", &jump);
            tool.restore(&restore).expect("removed, whatever others do");
        }
        drop(stopping);
        let written: usize = writer.join().expect("the other writer");
        let saved = tool.save(Table::Nat).expect("readable");
        assert!(written > 0);
        assert_eq!((saved.builtin.len(), saved.chains[&LONG].rules), (written, 99));
    });
}
