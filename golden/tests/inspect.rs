//! Reads recorded rules back: every Service port with its endpoints, and exactly the injected differences.
//!
//! Runs on every case and step with `proxier_inspect`. No root required.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use golden::case::{Case, Kind, Mode, cases};
use golden::replay::Replay;
use netfilter::IpFamily;
use proxier::iptables::{HostFacts, expected};
use proxier::model::{CategorizedEndpoints, Destination, ServicePort, Snapshot};
use proxier_inspect::drift::{Difference, DifferenceKind, differences};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::services::{AddressKind, AddressVerdict, ServicePortView, add_model, from_iptables};

/// Where the real one is wrong (`cases/differences.txt`).
const WRONG: &str = "817-step-slice-relabelled";

fn ruleset(family: IpFamily, text: &str) -> Ruleset {
    let mut ruleset = Ruleset::new(family);
    assert_eq!(ruleset.read(text), []);
    ruleset
}

fn part(family: IpFamily) -> Kind {
    if family == IpFamily::V4 { Kind::Iptables } else { Kind::Ip6tables }
}

/// What the rules of a case should be now.
fn should_be(replay: &Replay, case: &Case, family: IpFamily) -> Ruleset {
    let host = HostFacts {
        addresses: Replay::addresses(family),
        random_fully: true,
        nfacct: true,
        tcp_be_liberal: case.config.contains("tcpBeLiberal: true"),
    };
    let mut text = String::new();
    replay.model(family, |snapshot, config| expected(family, config, snapshot, &host, |piece| text.push_str(piece)));
    ruleset(family, &text)
}

/// Calls `look` with the recorded rules after each step of each case of iptables mode.
fn each_state(mut look: impl FnMut(&str, &Case, &Replay, IpFamily, &Ruleset)) {
    for case in cases().into_iter().filter(|case| case.has(Mode::Iptables)) {
        let mut replay = Replay::new(&case, Mode::Iptables);
        for (step, objects) in case.stored.iter().enumerate() {
            replay.step(objects);
            if case.name == WRONG && step > 0 {
                continue;
            }
            for family in IpFamily::ALL {
                let recorded = ruleset(family, &case.expected(Mode::Iptables, step, part(family)));
                look(&format!("{} step {step} {family}", case.name), &case, &replay, family, &recorded);
            }
        }
    }
}

#[test]
fn upstreams_rules_have_no_drift() {
    let mut states = 0;
    each_state(|name, case, replay, family, recorded| {
        let found = differences(&should_be(replay, case, family), recorded, None);
        assert_eq!(found, [], "{name}");
        states += 1;
    });
    assert!(states > 250, "{states} states");
}

#[test]
fn every_service_port_is_read_from_the_rules_alone() {
    let (mut ports, mut endpoints) = (0, 0);
    each_state(|name, _, replay, family, recorded| {
        let views = from_iptables(recorded, &|_, _| true);
        replay.model(family, |snapshot, _| {
            let reported: BTreeSet<(String, &str)> =
                views.iter().map(|view| (view.name.clone(), view.protocol)).collect();
            let known = snapshot.ports.keys().map(|name| (name.to_string(), name.protocol.name()));
            assert_eq!(reported, known.collect(), "{name}");
            for view in &views {
                ports += 1;
                endpoints += check(name, view, snapshot);
            }
        });
    });
    assert!(ports > 1000 && endpoints > 1000, "{ports} ports, {endpoints} endpoints");
}

/// Compares what the rules tell of a Service port with its objects; how many endpoints it has.
fn check(name: &str, view: &ServicePortView, snapshot: &Snapshot<'_>) -> usize {
    let mut ports = snapshot.ports.iter();
    let found = ports.find(|(known, _)| known.to_string() == view.name && known.protocol.name() == view.protocol);
    let (port_name, port): (_, &ServicePort) = found.unwrap();
    let all = snapshot.endpoints.of(port_name);
    let used = CategorizedEndpoints::of(&all, port, snapshot.node);
    let addresses = |list: &[&proxier::model::Endpoint]| list.iter().map(|e| e.address).collect::<BTreeSet<_>>();
    let with = |share: fn(&proxier_inspect::services::EndpointView) -> Option<f64>| {
        let of_it = view.endpoints.iter().filter(|endpoint| share(endpoint).is_some());
        of_it.map(|endpoint| endpoint.address.unwrap()).collect::<BTreeSet<SocketAddr>>()
    };
    let at = format!("{name}: {}", view.name);
    assert_eq!(with(|endpoint| endpoint.share), addresses(&used.cluster), "{at}");
    assert_eq!(with(|endpoint| endpoint.local_share), addresses(&used.local), "{at}");
    for (share, count) in [
        (view.endpoints.iter().filter_map(|e| e.share).collect::<Vec<f64>>(), used.cluster.len()),
        (view.endpoints.iter().filter_map(|e| e.local_share).collect(), used.local.len()),
    ] {
        let sum: f64 = share.iter().sum();
        assert!(count == 0 || (sum - 1.0).abs() < 1e-9, "{at}: the odds are {sum}");
        assert!(share.iter().all(|share| (share * count as f64 - 1.0).abs() < 1e-6), "{at}: {share:?}");
    }
    let reported: BTreeSet<Destination> = view
        .addresses
        .iter()
        .filter(|address| address.kind != AddressKind::HealthCheckNodePort)
        .map(|a| a.ip.map_or(Destination::NodePort(a.port), |ip| Destination::Address(SocketAddr::new(ip, a.port))))
        .collect();
    assert_eq!(reported, port.destinations().collect(), "{at}");
    let rejected = view.addresses.iter().any(|address| address.verdict == AddressVerdict::Rejected);
    assert_eq!(rejected, !used.any, "{at}");
    assert_eq!(view.affinity_seconds, port.affinity_seconds.filter(|_| !used.reachable.is_empty()), "{at}");
    used.reachable.len()
}

