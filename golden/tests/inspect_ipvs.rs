//! Reads IPVS mode back: every Service port with its endpoints, and exactly the injected differences.
//!
//! Runs on every case and step against the fake kernel that `render` compares with the recordings. No root required.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use golden::case::{Case, Kind, Mode, cases, differences as known_differences, folder};
use golden::replay::Replay;
use netfilter::IpFamily;
use netfilter::ipset::Entry;
use netfilter::ipvs::{Flags, Scheduler, ServerKey};
use proxier::ipvs::ObservedState;
use proxier_inspect::drift::{Difference, DifferenceKind as Is};
use proxier_inspect::rules::Ruleset;
use proxier_inspect::servers::differences;
use proxier_inspect::services::{AddressKind, AddressVerdict, ServicePortView, add_model, from_ipvs, note_draining};

fn rules(case: &Case, step: usize, family: IpFamily) -> Ruleset {
    let kind = if family == IpFamily::V4 { Kind::Iptables } else { Kind::Ip6tables };
    let mut ruleset = Ruleset::new(family);
    assert_eq!(ruleset.read(&case.expected(Mode::Ipvs, step, kind)), []);
    ruleset
}

/// Calls `look` after each step of each case of IPVS mode.
fn each_state(mut look: impl FnMut(&str, &Case, usize, &Replay, IpFamily)) {
    let known = known_differences(&folder());
    let as_recorded = |case: &Case| case.has(Mode::Ipvs) && !known.contains_key(&format!("{}/ipvs", case.name));
    for case in cases().into_iter().filter(as_recorded) {
        let mut replay = Replay::new(&case, Mode::Ipvs);
        for (step, objects) in case.stored.iter().enumerate() {
            replay.step(objects);
            for family in IpFamily::ALL {
                look(&format!("{} step {step} {family}", case.name), &case, step, &replay, family);
            }
        }
    }
}

fn views(replay: &Replay, held: &ObservedState, family: IpFamily, objects: bool) -> Vec<ServicePortView> {
    let expected = replay.expected(family);
    replay.model(family, |snapshot, _| {
        let mut views = from_ipvs(family, held, objects.then_some((snapshot, &expected)));
        if objects {
            add_model(&mut views, snapshot, family, |_| true);
            note_draining(&mut views);
        }
        views
    })
}

#[test]
fn state_left_by_upstream_has_no_drift() {
    let mut states = 0;
    each_state(|name, case, step, replay, family| {
        let found =
            differences(&replay.expected(family), &replay.held(family), &rules(case, step, family), replay.excluded());
        assert_eq!(found, Ok(vec![]), "{name}");
        states += 1;
    });
    assert!(states > 200, "{states} states");
}

#[test]
fn every_service_port_is_listed_with_its_addresses_and_endpoints() {
    let (mut ports, mut endpoints) = (0, 0);
    each_state(|name, _, _, replay, family| {
        let (held, expected) = (replay.held(family), replay.expected(family));
        let all = views(replay, &held, family, true);
        // Virtual servers of other programs are shown with their addresses.
        let (with_objects, others): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|view| view.known);
        assert!(others.is_empty() || !replay.excluded().is_empty(), "{name}: {others:?}");
        replay.model(family, |snapshot, _| {
            let reported: BTreeSet<(String, &str)> =
                with_objects.iter().map(|view| (view.name.clone(), view.protocol)).collect();
            let known = snapshot.ports.keys().map(|name| (name.to_string(), name.protocol.name()));
            assert_eq!(reported, known.collect(), "{name}");
        });
        for view in &with_objects {
            let servers: Vec<_> = expected
                .servers
                .values()
                .filter(|server| server.owner.to_string() == view.name && server.owner.protocol.name() == view.protocol)
                .collect();
            let addresses: BTreeSet<_> =
                view.addresses.iter().filter_map(|a| Some(SocketAddr::new(a.ip?, a.port))).collect();
            assert_eq!(
                addresses,
                servers.iter().map(|server| server.server.key.address).collect(),
                "{name} {}",
                view.name
            );
            let used: BTreeSet<SocketAddr> =
                view.endpoints.iter().filter(|e| e.used()).filter_map(|e| e.address).collect();
            assert_eq!(used, servers.iter().flat_map(|s| s.reals.iter().copied()).collect(), "{name} {}", view.name);
            let unled = view.endpoints.iter().filter(|e| e.unused.as_deref().is_some_and(|why| why.contains("should")));
            assert_eq!(unled.count(), 0, "{name}: {:?}", view.endpoints);
            let local = |e: &proxier_inspect::services::EndpointView| e.local_share;
            for shares in [
                view.endpoints.iter().filter_map(|e| e.share).collect::<Vec<f64>>(),
                view.endpoints.iter().filter_map(local).collect(),
            ] {
                let sum: f64 = shares.iter().sum();
                assert!(shares.is_empty() || (sum - 1.0).abs() < 1e-9, "{name} {}: {shares:?}", view.name);
            }
            assert_eq!(
                view.notes.iter().filter(|note| !note.starts_with("scheduler")).count(),
                0,
                "{name}: {:?}",
                view.notes
            );
            ports += 1;
            endpoints += used.len();
        }
        // Without objects, only addresses are known, and their kinds by the sets.
        let kinds = |views: &[ServicePortView]| -> BTreeSet<(AddressKind, Option<IpAddr>, u16, &'static str, bool)> {
            let all = views.iter().flat_map(|view| view.addresses.iter().map(|a| (view.protocol, a)));
            let all = all.filter(|(_, a)| a.kind != AddressKind::HealthCheckNodePort);
            all.map(|(protocol, a)| (a.kind, a.ip, a.port, protocol, a.verdict == AddressVerdict::Rejected)).collect()
        };
        assert_eq!(kinds(&views(replay, &held, family, false)), kinds(&all), "{name}");
    });
    assert!(ports > 1000 && endpoints > 1000, "{ports} ports, {endpoints} endpoints");
}

