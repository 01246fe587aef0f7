//! Outages that are provoked, in iptables and in nftables mode: the first five lines of `diagnose` name the cause and the next
//! step.

use golden::case::Mode;
use golden::flavour::Flavour;
use golden::rulesets::{self, Base, Layout};

use super::base;

/// An outage: the ruleset, the breakage, the arguments of `diagnose`, the cause, and words of its first five lines.
struct Outage {
    ruleset: &'static str,
    broken_by: &'static [&'static str],
    in_nftables: InNftables,
    asked: &'static str,
    cause: &'static str,
    words: &'static [&'static str],
}

/// How an outage is provoked in nftables mode.
#[derive(Clone, Copy)]
enum InNftables {
    /// As in iptables mode.
    Alike,
    /// By other commands, and with other words.
    By(&'static [&'static str], &'static [&'static str]),
    /// It cannot occur.
    Never,
}

const OUTAGES: [Outage; 15] = [
    Outage {
        ruleset: "gke-ip-masq-agent",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "default/empty",
        cause: "no-endpoints",
        words: &["default/empty", "kubectl"],
    },
    Outage {
        ruleset: "ufw",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "10.96.1.3:80 --from 10.244.1.30",
        cause: "refused-by-others",
        words: &["policy", "FORWARD"],
    },
    Outage {
        ruleset: "calico",
        broken_by: &["ipset del cali40s:clients 198.51.100.7"],
        in_nftables: InNftables::Alike,
        asked: "192.168.50.2:30081 --from outside",
        cause: "refused-by-others",
        words: &["Calico", "cali-tw-cali12d4a0f7e11"],
    },
    Outage {
        ruleset: "portmap",
        broken_by: &["iptables-nft -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"],
        // Of chains with one priority the kernel runs the newest first, and kube-proxy's table is newer here.
        in_nftables: InNftables::Never,
        asked: "192.168.50.2:30081 --from outside",
        cause: "diverted-by-others",
        words: &["CNI plugins", "10.244.1.30:9101", "hostPort"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["sysctl -q -w net.ipv4.conf.all.route_localnet=0"],
        // nftables mode serves no node ports on 127.0.0.1.
        in_nftables: InNftables::Never,
        asked: "127.0.0.1:30080 --from host",
        cause: "route-localnet-off",
        words: &["sysctl -w net.ipv4.conf.all.route_localnet=1"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["ip route add blackhole 10.244.1.13"],
        in_nftables: InNftables::Alike,
        asked: "10.96.1.3:80 --from 10.244.1.30",
        cause: "no-route",
        words: &["blackhole", "ip route get 10.244.1.13"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["ip route add unreachable 10.244.1.13"],
        in_nftables: InNftables::Alike,
        asked: "10.96.1.3:80 --from host",
        cause: "no-route",
        words: &["unreachable", "ip route get 10.244.1.13"],
    },
    Outage {
        ruleset: "tailscale",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "10.96.1.1:81 --from host",
        cause: "no-such-port",
        words: &["default/web", "80"],
    },
    Outage {
        ruleset: "metallb",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "192.168.50.2:32081 --from outside",
        cause: "health-check-unserved",
        words: &["health check", "kube-proxy"],
    },
    Outage {
        ruleset: "dns-notrack",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "10.96.0.10:53/udp --from 10.244.1.30",
        cause: "not-translated",
        words: &["connection tracking off"],
    },
    Outage {
        ruleset: "nodelocaldns",
        broken_by: &[],
        in_nftables: InNftables::Alike,
        asked: "10.96.0.10:53/udp --from 10.244.1.30",
        cause: "not-translated",
        words: &["no process listens", "NodeLocal DNS"],
    },
    Outage {
        ruleset: "aws-vpc-cni",
        broken_by: &["sysctl -q -w net.ipv4.conf.eth1.rp_filter=1"],
        in_nftables: InNftables::Alike,
        asked: "192.168.50.2:30080 --from outside --in-interface eth1",
        cause: "reverse-path-filter",
        words: &["rp_filter", "eth1"],
    },
    Outage {
        ruleset: "lxd",
        broken_by: &["ip link set lxdbr0 down"],
        in_nftables: InNftables::Alike,
        asked: "10.96.1.3:80 --from host",
        cause: "link-down",
        words: &["lxdbr0", "ip link set"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["sysctl -q -w net.ipv4.ip_forward=0"],
        in_nftables: InNftables::Alike,
        asked: "192.168.50.2:30080 --from outside",
        cause: "ip-forward-off",
        words: &["net.ipv4.ip_forward", "sysctl -w"],
    },
    Outage {
        ruleset: "gke-ip-masq-agent",
        broken_by: &["iptables-nft -t nat -F KUBE-SERVICES"],
        in_nftables: InNftables::By(
            &["nft flush map ip kube-proxy service-ips", "nft flush map ip kube-proxy service-nodeports"],
            &["service-ips", "find out what emptied it"],
        ),
        asked: "default/web",
        cause: "rules-altered",
        words: &["KUBE-SERVICES", "find out what emptied it"],
    },
];

impl Outage {
    /// What provokes it in a mode, and words of the five lines; `None` if it cannot occur.
    fn in_mode(&self, mode: Mode) -> Option<(&'static [&'static str], &'static [&'static str])> {
        match (mode, self.in_nftables) {
            (Mode::Nftables, InNftables::Never) => None,
            (Mode::Nftables, InNftables::By(commands, words)) => Some((commands, words)),
            _ => Some((self.broken_by, self.words)),
        }
    }

    /// Provokes it; returns what `diagnose` prints where that is wrong.
    fn provoke(&self, mode: Mode, rules: &Base, layouts: &[Layout]) -> Option<String> {
        let Self { ruleset, asked, cause, .. } = self;
        let (commands, words) = self.in_mode(mode)?;
        let layout = layouts.iter().find(|layout| layout.name == *ruleset).expect("a ruleset");
        let node = layout.node(rules, Flavour::Nft).expect("its rules");
        commands.iter().for_each(|line| _ = node.netns().run(line));
        let output = node
            .netns()
            .command(env!("CARGO_BIN_EXE_kube-proxy"))
            .arg("diagnose")
            .args(asked.split(' '))
            .args(["--config".as_ref(), base::config(mode).as_os_str()])
            .args(["--objects".as_ref(), base::objects().as_os_str()])
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = text.lines().take(5).collect::<Vec<_>>().join("\n");
        let title = text.lines().nth(1).unwrap_or_default();
        let flat = first.split_whitespace().collect::<Vec<_>>().join(" ");
        let named = title.starts_with(&format!("CAUSE {cause}:")) || title.starts_with(&format!("SUSPECT {cause}:"));
        let complete = flat.contains("Next: ") && words.iter().all(|word| flat.contains(word));
        let is_right = named && complete && !output.status.success();
        (!is_right)
            .then(|| format!("{mode}: {ruleset}, {commands:?}, diagnose {asked}: expected {cause}, {words:?}:\n{text}"))
    }
}

#[test]
fn the_first_five_lines_name_the_cause_of_an_outage_and_the_next_step() {
    let layouts = rulesets::all();
    let mut wrong = Vec::new();
    for (mode, rules) in [Mode::Iptables, Mode::Nftables].into_iter().zip(base::both()) {
        wrong.extend(OUTAGES.iter().filter_map(|outage| outage.provoke(mode, &rules, &layouts)));
    }
    assert!(wrong.is_empty(), "{} of {} in two modes:\n{}", wrong.len(), OUTAGES.len(), wrong.join("\n"));
}
