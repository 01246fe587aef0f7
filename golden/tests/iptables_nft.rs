//! The codec of iptables-nft rules against the real iptables-nft, on every recorded case.
//!
//! As root. `IPTABLES_VERSIONS` has folders with other versions of the programs, separated by colons; with it, every
//! step of a case is tried instead of the last one. Single commands are tried on a sample, or on every case with
//! `COMMANDS=all`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use golden::case::{Case, Kind, Mode, cases};
use golden::netns::Netns;
use netfilter::iptables::{Chain, Rule, Table};
use netfilter::kernel::iptables_nft::{DecodedRule, NftRules, RuleContent};
use netfilter::kernel::{Host, IptablesTool, NativeIptables, NftReader, SystemHost, delete_table};
use netfilter::nft::ruleset::{self, TableId};
use netfilter::{IpFamily, Restore};

/// The rules of each table and chain, in order.
type Rules = BTreeMap<(String, String), Vec<String>>;

const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Counters that recorded rules refer to.
const COUNTERS: [&str; 2] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];

/// The programs in PATH, and those of `IPTABLES_VERSIONS`: prefixes of program names.
fn versions() -> Vec<String> {
    let others = std::env::var("IPTABLES_VERSIONS").unwrap_or_default();
    let others = others.split(':').filter(|folder| !folder.is_empty()).map(|folder| format!("{folder}/"));
    std::iter::once(String::new()).chain(others).collect()
}

fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}\n{input}");
    String::from_utf8(output.stdout).expect("text")
}

/// A recording with what this kernel has: no IPVS.
fn loadable(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains(" -m ipvs "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The rules in the output of `iptables-save`, parsed and printed again.
fn saved(family: IpFamily, text: &str) -> Rules {
    let (mut rules, mut table) = (Rules::new(), String::new());
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, options) = rule.split_once(' ').unwrap_or((rule, ""));
            let parsed = Rule::parse(family, options).unwrap_or_else(|| panic!("cannot parse {line}"));
            rules.entry((table.clone(), chain.to_owned())).or_default().push(parsed.to_string());
        }
    }
    rules
}

/// The rules as the kernel has them.
fn read(family: IpFamily) -> Rules {
    let (mut reader, mut all) = (NftRules::new(family), Rules::new());
    for table in Table::ALL {
        let name = table.name();
        let rules = reader.table(name, |rules: &mut Rules, chain, read| {
            let text = match read.rule {
                DecodedRule::Known(rule) => rule.to_string(),
                DecodedRule::Unknown(unknown) => format!("{unknown:?}"),
            };
            rules.entry((name.to_owned(), chain.to_owned())).or_default().push(text);
        });
        all.extend(rules.expect("readable"));
    }
    for ((table, chain), rules) in &all {
        assert_eq!(&reader.chain(table, chain).expect("readable").len(), &rules.len(), "{table} {chain} alone");
    }
    all
}

/// Creates what recorded rules refer to.
fn prepare(case: &Case, mode: Mode, step: usize) {
    if mode == Mode::Ipvs {
        run("ipset", &["restore"], &case.expected(mode, step, Kind::Ipset));
    }
    for counter in COUNTERS {
        SystemHost.ensure_counter(counter).expect("nfacct");
    }
}

/// Calls `check` in a fresh namespace for each recording of iptables rules; returns how many there were.
fn every_recording(check: impl Fn(&str, IpFamily, &str) + Sync) -> usize {
    every_nth_recording(1, check)
}

/// As [`every_recording`], of one in `nth` cases.
fn every_nth_recording(nth: usize, check: impl Fn(&str, IpFamily, &str) + Sync) -> usize {
    let cases: Vec<Case> = cases().into_iter().step_by(nth).collect();
    let share = |first: usize| {
        let mut count = 0;
        for case in cases.iter().skip(first).step_by(2) {
            for mode in Mode::ALL.into_iter().filter(|mode| case.has(*mode)) {
                let steps = case.stored.len();
                let first = if std::env::var_os("IPTABLES_VERSIONS").is_some() { 0 } else { steps - 1 };
                for step in first..steps {
                    let netns = Netns::new();
                    netns.enter(|| {
                        prepare(case, mode, step);
                        for (family, kind) in [(IpFamily::V4, Kind::Iptables), (IpFamily::V6, Kind::Ip6tables)] {
                            let text = loadable(&case.expected(mode, step, kind));
                            check(&format!("{} {mode} step {step} {family}", case.name), family, &text);
                        }
                    });
                    count += 2;
                }
            }
        }
        count
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| share(1));
        let mine = scope.spawn(|| share(0));
        [other, mine].map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).iter().sum()
    })
}

