//! Cost of `kube-proxy dump`, `diagnose` and `trace` at 10,000 Services with 10 endpoints each, and of counting a million flows.
//!
//! Run it by hand as root, with both flavours of iptables, nf_tables and conntrack: `cargo bench --bench inspect`.
//! `SERVICES=1000` selects another size, `RULES=nft,legacy,nftables,chains` the kinds of rules (`chains`: nftables with
//! a chain for
//! each Service, like upstream's), `FLOWS=0` no flows. Prints seconds, CPU and peak memory of each command.

use std::io::{BufWriter, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{Flavour, SystemNftables};
use netfilter::testing::FakeHost;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use proxier::backend::Backend;
use proxier::iptables::{HostFacts, expected};
use proxier::model::{Config, LocalDetector, Scope, Snapshot};
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translator};
use serde_json::{Value, json};

const ENDPOINTS: u32 = 10;
/// Chains per transaction: the nf_tables flavour takes quadratic time.
const BATCH: usize = 500;
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

fn main() {
    // It raises nf_conntrack_max of the whole machine for a while: only on request. `cargo test` passes no `--bench`.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("inspect: run it with cargo bench --bench inspect");
        return;
    }
    let number = |name: &str, usual| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let (services, flows) = (number("SERVICES", 10_000), number("FLOWS", 1_000_000));
    let wanted = std::env::var("RULES").unwrap_or_else(|_| "nft,legacy,nftables,chains".to_owned());
    let objects = cluster(services);
    let folder = std::env::temp_dir().join(format!("inspect-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("objects.json");
    std::fs::write(&file, json!({"items": &objects, "kind": "List"}).to_string()).expect("a file");
    let (config, tracker) = (config(), tracker(&objects));
    let rules = rules(&config, &tracker);
    println!("{services} Services x {ENDPOINTS}: {} lines of rules; load {}", rules.lines().count(), load());
    let _raised = (flows > 0).then(|| RaisedConntrackLimit::to(flows + flows / 8));
    for way in wanted.split(',') {
        let (file, config, tracker, rules) = (file.display().to_string(), &config, &tracker, &rules);
        let measured = std::thread::scope(|scope| {
            // This thread leaves its namespace permanently.
            let in_namespace = move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
                run("ip", &["link", "set", "lo", "up"]);
                match way {
                    "nft" => restore(Flavour::Nft, rules),
                    "legacy" => restore(Flavour::Legacy, rules),
                    "nftables" => write_table(config, tracker),
                    "chains" => feed("nft", &["-f", "-"], &as_upstream(&snapshot(config, tracker))),
                    other => panic!("RULES={other}: it is nft, legacy, nftables, chains"),
                }
                println!("{way}:");
                commands(&file, ["nftables", "chains"].contains(&way));
                if flows > 0 {
                    count_flows(services, flows);
                }
            };
            scope.spawn(in_namespace).join()
        });
        measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn commands(file: &str, nftables: bool) {
    let mut with =
        vec!["--hostname-override", "node-a", "--cluster-cidr", "10.0.0.0/8", "--timeout", "1m", "--objects", file];
    with.extend(nftables.then_some(["--", "--proxy-mode=nftables"]).into_iter().flatten());
    let with = |words: &[&'static str]| words.iter().copied().chain(with.iter().copied()).collect::<Vec<_>>();
    const ONE: [&str; 3] = ["dump", "--service", "ns/svc-77"];
    const DIAGNOSE: [&str; 2] = ["diagnose", "ns/svc-77"];
    const ALL: [&str; 3] = ["dump", "-o", "json"];
    measure("dump --service ns/svc-77", &ONE);
    measure("the same, compared with objects", &with(&ONE));
    measure("diagnose ns/svc-77", &DIAGNOSE);
    measure("the same, with objects", &with(&DIAGNOSE));
    measure("dump, all, as JSON", &ALL);
    measure("the same, compared with objects", &with(&ALL));
    measure("trace", &["trace", "--from", "10.0.0.9", "--in-interface", "eth0", "--to", "11.0.0.78:80"]);
}

fn ip(net: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = (number + 1).to_be_bytes();
    IpAddr::from([net, a, b, c])
}

fn cluster(services: u32) -> Vec<Value> {
    let mut all = vec![objects::node(&["192.168.50.2".parse().expect("an address")])];
    for number in 0..services {
        let name = format!("svc-{number}");
        all.push(objects::service("ns", &name, ip(11, number)));
        let endpoints: Vec<_> = (0..ENDPOINTS).map(|n| ip(10, number * ENDPOINTS + n)).collect();
        all.push(objects::slice("ns", &name, &format!("{name}-a"), &endpoints));
    }
    all
}

fn config() -> Config {
    let pods = LocalDetector::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a network")]);
    Config { local_detector: pods, ..objects::config() }
}

fn tracker(objects: &[Value]) -> Tracker {
    let mut translator = Translator::new(objects::NODE, false);
    let mut tracker = Tracker::default();
    for object in objects {
        let kind = Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).expect("a kind");
        for (family, change) in translator.applied(objects::decoded(kind, object.clone())).expect("an object").changes {
            if family == IpFamily::V4 {
                tracker.apply(change);
            }
        }
    }
    Kind::ALL.into_iter().for_each(|kind| _ = tracker.apply(Change::Listed(kind)));
    tracker
}

fn snapshot<'a>(config: &Config, tracker: &'a Tracker) -> Snapshot<'a> {
    tracker.snapshot(config.node_ip(IpFamily::V4, tracker.node()))
}

