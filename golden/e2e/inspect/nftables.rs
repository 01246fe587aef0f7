//! `dump` and `diagnose` of nodes in nftables mode: our own table and the real one's.

use std::collections::BTreeSet;
use std::time::Duration;

use golden::case::Mode;
use golden::flavour::Flavour;
use netfilter::IpFamily;
use serde_json::Value;

use super::diagnose::causes;
use super::dump::{is_whole_page, names};
use super::node::{Node, diagnosis, json};

const LOCAL: &str = "402-both-local";

fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("{field}: {value:#}"))
}

fn both(case: &str) -> [Node; 2] {
    [Node::our_tables(case), Node::recorded_tables(case)]
}

/// Each Service port with its addresses' fates and its endpoints' odds.
fn shown(dump: &Value) -> Vec<Value> {
    let address = |a: &Value| serde_json::json!([a["ip"], a["port"], a["kind"], a["fate"]]);
    let endpoint = |e: &Value| serde_json::json!([e["address"], e["share"], e["local_share"], e["unused"]]);
    let service = |s: &Value| {
        let addresses: Vec<Value> = list(s, "addresses").iter().map(address).collect();
        let endpoints: Vec<Value> = list(s, "endpoints").iter().map(endpoint).collect();
        let policies = [&s["internal_policy"], &s["external_policy"], &s["affinity_seconds"], &s["source_ranges"]];
        serde_json::json!([s["name"], s["protocol"], s["family"], addresses, endpoints, policies])
    };
    list(dump, "services").iter().map(service).collect()
}

#[test]
fn both_layouts_give_the_same_dump_without_drift() {
    for case in [LOCAL, "210-lb-source-ranges", "502-affinity-local-policies", "009-protocols-on-one-port"] {
        let mut all = Vec::new();
        for node in both(case) {
            let dump = node.dump();
            assert_eq!(dump["differences"], Value::Array(vec![]), "{case}");
            assert_eq!(dump["unread"], Value::Array(vec![]), "{case}");
            assert_eq!(dump["facts"]["mode"], "nftables");
            let table = list(&dump["facts"], "tables").iter().find(|table| table["table"] == "ip kube-proxy");
            assert!(table.is_some_and(|table| table["elements"].as_u64() > Some(5) && table["canary"].is_null()));
            // Without objects, the same Service ports are shown, and a single one can be selected.
            assert_eq!(names(&json(&node.run("dump -o json"))), names(&dump), "{case}");
            let first = names(&dump)[0].split([':', ' ']).next().expect("a name").to_owned();
            let one = json(&node.run_with_objects(&format!("dump -o json --service {first}")));
            assert_eq!(one["differences"], Value::Array(vec![]), "{case}");
            let of_it: Vec<&Value> = list(&dump, "services")
                .iter()
                .filter(|s| s["name"].as_str().is_some_and(|name| name.split(':').next() == Some(&first)))
                .collect();
            assert_eq!(list(&one, "services").iter().collect::<Vec<_>>(), of_it, "{case}");
            all.push(shown(&dump));
        }
        assert_eq!(all[0], all[1], "{case}");
    }
}

