//! Rulesets of whole nodes as other projects lay them out, loaded beside a kube-proxy's rules, and the packets to send through
//! them.
//!
//! Each is a folder of `golden/rulesets` with `about.yaml` ([`About`]) and any of `rules` (iptables-save format, loaded into
//! both families), `iptables`, `ip6tables`, `sets` (ipset save format) and `nft`. In all of them `{name}` stands for an address
//! of the family, as [`WORDS`] lists them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost};
use serde::Deserialize;

use crate::flavour::{Flavour, HINT};
use crate::probe::{Entry, Node, Transport};

/// The names of addresses, as IPv4 and IPv6.
pub const WORDS: [(&str, &str, &str); 19] = [
    ("node", "192.168.50.2", "fd00:50::2"),
    ("node2", "192.168.60.2", "fd00:60::2"),
    ("nodes", "192.168.50.0/24", "fd00:50::/64"),
    ("nodeb", "192.168.50.9", "fd00:50::9"),
    ("cluster", "10.244.0.0/16", "fd00:10:244::/48"),
    ("pods", "10.244.1.0/24", "fd00:10:244:1::/64"),
    ("gateway", "10.244.1.1", "fd00:10:244:1::1"),
    ("remotes", "10.244.2.0/24", "fd00:10:244:2::/64"),
    ("services", "10.96.0.0/12", "fd00:10:96::/112"),
    ("dnsip", "10.96.0.10", "fd00:10:96::a"),
    ("web", "10.244.1.11", "fd00:10:244:1::b"),
    ("local", "10.244.1.12", "fd00:10:244:1::c"),
    ("api", "10.244.1.13", "fd00:10:244:1::d"),
    ("dns", "10.244.1.14", "fd00:10:244:1::e"),
    ("pod", "10.244.1.30", "fd00:10:244:1::1e"),
    ("remote", "10.244.2.30", "fd00:10:244:2::1e"),
    ("remoteweb", "10.244.2.11", "fd00:10:244:2::b"),
    ("outside", "198.51.100.7", "2001:db8::7"),
    ("any", "0.0.0.0/0", "::/0"),
];

/// What a ruleset is made after, and what it needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct About {
    /// The project and version whose layout it has.
    pub from: String,
    /// The name of the interface to the pods.
    pub pods: Option<String>,
    /// The name of the interface to pods of other nodes; `None`: they use the node network.
    pub overlay: Option<String>,
    /// The name of another interface of the node, without an overlay.
    pub beside: Option<String>,
    /// Command lines that run on the node before the rules are loaded.
    pub before: Vec<String>,
    /// Command lines that run after that.
    pub after: Vec<String>,
    /// Reasons for which a verdict may be uncertain: parts of their texts.
    pub uncertain: Vec<String>,
    /// Whether rules keep state about packets, so that each connection is tried only once.
    pub remembers: bool,
}

/// A folder of `golden/rulesets`.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The folder's name.
    pub name: String,
    /// What it is made after.
    pub about: About,
    folder: PathBuf,
}

/// A kube-proxy's rules, which the others are loaded beside.
#[derive(Clone, Debug)]
pub struct Base {
    /// What iptables-save and ip6tables-save print, in this order; empty for a proxy in nftables mode.
    pub iptables: [String; 2],
    /// What nft prints of its tables.
    pub nft: String,
}

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The sender, as `--from` of the commands takes it.
    pub sender: &'static str,
    /// Where it enters the node.
    pub entry: Entry,
    /// Its address.
    pub from: IpAddr,
    /// The destination.
    pub to: SocketAddr,
    /// The protocol.
    pub transport: Transport,
}

/// The folder with all of them.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rulesets")
}

