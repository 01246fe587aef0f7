//! Checks the probes of `golden::probe`: equal rulesets compare equal, and damage is found.
//!
//! `PROBES=all` covers every case and step, otherwise the first state of a sample; `CASES=regex` selects cases.
//! `RULES_BY=COMMAND` compares each recording with the command's output for the recording's file.

use std::sync::Mutex;

use golden::case::{Case, Kind, Mode, cases, folder};
use golden::probe::{Difference, Node, Outcome, Plan, Refusal, Survey, Transport, differences, survey};
use golden::replay::Replay;
use regex::Regex;

/// One case of each kind of rules.
const SAMPLE: &str = "^(002|009|103|402|502|700)-";
/// Surveys run one at a time on each processor; more would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

fn all() -> bool {
    std::env::var("PROBES").is_ok_and(|value| value == "all")
}

/// The chosen cases' states: case, step, plan.
fn chosen() -> Vec<(Case, usize, Plan)> {
    let pattern = std::env::var("CASES").unwrap_or_else(|_| if all() { String::new() } else { SAMPLE.to_owned() });
    let pattern = Regex::new(&pattern).expect("CASES is a regular expression");
    let cases = cases().into_iter().filter(|case| case.has(Mode::Nftables) && pattern.is_match(&case.name));
    let chosen: Vec<(Case, usize, Plan)> = cases
        .flat_map(|case| {
            let steps = if all() { case.stored.len() } else { 1 };
            (0..steps).map(|step| (case.clone(), step, Plan::new(&case.stored[step]))).collect::<Vec<_>>()
        })
        .collect();
    assert!(!chosen.is_empty(), "no case is chosen");
    chosen
}

/// The states in which upstream's nftables mode is right.
fn chosen_and_right() -> Vec<(Case, usize, Plan)> {
    let wrong = golden::case::differences(&folder());
    let mut chosen = chosen();
    chosen.retain(|(case, ..)| !wrong.contains_key(&format!("{}/nftables", case.name)));
    chosen
}

fn case(prefix: &str) -> Case {
    cases().into_iter().find(|case| case.name.starts_with(prefix)).expect("the case is there")
}

fn nft(node: &Node, rules: &str) {
    node.clear();
    node.feed("nft", &["-f", "-"], rules).unwrap_or_else(|e| panic!("{e}"));
}

/// The recording of iptables mode, which its kernel had `nfacct` objects for.
fn iptables(node: &Node, case: &Case, step: usize) {
    node.clear();
    let counted = Regex::new(" -m nfacct --nfacct-name +[^ ]+").expect("an expression");
    for (program, kind) in [("iptables-nft-restore", Kind::Iptables), ("ip6tables-nft-restore", Kind::Ip6tables)] {
        let rules = case.expected(Mode::Iptables, step, kind);
        node.feed(program, &[], &counted.replace_all(&rules, "")).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    }
    let sysctl = case.expected(Mode::Iptables, step, Kind::Sysctl);
    let localnet = u8::from(sysctl.contains("route_localnet = 1"));
    node.netns().run(&format!("sysctl -q -w net.ipv4.conf.all.route_localnet={localnet}"));
}

/// What `RULES_BY` makes of a recording.
fn rewritten(case: &str, step: usize) -> Option<String> {
    let line = std::env::var("RULES_BY").ok()?;
    let file = folder().join(format!("{case}/expected/nftables/{step:02}.nft"));
    let mut words = line.split_whitespace();
    let mut command = std::process::Command::new(words.next().expect("RULES_BY is a command"));
    let output = command.args(words).arg(file).output().expect("RULES_BY can be run");
    assert!(output.status.success(), "RULES_BY: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same plan on two nodes, at the same time.
fn both(nodes: &[Node; 2], plan: &Plan) -> [Survey; 2] {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| survey(&nodes[1], plan));
        [survey(&nodes[0], plan), other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
    })
}

fn shown(differences: &[Difference]) -> String {
    let shown: Vec<String> = differences.iter().take(12).map(ToString::to_string).collect();
    format!("{} differences\n{}", differences.len(), shown.join("\n"))
}

