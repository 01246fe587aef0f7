//! `kube-proxy dump` and `trace`.

use std::time::Duration;

use golden::case::Mode;
use golden::flavour::Flavour;
use golden::lab::Lab;
use golden::proxy::config;
use netfilter::IpFamily;
use serde_json::Value;

use super::node::{Node, case, json};

pub fn names(dump: &Value) -> Vec<String> {
    let services = dump["services"].as_array().expect("services");
    let name = |service: &Value| {
        let word = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", word("name"), word("protocol"), word("family"))
    };
    services.iter().map(name).collect()
}

#[test]
fn upstreams_rules_are_read_in_both_flavours_without_drift() {
    for (name, flavour) in [
        ("402-both-local", Flavour::Nft),
        ("402-both-local", Flavour::Legacy),
        ("733-sync-periods", Flavour::Nft),
        ("210-lb-source-ranges", Flavour::Legacy),
    ] {
        let node = Node::recorded(name, flavour);
        let dump = node.dump();
        assert_eq!(dump["schema"], "kube-proxy.dump/v1");
        assert_eq!(dump["differences"], Value::Array(vec![]), "{name} {flavour}");
        assert_eq!(dump["unread"], Value::Array(vec![]), "{name} {flavour}");
        assert_eq!(dump["facts"]["mode"], "iptables");
        // The rules alone tell the same Service ports.
        assert_eq!(names(&json(&node.run("dump -o json"))), names(&dump), "{name} {flavour}");
        // And so does what is read of one Service.
        let first = names(&dump)[0].split(':').next().expect("a name").to_owned();
        let one = json(&node.run_with_objects(&format!("dump -o json --service {first}")));
        let of_it =
            |all: &Value| names(all).into_iter().filter(|n| n.starts_with(&format!("{first}:"))).collect::<Vec<_>>();
        assert_eq!((names(&one), of_it(&one)), (of_it(&dump), of_it(&dump)), "{name} {flavour}");
        assert_eq!(one["differences"], Value::Array(vec![]), "{name} {flavour}");
        // Of its nat table only chains of this Service were read, and it says so.
        let nat = |dump: &Value| {
            let tables = dump["facts"]["tables"].as_array().expect("tables").clone();
            tables.into_iter().find(|size| size["table"] == "nat").expect("the nat table")
        };
        assert_eq!(
            (&nat(&one)["read_in_part"], &nat(&dump)["read_in_part"]),
            (&Value::from(true), &Value::from(false))
        );
        assert!(nat(&one)["rules"].as_u64() <= nat(&dump)["rules"].as_u64(), "{name} {flavour}");
        let text = String::from_utf8_lossy(&node.run(&format!("dump --service {first}")).stdout).into_owned();
        assert!(text.contains("in part") && text.contains("Connections are counted since"), "{text}");
    }
}

