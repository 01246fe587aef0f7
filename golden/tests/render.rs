//! What is rendered, against the recordings of the real kube-proxy and against the flow tables, without a kernel.

use golden::case::{Case, Kind, Mode, cases, differences, folder};
use golden::flows;
use golden::replay::Replay;
use golden::{canonical, diff};
use proxier::IpFamily;

const FAMILIES: [(IpFamily, Kind); 2] = [(IpFamily::V4, Kind::Iptables), (IpFamily::V6, Kind::Ip6tables)];

/// The first difference of a case from its recording.
fn difference(case: &Case) -> Option<String> {
    let mut replay = Replay::new(case);
    for (step, objects) in case.stored.iter().enumerate() {
        replay.step(objects);
        for (family, kind) in FAMILIES {
            let expected = canonical::save(&case.expected(Mode::Iptables, step, kind));
            let found = canonical::save(&replay.rules(family));
            if expected != found {
                let shown = diff::unified(&expected, &found, 20);
                return Some(format!("{} step {step} {family}:\n{shown}", case.name));
            }
        }
    }
    None
}

#[test]
fn every_recorded_step_is_rendered_the_same() {
    let known = differences(&folder());
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| !known.contains_key(&format!("{}/iptables", case.name))).collect();
    assert!(cases.len() > 80, "only {} cases were found", cases.len());
    let found: Vec<String> = cases.iter().filter_map(difference).collect();
    assert!(found.is_empty(), "{} of {} cases differ\n{}", found.len(), cases.len(), found.join("\n"));
}

#[test]
fn packets_end_where_the_flow_tables_say() {
    let with_flows = flows::cases().expect("flow tables");
    assert!(with_flows.len() > 60, "only {} flow tables were found", with_flows.len());
    for case in cases().iter().filter(|case| with_flows.contains(&case.name)) {
        let mut replay = Replay::new(case);
        replay.step(&case.stored[0]);
        let [v4, v6] = IpFamily::ALL.map(|family| replay.rules(family));
        match flows::check_flows(&case.name, &v4, &v6) {
            Ok(0) => panic!("{}: no flow was checked", case.name),
            Ok(_) => {}
            Err(problem) => panic!("{}: {problem}", case.name),
        }
    }
}
