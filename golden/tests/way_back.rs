//! Hands the table of nftables mode from one kube-proxy to the other, in the kernel.
//!
//! The transactions of upstream are reproduced by `golden::upstream`. Each must be accepted, packets must have the
//! same outcomes as without a handover, and shared names must mean the same. Requires root and nft.
//! `PROBES=all` covers every case and step, otherwise the first state of a sample; `CASES=regex` selects cases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use golden::case::{Case, Mode, cases};
use golden::probe::{Node, Plan, differences, survey};
use golden::replay::Replay;
use golden::upstream::{ListedChain, ListedSet, ListedTable, Upstream, before_1_33};
use regex::Regex;

/// One case of each kind of rules, and one of steps.
const SAMPLE: &str = "^(103|210|502|726|806)-";
/// What upstream's table has in any release from 1.31 to 1.37, in IPv4: sets and maps with their types, base chains with
/// type, hook and priority (1.31 and 1.32 have other priorities, and make their base chains anew), other chains.
const UPSTREAM: [(&str, &str); 31] = [
    ("cluster-ips", "set: type ipv4_addr"),
    ("nodeport-ips", "set: type ipv4_addr"),
    ("hairpin-connections", "set: type ipv4_addr . ipv4_addr . inet_proto . inet_service"),
    ("service-ips", "map: type ipv4_addr . inet_proto . inet_service : verdict"),
    ("firewall-ips", "map: type ipv4_addr . inet_proto . inet_service : verdict"),
    ("no-endpoint-services", "map: type ipv4_addr . inet_proto . inet_service : verdict"),
    ("service-nodeports", "map: type inet_proto . inet_service : verdict"),
    ("no-endpoint-nodeports", "map: type inet_proto . inet_service : verdict"),
    ("localhost-nodeport-reject-ports", "map, since 1.37"),
    ("filter-prerouting-pre-dnat", "chain: type filter hook prerouting priority -110; policy accept;"),
    ("filter-output-pre-dnat", "chain: type filter hook output priority -110; policy accept;"),
    ("filter-input", "chain: type filter hook input priority 0; policy accept;"),
    ("filter-forward", "chain: type filter hook forward priority 0; policy accept;"),
    ("filter-output", "chain: type filter hook output priority 0; policy accept;"),
    ("nat-prerouting", "chain: type nat hook prerouting priority -100; policy accept;"),
    ("nat-output", "chain: type nat hook output priority -100; policy accept;"),
    ("nat-postrouting", "chain: type nat hook postrouting priority 100; policy accept;"),
    ("filter-prerouting", "base chain, before 1.33"),
    ("filter-output-post-dnat", "base chain, before 1.33"),
    ("services", "chain"),
    ("masquerading", "chain"),
    ("mark-for-masquerade", "chain, before 1.36"),
    ("reject-chain", "chain"),
    ("cluster-ips-check", "chain"),
    ("service-endpoints-check", "chain"),
    ("nodeport-endpoints-check", "chain"),
    ("firewall-check", "chain"),
    ("localhost-nodeport-reject-tcp", "chain, since 1.37"),
    ("localhost-nodeport-reject-udp", "chain, since 1.37"),
    ("localhost-nodeport-reject-sctp", "chain, since 1.37"),
    ("localhost-nodeport-rejected-udp", "counter, since 1.37"),
];
/// One at a time: they are processors' work.
static TURN: Mutex<()> = Mutex::new(());

fn all() -> bool {
    std::env::var("PROBES").is_ok_and(|value| value == "all")
}

/// The chosen cases and steps.
fn chosen() -> Vec<(Case, usize)> {
    let pattern = std::env::var("CASES").unwrap_or_else(|_| if all() { String::new() } else { SAMPLE.to_owned() });
    let pattern = Regex::new(&pattern).expect("CASES is a regular expression");
    let cases = cases().into_iter().filter(|case| case.has(Mode::Nftables) && pattern.is_match(&case.name));
    let steps = |case: Case| (0..if all() { case.stored.len() } else { 1 }).map(move |step| (case.clone(), step));
    let chosen: Vec<(Case, usize)> = cases.flat_map(steps).collect();
    assert!(!chosen.is_empty(), "no case is chosen");
    chosen
}