/// The rules that iptables mode writes in a first sync.
fn rules(config: &Config, tracker: &Tracker) -> String {
    let snapshot = snapshot(config, tracker);
    let host = HostFacts { random_fully: true, ..HostFacts::default() };
    let mut text = String::new();
    expected(IpFamily::V4, config, &snapshot, &host, |piece| text.push_str(piece));
    text
}

/// The table of nftables mode, written by a first sync.
fn write_table(config: &Config, tracker: &Tracker) {
    let (kernel, host) = (Box::new(SystemNftables::default()), Box::new(FakeHost::default()));
    let mut mode = Nftables::new(IpFamily::V4, config.clone(), kernel, host);
    mode.sync(&snapshot(config, tracker), &Scope::Full, Instant::now()).expect("the kernel takes it");
}

/// The part of upstream's table that grows with Services, and the base chains that identify it.
fn as_upstream(snapshot: &Snapshot<'_>) -> String {
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

/// Loads the rules; the chains of the nat table in batches, before the rules that jump to them.
fn restore(flavour: Flavour, rules: &str) {
    let infix = if flavour == Flavour::Nft { "nft" } else { "legacy" };
    let apply = |text: &str| feed(&format!("iptables-{infix}-restore"), &["--noflush"], text);
    let (others, nat) = rules.split_once("*nat\n").expect("a nat table");
    let (nat, mangle) = nat.split_once("COMMIT\n").expect("its end");
    apply(&format!("{others}{mangle}"));
    let own = |line: &str| {
        ["KUBE-SVC-", "KUBE-SEP-"].iter().any(|p| line.trim_start_matches("-A ").trim_start_matches(':').starts_with(p))
    };
    let chains: Vec<&str> = nat.lines().filter(|line| line.starts_with(':')).collect();
    apply(&format!(
        "*nat\n{}\nCOMMIT\n",
        chains.iter().filter(|line| !own(line)).copied().collect::<Vec<_>>().join("\n")
    ));
    // In the order in which a proxy creates them: listing takes much longer if they were created sorted by name.
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
        apply(&format!("*nat\n{declared}{filled}COMMIT\n"));
    }
    let rest: Vec<&str> = nat.lines().filter(|line| !own(line) && !line.starts_with(':')).collect();
    apply(&format!("*nat\n{}\nCOMMIT\n", rest.join("\n")));
}

