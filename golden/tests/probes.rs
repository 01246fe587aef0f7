//! The probes of `golden::probe`: what they find equal, and that they find what is not.
//!
//! `PROBES=all` asks every case, else a sample; `CASES=regex` those whose name matches.

use golden::case::{Case, Kind, Mode, cases};
use golden::probe::{Difference, Node, Plan, Survey, differences, survey};
use regex::Regex;

/// One case of each kind of rules.
const SAMPLE: &str = "^(009|103|210|220|402|502|720)-";

fn chosen() -> Vec<Case> {
    let pattern = match (std::env::var("CASES"), std::env::var("PROBES")) {
        (Ok(pattern), _) => pattern,
        (_, Ok(all)) if all == "all" => String::new(),
        _ => SAMPLE.to_owned(),
    };
    let pattern = Regex::new(&pattern).expect("CASES is a regular expression");
    let chosen: Vec<Case> =
        cases().into_iter().filter(|case| case.has(Mode::Nftables) && pattern.is_match(&case.name)).collect();
    assert!(!chosen.is_empty(), "no case is chosen");
    chosen
}

fn asked(node: &Node, plan: &Plan, rules: &str) -> Survey {
    node.clear();
    node.feed("nft", &["-f", "-"], rules).unwrap_or_else(|e| panic!("{e}"));
    survey(node, plan)
}

fn shown(differences: &[Difference]) -> String {
    let shown: Vec<String> = differences.iter().take(20).map(ToString::to_string).collect();
    format!("{} differences\n{}", differences.len(), shown.join("\n"))
}

#[test]
fn a_recording_is_equal_to_itself() {
    let nodes = [Node::new(), Node::new()];
    for case in chosen() {
        for (step, objects) in case.stored.iter().enumerate() {
            let started = std::time::Instant::now();
            let plan = Plan::new(objects);
            let rules = case.expected(Mode::Nftables, step, Kind::Nft);
            let [one, other] = [0, 1].map(|i| asked(&nodes[i], &plan, &rules));
            println!("{} {step}: {} questions, {:?}", case.name, one.len(), started.elapsed());
            let found = differences(&one, &other);
            assert!(found.is_empty(), "{} step {step}: {}", case.name, shown(&found));
        }
    }
}