#[test]
fn running_nftables_proxy_has_no_drift_in_dump_or_debug_page() {
    let mut node = Node::bare(Mode::Nftables, "103-nodeport-etp-local", Flavour::Nft);
    node.start_with(&["--debug-rules"]);
    let dump = node.dump();
    assert_eq!(dump["differences"], Value::Array(vec![]));
    let page = "curl -s -i -H Accept:application/json http://127.0.0.1:10249/debug/rules";
    let started = std::time::Instant::now();
    let answer = loop {
        let answer = node.lab.node().run(page);
        // A check of the rules may be under way.
        if answer.starts_with("HTTP/1.1 200") || started.elapsed() > Duration::from_secs(20) {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap_or_default()).expect(&answer);
    assert_eq!((shown(&body), &body["differences"]), (shown(&dump), &Value::Array(vec![])));
    node.lab.stop().expect("it stops");
}

#[test]
fn service_metrics_of_a_running_proxy_are_no_drift() {
    for level in ["Services", "Endpoints"] {
        let mut node = Node::bare(Mode::Nftables, "502-affinity-local-policies", Flavour::Nft);
        node.start_with(&[&format!("--service-metrics={level}")]);
        assert!(node.lab.node().run("nft list table ip kube-proxy").contains("set service-connections {"));
        // The configuration is that of the running proxy.
        let dump = json(&node.run("dump -o json"));
        assert_eq!(dump["differences"], Value::Array(vec![]), "{level}");
        assert_eq!(dump["unread"], Value::Array(vec![]), "{level}");
        node.lab.stop().expect("it stops");
    }
}

#[test]
fn edits_by_hand_are_found_in_the_kernel() {
    let node = Node::our_tables(LOCAL);
    node.nft(
        "delete element ip kube-proxy endpoints { 203.0.113.11 . tcp . 80 . 1 }\n\
         delete element ip kube-proxy service-nodeports { tcp . 30081 }\n\
         add element ip kube-proxy service-ips { 192.0.2.1 . tcp . 80 : drop }\n\
         insert rule ip kube-proxy services ip saddr 203.0.113.1 return\n\
         flush chain ip6 kube-proxy masquerading\n",
    );
    let found: BTreeSet<(String, String, String)> = list(&node.dump(), "differences")
        .iter()
        .map(|d| {
            let word = |field: &str| d[field].as_str().unwrap_or_default().to_owned();
            (word("kind"), word("chain"), word("service"))
        })
        .collect();
    let with_local = "default/with-local:http";
    let expected = [
        ("missing_element", "endpoints", with_local),
        ("missing_element", "service-nodeports", with_local),
        ("unexpected_element", "service-ips", ""),
        ("unexpected_rule", "services", ""),
        ("missing_rule", "masquerading", ""),
    ];
    assert_eq!(found, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())).into());
    node.nft("delete table ip6 kube-proxy\n");
    let differences = node.dump()["differences"].clone();
    let of_v6 = |d: &&Value| d["family"] == "IPv6";
    let of_v6: Vec<&Value> = differences.as_array().expect("a list").iter().filter(of_v6).map(|d| &d["kind"]).collect();
    assert_eq!(of_v6, ["missing_table"]);
}

#[test]
fn a_healthy_node_has_no_cause() {
    for (case, services) in [
        (LOCAL, &["default/with-local", "10.96.10.11:80", "192.168.50.2:30081/tcp --from outside"][..]),
        ("003-clusterip-1-endpoint", &["default/local"]),
    ] {
        for node in both(case) {
            for service in services {
                assert_eq!(causes(&node, service), [""; 0], "{case}");
            }
        }
    }
}

#[test]
fn causes_in_the_service_are_named() {
    for node in both(LOCAL) {
        assert_eq!(causes(&node, "default/gone"), ["no-such-service"]);
        assert_eq!(causes(&node, "10.96.99.99:80"), ["no-such-service"]);
        assert_eq!(causes(&node, "default/kubernetes"), ["no-endpoints"]);
        assert_eq!(causes(&node, "10.96.0.1:443/tcp"), ["no-endpoints"]);
        assert_eq!(causes(&node, "default/no-local"), ["no-local-endpoints"]);
        // Without objects, too.
        let without = |words: &str| diagnosis(&node.run(&format!("diagnose -o json {words}"))).0;
        assert_eq!(without("10.96.0.1:443/tcp"), ["no-endpoints"]);
        assert_eq!(without("203.0.113.12:80 --from outside"), ["no-local-endpoints"]);
        assert_eq!(without("default/gone"), ["no-such-service"]);
    }
    for node in both("410-conditions-clusterip") {
        let dump = node.dump();
        let unready = list(&dump, "services").iter().find(|s| {
            let endpoints = list(s, "endpoints");
            !endpoints.is_empty() && endpoints.iter().all(|e| e["unused"] == "it is not ready")
        });
        let name = unready.and_then(|s| s["name"].as_str()?.split(':').next()).expect("such a Service");
        assert_eq!(causes(&node, name), ["endpoints-not-ready"]);
    }
    for node in both("210-lb-source-ranges") {
        assert_eq!(causes(&node, "203.0.113.10:80/tcp --from 192.0.2.200"), ["source-range-refuses"]);
        assert_eq!(causes(&node, "203.0.113.10:80/tcp --from 198.51.100.200"), [""; 0]);
    }
}