#[test]
fn objects_add_states_and_say_why_an_endpoint_is_unused() {
    let case = cases().into_iter().find(|case| case.name == "410-conditions-clusterip").unwrap();
    let mut replay = Replay::new(&case, Mode::Iptables);
    replay.step(&case.stored[0]);
    let recorded = ruleset(IpFamily::V4, &case.expected(Mode::Iptables, 0, Kind::Iptables));
    let mut views = from_iptables(&recorded, &|_, _| true);
    replay.model(IpFamily::V4, |snapshot, _| add_model(&mut views, snapshot, IpFamily::V4, |_| true));
    let endpoints: Vec<_> = views.iter().flat_map(|view| &view.endpoints).collect();
    assert!(endpoints.iter().all(|endpoint| endpoint.state.is_some()));
    let unused: BTreeSet<&str> = endpoints.iter().filter_map(|endpoint| endpoint.unused.as_deref()).collect();
    assert!(unused.contains("it is not ready"), "{unused:?}");
    assert!(!unused.iter().any(|why| why.contains("should lead")), "{unused:?}");
    assert!(endpoints.iter().all(|endpoint| endpoint.used() != endpoint.unused.is_some()));
}

/// Chance that is the same every time: a linear congruential generator.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// One edit as the difference that it makes.
type Edit = (DifferenceKind, String, Option<String>, Option<String>);

/// Edits rules of kube-proxy's own chains; no two neighbours, which could be reported as one difference.
fn edit(text: &str, count: usize, chance: &mut Chance) -> (String, BTreeSet<Edit>) {
    let mut lines: Vec<Option<String>> = text.lines().map(|line| Some(line.to_owned())).collect();
    let mut free: Vec<usize> = (0..lines.len())
        .filter(|at| {
            lines[*at]
                .as_ref()
                .is_some_and(|line| line.starts_with("-A KUBE-") && !line.starts_with("-A KUBE-FIREWALL"))
        })
        .collect();
    let mut edits = BTreeSet::new();
    while edits.len() < count {
        let at = free[chance.below(free.len())];
        free.retain(|other| other.abs_diff(at) > 1);
        let line = lines[at].clone().unwrap();
        let chain = line.split(' ').nth(1).unwrap().to_owned();
        let edit = match chance.below(3) {
            0 => {
                lines[at] = None;
                (DifferenceKind::MissingRule, chain, Some(line), None)
            }
            1 => {
                let strange = format!("-A {chain} -s 203.0.113.{}/32 -p udp -j ACCEPT", edits.len());
                lines[at] = Some(format!("{line}\n{strange}"));
                (DifferenceKind::UnexpectedRule, chain, None, Some(strange))
            }
            _ => {
                let altered = line.replacen(" -j ", " -i strange0 -j ", 1);
                let altered = if altered == line { format!("{line} -i strange0") } else { altered };
                lines[at] = Some(altered.clone());
                (DifferenceKind::AlteredRule, chain, Some(line), Some(altered))
            }
        };
        edits.insert(edit);
    }
    (lines.into_iter().flatten().map(|line| line + "\n").collect(), edits)
}

#[test]
fn edits_are_found_and_nothing_else() {
    let case = cases().into_iter().find(|case| case.name == "009-protocols-on-one-port").unwrap();
    let big = cases()
        .into_iter()
        .filter(|case| case.has(Mode::Iptables))
        .max_by_key(|case| case.expected(Mode::Iptables, 0, Kind::Iptables).len());
    let mut chance = Chance(20_261_124);
    for (case, counts) in [(case, &[1, 10][..]), (big.unwrap(), &[1, 10, 100])] {
        let mut replay = Replay::new(&case, Mode::Iptables);
        replay.step(&case.stored[0]);
        let should_be = should_be(&replay, &case, IpFamily::V4);
        let text = case.expected(Mode::Iptables, 0, Kind::Iptables).replace("--nfacct-name  ", "--nfacct-name ");
        for count in counts {
            for _ in 0..5 {
                let (edited, edits) = edit(&text, *count, &mut chance);
                let found = differences(&should_be, &ruleset(IpFamily::V4, &edited), None);
                let as_edit = |d: &Difference| (d.kind, d.chain.clone(), d.expected.clone(), d.found.clone());
                assert_eq!(found.len(), *count, "{}: {found:#?}", case.name);
                assert_eq!(found.iter().map(as_edit).collect::<BTreeSet<_>>(), edits, "{}", case.name);
            }
        }
    }
}
