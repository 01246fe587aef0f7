//! Virtual servers in dump and trace: counters, texts and tables, and servers of other programs.

use std::collections::BTreeMap;
use std::time::Duration;

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, POD_5, POD_9, Service, VIP, eventually, ready};
use golden::flavour::Flavour;
use golden::lab::Lab;
use serde_json::{Value, json};

use super::{case, left, list, run};

/// What `ipvsadm` says that each server counted: connections, packets in and out, bytes in and out.
fn counted(cluster: &Cluster) -> BTreeMap<(String, Option<String>), [u64; 5]> {
    let text = cluster.node().run("ipvsadm -L -n --stats --exact");
    let (mut server, mut all) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let real = match words[..] {
            ["TCP", address, ..] => {
                server = address.to_owned();
                None
            }
            ["->", address, ..] if address != "RemoteAddress:Port" => Some(address.to_owned()),
            _ => continue,
        };
        let number = |at: usize| words[at].parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        all.insert((server.clone(), real), [2, 3, 4, 5, 6].map(number));
    }
    all
}

/// The same as a dump tells it.
fn reported(dump: &Value) -> BTreeMap<(String, Option<String>), [u64; 5]> {
    let numbers = |connections: &Value, of: &Value| {
        let [to, back] = ["counters", "answers"].map(|field| &of[field]);
        [connections, &to["packets"], &back["packets"], &to["bytes"], &back["bytes"]]
            .map(|n| n.as_u64().expect("a number"))
    };
    let mut all = BTreeMap::new();
    for service in list(dump, "services") {
        for address in list(service, "addresses") {
            let server = &address["server"];
            let name = server["text"].as_str().and_then(|text| text.split(' ').nth(2)).expect("a server").to_owned();
            let both = json!({ "counters": address["counters"], "answers": server["answers"] });
            all.insert((name, None), numbers(&server["connections"], &both));
        }
        for endpoint in list(service, "endpoints") {
            for server in list(endpoint, "servers") {
                let name = server["server"].as_str().and_then(|text| text.split(' ').nth(1)).expect("a server");
                let real = endpoint["address"].as_str().map(str::to_owned);
                all.insert((name.to_owned(), real), numbers(&server["connections"], server));
            }
        }
    }
    all
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn counters_of_servers_are_shown() {
    let cluster =
        Cluster::new(Flavour::Nft, env!("CARGO_BIN_EXE_kube-proxy").as_ref()).configured("mode", "ipvs".into());
    let web = Service::new("web", 60).load_balancer(VIP).endpoints([ready(POD_5), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach_times(Tcp, web.address(family), 4);
        let _ = cluster.outside().reach_times(Tcp, VIP.at(family, web.address(family).port()), 2);
    }
    let ask = |words: &str| {
        let mut command = cluster.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
        command.args(words.split(' ')).arg("--config").arg(cluster.directory().join("config.yaml"));
        let output = command.arg("--objects").arg(cluster.directory().join("objects")).output().expect("it runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let wanted = Family::BOTH.map(|family| {
        let address = web.address(family);
        [(address.to_string(), 4), (VIP.at(family, address.port()).to_string(), 2)]
    });
    // The kernel adds them up every two seconds.
    eventually("what servers counted is reported as ipvsadm tells it", Duration::from_secs(60), || {
        let dump: Value = serde_json::from_str(&ask("dump -o json")).expect("JSON");
        let (reported, counted) = (reported(&dump), counted(&cluster));
        let all_there = |(address, count): &(String, u64)| reported[&(address.clone(), None)][0] == *count;
        let both_ways = |counts: &&[u64; 5]| counts[0] > 0 && counts[1..].iter().all(|count| *count > 0);
        reported == counted && wanted.iter().flatten().all(all_there) && reported.values().filter(both_ways).count() > 4
    });
    let name = web.full_name();
    let service = name.split(':').next().expect("a name");
    let text = ask(&format!("dump --service {service}"));
    let line = text.lines().find(|line| line.contains(&web.address(Family::V4).to_string())).expect("its address");
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>()[1..],
        ["cluster", "IP", "to", "endpoints", "4", "rr", "yes"],
        "{text}"
    );
    let dot = ask(&format!("dump -o dot --service {service}"));
    assert!(dot.contains("4 connections") && dot.contains("cluster IP, scheduler rr"), "{dot}");
}

fn text(lab: &Lab, words: &str) -> String {
    let output = lab.node().command(env!("CARGO_BIN_EXE_kube-proxy")).args(words.split(' ')).output().expect("it runs");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn text_output_uses_the_terms_of_virtual_servers() {
    let lab = left(&case("220-lb-etp-local"), Flavour::Nft);
    let shown = text(&lab, "dump");
    let has =
        |text: &str, words: &[&str]| text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words);
    assert!(has(&shown, &["ADDRESS", "KIND", "PACKETS", "GO", "CONNECTIONS", "SCHEDULER", "BOUND"]), "{shown}");
    assert!(has(&shown, &["ENDPOINT", "SHARE", "CONNECTIONS", "WEIGHT", "ACTIVE", "INACTIVE"]), "{shown}");
    assert!(has(&shown, &["192.168.50.2:30082", "node", "port", "to", "endpoints", "0", "rr", "no"]), "{shown}");
    assert!(shown.contains("mode ipvs;") && !shown.contains('\u{1b}'), "{shown}");
    let too_wide: Vec<&str> = shown.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(too_wide.iter().all(|line| line.contains("iptables flavour")), "{too_wide:#?}");
    let wide = text(&lab, "dump -o wide");
    assert!(wide.contains("SETS") && wide.contains("KUBE-NODE-PORT-TCP"), "{wide}");
    for edit in [
        "-A -t 192.0.2.6:80 -s sh -b sh-port",
        "-A -t 192.0.2.7:80 -s mh -p 50",
        "-A -t 192.0.2.8:80 -s wrr",
        "-a -t 192.0.2.6:80 -r 10.9.9.1:80 -m",
        "-a -t 192.0.2.7:80 -r 10.9.9.1:80 -m",
        "-a -t 192.0.2.8:80 -r 10.9.9.1:80 -m -w 3",
        "-a -t 192.0.2.8:80 -r 10.9.9.2:80 -m -w 1",
    ] {
        lab.node().run(&format!("ipvsadm {edit}"));
    }
    let trace = |to: &str| text(&lab, &format!("trace --from host --to {to} --all"));
    let by_source = "the client's address selects the real server: probabilities are over all clients";
    let stays = "a client keeps its previous real server, which is unknown here";
    let [sh, mh, wrr] = ["192.0.2.6:80", "192.0.2.7:80", "192.0.2.8:80"].map(trace);
    assert!(sh.contains(&format!("{by_source}\n")) && !sh.contains(stays), "{sh}");
    assert!(mh.contains(&format!("{by_source}; {stays}\n")), "{mh}");
    assert!(wrr.contains("75.00 % of new connections on average") && !wrr.contains(by_source), "{wrr}");
    let dump = text(&lab, "dump");
    assert!(dump.contains("scheduler sh: each client has its endpoint; shares are of all clients"), "{dump}");
}

/// No kube-proxy creates these.
#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn servers_without_translation_and_of_firewall_marks_are_shown() {
    let lab = left(&case("220-lb-etp-local"), Flavour::Nft);
    for edit in [
        "-A -t 192.0.2.6:80 -s rr",
        "-a -t 192.0.2.6:80 -r 192.168.50.1:80 -i",
        "-A -t 192.0.2.7:80 -s rr",
        "-a -t 192.0.2.7:80 -r 192.168.50.1:80 -g",
        "-A -f 16384 -s rr",
    ] {
        lab.node().run(&format!("ipvsadm {edit}"));
    }
    for (to, how) in [("192.0.2.6:80", "tunnel"), ("192.0.2.7:80", "direct routing")] {
        let trace = run(&lab, &format!("trace --from host --to {to} -o json"), false);
        let end = &list(&trace, "branches")[0];
        assert_eq!((&end["verdict"], &end["to"]), (&"forwarded".into(), &"192.168.50.1:80".into()));
        let said = text(&lab, &format!("trace --from host --to {to}"));
        assert!(said.contains(&format!("Verdict: forwarded unchanged to 192.168.50.1 by {how}")), "{said}");
        let note = format!("-t {to} forwards to 192.168.50.1:80 by {how}, which no kube-proxy sets up");
        let dump = text(&lab, "dump");
        assert!(dump.contains(&note), "{note}: {dump}");
    }
    let dump = run(&lab, "dump -o json", false);
    let of_mark = list(&dump, "not_understood").iter().any(|one| one["rule"] == "-A -f 16384 -s rr");
    assert!(of_mark, "{:#}", dump["not_understood"]);
    // Packets that are to be masqueraded have that mark.
    let trace = run(&lab, "trace --from host --to 10.96.10.11:80 -o json", false);
    assert_eq!(list(&list(&trace, "branches")[0], "doubts")[0]["rule"], "-A -f 16384 -s rr", "{trace:#}");
}