#[test]
fn recorded_rules_written_by_every_version_are_decoded_as_they_are_printed() {
    let versions = versions();
    let count = every_recording(|what, family, text| {
        for prefix in &versions {
            let program = |suffix: &str| format!("{prefix}{}-nft{suffix}", family.iptables());
            run(&program("-restore"), &[], text);
            let printed = saved(family, &run(&program("-save"), &[], ""));
            assert_eq!(read(family), printed, "{what}, written by {}", program("-restore"));
            assert_eq!(saved(family, text), printed, "{what}");
        }
    });
    assert!(count > 300, "only {count} recordings");
}

/// A recording as one transaction that creates everything.
fn transaction(family: IpFamily, text: &str) -> Restore {
    let (mut restore, mut table) = (Restore::default(), Table::Filter);
    let mut builtin = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::ALL.into_iter().find(|table| table.name() == name).expect("a table");
        } else if let Some(declared) = line.strip_prefix(':') {
            let (name, policy) = declared.split_once(' ').expect("a policy");
            if policy.starts_with('-') {
                restore.declare(table, Chain::parse(name).expect("a name"), None);
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, options) = rule.split_once(' ').unwrap_or((rule, ""));
            let rule = Rule::parse(family, options).unwrap_or_else(|| panic!("cannot parse {line}"));
            match BUILTIN.iter().find(|known| **known == chain) {
                Some(chain) => builtin.push((table, *chain, rule)),
                None => restore.append(table, Chain::parse(chain).expect("a name"), &rule, None),
            }
        }
    }
    builtin.iter().rev().for_each(|(table, chain, rule)| restore.insert(*table, chain, rule));
    restore
}

/// The rules of an output, line by line, chain after chain in the order of their names.
fn lines(text: &str) -> Vec<String> {
    let (mut lines, mut table) = (Vec::new(), "");
    for line in text.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if line.starts_with("-A ") => lines.push((table, line.split(' ').nth(1), line.trim_end())),
            None => {}
        }
    }
    lines.sort_by_key(|(table, chain, _)| (*table, *chain));
    lines.into_iter().map(|(table, _, line)| format!("{table} {line}")).collect()
}

#[test]
fn rules_written_natively_are_those_of_the_programs() {
    let versions = versions();
    let count = every_recording(|what, family, text| {
        let program = |prefix: &str, suffix: &str| format!("{prefix}{}-nft{suffix}", family.iptables());
        let printed = |prefix: &String| lines(&run(&program(prefix, "-save"), &[], ""));
        let forget = || Table::ALL.into_iter().for_each(|table| _ = delete_table(family, table.name()));
        let theirs: Vec<_> = versions
            .iter()
            .map(|prefix| {
                forget();
                run(&program(prefix, "-restore"), &[], text);
                printed(prefix)
            })
            .collect();
        forget();
        let mut tool = NativeIptables::find(family).expect("nf_tables works");
        tool.restore(&transaction(family, text)).unwrap_or_else(|error| panic!("{what}: {error}"));
        for (prefix, theirs) in versions.iter().zip(theirs) {
            assert_eq!(printed(prefix), theirs, "{what}, read by {}", program(prefix, "-save"));
        }
        let before: Vec<_> = Table::ALL.map(|table| tool.save(table).expect("readable")).into();
        tool.restore(&without_jumps(family, text)).expect("the same again");
        let after: Vec<_> = Table::ALL.map(|table| tool.save(table).expect("readable")).into();
        assert_eq!(before, after, "{what}");
    });
    assert!(count > 300, "only {count} recordings");
}

/// The chains of a recording again, without the rules of built-in chains.
fn without_jumps(family: IpFamily, text: &str) -> Restore {
    let builtin = |line: &&str| !BUILTIN.iter().any(|chain| line.starts_with(&format!("-A {chain} ")));
    let text: String = text.lines().filter(builtin).map(|line| format!("{line}\n")).collect();
    transaction(family, &text)
}