#[test]
fn a_recording_is_equal_to_itself() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let nodes = [Node::new(), Node::new()];
    let unequal: Vec<String> = chosen()
        .iter()
        .filter_map(|(case, step, plan)| {
            let rules = case.recorded_tables(*step);
            let other = rewritten(&case.name, *step).unwrap_or_else(|| rules.clone());
            unequal(&nodes, case, *step, plan, [&rules, &other])
        })
        .collect();
    assert!(unequal.is_empty(), "{}", unequal.join("\n"));
}

/// Asks both tables the same; what differs.
fn unequal(nodes: &[Node; 2], case: &Case, step: usize, plan: &Plan, tables: [&str; 2]) -> Option<String> {
    nft(&nodes[0], tables[0]);
    nft(&nodes[1], tables[1]);
    let [one, other] = both(nodes, plan);
    assert!(one.len() > 100, "{} step {step}: {} questions", case.name, one.len());
    let found = differences(&one, &other);
    (!found.is_empty()).then(|| format!("{} step {step} ({}): {}", case.name, case.why, shown(&found)))
}

#[test]
fn ours_ends_connections_where_the_real_one_does() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let nodes = [Node::new(), Node::new()];
    let mut found = Vec::new();
    let mut replays: std::collections::BTreeMap<String, Replay> = std::collections::BTreeMap::new();
    for (case, step, plan) in chosen_and_right() {
        let replay = replays.entry(case.name.clone()).or_insert_with(|| Replay::new(&case, Mode::Nftables));
        replay.step(&case.stored[step]);
        found.extend(unequal(&nodes, &case, step, &plan, [&case.recorded_tables(step), &replay.tables()]));
    }
    assert!(!replays.is_empty() && found.is_empty(), "{}", found.join("\n"));
}

/// Case, what is replaced everywhere in its recording, by what, and a word that the difference must have.
const MUTATIONS: [(&str, &str, &str, &str); 12] = [
    ("004", r"mod 2 map \{ 0 : ([^,]+), 1 : [^}]+\}", "mod 1 map { 0 : $1 }", "10.96.10.11:80"),
    ("004", r"0 : 10.244.1.5 . 8080", "0 : 10.244.1.5 . 8081", "8081"),
    ("100", "(?s)(chain external-[^\n]*\n)[^\n]*comment \"masquerade\"\n", "$1", "30080"),
    ("004", r"(hairpin-connections \{(?s:.)*?)elements = \{[^}]*\}", "$1", "endpoint 10.244.1.5"),
    ("002", "goto reject-chain", "drop", "dropped"),
    ("002", r"ip daddr @cluster-ips reject[^\n]*", "", "10.96.0.1:9"),
    ("002", r"ip daddr 10.96.0.0/12 drop[^\n]*", "", "10.96.200.200"),
    ("004", r"ip saddr != 10.244.0.0/16 meta mark", "meta mark", "pod tcp"),
    ("210", r"ip saddr != 198.51.100.0/24 drop", "ip saddr != 198.51.0.0/16 drop", "after 198.51.100.0/24"),
    ("100", r"elements = \{ 192.168.50.2 \}", "", "192.168.50.2:30080"),
    ("103", r"[^\n]*short-circuit pod traffic.\n", "", "pod tcp"),
    ("500", "update @affinity[^\n]*", "", "one for each client"),
];

#[test]
fn relevant_differences_are_found() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let nodes = [Node::new(), Node::new()];
    for (name, pattern, replacement, word) in MUTATIONS {
        let case = case(name);
        let rules = case.recorded_tables(0);
        let mutant = Regex::new(pattern).expect(pattern).replace_all(&rules, replacement);
        assert_ne!(rules, mutant, "{name}: {pattern} is not in the recording");
        let mut plan = Plan::new(&case.stored[0]);
        plan.targets.retain(|(to, _)| to.is_ipv4());
        nft(&nodes[0], &rules);
        nft(&nodes[1], &mutant);
        let [one, other] = both(&nodes, &plan);
        let found = shown(&differences(&one, &other));
        assert!(found.contains(word), "{name}: {pattern}: {word} is not in {found}");
    }
}