fn key(held: &ObservedState, text: &str) -> ServerKey {
    *held
        .servers
        .keys()
        .find(|key| key.to_string() == text)
        .unwrap_or_else(|| panic!("no {text}: {:?}", held.servers.keys()))
}

#[test]
fn edits_are_found_and_nothing_else() {
    let case = cases().into_iter().find(|case| case.name == "220-lb-etp-local").expect("a case");
    let mut replay = Replay::new(&case, Mode::Ipvs);
    replay.step(&case.stored[0]);
    let family = IpFamily::V4;
    let (expected, untouched) = (replay.expected(family), replay.held(family));
    let compare = |held: &ObservedState| {
        let found = differences(&expected, held, &rules(&case, 0, family), &["203.0.113.0/24".parse().expect("a net")]);
        found
            .expect("a comparison")
            .into_iter()
            .map(|d: Difference| (d.kind, d.chain, d.found.or(d.expected).unwrap_or_default()))
            .collect::<Vec<_>>()
    };
    let after = |edit: &dyn Fn(&mut ObservedState)| {
        let mut held = untouched.clone();
        edit(&mut held);
        compare(&held)
    };
    let one = |kind, chain: &str, text: &str| vec![(kind, chain.to_owned(), text.to_owned())];
    const NODE_PORT: &str = "-t 192.168.50.2:30082";
    const REAL: &str = "10.244.2.6:8080";
    let node_port = key(&untouched, NODE_PORT);
    let real: SocketAddr = REAL.parse().expect("an address");
    assert_eq!(after(&|_| {}), []);
    assert_eq!(
        after(&|held| _ = held.servers.remove(&node_port)),
        one(Is::MissingVirtualServer, NODE_PORT, "-A -t 192.168.50.2:30082 -s rr")
    );
    assert_eq!(
        after(&|held| held.servers.get_mut(&node_port).expect("it").server.scheduler = Scheduler::new("lc")),
        one(Is::AlteredVirtualServer, NODE_PORT, "-A -t 192.168.50.2:30082 -s lc")
    );
    assert_eq!(
        after(&|held| held.servers.get_mut(&node_port).expect("it").server.flags = Flags::ONE_PACKET),
        one(Is::AlteredVirtualServer, NODE_PORT, "-A -t 192.168.50.2:30082 -s rr -o")
    );
    assert_eq!(
        after(&|held| _ = held.servers.get_mut(&node_port).expect("it").reals.remove(&real)),
        one(Is::MissingRealServer, NODE_PORT, "-r 10.244.2.6:8080 -m -w 1")
    );
    let weigh = |held: &mut ObservedState, weight| {
        held.servers.get_mut(&node_port).expect("it").reals.get_mut(&real).expect("it").server.weight = weight
    };
    assert_eq!(after(&|held| weigh(held, 0)), one(Is::AlteredRealServer, NODE_PORT, "-r 10.244.2.6:8080 -m -w 0"));
    let stranger = |held: &mut ObservedState, weight| {
        let server = held.servers.get_mut(&node_port).expect("it");
        let mut one = server.reals[&real];
        one.server.address = "10.9.9.9:9".parse().expect("an address");
        one.server.weight = weight;
        server.reals.insert(one.server.address, one);
    };
    assert_eq!(after(&|held| stranger(held, 1)), one(Is::UnexpectedRealServer, NODE_PORT, "-r 10.9.9.9:9 -m -w 1"));
    assert_eq!(after(&|held| stranger(held, 0)), [], "it waits for its connections");
    let another = |held: &mut ObservedState, address: &str| {
        let mut server = held.servers[&node_port].clone();
        server.server.key.address = address.parse().expect("an address");
        held.servers.insert(server.server.key, server);
    };
    assert_eq!(
        after(&|held| another(held, "192.0.2.1:80")),
        one(Is::UnexpectedVirtualServer, "-t 192.0.2.1:80", "-A -t 192.0.2.1:80 -s rr")
    );
    assert_eq!(after(&|held| another(held, "203.0.113.9:80")), [], "it is another's");
    let port = Entry::Port(30082);
    assert_eq!(
        after(&|held| _ = held.sets.get_mut("KUBE-NODE-PORT-TCP").expect("it").entries.remove(&port)),
        one(Is::MissingEntry, "KUBE-NODE-PORT-TCP", "30082")
    );
    assert_eq!(
        after(&|held| _ = held.sets.get_mut("KUBE-NODE-PORT-UDP").expect("it").entries.insert(port)),
        one(Is::UnexpectedEntry, "KUBE-NODE-PORT-UDP", "30082")
    );
    assert_eq!(after(&|held| _ = held.sets.remove("KUBE-LOOP-BACK")), one(Is::MissingSet, "KUBE-LOOP-BACK", ""));
    let ip: IpAddr = "10.96.10.11".parse().expect("an address");
    assert_eq!(
        after(&|held| _ = held.bound.as_mut().expect("a device").remove(&ip)),
        one(Is::MissingAddress, "kube-ipvs0", "10.96.10.11")
    );
    let strange: IpAddr = "10.99.99.99".parse().expect("an address");
    assert_eq!(
        after(&|held| _ = held.bound.as_mut().expect("a device").insert(strange)),
        one(Is::UnexpectedAddress, "kube-ipvs0", "10.99.99.99")
    );
    assert_eq!(after(&|held| held.bound = None), one(Is::MissingDevice, "kube-ipvs0", ""));
}
