//! The recorded states of the real kube-proxy: what its promises send to an endpoint has no cause.

use std::path::PathBuf;

use golden::case::{self, Case, Kind, Mode};
use golden::flows::{Expected, Flow, FlowTable};
use golden::pods::listen_on_node;
use golden::probe::Node;
use kube_proxy::trial::diagnose;
use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost};
use proxier::iptables::{INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER};
use proxier_inspect::walk::{ConnState, Origin, Verdict};

/// Connections of a case that are diagnosed, of each family.
const OF_A_CASE: usize = 2;

/// A node with the recorded rules of the first state.
fn node(case: &Case, mode: Mode) -> Node {
    let node = Node::new();
    node.netns().run("sysctl -q -w net.ipv4.conf.all.route_localnet=1");
    let load = |program: &str, arguments: &[&str], text: &str| {
        node.feed(program, arguments, text).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    };
    if mode == Mode::Nftables {
        load("nft", &["-f", "-"], &case.recorded_tables(0));
        return node;
    }
    node.netns().enter(|| {
        for counter in [INVALID_DROPPED_COUNTER, LOCALHOST_NODE_PORTS_COUNTER] {
            SystemHost.ensure_counter(counter).expect("nfacct");
        }
    });
    for (family, kind) in IpFamily::ALL.into_iter().zip([Kind::Iptables, Kind::Ip6tables]) {
        load(&format!("{}-nft-restore", family.iptables()), &["--noflush"], &case.expected(mode, 0, kind));
    }
    node
}

/// Whether a table says that the connection gets to endpoints.
fn arrives(flow: &Flow, mode: Mode) -> bool {
    let expected = flow.modes.get(&mode.to_string()).unwrap_or(&flow.expect);
    let known = ["eth0", "cbr0"];
    let here = match &flow.packet.origin {
        Origin::Host => true,
        Origin::Interface(name) => known.contains(&name.as_str()) && !flow.packet.destination.ip().is_loopback(),
    };
    // An endpoint that sends to itself by way of another node does not take its own address for an answer.
    let source = flow.packet.source.ip();
    let is_endpoint =
        |one: &Expected| matches!(one.verdict, Verdict::Delivered(to) if to.ip() != source || one.masqueraded);
    here && flow.remembers.is_none() && flow.packet.state == ConnState::New && expected.iter().all(is_endpoint)
}

fn config(case: &Case, mode: Mode) -> PathBuf {
    let path = std::env::temp_dir().join(format!("recorded-{}-{}-{mode}.yaml", std::process::id(), case.name));
    std::fs::write(&path, format!("mode: {mode}\nhostnameOverride: node-a\n{}", case.config)).expect("a file");
    path
}

#[test]
fn connections_that_recorded_rules_serve_have_no_cause() {
    let with_flows = golden::flows::cases().expect("tables");
    let all = std::env::var_os("RULESETS_ALL").is_some();
    let (mut asked, mut wrong) = (0, Vec::new());
    let cases: Vec<Case> = case::cases().into_iter().filter(|case| with_flows.contains(&case.name)).collect();
    for (at, case) in cases.iter().enumerate() {
        // A run takes each case in one mode, in turn.
        let modes = [Mode::Iptables, Mode::Nftables].into_iter().enumerate();
        for (_, mode) in modes.filter(|(number, mode)| (all || number % 2 == at % 2) && case.has(*mode)) {
            let node = node(case, mode);
            let (file, objects) = (config(case, mode), &case.stored[0]);
            let _listeners = listen_on_node(node.netns(), objects);
            let table = FlowTable::load(&case.name).expect("a table");
            for family in IpFamily::ALL {
                let flows = table.flows.iter().filter(|flow| IpFamily::of(&flow.packet.source.ip()) == family);
                for flow in flows.filter(|flow| arrives(flow, mode)).take(OF_A_CASE) {
                    let (packet, source) = (&flow.packet, flow.packet.source.ip().to_string());
                    let to = format!("{}/{}", packet.destination, packet.protocol.name());
                    let mut words = vec![&*to, "--config", file.to_str().expect("UTF-8")];
                    words.extend(["--objects", objects.to_str().expect("UTF-8")]);
                    match &packet.origin {
                        Origin::Host => words.extend(["--from", "host"]),
                        Origin::Interface(name) => words.extend(["--from", &source, "--in-interface", name]),
                    }
                    asked += 1;
                    let found = node.netns().enter(|| diagnose(&words));
                    let causes = found.map(|found| found["findings"].as_array().cloned().unwrap_or_default());
                    let certain = |finding: &serde_json::Value| finding["certain"] == true;
                    match causes {
                        Ok(findings) if !findings.iter().any(certain) => {}
                        found => wrong.push(format!("{} ({mode}) {packet}: {found:?}", case.name)),
                    }
                }
            }
            let _ = std::fs::remove_file(file);
        }
    }
    println!("{asked} connections of {} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {asked}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(asked > 100, "only {asked} connections");
}
