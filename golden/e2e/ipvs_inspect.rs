//! `dump`, `trace` and `diagnose` on a node in IPVS mode, with the real kernel.
//!
//! Requires root and a kernel with IPVS (`make test-ipvs`).

mod causes;
mod endpoints;
mod shown;

use std::collections::BTreeSet;
use std::time::Duration;

use golden::case::{Case, Kind, Mode, cases};
use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, POD_5, POD_9, Service, VIP, ready};
use golden::flavour::Flavour;
use golden::lab::Lab;
use golden::proxy::config;
use netfilter::kernel::{Host, SystemHost};
use serde_json::Value;

/// A node that our proxy left as it was recorded of the real one. It does not run any more: it would mend what is edited.
fn left(case: &Case, flavour: Flavour) -> Lab {
    let mut lab = Lab::new(Mode::Ipvs, flavour);
    let settings = config(Mode::Ipvs, &case.config);
    lab.start(env!("CARGO_BIN_EXE_kube-proxy").as_ref(), &settings, &case.stored[0]);
    lab.wait_healthy().expect("healthy");
    let expected = case.expected_state(Mode::Ipvs, 0);
    let state = lab.settle(Duration::ZERO, |state| *state == expected).expect("settled");
    assert!(state == expected, "{}: not as recorded", case.name);
    lab.stop().expect("it stops");
    lab.add_pods(&case.stored[0]);
    // The recorded node has no way to IPv6 endpoints.
    lab.node().run("ip -6 route add default dev eth0");
    lab
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name}"))
}

/// Runs `kube-proxy` with these words, and with the objects if it is to know them.
fn run(lab: &Lab, words: &str, objects: bool) -> Value {
    let mut command = lab.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
    command.args(words.split(' '));
    if objects {
        command.arg("--config").arg(lab.dir().join("config.yaml"));
        command.arg("--objects").arg(lab.dir().join("objects"));
    }
    let output = command.output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("{field}: {value:#}"))
}

