//! The rules of our own proxy for the objects of `golden/rulesets`, in iptables and in nftables mode.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use golden::case::Mode;
use golden::probe::Node;
use golden::proxy::{self, Proxy};
use golden::rulesets::{self, Base};

const LIMIT: Duration = Duration::from_secs(20);

/// The objects.
pub fn objects() -> PathBuf {
    rulesets::folder().join("objects.yaml")
}

/// The configuration file for a mode, in the folder for temporary files: [`both`] writes it.
pub fn config(mode: Mode) -> PathBuf {
    std::env::temp_dir().join(format!("rulesets-{}-{mode}.yaml", std::process::id()))
}

/// The rules of iptables mode, and those of nftables mode.
pub fn both() -> [Base; 2] {
    let node = started(Mode::Iptables, "iptables-nft-save", "10.96.1.1/32");
    let iptables = ["iptables-nft-save", "ip6tables-nft-save"].map(|tool| {
        let text = node.netns().run(tool);
        assert!(text.contains("KUBE-SEP-"), "{text}");
        text
    });
    let node = started(Mode::Nftables, "nft list ruleset", "10.96.1.1");
    let nft = ["ip", "ip6"].map(|family| node.netns().run(&format!("nft list table {family} kube-proxy"))).concat();
    [Base { iptables, nft: String::new() }, Base { iptables: [String::new(), String::new()], nft }]
}

/// A node on which a proxy of that mode was until its rules were there in both families.
fn started(mode: Mode, tool: &str, sign: &str) -> Node {
    let node = Node::new();
    let folder = std::env::temp_dir().join(format!("rulesets-{}-{mode}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (config, objects) = (config(mode), objects());
    let settings = proxy::config(mode, "clusterCIDR: 10.244.0.0/16,fd00:10:244::/48\n");
    std::fs::write(&config, settings.to_string()).expect("a configuration");
    let arguments = ["--config", &config.to_string_lossy(), "--objects", &objects.to_string_lossy()];
    let binary = env!("CARGO_BIN_EXE_kube-proxy").as_ref();
    let lock = [("XTABLES_LOCKFILE", folder.join("lock"))];
    let proxy = Proxy::start_with(node.netns(), binary, &arguments, &folder, &lock);
    let started = Instant::now();
    let is_there = || {
        let v6 = if tool == "iptables-nft-save" { "ip6tables-nft-save" } else { tool };
        proxy::healthy(node.netns())
            && node.netns().run(tool).contains(sign)
            && node.netns().run(v6).contains("fd00:10:96::101")
    };
    while !is_there() {
        assert!(started.elapsed() < LIMIT, "no rules of mode {mode}: {}", proxy.log_tail(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    proxy.stop().expect("it stops");
    let _ = std::fs::remove_dir_all(folder);
    node
}