/// All of them, by name.
///
/// # Panics
/// If one cannot be read.
#[must_use]
pub fn all() -> Vec<Layout> {
    let mut all: Vec<Layout> = std::fs::read_dir(folder())
        .expect("golden/rulesets")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .map(|folder| {
            let text = std::fs::read_to_string(folder.join("about.yaml"));
            let text = text.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let about = serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Layout { name, about, folder }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

impl Layout {
    /// A file's text with the addresses of a family; `None` if there is no such file.
    fn text(&self, file: &str, family: IpFamily) -> Option<String> {
        let mut text = std::fs::read_to_string(self.folder.join(file)).ok()?;
        for (word, v4, v6) in WORDS {
            text = text.replace(&format!("{{{word}}}"), if family == IpFamily::V4 { v4 } else { v6 });
        }
        assert!(!text.contains("{ipv"), "{file} of {}", self.name);
        Some(text)
    }

    /// Whether it has rules of iptables, which then are tried in both flavours.
    #[must_use]
    pub fn has_iptables(&self) -> bool {
        ["rules", "iptables", "ip6tables"].iter().any(|file| self.folder.join(file).exists())
    }

    /// A node with these rules beside a kube-proxy's.
    ///
    /// # Errors
    /// What could not be loaded.
    ///
    /// # Panics
    /// If a node cannot be made.
    pub fn node(&self, base: &Base, flavour: Flavour) -> Result<Node, String> {
        let pods = self.about.pods.as_deref().unwrap_or("cbr0");
        let beside = self.about.overlay.as_deref().or(self.about.beside.as_deref()).unwrap_or("cbr01");
        let node = Node::with_links(["eth0", pods, "eth1", beside]);
        if let Some(overlay) = &self.about.overlay {
            for line in ["ip route add 10.244.2.0/24 dev", "ip -6 route add fd00:10:244:2::/64 dev"] {
                node.netns().run(&format!("{line} {overlay}"));
            }
        }
        // kube-proxy sets it in iptables mode when it starts.
        node.netns().run("sysctl -q -w net.ipv4.conf.all.route_localnet=1");
        self.about.before.iter().for_each(|line| _ = node.netns().run(line));
        node.netns().enter(|| {
            for counter in [proxier::iptables::INVALID_DROPPED_COUNTER, proxier::iptables::LOCALHOST_NODE_PORTS_COUNTER]
            {
                SystemHost.ensure_counter(counter).expect("nfacct");
            }
        });
        let load = |program: &str, arguments: &[&str], text: &str| {
            node.feed(program, arguments, text).map_err(|e| format!("{} ({flavour}): {e}", self.name))
        };
        // Nodes of several tests must not wait for each other.
        let lock = format!("XTABLES_LOCKFILE=/tmp/rulesets-{}-{flavour}-{}.lock", self.name, std::process::id());
        let restore = |family: IpFamily, text: &str| {
            load("env", &[&lock, &format!("{}-{flavour}-restore", family.iptables()), "--noflush"], text)
        };
        if let Some(sets) = self.text("sets", IpFamily::V4) {
            load("ipset", &["restore"], &sets)?;
        }
        for (family, text) in IpFamily::ALL.into_iter().zip(&base.iptables) {
            restore(family, &format!("*mangle\n:{HINT} - [0:0]\nCOMMIT\n{text}"))?;
            for file in ["rules", if family == IpFamily::V4 { "iptables" } else { "ip6tables" }] {
                if let Some(text) = self.text(file, family) {
                    restore(family, &text)?;
                }
            }
        }
        if !base.nft.is_empty() {
            load("nft", &["-f", "-"], &base.nft)?;
        }
        if let Some(text) = self.text("nft", IpFamily::V4) {
            load("nft", &["-f", "-"], &text)?;
        }
        self.about.after.iter().for_each(|line| _ = node.netns().run(line));
        let _ = std::fs::remove_file(lock.trim_start_matches("XTABLES_LOCKFILE="));
        Ok(node)
    }

    /// From every kind of sender to every kind of address.
    #[must_use]
    pub fn questions(&self, node: &Node, family: IpFamily) -> Vec<Question> {
        let word = |name: &str| -> IpAddr {
            let (_, v4, v6) = WORDS.iter().find(|(word, ..)| *word == name).expect("a word");
            (if family == IpFamily::V4 { v4 } else { v6 }).parse().expect("an address")
        };
        let remote = if self.about.overlay.is_some() { Entry::Beside } else { Entry::Network };
        let senders = [
            ("pod", Entry::Pods),
            ("api", Entry::Pods),
            ("outside", Entry::Network),
            ("nodeb", Entry::Network),
            ("remote", remote),
        ];
        let mut all = Vec::new();
        for (to, transport) in destinations(family) {
            let from_elsewhere = senders.iter().filter(|_| !to.ip().is_loopback());
            all.extend(from_elsewhere.map(|(sender, entry)| {
                let from = word(sender);
                Question { sender, entry: *entry, from, to, transport }
            }));
            if let Some(from) = node.netns().enter(|| own_address(to)) {
                all.push(Question { sender: "host", entry: Entry::Host, from, to, transport });
            }
        }
        all
    }
}

/// The address that the node itself would send from.
fn own_address(to: SocketAddr) -> Option<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// One destination of each kind.
fn destinations(family: IpFamily) -> Vec<(SocketAddr, Transport)> {
    let texts: &[&str] = match family {
        IpFamily::V4 => &[
            "10.96.1.1:80",       // cluster IP with endpoints on both nodes
            "10.96.1.4:80",       // of a Service with policy Local
            "10.96.1.3:80",       // with one endpoint, on this node
            "10.96.1.2:80",       // without endpoints
            "10.96.0.10:53",      // cluster DNS
            "10.96.0.1:443",      // the API server
            "10.96.1.1:81",       // a port that the Service has not
            "192.168.50.2:30080", // node ports
            "192.168.50.2:30081", // policy Local
            "192.168.60.2:30080", // at the second address
            "127.0.0.1:30080",    // at loopback
            "192.168.50.2:32081", // health checks
            "203.0.113.5:80",     // load balancer
            "203.0.113.6:80",     // policy Local
            "203.0.113.80:80",    // external IP
            "10.244.1.13:8081",   // endpoints directly
            "10.244.2.11:8080",
            "192.168.50.2:22", // the node
            "192.168.50.2:10250",
            "198.51.100.9:443", // the world
        ],
        IpFamily::V6 => &[
            "[fd00:10:96::101]:80",
            "[fd00:10:96::104]:80",
            "[fd00:10:96::103]:80",
            "[fd00:10:96::102]:80",
            "[fd00:10:96::a]:53",
            "[fd00:50::2]:30080",
            "[fd00:50::2]:30081",
            "[fd00:50::2]:32081",
            "[2001:db8:113::5]:80",
            "[2001:db8:113::6]:80",
            "[2001:db8:113::80]:80",
            "[fd00:10:244:1::d]:8081",
            "[fd00:10:244:2::b]:8080",
            "[fd00:50::2]:22",
            "[2001:db8::9]:443",
        ],
    };
    let all = texts.iter().map(|text| text.parse::<SocketAddr>().expect("an address"));
    all.map(|to| (to, if to.port() == 53 { Transport::Udp } else { Transport::Tcp })).collect()
}
