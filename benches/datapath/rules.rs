//! The rules that are compared.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use golden::netns::Netns;
use netfilter::IpFamily;
use netfilter::kernel::{Flavour, FlavourChoice, SystemIptables, SystemNftables};
use netfilter::testing::FakeHost;
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::model::{Config, LocalDetector, Scope};
use proxier::nftables::Nftables;
use proxier::testing::objects;
use proxier::track::{Kind, Tracker, Translator};
use serde_json::{Value, json};

use crate::ENDPOINTS;

/// A ruleset on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruleset {
    /// No rules: connections are not even tracked.
    Forwarding,
    /// Conntrack, and nothing else.
    Conntrack,
    /// One rule that translates one address.
    StaticDnat,
    /// Our nftables mode.
    Nftables,
    /// A table in the shape of upstream's nftables mode.
    UpstreamNftables,
    /// iptables mode, legacy flavour.
    IptablesLegacy,
    /// iptables mode, nf_tables flavour.
    IptablesNft,
    /// Our nftables mode, changed by an nft script.
    Changed(PathBuf),
}

impl Ruleset {
    /// What any Service costs at least.
    pub const FLOOR: [Self; 3] = [Self::Forwarding, Self::Conntrack, Self::StaticDnat];
    /// Those with Services.
    pub const MODES: [Self; 4] = [Self::Nftables, Self::UpstreamNftables, Self::IptablesLegacy, Self::IptablesNft];

    /// A name for the table.
    pub fn label(&self) -> &str {
        match self {
            Self::Forwarding => "forwarding, no rules",
            Self::Conntrack => "conntrack alone",
            Self::StaticDnat => "one static DNAT rule",
            Self::Nftables => "nftables mode",
            Self::UpstreamNftables => "nftables mode, upstream's shape",
            Self::IptablesLegacy => "iptables mode, legacy",
            Self::IptablesNft => "iptables mode, nf_tables",
            Self::Changed(script) => script.to_str().unwrap_or("nftables mode, changed"),
        }
    }

    /// Loads the rules for so many Services.
    pub fn load(&self, node: &Netns, services: u32) {
        match self {
            Self::Forwarding => {}
            Self::Conntrack => nft(
                node,
                "table ip bench { chain forward { type filter hook forward priority 0; ct state invalid drop; }; }",
            ),
            Self::StaticDnat => nft(
                node,
                &format!(
                    "table ip bench {{ chain prerouting {{ type nat hook prerouting priority -100; ip daddr {} tcp dport 80 dnat to {}:8080; }}; }}",
                    cluster_ip(0),
                    endpoint(0, 0)
                ),
            ),
            Self::UpstreamNftables => nft(node, &upstream(services)),
            Self::Nftables => node.enter(|| {
                let kernel = Box::new(SystemNftables::default());
                sync(Nftables::new(IpFamily::V4, config(), kernel, host()), services);
            }),
            Self::IptablesLegacy => iptables(node, Flavour::Legacy, "-legacy", services),
            Self::IptablesNft => iptables(node, Flavour::Nft, "-nft", services),
            Self::Changed(script) => {
                Self::Nftables.load(node, services);
                nft(node, &std::fs::read_to_string(script).expect("CHANGES names nft scripts"));
            }
        }
    }
}

/// Senders are in the cluster's network, so that nothing is masqueraded.
fn config() -> Config {
    let cluster = vec!["10.200.0.0/16".parse().expect("a network")];
    Config { local_detector: LocalDetector::ClusterCidr(cluster), ..objects::config() }
}

fn host() -> Box<FakeHost> {
    Box::new(FakeHost::default())
}

fn iptables(node: &Netns, flavour: Flavour, infix: &'static str, services: u32) {
    node.enter(|| {
        let choice = FlavourChoice { flavour: Some(flavour), infix, reason: String::new(), unread: Vec::new() };
        let tool = SystemIptables::find(IpFamily::V4, &choice).expect("iptables works here");
        sync(Iptables::new(IpFamily::V4, config(), Box::new(tool), host()), services);
    });
}

/// The address of a Service.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number)
}

/// The network of all cluster IPs, which upstream's table has, too.
fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": ["10.96.0.0/12"] },
    })
}

fn endpoint(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 112, 0, 0).to_bits() + service * ENDPOINTS + number)
}

/// Programs the Services by a mode's backend.
fn sync(mut backend: impl Backend, services: u32) {
    let mut translator = Translator::new(objects::NODE, false);
    let mut tracker = Tracker::default();
    let mut take = |kind: Kind, object: Value| {
        let changes = translator.applied(objects::decoded(kind, object)).expect("a good object").changes;
        for (_, change) in changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            tracker.apply(change);
        }
    };
    take(Kind::ServiceCidr, service_cidr());
    for number in 0..services {
        let name = format!("svc-{number:05}");
        take(Kind::Service, objects::service("bench", &name, cluster_ip(number).into()));
        let endpoints: Vec<_> = (0..ENDPOINTS).map(|n| endpoint(number, n).into()).collect();
        take(Kind::EndpointSlice, objects::slice("bench", &name, &name, &endpoints));
    }
    let snapshot = tracker.snapshot(IpFamily::V4.localhost());
    backend.sync(&snapshot, &Scope::Full, Instant::now()).expect("a sync");
}

/// Runs `nft -f -` on the node.
pub fn nft(node: &Netns, text: &str) {
    let mut child = node.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success(), "nft refuses the rules");
}

/// The fixed chains of upstream's table.
const UPSTREAM: &str = include_str!("upstream.nft");

/// A table as upstream writes it: a chain with an anonymous map for each Service.
fn upstream(services: u32) -> String {
    let mut chains = UPSTREAM.to_owned();
    let (mut cluster_ips, mut verdicts) = (Vec::new(), Vec::new());
    for number in 0..services {
        let ip = cluster_ip(number);
        let chain = format!("service-{number:08}-bench/svc-{number:05}/tcp/http");
        let endpoints: Vec<String> = (0..ENDPOINTS).map(|n| format!("{n} : {} . 8080", endpoint(number, n))).collect();
        let map = format!("numgen random mod {ENDPOINTS} map {{ {} }}", endpoints.join(", "));
        let _ = writeln!(
            chains,
            "add chain ip kube-proxy {chain}\nadd rule ip kube-proxy {chain} meta l4proto tcp dnat ip to {map}"
        );
        cluster_ips.push(ip.to_string());
        verdicts.push(format!("{ip} . tcp . 80 : goto {chain}"));
    }
    for (set, elements) in [("cluster-ips", cluster_ips), ("service-ips", verdicts)] {
        for part in elements.chunks(1000) {
            let _ = writeln!(chains, "add element ip kube-proxy {set} {{ {} }}", part.join(", "));
        }
    }
    chains
}