#[test]
fn causes_in_the_rules_are_named() {
    let altered = |edit: &str, words: &str, expected: &[&str]| {
        for node in both(LOCAL) {
            node.nft(edit);
            assert_eq!(causes(&node, words), expected, "{edit}");
        }
    };
    let no_element = "delete element ip kube-proxy service-ips { 10.96.10.11 . tcp . 80 }\n";
    altered(no_element, "default/with-local", &["rules-altered"]);
    let no_rule = "flush chain ip kube-proxy services\n";
    altered(no_rule, "default/with-local", &["rules-altered", "not-translated"]);
    // A table of another program, in front of ours.
    let firewall = "table inet fence {\nchain forward {\ntype filter hook forward priority -10; policy accept;\n\
                    ip daddr 10.244.0.0/16 tcp dport 8080 drop\n}\n}\n";
    altered(firewall, "203.0.113.11:80 --from outside", &["refused-by-others"]);
    // A policy that drops what no rule accepts.
    let strict = "table inet fence {\nchain forward {\ntype filter hook forward priority 10; policy drop;\n\
                  ct state established,related accept\n}\n}\n";
    altered(strict, "203.0.113.11:80 --from outside", &["refused-by-others"]);
    // A rule that is not understood may have accepted it.
    let limited = strict.replace("ct state established,related accept", "limit rate 5/second accept");
    altered(&limited, "203.0.113.11:80 --from outside", &["refused-by-others?", "not-understood?"]);
    let verdicts = strict.replace("ct state established,related accept", "ip protocol vmap { tcp : drop }");
    altered(
        &verdicts.replace("policy drop", "policy accept"),
        "203.0.113.11:80 --from outside",
        &["refused-by-others"],
    );
    for node in both(LOCAL) {
        node.restore(IpFamily::V4, Flavour::Nft, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
        assert_eq!(causes(&node, "203.0.113.11:80 --from outside"), ["refused-by-others"]);
    }
    // Sets with ranges cannot be looked up by key.
    let ranges = "table inet fence {\nchain forward {\ntype filter hook forward priority 10;\n\
                  ip saddr { 10.0.0.0/8, 192.168.0.0/16 } accept\n}\n}\n";
    altered(ranges, "203.0.113.11:80 --from outside", &[]);
    altered(&ranges.replace("accept", "drop"), "203.0.113.11:80 --from 192.168.50.77", &["refused-by-others"]);
    // It takes the endpoint's replies for packets from a pod.
    altered(&ranges.replace("accept", "drop"), "203.0.113.11:80 --from outside", &["reply-refused"]);
    let new = ranges.replace("ip saddr", "ct state new ip saddr").replace("accept", "drop");
    altered(&new, "203.0.113.11:80 --from outside", &[]);
    let node = Node::our_tables(LOCAL);
    node.nft("flush chain ip kube-proxy nat-prerouting\n");
    assert_eq!(causes(&node, "default/with-local")[0], "rules-altered");
    let (without_objects, status) = diagnosis(&node.run("diagnose -o json default/with-local"));
    assert_eq!((&*without_objects[0], status), ("rules-altered", 1));
    let node = Node::our_tables(LOCAL);
    node.nft("delete element ip kube-proxy local-only-endpoint { 203.0.113.11 . tcp . 80 }\n");
    let (without_objects, status) = diagnosis(&node.run("diagnose -o json default/with-local"));
    assert_eq!((&*without_objects[0], status), ("rules-altered", 1));
}

#[test]
fn other_proxies_and_other_tables_are_distinguished() {
    let node = Node::recorded_tables("003-clusterip-1-endpoint");
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n\
                 -A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";
    node.restore(IpFamily::V4, Flavour::Nft, rules);
    assert!(causes(&node, "default/local").contains(&"two-proxies".to_owned()));
    let node = Node::bare(Mode::Nftables, "003-clusterip-1-endpoint", Flavour::Nft);
    assert_eq!(causes(&node, "default/local")[0], "no-proxy");
    node.nft("table ip kube-proxy {\nset service-ips {\ntype ipv4_addr\n}\n}\n");
    assert_eq!(causes(&node, "default/local")[0], "no-proxy");
    let dump = node.dump();
    assert_eq!((&dump["facts"]["mode"], &dump["unread"]), (&Value::Null, &Value::Array(vec![])));
    // Without rights nothing can be read, and that is said.
    let node = Node::recorded_tables("003-clusterip-1-endpoint");
    let kube_proxy = env!("CARGO_BIN_EXE_kube-proxy");
    let denied = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {kube_proxy} dump");
    let said = String::from_utf8_lossy(&node.lab.node().try_run(&denied).stderr).into_owned();
    assert!(said.contains("cannot read tables of nf_tables") || said.contains("Permission denied"), "{said}");
}

#[test]
fn a_stale_udp_flow_is_named() {
    for node in both("009-protocols-on-one-port") {
        let dump = node.dump();
        let udp = list(&dump, "services")
            .iter()
            .find(|s| s["protocol"] == "udp" && s["family"] == "IPv4" && !list(s, "endpoints").is_empty());
        let udp = udp.expect("a UDP Service");
        let (ip, port) = (udp["addresses"][0]["ip"].as_str().expect("an address"), &udp["addresses"][0]["port"]);
        // A flow of an endpoint that is gone.
        node.lab.node().run(&format!(
            "conntrack -I -p udp -s 192.168.50.2 -d {ip} --sport 5000 --dport {port} -r 10.244.9.9 -q 192.168.50.2 \
             --reply-port-src 53 --reply-port-dst 5000 -t 600 -u SEEN_REPLY"
        ));
        let service = udp["name"].as_str().and_then(|name| name.split(':').next()).expect("a name");
        assert_eq!(causes(&node, service), ["stale-udp-flow"]);
        let again = node.dump();
        let endpoints = list(&again, "services").iter().flat_map(|s| list(s, "endpoints"));
        assert_eq!(endpoints.filter_map(|e| e["stale"].as_u64()).sum::<u64>(), 1);
    }
}

#[test]
fn text_and_pictures_are_whole_and_plain() {
    for node in both(LOCAL) {
        let shown = |words: &str| {
            let output = node.run_with_objects(words);
            assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        };
        let text = shown("dump");
        assert!(text.contains("mode nftables") && !text.contains('\u{1b}') && !text.contains("CONNECTIONS"), "{text}");
        assert!(shown("dump -o wide").contains("10.96.10.11 . tcp . 80"));
        let dot = shown("dump -o dot --service default/with-local");
        assert!(dot.starts_with("digraph") && dot.contains("33.3 %") && dot.matches(" -> ").count() > 5, "{dot}");
        let svg = shown("dump -o svg --service default/with-local");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("goto"), "{svg}");
        let html = shown("dump -o html --service default/with-local");
        is_whole_page(&html, &["33.3 %", "mode nftables", "dnat ", "Trace host -&gt; 10.96.10.11:80/tcp"]);
    }
}