/// Each real server of each virtual one, as `ipvsadm -S -n` would add it.
fn reported(dump: &Value) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for service in list(dump, "services") {
        let servers = list(service, "addresses").iter().filter_map(|address| address["server"]["text"].as_str());
        lines.extend(servers.map(str::to_owned));
        for endpoint in list(service, "endpoints") {
            for server in list(endpoint, "servers") {
                let word = |field: &str| server[field].as_str().expect("a word").to_owned();
                let to = endpoint["address"].as_str().expect("an address");
                lines.insert(format!("-a {} -r {to} -m -w {}", word("server"), server["weight"]));
            }
        }
    }
    lines
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn every_server_is_listed_and_nothing_differs() {
    for (name, flavour) in [
        ("220-lb-etp-local", Flavour::Nft),
        ("210-lb-source-ranges", Flavour::Legacy),
        ("500-affinity-clusterip", Flavour::Nft),
        ("009-protocols-on-one-port", Flavour::Legacy),
    ] {
        let case = case(name);
        let lab = left(&case, flavour);
        let dump = run(&lab, "dump -o json", true);
        assert_eq!(dump["differences"], Value::Array(vec![]), "{name}");
        assert_eq!(dump["unread"], Value::Array(vec![]), "{name}");
        assert_eq!(dump["facts"]["mode"], "ipvs");
        let recorded = case.expected(Mode::Ipvs, 0, Kind::Ipvs);
        assert_eq!(reported(&dump), recorded.lines().map(|line| line.trim().to_owned()).collect(), "{name}");
        // Without objects the same servers are reported.
        assert_eq!(reported(&run(&lab, "dump -o json", false)), reported(&dump), "{name}");
        let first = list(&dump, "services")[0]["name"].as_str().expect("a name").split(':').next().expect("a name");
        let one = run(&lab, &format!("dump -o json --service {first}"), true);
        assert_eq!(one["differences"], Value::Array(vec![]), "{name}");
        let of_it = |service: &&Value| {
            service["name"].as_str().is_some_and(|n| n == first || n.starts_with(&format!("{first}:")))
        };
        let expected: Vec<&Value> = list(&dump, "services").iter().filter(of_it).collect();
        assert_eq!(list(&one, "services").iter().collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn edits_by_hand_are_found_in_the_kernel() {
    let lab = left(&case("220-lb-etp-local"), Flavour::Nft);
    for edit in [
        "ipvsadm -e -t 192.168.50.2:30082 -r 10.244.2.6:8080 -m -w 5",
        "ipvsadm -d -t 192.168.50.2:30082 -r 10.244.3.6:8080",
        "ipvsadm -a -t 192.168.50.2:30082 -r 10.9.9.9:8080 -m",
        "ipvsadm -A -t 192.0.2.1:80 -s rr",
        "ipvsadm -E -t 192.168.50.2:30081 -s lc",
        "ipset del KUBE-NODE-PORT-TCP 30082",
        "ipset add KUBE-CLUSTER-IP 192.0.2.1,tcp:80",
        "ip addr del 10.96.10.11/32 dev kube-ipvs0",
        "ip addr add 192.0.2.1/32 dev kube-ipvs0",
        "iptables-nft -D KUBE-FORWARD 1",
    ] {
        lab.node().run(edit);
    }
    let dump = run(&lab, "dump -o json", true);
    let word = |difference: &Value, field: &str| difference[field].as_str().unwrap_or_default().to_owned();
    let found: BTreeSet<String> = list(&dump, "differences")
        .iter()
        .map(|d| {
            let what = [word(d, "found"), word(d, "expected")].into_iter().find(|text| !text.is_empty());
            format!("{} {} {}", word(d, "kind"), word(d, "chain"), what.unwrap_or_default())
        })
        .collect();
    let expected = [
        "altered_real_server -t 192.168.50.2:30082 -r 10.244.2.6:8080 -m -w 5",
        "missing_real_server -t 192.168.50.2:30082 -r 10.244.3.6:8080 -m -w 1",
        "unexpected_real_server -t 192.168.50.2:30082 -r 10.9.9.9:8080 -m -w 1",
        "unexpected_virtual_server -t 192.0.2.1:80 -A -t 192.0.2.1:80 -s rr",
        "altered_virtual_server -t 192.168.50.2:30081 -A -t 192.168.50.2:30081 -s lc",
        "missing_entry KUBE-NODE-PORT-TCP 30082",
        "unexpected_entry KUBE-CLUSTER-IP 192.0.2.1,tcp:80",
        "missing_address kube-ipvs0 10.96.10.11",
        "unexpected_address kube-ipvs0 192.0.2.1",
    ];
    let (rules, others): (BTreeSet<String>, _) = found.into_iter().partition(|text| text.contains("KUBE-FORWARD"));
    assert_eq!(others, expected.map(str::to_owned).into_iter().collect());
    assert!(
        rules.len() == 1 && rules.iter().all(|text| text.starts_with("missing_rule KUBE-FORWARD -A KUBE-FORWARD")),
        "{rules:?}"
    );
}

/// The ends of a connection and their odds, as a trace tells.
fn ends(cluster: &Cluster, from: &str, to: std::net::SocketAddr) -> Vec<(String, f64, bool)> {
    let mut command = cluster.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
    let output =
        command.args(["trace", "--from", from, "--to", &to.to_string(), "-o", "json"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let trace: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{error}"));
    let branch = |branch: &Value| {
        assert_eq!(branch["doubts"], Value::Array(vec![]), "{trace:#}");
        let end = branch["to"].as_str().or(branch["verdict"].as_str()).expect("an end").to_owned();
        (end, branch["probability"].as_f64().expect("odds"), branch["masqueraded"] == true)
    };
    list(&trace, "branches").iter().map(branch).collect()
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_trace_agrees_with_connections() {
    let cluster =
        Cluster::new(Flavour::Nft, env!("CARGO_BIN_EXE_kube-proxy").as_ref()).configured("mode", "ipvs".into());
    let web = Service::new("web", 60).load_balancer(VIP).endpoints([ready(POD_5), ready(FAR_5)]);
    let empty = Service::new("empty", 61);
    let cluster = cluster.running(&[web.clone(), empty.clone()]);
    for family in Family::BOTH {
        let pod = POD_9.address.of(family);
        for (from, client, to) in [
            (pod.to_string(), cluster.pod(POD_9), web.address(family)),
            ("host".to_owned(), cluster.host(), web.address(family)),
            (
                golden::cluster::OUTSIDE.of(family).to_string(),
                cluster.outside(),
                VIP.at(family, web.address(family).port()),
            ),
        ] {
            let reported = ends(&cluster, &from, to);
            assert_eq!(
                reported.iter().map(|(_, odds, _)| *odds).collect::<Vec<_>>(),
                [0.5, 0.5],
                "{from} {to}: {reported:?}"
            );
            for answer in client.reach_times(Tcp, to, 4) {
                let end = [POD_5, FAR_5].into_iter().find(|pod| pod.name == answer.pod).expect("a pod");
                let ip = end.address.of(family);
                let is_it = |(address, _, _): &&(String, f64, bool)| {
                    address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip() == ip)
                };
                let (_, _, masqueraded) = reported.iter().find(is_it).unwrap_or_else(|| panic!("{ip}: {reported:?}"));
                let keeps = from.parse::<std::net::IpAddr>().is_ok_and(|ip| ip == answer.client);
                assert_eq!(*masqueraded, !keeps, "{from} to {to}: {answer:?}, {reported:?}");
            }
        }
        cluster.pod(POD_9).refused(Tcp, empty.address(family));
        assert_eq!(ends(&cluster, &pod.to_string(), empty.address(family)), [("rejected".to_owned(), 1.0, false)]);
    }
}

/// The causes that are certain.
fn causes(lab: &Lab, service: &str) -> BTreeSet<String> {
    let diagnosis = run(lab, &format!("diagnose -o json {service}"), true);
    let certain = list(&diagnosis, "findings").iter().filter(|finding| finding["certain"] == true);
    certain.map(|finding| finding["cause"].as_str().expect("a cause").to_owned()).collect()
}

fn set(causes: &[&str]) -> BTreeSet<String> {
    causes.iter().map(|cause| (*cause).to_owned()).collect()
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn causes_are_named() {
    let lab = left(&case("220-lb-etp-local"), Flavour::Nft);
    let sysctl = |name: &str, value: i64| lab.node().enter(|| SystemHost.set_sysctl(name, value)).expect("a sysctl");
    sysctl("net/ipv6/conf/all/forwarding", 1);
    let dump = run(&lab, "dump -o json", true);
    let has =
        |service: &&Value| list(service, "addresses").iter().any(|a| a["ip"] == "192.168.50.2" && a["port"] == 30082);
    let found = list(&dump, "services").iter().find(has).expect("the Service with that node port");
    let name = found["name"].as_str().and_then(|name| name.split(':').next()).expect("a name");
    assert_eq!(causes(&lab, name), set(&[]), "{name}");
    sysctl("net/ipv4/vs/conntrack", 0);
    assert_eq!(causes(&lab, name), set(&["ipvs-conntrack-off"]), "{name}");
    sysctl("net/ipv4/vs/conntrack", 1);
    let ip = list(found, "addresses")[0]["ip"].as_str().expect("a cluster IP");
    lab.node().run(&format!("ip addr del {ip}/32 dev kube-ipvs0"));
    assert!(causes(&lab, name).contains("rules-altered"), "{name}");
    lab.node().run(&format!("ip addr add {ip}/32 dev kube-ipvs0"));
    for endpoint in list(found, "endpoints") {
        for server in list(endpoint, "servers") {
            let (of, to) =
                (server["server"].as_str().expect("a server"), endpoint["address"].as_str().expect("an address"));
            lab.node().run(&format!("ipvsadm -e {of} -r {to} -m -w 0"));
        }
    }
    assert_eq!(causes(&lab, name), set(&["draining-only", "rules-altered"]), "{name}");
    assert_eq!(causes(&lab, "default/no-such"), set(&["no-such-service"]));
    let lab = left(&case("205-lb-no-endpoints"), Flavour::Nft);
    assert_eq!(causes(&lab, "default/plain"), set(&["no-endpoints"]));
}
