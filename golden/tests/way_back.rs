//! The table that both kube-proxies write goes from one to the other, in the kernel.
//!
//! In: recorded cases, our mode, upstream's transactions as `golden::upstream` makes them, root and nft. Out: each
//! transaction is accepted; then packets meet what they meet where there never was another kube-proxy.
//! `PROBES=all` tries every case and step, else the first state of a sample; `CASES=regex` chooses cases by name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use golden::case::{Case, Mode, cases};
use golden::probe::{Node, Plan, differences, survey};
use golden::replay::Replay;
use golden::upstream::{ListedTable, Upstream, before_1_33};
use regex::Regex;

/// One case of each kind of rules, and one of steps.
const SAMPLE: &str = "^(002|103|210|502|726|806|814)-";
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

/// What is otherwise than upstream left it, of all that packets can meet. Comments of elements do not count: it leaves
/// those that it finds with the value that it wants.
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
            if held.chains.get(name) != Some(chain) {
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

/// Ours over what upstream left is what ours alone makes, and nothing else.
fn ours_over(shape: fn(&ListedTable) -> ListedTable) {
    over_all(|node, case, step| {
        ours(node, case, step);
        let alone = ListedTable::all(&ruleset(node));
        node.clear();
        let mut problems = upstream_syncs(node, case, step, shape);
        ours(node, case, step);
        if ListedTable::all(&ruleset(node)) != alone {
            problems.push(format!("it leaves {}", ruleset(node)));
        }
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
        if ListedTable::all(&ruleset(node)) != alone {
            problems.push(format!("it leaves {}", ruleset(node)));
        }
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