#[test]
fn affinity_among_more_endpoints_than_there_are_clients_is_seen_whole() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let node = Node::new();
    let case = case("901");
    nft(&node, &case.recorded_tables(0));
    let mut plan = Plan::new(&case.stored[0]);
    plan.targets.retain(|(to, transport)| to.to_string() == "10.96.10.12:80" && *transport == Transport::Tcp);
    plan.clients.retain(|client| client.name == "host");
    let survey = survey(&node, &plan);
    assert_eq!(survey.len(), 1);
    for (question, answer) in survey {
        assert!(answer.sticky, "{question}: {answer}");
        assert_eq!(answer.outcomes.len(), 300, "{question}: {answer}");
    }
}

/// The way in which nftables mode is known to differ from iptables mode, if a difference is one of those.
fn known(difference: &Difference) -> Option<&'static str> {
    let to = difference.question.to;
    let untouched = |outcomes: &std::collections::BTreeSet<Outcome>| {
        outcomes.iter().all(|outcome| matches!(outcome, Outcome::Arrived { at, masqueraded: None } if *at == to))
    };
    let (iptables, nftables) = (&difference.left.outcomes, &difference.right.outcomes);
    let address = to.ip().to_string();
    let services = address.starts_with("10.96.") || address.starts_with("fd00:10:96:");
    let host = difference.question.client.starts_with("host");
    let refused = nftables.iter().all(|outcome| matches!(outcome, Outcome::Refused(Refusal::Icmp(..))));
    let dropped = nftables.iter().all(|outcome| *outcome == Outcome::Dropped);
    // What an endpoint gets of itself, as if it were not masqueraded.
    let own = difference.question.client.strip_prefix("endpoint ");
    let plain = |outcomes: &std::collections::BTreeSet<Outcome>| {
        let one = |outcome: &Outcome| match outcome {
            Outcome::Arrived { at, .. } if own.is_some_and(|own| own == at.ip().to_string()) => {
                Outcome::Arrived { at: *at, masqueraded: None }
            }
            other => *other,
        };
        outcomes.iter().map(one).collect::<std::collections::BTreeSet<_>>()
    };
    if plain(iptables) == plain(nftables) {
        Some("endpoints that do not say that they are here reach themselves unmasqueraded")
    } else if !services
        && dropped
        && iptables.iter().all(|outcome| matches!(outcome, Outcome::Refused(Refusal::Icmp(..))))
    {
        Some("source ranges come before the want of endpoints")
    } else if services && untouched(iptables) && refused {
        Some("wrong ports of cluster IPs are refused")
    } else if services && untouched(iptables) && dropped {
        Some("unallocated cluster IPs are dropped")
    } else if to.ip().is_loopback() && untouched(nftables) {
        Some("no node ports on localhost")
    } else if ["192.168.60.2", "fd00:60::2", "10.244.1.1", "fd00:10:244:1::1"].contains(&&*address)
        && untouched(nftables)
    {
        Some("node ports at the primary address only")
    } else if host && untouched(iptables) && (refused || dropped) {
        Some("external addresses without endpoints are closed to the node too")
    } else {
        None
    }
}

#[test]
fn iptables_mode_differs_where_it_is_known_to() {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let nodes = [Node::new(), Node::new()];
    let mut classes = std::collections::BTreeMap::<&str, usize>::new();
    for (case, step, plan) in chosen_and_right() {
        iptables(&nodes[0], &case, step);
        nft(&nodes[1], &case.recorded_tables(step));
        let [one, other] = both(&nodes, &plan);
        let (known, unknown): (Vec<_>, Vec<_>) =
            differences(&one, &other).into_iter().partition(|difference| known(difference).is_some());
        for difference in &known {
            *classes.entry(self::known(difference).unwrap_or_default()).or_default() += 1;
        }
        assert!(unknown.is_empty(), "{} step {step}: {}", case.name, shown(&unknown));
    }
    // The sample has five of them; a choice of one's own may have fewer.
    let least = if std::env::var_os("CASES").is_some() { 1 } else { 5 };
    assert!(classes.len() >= least, "{classes:?}");
}