/// The arguments of a rule as a shell would pass them.
fn arguments(rule: &str) -> Vec<String> {
    let (mut arguments, mut is_quoted, mut is_escaped) = (vec![String::new()], false, false);
    for letter in rule.chars() {
        let last = arguments.last_mut().expect("one at least");
        match letter {
            _ if is_escaped => last.push(letter),
            '\\' => {}
            '"' => is_quoted = !is_quoted,
            ' ' if !is_quoted => arguments.push(String::new()),
            _ => last.push(letter),
        }
        is_escaped = letter == '\\' && !is_escaped;
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

#[test]
fn commands_of_every_version_list_find_and_delete_rules_written_natively() {
    let versions = versions();
    let nth = if std::env::var("COMMANDS").is_ok_and(|cases| cases == "all") { 1 } else { 12 };
    let count = every_nth_recording(nth, |what, family, text| {
        for prefix in &versions {
            let program = format!("{prefix}{}-nft", family.iptables());
            let mut tool = NativeIptables::find(family).expect("nf_tables works");
            tool.restore(&transaction(family, text)).unwrap_or_else(|error| panic!("{what}: {error}"));
            let listed = run("nft", &["list", "ruleset"], "");
            assert!(listed.contains("KUBE-"), "{what}: {listed}");
            let all = read(family);
            // Each command reads its table: of thousands of chains some are enough.
            let some = 1 + all.values().map(Vec::len).sum::<usize>() / 300;
            for ((table, chain), rules) in all.into_iter().step_by(some) {
                let on_chain = |verb: &str, rest: &[String]| {
                    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
                    run(&program, &[&["-w", "-t", &table, verb, &chain], &rest[..]].concat(), "")
                };
                let (shown, counted) = (on_chain("-S", &[]), on_chain("-L", &["-v", "-n"].map(str::to_owned)));
                let shown = shown.lines().filter(|line| line.starts_with("-A ")).count();
                // A line for the chain and one for the columns.
                assert_eq!((shown, counted.lines().count()), (rules.len(), rules.len() + 2), "{what} {table} {chain}");
                for rule in &rules {
                    on_chain("-C", &arguments(rule));
                }
                for rule in &rules {
                    on_chain("-D", &arguments(rule));
                }
            }
            assert!(some > 1 || read(family).is_empty(), "{what}: {:?} were not deleted", read(family));
            Table::ALL.into_iter().for_each(|table| _ = delete_table(family, table.name()));
        }
    });
    assert!(count > 20, "only {count} recordings");
}

#[test]
fn rules_without_words_of_iptables_keep_their_expressions() {
    Netns::new().enter(|| {
        run("iptables-nft", &["-A", "INPUT", "-p", "tcp", "-m", "tcp", "--dport", "80", "-j", "ACCEPT"], "");
        run("iptables-nft", &["-A", "INPUT", "-m", "limit", "--limit", "1/s", "-j", "ACCEPT"], "");
        run("nft", &["add", "rule", "ip", "filter", "INPUT", "ct", "state", "invalid", "counter", "drop"], "");
        run("nft", &["add", "rule", "ip", "filter", "INPUT", "tcp", "dport", "80", "accept", "comment", "mine"], "");
        let (rules, changed) = NftRules::new(IpFamily::V4).inspect_chain("filter", "INPUT").expect("readable");
        assert!(!changed);
        let id = TableId::of(IpFamily::V4, "filter");
        let shown: Vec<String> = rules
            .into_iter()
            .map(|rule| match rule.content {
                RuleContent::Text(text) => text.into(),
                RuleContent::Expressions(held) => held.text(&id, &ruleset::Table::default()),
            })
            .collect();
        assert_eq!(shown[0], "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT");
        assert!(shown[1].contains("limit"), "{shown:?}");
        assert_eq!(shown[2], "ct state invalid counter packets 0 bytes 0 drop");
        assert_eq!(shown[3], "tcp dport 80 accept comment \"mine\"");
        let none = NftRules::new(IpFamily::V6).inspect_chain("filter", "INPUT").expect("readable");
        assert_eq!(none, (Vec::new(), false));
    });
}

#[test]
fn chains_are_looked_at_one_by_one_and_listed_without_those_of_a_table() {
    Netns::new().enter(|| {
        let input = "*nat\n:PREROUTING ACCEPT [7:500]\n:A - [0:0]\n-A PREROUTING -j A\nCOMMIT\n";
        run("iptables-nft-restore", &["-c"], input);
        let (mut reader, id) = (NftReader::new(IpFamily::V4), TableId::of(IpFamily::V4, "nat"));
        let (head, counters) = reader.chain(&id, "PREROUTING").expect("readable").expect("it is there");
        assert!(head.is_of_iptables("PREROUTING"));
        assert_eq!((counters.packets, counters.bytes), (7, 500));
        assert!(reader.chain(&id, "A").expect("readable").is_some_and(|(head, _)| head.base.is_none()));
        assert!(reader.chain(&id, "B").expect("readable").is_none());
        let has_rules = ["PREROUTING", "A", "B"].map(|chain| reader.has_rules(&id, chain).expect("readable"));
        assert_eq!(has_rules, [true, false, false]);
        let mut names = || -> Vec<String> {
            let outline = reader.read_outline_without("nat").expect("readable");
            outline.tables[&id].chains.keys().map(ToString::to_string).collect()
        };
        let without = names();
        assert!(without.contains(&"PREROUTING".to_owned()) && !without.contains(&"A".to_owned()), "{without:?}");
        // Rules of another base chain may jump to any chain.
        let base = "{ type nat hook prerouting priority 5; }";
        run("nft", &["-f", "-"], &format!("add chain ip nat mine {base}\nadd rule ip nat mine jump A\n"));
        assert!(names().contains(&"A".to_owned()));
    });
}
