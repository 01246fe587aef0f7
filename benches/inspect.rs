//! What `kube-proxy dump` and `trace` cost on a node of a big cluster: 10,000 Services with 10 endpoints each.
//!
//! In: root, both flavours of iptables. Out: seconds and the most memory of each command, in a namespace of its own.
//! Run: `cargo bench --bench inspect` as root (SERVICES=1000 for fewer, MODE=nftables for our table and one like the real
//! one's).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proxier::IpFamily;
use proxier::backend::Backend;
use proxier::iptables::{HostFacts, expected};
use proxier::kernel::{Flavour, SystemNftables, each_flow};
use proxier::model::{Config, Scope, Snapshot};
use proxier::nftables::Nftables;
use proxier::testing::{FakeHost, objects};
use proxier::track::{Change, Kind, Tracker, Translator, key_of};
use serde_json::{Value, json};

const ENDPOINTS: u32 = 10;
/// Chains in one transaction: the nf_tables flavour takes quadratic time.
const BATCH: usize = 500;

fn main() {
    let services: u32 = std::env::var("SERVICES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let objects = cluster(services);
    let folder = std::env::temp_dir().join(format!("inspect-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("objects.json");
    std::fs::write(&file, serde_json::to_string(&json!({"kind": "List", "items": &objects})).expect("JSON"))
        .expect("a file");
    if std::env::var("MODE").is_ok_and(|mode| mode == "nftables") {
        nftables(&objects, &file.display().to_string());
        let _ = std::fs::remove_dir_all(folder);
        return;
    }
    let rules = rules(&objects);
    println!("{services} Services x {ENDPOINTS}: {} lines of rules", rules.lines().count());
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        run("ip", &["link", "set", "lo", "up"]);
        load(flavour, &rules);
        println!("{flavour}:");
        measure_all(&file.display().to_string());
    }
    let _ = std::fs::remove_dir_all(folder);
    flows();
}

fn measure_all(file: &str) {
    let with = ["--hostname-override", "node-a", "--cluster-cidr", "10.0.0.0/8", "--timeout", "1m", "--objects", file];
    measure("dump --service ns/svc-77", &["dump", "--service", "ns/svc-77"]);
    measure("the same, compared with objects", &[&["dump", "--service", "ns/svc-77"][..], &with].concat());
    measure("dump, all, as JSON", &["dump", "-o", "json"]);
    measure("the same, compared with objects", &[&["dump", "-o", "json"][..], &with].concat());
    measure("trace", &["trace", "--from", "host", "--to", "11.0.0.78:80", "--in-interface", "lo"]);
}

/// The same in nftables mode.
fn nftables(objects: &[Value], file: &str) {
    let (config, tracker) = model(objects);
    let snapshot = tracker.snapshot(config.node_ip(IpFamily::V4, tracker.node()));
    for ours in [true, false] {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        run("ip", &["link", "set", "lo", "up"]);
        let kernel = Box::new(SystemNftables::default());
        let mut mode = Nftables::new(IpFamily::V4, config.clone(), kernel, Box::new(FakeHost::default()));
        let empty = BTreeMap::new();
        let shown = if ours { snapshot } else { Snapshot { ports: &empty, ..snapshot } };
        mode.sync(&shown, &Scope::Full, Instant::now()).expect("a sync");
        if !ours {
            run("nft", &["delete", "table", "ip", "kube-proxy"]);
            feed("nft", &["-f", "-"], &as_the_real_one(&snapshot));
        }
        println!("{}:", if ours { "our table" } else { "one like the real one's" });
        measure_all(file);
    }
}

/// The part of the real one's table that grows with Services, and the base chains that tell that it is one.
fn as_the_real_one(snapshot: &Snapshot<'_>) -> String {
    let (mut chains, mut elements, mut ips) = (String::new(), Vec::new(), Vec::new());
    for (name, port) in snapshot.ports {
        let chain = format!("service-AAAAAAAA-{}/{}/tcp/{}", name.service.namespace, name.service.name, name.port);
        let endpoints = snapshot.endpoints.of(name);
        let numbered = endpoints.iter().enumerate();
        let map: Vec<String> =
            numbered.map(|(n, e)| format!("{n} : {} . {}", e.address.ip(), e.address.port())).collect();
        let (count, map) = (map.len(), map.join(", "));
        chains +=
            &format!("chain {chain} {{\nmeta l4proto tcp dnat ip to numgen random mod {count} map {{ {map} }}\n}}\n");
        elements.push(format!("{} . tcp . {} : goto {chain}", port.cluster_ip, port.port));
        ips.push(port.cluster_ip.to_string());
    }
    let key = "ipv4_addr . inet_proto . inet_service";
    let services = "ip daddr @cluster-ips ip saddr != 10.0.0.0/8 meta mark set meta mark | 0x00004000\n\
                    ip daddr . meta l4proto . th dport vmap @service-ips\n";
    format!(
        "table ip kube-proxy {{\nset cluster-ips {{ type ipv4_addr; elements = {{ {} }}; }}\n{chains}\
         map service-ips {{ type {key} : verdict; elements = {{ {} }}; }}\nchain services {{\n{services}}}\n\
         chain filter-forward {{ type filter hook forward priority 0; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n}}\n",
        ips.join(", "),
        elements.join(", ")
    )
}

fn cluster(services: u32) -> Vec<Value> {
    let mut all = vec![objects::node(&["192.168.50.2".parse().expect("an address")])];
    for number in 0..services {
        let name = format!("svc-{number}");
        let ip = |net: u8, number: u32| {
            let [_, a, b, c] = (number + 1).to_be_bytes();
            std::net::IpAddr::from([net, a, b, c])
        };
        all.push(objects::service("ns", &name, ip(11, number)));
        let endpoints: Vec<_> = (0..ENDPOINTS).map(|n| ip(10, number * ENDPOINTS + n)).collect();
        all.push(objects::slice("ns", &name, &format!("{name}-a"), &endpoints));
    }
    all
}

/// The configuration and the model of the objects.
fn model(objects: &[Value]) -> (Config, Tracker) {
    let mut config = objects::config();
    config.local_detector = proxier::model::LocalDetector::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a network")]);
    let mut translator = Translator::new(&config.node_name, false);
    let mut tracker = Tracker::default();
    for object in objects {
        let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).expect("a kind");
        assert!(!key_of(kind, object).name.name.is_empty());
        for (family, change) in translator.applied(kind, object.clone()).expect("an object").changes {
            if family == IpFamily::V4 {
                tracker.apply(change);
            }
        }
    }
    Kind::ALL.into_iter().for_each(|kind| _ = tracker.apply(Change::Listed(kind)));
    (config, tracker)
}

/// The rules for them, as our own first sync would write them.
fn rules(objects: &[Value]) -> String {
    let (config, tracker) = model(objects);
    let node_ip = config.node_ip(IpFamily::V4, tracker.node());
    let host = HostFacts { random_fully: true, ..HostFacts::default() };
    let mut text = String::new();
    expected(IpFamily::V4, &config, &tracker.snapshot(node_ip), &host, |piece| text.push_str(piece));
    text
}

/// Loads them; the many chains of the nat table a few at a time, before what leads to them.
fn load(flavour: Flavour, rules: &str) {
    let infix = if flavour == Flavour::Nft { "nft" } else { "legacy" };
    let restore = |text: &str| {
        feed(&format!("iptables-{infix}-restore"), &["--noflush"], text);
    };
    let (others, nat) = rules.split_once("*nat\n").expect("a nat table");
    let (nat, mangle) = nat.split_once("COMMIT\n").expect("its end");
    restore(&format!("{others}{mangle}"));
    let own = |line: &str| {
        ["KUBE-SVC-", "KUBE-SEP-"].iter().any(|p| line.trim_start_matches("-A ").trim_start_matches(':').starts_with(p))
    };
    let chains: Vec<&str> = nat.lines().filter(|line| line.starts_with(':')).collect();
    restore(&format!(
        "*nat\n{}\nCOMMIT\n",
        chains.iter().filter(|line| !own(line)).copied().collect::<Vec<_>>().join("\n")
    ));
    // In the order in which a proxy makes them: the tool that lists chains takes much longer if they came sorted by name.
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for rule in nat.lines().filter(|line| own(line) && line.starts_with("-A")) {
        let name = rule.split(' ').nth(1).expect("a chain");
        match all.last_mut() {
            Some((last, rules)) if *last == name => rules.push(rule),
            _ => all.push((name, vec![rule])),
        }
    }
    let batch = if flavour == Flavour::Nft { BATCH } else { usize::MAX };
    for chunk in all.chunks(batch.min(all.len())) {
        let declared: String = chunk.iter().map(|(name, _)| format!(":{name} - [0:0]\n")).collect();
        let filled: String = chunk.iter().flat_map(|(_, rules)| rules).map(|rule| format!("{rule}\n")).collect();
        restore(&format!("*nat\n{declared}{filled}COMMIT\n"));
    }
    let rest: Vec<&str> = nat.lines().filter(|line| !own(line) && !line.starts_with(':')).collect();
    restore(&format!("*nat\n{}\nCOMMIT\n", rest.join("\n")));
}

fn feed(program: &str, words: &[&str], text: &str) {
    let mut tool = Command::new(program).args(words).stdin(Stdio::piped()).spawn().expect(program);
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(tool.wait().expect("it ends").success());
}

fn run(program: &str, words: &[&str]) {
    assert!(Command::new(program).args(words).status().expect(program).success());
}

/// Runs a command of ours; prints how long it took and how much memory it had at most.
fn measure(what: &str, words: &[&str]) {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kube-proxy"));
    let mut child = child.args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
    let mut output = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    let (status, mut most) = (format!("/proc/{}/status", child.id()), 0_u64);
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
        most = most.max(peak.unwrap_or(0));
        if let Some(ended) = child.try_wait().expect("a child") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let took = started.elapsed().as_secs_f64();
    let bytes = reader.join().expect("a thread").expect("output");
    #[allow(clippy::cast_precision_loss)] // for people
    let most = most as f64 / 1024.0;
    println!("  {what:<36} {took:6.2} s  {most:6.1} MB  {bytes:>10} bytes of output  {ended}");
}

/// How long it takes to go through as many flows as the kernel tracks at most.
fn flows() {
    let max = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or_default();
    let max: u32 = max.trim().parse().expect("conntrack");
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "3600").expect("a sysctl");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for number in 0..max {
        let [_, a, b, c] = number.to_be_bytes();
        let _ = socket.send_to(b"?", (std::net::Ipv4Addr::new(127, 1 + a, b, c), 9));
    }
    let (started, mut count) = (Instant::now(), 0_u64);
    each_flow(IpFamily::V4, &mut |_| count += 1).expect("a table");
    println!("{count} flows in {:.2} s", started.elapsed().as_secs_f64());
}