/// nft on a node: what it prints.
fn nft(node: &Node, arguments: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = node.netns().command("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("nft can be run");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("nft reads");
    let output = child.wait_with_output().expect("nft ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn ruleset(node: &Node) -> String {
    nft(node, &["list", "ruleset"], "").expect("nft lists")
}

/// Ours, as it programs a node from what it finds there.
fn ours(node: &Node, case: &Case, step: usize) {
    let mut replay = Replay::in_kernel(case);
    node.netns().enter(|| replay.step(&case.stored[step]));
}

/// A later step's index: the next one, or the same if there is none.
fn later(case: &Case, step: usize) -> usize {
    (step + 1).min(case.stored.len() - 1)
}

/// The recorded tables of a step, in a release's shape.
fn recorded(case: &Case, step: usize, shape: fn(&ListedTable) -> ListedTable) -> Vec<ListedTable> {
    ListedTable::all(&case.recorded_tables(step)).iter().map(shape).collect()
}

/// A chain in which sets of one element are spelled as that element: nft makes them so, unless it merged several into it.
fn normal(chain: &ListedChain) -> ListedChain {
    let single = Regex::new(r"= \{ ([^, {}]+) \}").expect("an expression");
    let mut chain = chain.clone();
    chain.rules = chain.rules.iter().map(|rule| single.replace_all(rule, "= $1").into_owned()).collect();
    chain
}

/// The differences from upstream's result in the parts that packets reach.
///
/// Comments of elements are ignored, because upstream keeps those of elements with the right value.
fn unlike(node: &Node, wanted: &[ListedTable]) -> Vec<String> {
    let mut unlike = Vec::new();
    let held: BTreeMap<String, ListedTable> =
        ListedTable::all(&ruleset(node)).into_iter().map(|table| (table.family.clone(), table)).collect();
    for wanted in wanted {
        let Some(held) = held.get(&wanted.family) else { panic!("there is no table {}", wanted.family) };
        let (met, wanted_met) = (held.met(), wanted.met());
        let more = met.chains.keys().chain(met.sets.keys());
        let known = |name: &&String| wanted.chains.contains_key(*name) || wanted.sets.contains_key(*name);
        unlike.extend(more.filter(|name| !known(name)).map(|name| format!("{}: {name} is met", wanted.family)));
        for (name, chain) in &wanted.chains {
            if held.chains.get(name).map(normal) != Some(normal(chain)) {
                unlike.push(format!("chain {name}: {:?}, not {chain:?}", held.chains.get(name)));
            }
        }
        for (name, set) in &wanted_met.sets {
            let found = held.sets.get(name).cloned().unwrap_or_default();
            if (&found.word, found.values()) != (&set.word, set.values()) {
                unlike.push(format!("{name}: {found:?}, not {set:?}"));
            }
        }
    }
    unlike
}

/// Lets upstream sync twice over what is on the node, and delete what is stale; what it meets and leaves then.
fn upstream_syncs(node: &Node, case: &Case, step: usize, shape: fn(&ListedTable) -> ListedTable) -> Vec<String> {
    let mut problems = Vec::new();
    let run = |arguments: &[&str], input: &str| nft(node, arguments, input);
    let mut processes: BTreeMap<String, Upstream> = BTreeMap::new();
    for step in [step, later(case, step)] {
        let wanted = recorded(case, step, shape);
        for table in &wanted {
            let process = processes.entry(table.family.clone()).or_default();
            problems.extend(process.sync(table, &run).err());
            problems.extend(process.delete_stale(table, &run).err());
        }
        problems.extend(unlike(node, &wanted).into_iter().map(|text| format!("step {step}: {text}")));
    }
    problems
}

/// Goes over all chosen states with a node; what went wrong.
fn over_all(mut each: impl FnMut(&Node, &Case, usize) -> Vec<String>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let node = Node::new();
    let mut problems = Vec::new();
    for (case, step) in chosen() {
        node.clear();
        let found = each(&node, &case, step);
        problems.extend(found.into_iter().take(3).map(|text| format!("{} step {step}: {text}", case.name)));
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn upstream_over_our_table_is_accepted_and_leaves_packets_only_its_own_rules() {
    over_all(|node, case, step| {
        ours(node, case, step);
        upstream_syncs(node, case, step, ListedTable::clone)
    });
}

#[test]
fn upstream_of_1_31_over_our_table_is_accepted_and_leaves_packets_only_its_own_rules() {
    // As after any later upstream, these two stay; the firewall drops the same packets twice.
    let stays = Regex::new("filter-(prerouting|output)-pre-dnat is met").expect("an expression");
    over_all(|node, case, step| {
        ours(node, case, step);
        let mut problems = upstream_syncs(node, case, step, before_1_33);
        problems.retain(|text| !stays.is_match(text));
        problems
    });
}

/// What differs between tables; their order, which is that of their creation, does not count.
fn changes(wanted: &[ListedTable], found: &[ListedTable]) -> Vec<String> {
    let [wanted, found] = [wanted, found].map(|tables| tables.iter().flat_map(parts).collect::<BTreeMap<_, _>>());
    let names: BTreeSet<&String> = wanted.keys().chain(found.keys()).collect();
    let differ = names.into_iter().filter(|name| wanted.get(*name) != found.get(*name));
    differ.map(|name| format!("{name} is {:?} and not {:?}", found.get(name), wanted.get(name))).collect()
}

/// The table itself, its chains and its sets, by name.
fn parts(table: &ListedTable) -> Vec<(String, String)> {
    let own = (table.family.clone(), format!("{} {:?}", table.name, table.comment));
    let chains =
        table.chains.iter().map(|(name, chain)| (format!("{} chain {name}", table.family), format!("{chain:?}")));
    let sets = table.sets.iter().map(|(name, set)| (format!("{} set {name}", table.family), format!("{set:?}")));
    [own].into_iter().chain(chains).chain(sets).collect()
}

/// Ours over what upstream left is what ours alone makes, and nothing else.
fn ours_over(shape: fn(&ListedTable) -> ListedTable) {
    over_all(|node, case, step| {
        ours(node, case, step);
        let alone = ListedTable::all(&ruleset(node));
        node.clear();
        let mut problems = upstream_syncs(node, case, step, shape);
        ours(node, case, step);
        problems.extend(changes(&alone, &ListedTable::all(&ruleset(node))));
        problems
    });
}

#[test]
fn ours_over_upstreams_table_leaves_nothing_of_it() {
    ours_over(ListedTable::clone);
}

#[test]
fn ours_over_the_table_of_1_31_leaves_nothing_of_it() {
    ours_over(before_1_33);
}

/// The way back and forth and back: what ours left idle the first time does not matter.
#[test]
fn there_and_back_and_there_again_ends_as_ours_alone() {
    over_all(|node, case, step| {
        ours(node, case, step);
        let alone = ListedTable::all(&ruleset(node));
        let mut problems = upstream_syncs(node, case, step, ListedTable::clone);
        ours(node, case, step);
        problems.extend(changes(&alone, &ListedTable::all(&ruleset(node))));
        problems
    });
}

#[test]
fn packets_are_treated_after_the_way_back_as_by_upstream_alone() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let nodes = [Node::new(), Node::new()];
    let mut problems = Vec::new();
    for (case, step) in chosen() {
        let plan = Plan::new(&case.stored[step]);
        nodes.iter().for_each(Node::clear);
        nft(&nodes[0], &["-f", "-"], &case.recorded_tables(step)).expect("a recording");
        ours(&nodes[1], &case, step);
        let run = |arguments: &[&str], input: &str| nft(&nodes[1], arguments, input);
        for table in recorded(&case, step, ListedTable::clone) {
            Upstream::default().sync(&table, &run).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        }
        let [alone, after] = std::thread::scope(|scope| {
            let other = scope.spawn(|| survey(&nodes[1], &plan));
            [survey(&nodes[0], &plan), other.join().expect("a survey")]
        });
        assert!(alone.len() > 100, "{}: {} questions", case.name, alone.len());
        let found = differences(&alone, &after);
        problems.extend(found.iter().take(3).map(|difference| format!("{} step {step}: {difference}", case.name)));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The objects of a table, described as [`UPSTREAM`] describes them.
fn described(table: &ListedTable) -> BTreeMap<String, String> {
    let set = |(name, set): (&String, &ListedSet)| {
        let definition: Vec<&str> =
            set.definition.iter().filter(|line| !line.starts_with("comment ")).map(String::as_str).collect();
        (name.clone(), format!("{}: {}", set.word, definition.join("; ").replace("ipv6_addr", "ipv4_addr")))
    };
    let chain = |(name, chain): (&String, &ListedChain)| {
        let base = chain.base.as_ref().map(|base| format!(": {base}")).unwrap_or_default();
        (name.clone(), format!("chain{base}"))
    };
    table.sets.iter().map(set).chain(table.chains.iter().map(chain)).collect()
}

#[test]
fn objects_with_upstreams_names_are_equal_and_others_do_not_interfere() {
    let upstream: BTreeMap<&str, &str> = UPSTREAM.into();
    for case in cases().into_iter().filter(|case| case.has(Mode::Nftables)) {
        let mut replay = Replay::new(&case, Mode::Nftables);
        replay.step(&case.stored[0]);
        for table in ListedTable::all(&replay.tables()) {
            let objects = described(&table);
            for (name, is) in &objects {
                let at = format!("{} {}: {name}, a {is}", case.name, table.family);
                match upstream.get(&**name) {
                    Some(theirs) => assert_eq!(is, theirs, "{at}"),
                    None => assert!(!is.contains(" hook ") && !name.contains('/'), "{at}"),
                }
                assert!(!name.starts_with("affinity-"), "{at}");
            }
            // Upstream leaves unknown chains in place: they must not refer to chains that it deletes.
            let own = table.chains.iter().filter(|(name, _)| !upstream.contains_key(&***name));
            for (name, rule) in own.flat_map(|(name, chain)| chain.rules.iter().map(move |rule| (name, rule))) {
                let refers = upstream.keys().find(|theirs| rule.split(' ').any(|word| word == format!("@{theirs}")));
                assert_eq!(refers, None, "{} {name}: {rule}", case.name);
            }
        }
    }
}

/// The commands of `deploy/MIGRATION.md` that empty what ours left idle.
fn emptying() -> String {
    let file = golden::case::folder().join("../../deploy/MIGRATION.md");
    let text = std::fs::read_to_string(file).expect("the document");
    let commands = text.lines().filter(|line| line.starts_with("flush ")).map(|line| format!("{line}\n"));
    commands.collect()
}

#[test]
fn unused_maps_after_the_way_back_can_be_flushed_as_documented() {
    over_all(|node, case, step| {
        ours(node, case, step);
        let mut problems = upstream_syncs(node, case, step, ListedTable::clone);
        problems.extend(nft(node, &["-f", "-"], &emptying()).err());
        problems.extend(unlike(node, &recorded(case, later(case, step), ListedTable::clone)));
        for table in ListedTable::all(&ruleset(node)) {
            let met = table.met();
            let idle = table.sets.iter().filter(|(name, _)| !met.sets.contains_key(*name));
            problems
                .extend(idle.filter(|(_, set)| !set.elements.is_empty()).map(|(name, _)| format!("{name} is full")));
        }
        problems
    });
}