fn feed(program: &str, words: &[&str], text: &str) {
    let mut tool = Command::new(program).args(words).stdin(Stdio::piped()).spawn().expect(program);
    tool.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
    assert!(tool.wait().expect("it ends").success());
}

fn run(program: &str, words: &[&str]) {
    assert!(Command::new(program).args(words).status().expect(program).success());
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

/// The CPU time of children that ended.
fn children_cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    [usage.user_time(), usage.system_time()].iter().map(|time| Duration::from_micros(micros(time))).sum()
}

fn micros(time: &nix::sys::time::TimeVal) -> u64 {
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or_default()
}

/// Runs a command; prints its time, CPU with its tools, and peak memory.
fn measure(what: &str, words: &[&str]) -> Vec<u8> {
    let (started, cpu) = (Instant::now(), children_cpu());
    let mut child = Command::new(env!("CARGO_BIN_EXE_kube-proxy"));
    let mut child = child.args(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
    let mut output = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes)
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
    let (took, cpu) = (started.elapsed().as_secs_f64(), (children_cpu() - cpu).as_secs_f64());
    let bytes = reader.join().expect("a thread").expect("output");
    #[allow(clippy::cast_precision_loss)] // for people
    let most = most as f64 / 1024.0;
    println!("  {what:<36} {took:6.2} s  {cpu:6.2} s CPU  {most:6.1} MB  {:>10} bytes of output  {ended}", bytes.len());
    bytes
}

/// The limit of the whole machine, raised until dropped.
struct RaisedConntrackLimit(String);

impl RaisedConntrackLimit {
    fn to(limit: u32) -> Self {
        let before = std::fs::read_to_string(CONNTRACK_MAX).expect("conntrack");
        if before.trim().parse::<u32>().is_ok_and(|before| before < limit) {
            std::fs::write(CONNTRACK_MAX, limit.to_string())
                .expect("nf_conntrack_max: run as root in the first namespace");
        }
        Self(before)
    }
}

impl Drop for RaisedConntrackLimit {
    fn drop(&mut self) {
        let _ = std::fs::write(CONNTRACK_MAX, &self.0);
    }
}

/// Fills the conntrack table with translated connections of Services and measures how dump counts them.
fn count_flows(services: u32, flows: u32) {
    let started = Instant::now();
    let tool = Command::new("conntrack")
        .args(["-R", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut tool = tool.expect("conntrack");
    let mut entries = BufWriter::new(tool.stdin.take().expect("a pipe"));
    for number in 0..flows {
        let (service, client) = (number % services, Ipv4Addr::from_bits(0xac10_0000 + (number & 0xf_ffff)));
        let endpoint = ip(10, service * ENDPOINTS + number / services % ENDPOINTS);
        let (to, port) = (ip(11, service), 1024 + number % 60_000);
        let written = writeln!(
            entries,
            "-A -p tcp -s {client} -d {to} -r {endpoint} -q {client} --sport {port} --dport 80 --reply-port-src 8080 \
             --reply-port-dst {port} --state ESTABLISHED -t 3600 -u SEEN_REPLY,ASSURED"
        );
        written.expect("it reads");
    }
    drop(entries);
    assert!(tool.wait().expect("it ends").success(), "conntrack -R");
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").expect("a count");
    println!("  {} flows made in {:.1} s", count.trim(), started.elapsed().as_secs_f64());
    let report = measure("dump --service, with these flows", &["dump", "--service", "ns/svc-77", "-o", "json"]);
    let report: Value = serde_json::from_slice(&report).unwrap_or_default();
    let endpoints = report["services"][0]["endpoints"].as_array().cloned().unwrap_or_default();
    let of_it: u64 = endpoints.iter().filter_map(|endpoint| endpoint["flows"]["ESTABLISHED"].as_u64()).sum();
    println!("  flows of ns/svc-77: {of_it} of {}", flows / services);
    run("conntrack", &["-F"]);
}