#[test]
fn running_proxy_has_no_drift_in_dump_or_debug_page() {
    let case = case("103-nodeport-etp-local");
    let mut lab = Lab::new(Mode::Iptables, Flavour::Nft);
    let mut settings = config(Mode::Iptables, &case.config);
    settings["metricsBindAddress"] = "127.0.0.1:10249".into();
    // Nothing is mended while the test looks.
    settings["iptables"]["syncPeriod"] = "1h".into();
    lab.start_with(env!("CARGO_BIN_EXE_kube-proxy").as_ref(), &settings, &case.stored[0], &["--debug-rules"]);
    lab.wait_healthy().expect("healthy");
    let expected = case.expected_state(Mode::Iptables, 0);
    lab.settle(Duration::ZERO, |state| *state == expected).expect("settled");
    let dir = lab.dir().to_owned();
    let mut command = lab.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
    let words = ["dump", "-o", "json", "--config"].map(str::to_owned).into_iter();
    command.args(words.chain([dir.join("config.yaml").display().to_string(), "--objects".to_owned()]));
    let dump = json(&command.arg(dir.join("objects")).output().expect("it runs"));
    assert_eq!(dump["differences"], Value::Array(vec![]));
    let page = |accept: &str, query: &str| {
        lab.node().run(&format!("curl -s -i -H Accept:{accept} http://127.0.0.1:10249/debug/rules{query}"))
    };
    let told_after = |damage: &dyn Fn(), query: &str| {
        let started = std::time::Instant::now();
        let answer = loop {
            damage();
            let answer = page("application/json", query);
            // The page is limited in rate and refused during a sync.
            if answer.starts_with("HTTP/1.1 200") || started.elapsed() > Duration::from_secs(60) {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        serde_json::from_str::<Value>(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
    };
    let all = told_after(&|| (), "");
    assert_eq!((names(&all), &all["differences"]), (names(&dump), &Value::Array(vec![])));
    let again = page("text/plain", "");
    assert!(again.starts_with("HTTP/1.1 429") || again.starts_with("HTTP/1.1 503"), "{again}");
    // A removed rule is reported: the page compares with the objects that the proxy knows, from any source.
    let services = dump["services"].as_array().expect("services");
    let used = services.iter().find(|service| service["parts"][0].is_object() && service["family"] == "IPv4");
    let used = used.expect("a Service with chains");
    let name = used["name"].as_str().and_then(|name| name.split(':').next()).expect("a name");
    let chain = used["parts"][0]["chain"].as_str().expect("a chain");
    // The proxy repairs it within a second, so now and then it is quicker than the page.
    let flush = || _ = lab.node().run(&format!("iptables-nft -w 5 -t nat -F {chain}"));
    let asked = (0..5).map(|_| told_after(&flush, &format!("?service={name}")));
    let found =
        asked.map(|one| one["differences"].as_array().expect("differences").clone()).find(|one| !one.is_empty());
    let found = found.unwrap_or_default();
    assert!(!found.is_empty() && found.iter().all(|one| one["chain"] == chain), "{found:#?}");
    lab.stop().expect("it stops");
}

#[test]
fn edits_by_hand_are_found_in_the_kernel() {
    let node = Node::recorded("402-both-local", Flavour::Nft);
    let rules = node.lab.node().run("iptables-nft-save -t nat");
    let sep = rules.lines().find(|line| line.contains("--to-destination 10.244.2.5:8080")).expect("an endpoint");
    let chain = sep.split(' ').nth(1).expect("a chain");
    node.iptables(&format!("-t nat -D {chain} 2"));
    node.iptables("-t nat -I KUBE-POSTROUTING -s 203.0.113.1 -j RETURN");
    node.iptables("-F KUBE-FORWARD");
    let dump = node.dump();
    let found = dump["differences"].as_array().expect("differences").iter();
    let mut found: Vec<String> = found
        .map(|d| format!("{} {}", d["kind"].as_str().expect("a kind"), d["chain"].as_str().expect("a chain")))
        .collect();
    found.sort();
    let mut expected = vec![
        format!("missing_rule {chain}"),
        "missing_rule KUBE-FORWARD".to_owned(),
        "missing_rule KUBE-FORWARD".to_owned(),
        "missing_rule KUBE-FORWARD".to_owned(),
        "unexpected_rule KUBE-POSTROUTING".to_owned(),
    ];
    expected.sort();
    assert_eq!(found, expected);
    assert_eq!(
        dump["differences"]
            .as_array()
            .expect("differences")
            .iter()
            .filter(|d| d["service"] == "default/with-local:http")
            .count(),
        1
    );
}

#[test]
fn flows_are_counted_by_endpoint() {
    let node = Node::recorded("009-protocols-on-one-port", Flavour::Nft);
    let services = node.dump();
    let services = services["services"].as_array().expect("services");
    let udp = services.iter().find(|s| {
        s["protocol"] == "udp" && s["family"] == "IPv4" && !s["endpoints"].as_array().expect("a list").is_empty()
    });
    let udp = udp.expect("a UDP Service");
    let address = |field: &str| udp["addresses"][0][field].clone();
    let to = format!("{}:{}", address("ip").as_str().expect("an address"), address("port"));
    node.lab.node().enter(|| {
        let socket = std::net::UdpSocket::bind("192.168.50.2:0").expect("a socket");
        socket.send_to(b"?", &to).expect("sent");
    });
    let dump = node.dump();
    let again = dump["services"]
        .as_array()
        .expect("services")
        .iter()
        .find(|s| s["name"] == udp["name"] && s["protocol"] == "udp" && s["family"] == "IPv4");
    let endpoints = again.expect("the same")["endpoints"].as_array().expect("a list").clone();
    let flows: u64 = endpoints.iter().filter_map(|e| e["flows"]["UNREPLIED"].as_u64()).sum();
    assert_eq!(flows, 1, "{endpoints:#?}");
    assert_eq!(again.expect("the same")["addresses"][0]["counters"]["packets"], 1);
}

#[test]
fn text_yaml_and_pictures_are_whole_and_plain() {
    let node = Node::recorded("402-both-local", Flavour::Nft);
    let shown = |words: &str| {
        let output = if words.starts_with("trace") { node.run(words) } else { node.run_with_objects(words) };
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    for words in
        ["dump", "dump -o wide", "trace --from host --to 10.96.10.11:80", "diagnose default/with-local --from host"]
    {
        let text = shown(words);
        assert!(!text.contains('\u{1b}'), "no colours but on a terminal: {words}");
        let too_wide = text
            .lines()
            .filter(|line| line.chars().count() > 100 && !line.contains(" -A ") && !line.contains("/debug"));
        assert!(words.contains("wide") || words.starts_with("trace") || too_wide.count() <= 1, "{text}");
    }
    assert!(shown("dump -o wide").contains("KUBE-SVL-3FNP6KDT3RDA4WFJ"));
    let yaml: Value = serde_saphyr::from_str(&shown("dump -o yaml")).expect("YAML");
    assert_eq!(yaml["schema"], "kube-proxy.dump/v1");
    let dot = shown("dump -o dot --service default/with-local");
    assert!(dot.starts_with("digraph") && dot.contains("33.3 %") && dot.matches(" -> ").count() > 5, "{dot}");
    let svg = shown("dump -o svg --service default/with-local");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("10.244.1.5:8080"), "{svg}");
    let html = shown("dump -o html --service default/with-local");
    is_whole_page(
        &html,
        &[
            "33.3 %",
            "KUBE-SVL-3FNP6KDT3RDA4WFJ",
            "-j DNAT",
            "Trace outside -&gt; 203.0.113.11:80/tcp",
            "The rules match",
        ],
    );
    let several = node.run("dump -o svg");
    assert_eq!(several.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&several.stderr).contains("give --service"));
}

/// Asserts that an HTML page has these parts, closes what it opens, and refers to nothing outside itself.
pub fn is_whole_page(page: &str, parts: &[&str]) {
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    for part in parts {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    for outside in ["<script", "<link", "<img", "src=", "@import", "url(", "https:"] {
        assert!(!page.contains(outside), "{outside} is in {page}");
    }
    for element in ["section", "table", "tr", "td", "pre", "details", "svg", "text", "figure", "h2", "ul", "div", "p"] {
        let opened = page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}: {page}");
    }
}

#[test]
fn a_page_shows_names_as_text_and_differences_with_both_rules() {
    let node = Node::recorded("402-both-local", Flavour::Nft);
    node.iptables("-t nat -I KUBE-POSTROUTING -m comment --comment <script>alert(1)</script> -j RETURN");
    let page = node.run_with_objects("dump -o html");
    assert!(page.status.success(), "{page:?}");
    let page = String::from_utf8(page.stdout).expect("text");
    is_whole_page(
        &page,
        &["in one place", "table nat, chain KUBE-POSTROUTING", "+ -A KUBE-POSTROUTING", "&lt;script&gt;alert"],
    );
}

#[test]
fn unread_state_is_reported_and_the_rest_is_shown() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    let unreachable = node.run("dump -o json --master http://127.0.0.1:9 --timeout 2s");
    let dump = json(&unreachable);
    assert!(unreachable.status.success() && !names(&dump).is_empty());
    assert_eq!((&dump["unread"][0]["what"], &dump["differences"]), (&"objects".into(), &Value::Null));
    let none = node.run("dump --service default/nothing");
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no rule tells of a Service default/nothing"));
    // Part of a table of another program, with rules that are not supported.
    let foreign = "*filter\n:cali-FORWARD - [0:0]\n-I FORWARD -m comment --comment \"cali:x\" -j cali-FORWARD\n\
        -A cali-FORWARD -m u32 --u32 0x6&0xff=0x6 -j DROP\nCOMMIT\n";
    node.restore(IpFamily::V4, Flavour::Nft, foreign);
    let dump = json(&node.run("dump -o json"));
    let why = "u32: it looks at bytes of the packet that are not known";
    assert_eq!(dump["not_understood"][0]["why"], why);
    let forward = dump["facts"]["hooks"]
        .as_array()
        .expect("hooks")
        .iter()
        .find(|h| h["hook"] == "FORWARD" && h["family"] == "IPv4");
    assert_eq!(forward.expect("the hook")["order"], serde_json::json!(["Calico", "kube-proxy"]));
    let trace = json(&node.run("trace --from 10.244.2.9 --in-interface eth0 --to 10.96.10.12:80 -o json"));
    // Whether it matters depends on where the packet ends without that rule.
    let of_way = &trace["branches"][0];
    let found = ["doubts", "harmless_doubts"].map(|kind| of_way[kind][0]["why"].clone());
    assert!(found.contains(&why.into()), "{trace:#}");
    assert_eq!(trace["certain"], of_way["doubts"].as_array().expect("a list").is_empty());
    // Without rights nothing can be read, and that is said.
    let denied = node.lab.node().try_run(&format!(
        "setpriv --reuid 65534 --regid 65534 --clear-groups {} dump",
        env!("CARGO_BIN_EXE_kube-proxy")
    ));
    let said = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(said.contains("cannot read rules of IPv4") || said.contains("Permission denied"), "{said}");
}

#[test]
fn failed_writes_to_standard_output_are_errors() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    for (words, status) in [
        ("dump", 1),
        ("dump -o json", 1),
        ("trace --from host --to 10.96.10.12:80", 1),
        ("diagnose default/local", 2),
        ("diagnose -o json default/local", 2),
    ] {
        let run = |out: std::process::Stdio| {
            let mut command = node.lab.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
            let output = command.args(words.split(' ')).stdout(out).output().expect("it runs");
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a full disk");
        let (code, said) = run(full.into());
        assert!(said.contains("Error: cannot write the output: No space left on device"), "{words}: {said}");
        assert_eq!(code, Some(status), "{words}");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (code, said) = run(writer.into());
        assert_eq!((code, said.contains("Error")), (Some(status), false), "{words}: {said}");
    }
}

#[test]
fn trace_follows_recent_lists_of_the_kernel() {
    let node = Node::recorded("500-affinity-clusterip", Flavour::Nft);
    let affine = node.dump();
    let affine = affine["services"]
        .as_array()
        .expect("services")
        .iter()
        .find(|s| {
            s["affinity_seconds"].as_u64().is_some()
                && s["protocol"] == "tcp"
                && s["family"] == "IPv4"
                && s["endpoints"].as_array().is_some_and(|e| e.len() > 1)
        })
        .cloned();
    let affine = affine.expect("a Service with affinity");
    let to =
        format!("{}:{}", affine["addresses"][0]["ip"].as_str().expect("an address"), affine["addresses"][0]["port"]);
    let trace = || json(&node.run(&format!("trace --from host --to {to} -o json")));
    assert!(trace()["branches"].as_array().expect("branches").len() > 1);
    node.lab.node().enter(|| {
        use std::net::{SocketAddr, TcpStream};
        // No host answers there; the first packet is enough.
        let to: SocketAddr = to.parse().expect("an address");
        let _ = TcpStream::connect_timeout(&to, Duration::from_millis(10));
    });
    let after = trace();
    assert_eq!(after["branches"].as_array().map(Vec::len), Some(1), "{after:#}");
}
