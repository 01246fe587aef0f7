//! Compares rendered rules with the recordings of kube-proxy and with the flow tables, without a kernel.

use golden::case::{Case, Mode, cases, differences, folder};
use golden::diff;
use golden::flows;
use golden::replay::Replay;
use netfilter::IpFamily;

/// The first difference of a case from its recording.
fn difference(case: &Case, mode: Mode) -> Option<String> {
    let mut replay = Replay::new(case, mode);
    for (step, objects) in case.stored.iter().enumerate() {
        replay.step(objects);
        for &kind in mode.kinds() {
            let Some(found) = replay.part(kind) else { continue };
            let expected = kind.canonical(&case.expected(mode, step, kind));
            let found = kind.canonical(&found);
            if expected != found {
                let shown = diff::unified(&expected, &found, 20);
                return Some(format!("{} step {step} {}:\n{shown}", case.name, kind.name()));
            }
        }
    }
    None
}

fn every_recorded_step_is_the_same_in(mode: Mode) {
    let known = differences(&folder());
    let has_to_be = |case: &Case| case.has(mode) && !known.contains_key(&format!("{}/{mode}", case.name));
    let cases: Vec<Case> = cases().into_iter().filter(has_to_be).collect();
    assert!(cases.len() > 80, "only {} cases were found", cases.len());
    let found: Vec<String> = cases.iter().filter_map(|case| difference(case, mode)).collect();
    assert!(found.is_empty(), "{} of {} cases differ\n{}", found.len(), cases.len(), found.join("\n"));
}

#[test]
fn every_recorded_step_is_rendered_the_same() {
    every_recorded_step_is_the_same_in(Mode::Iptables);
}

#[test]
fn every_recorded_step_is_the_same_in_ipvs_mode() {
    every_recorded_step_is_the_same_in(Mode::Ipvs);
}

#[test]
fn packets_end_where_the_flow_tables_say() {
    let with_flows = flows::cases().expect("flow tables");
    assert!(with_flows.len() > 60, "only {} flow tables were found", with_flows.len());
    for case in cases().iter().filter(|case| with_flows.contains(&case.name)) {
        let mut replay = Replay::new(case, Mode::Iptables);
        replay.step(&case.stored[0]);
        let [v4, v6] = IpFamily::ALL.map(|family| replay.rules(family));
        match flows::check_flows(&case.name, &v4, &v6) {
            Ok(0) => panic!("{}: no flow was checked", case.name),
            Ok(_) => {}
            Err(problem) => panic!("{}: {problem}", case.name),
        }
    }
}
