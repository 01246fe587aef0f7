//! Outages that are provoked: the first five lines of `diagnose` name the cause and the next step.

use golden::case::Mode;
use golden::flavour::Flavour;
use golden::rulesets;

use super::base;

/// An outage: the ruleset, the breakage, the arguments of `diagnose`, the cause, and words of its first five lines.
struct Outage {
    ruleset: &'static str,
    broken_by: &'static [&'static str],
    asked: &'static str,
    cause: &'static str,
    words: &'static [&'static str],
}

const OUTAGES: [Outage; 15] = [
    Outage {
        ruleset: "gke-ip-masq-agent",
        broken_by: &[],
        asked: "default/empty",
        cause: "no-endpoints",
        words: &["default/empty", "kubectl"],
    },
    Outage {
        ruleset: "ufw",
        broken_by: &[],
        asked: "10.96.1.3:80 --from 10.244.1.30",
        cause: "refused-by-others",
        words: &["policy", "FORWARD"],
    },
    Outage {
        ruleset: "calico",
        broken_by: &["ipset del cali40s:clients 198.51.100.7"],
        asked: "192.168.50.2:30081 --from outside",
        cause: "refused-by-others",
        words: &["Calico", "cali-tw-cali12d4a0f7e11"],
    },
    Outage {
        ruleset: "portmap",
        broken_by: &["iptables-nft -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"],
        asked: "192.168.50.2:30081 --from outside",
        cause: "diverted-by-others",
        words: &["CNI plugins", "10.244.1.30:9101", "hostPort"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["sysctl -q -w net.ipv4.conf.all.route_localnet=0"],
        asked: "127.0.0.1:30080 --from host",
        cause: "route-localnet-off",
        words: &["sysctl -w net.ipv4.conf.all.route_localnet=1"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["ip route add blackhole 10.244.1.13"],
        asked: "10.96.1.3:80 --from 10.244.1.30",
        cause: "no-route",
        words: &["blackhole", "ip route get 10.244.1.13"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["ip route add unreachable 10.244.1.13"],
        asked: "10.96.1.3:80 --from host",
        cause: "no-route",
        words: &["unreachable", "ip route get 10.244.1.13"],
    },
    Outage {
        ruleset: "tailscale",
        broken_by: &[],
        asked: "10.96.1.1:81 --from host",
        cause: "no-such-port",
        words: &["default/web", "80"],
    },
    Outage {
        ruleset: "metallb",
        broken_by: &[],
        asked: "192.168.50.2:32081 --from outside",
        cause: "health-check-unserved",
        words: &["health check", "kube-proxy"],
    },
    Outage {
        ruleset: "dns-notrack",
        broken_by: &[],
        asked: "10.96.0.10:53/udp --from 10.244.1.30",
        cause: "not-translated",
        words: &["connection tracking off"],
    },
    Outage {
        ruleset: "nodelocaldns",
        broken_by: &[],
        asked: "10.96.0.10:53/udp --from 10.244.1.30",
        cause: "not-translated",
        words: &["no process listens", "NodeLocal DNS"],
    },
    Outage {
        ruleset: "aws-vpc-cni",
        broken_by: &["sysctl -q -w net.ipv4.conf.eth1.rp_filter=1"],
        asked: "192.168.50.2:30080 --from outside --in-interface eth1",
        cause: "reverse-path-filter",
        words: &["rp_filter", "eth1"],
    },
    Outage {
        ruleset: "lxd",
        broken_by: &["ip link set lxdbr0 down"],
        asked: "10.96.1.3:80 --from host",
        cause: "link-down",
        words: &["lxdbr0", "ip link set"],
    },
    Outage {
        ruleset: "flannel",
        broken_by: &["sysctl -q -w net.ipv4.ip_forward=0"],
        asked: "192.168.50.2:30080 --from outside",
        cause: "ip-forward-off",
        words: &["net.ipv4.ip_forward", "sysctl -w"],
    },
    Outage {
        ruleset: "gke-ip-masq-agent",
        broken_by: &["iptables-nft -t nat -F KUBE-SERVICES"],
        asked: "default/web",
        cause: "rules-altered",
        words: &["KUBE-SERVICES", "find out what emptied it"],
    },
];

#[test]
fn the_first_five_lines_name_the_cause_of_an_outage_and_the_next_step() {
    let [iptables, _] = base::both();
    let layouts = rulesets::all();
    let mut wrong = Vec::new();
    for Outage { ruleset, broken_by, asked, cause, words } in OUTAGES {
        let layout = layouts.iter().find(|layout| layout.name == ruleset).expect("a ruleset");
        let node = layout.node(&iptables, Flavour::Nft).expect("its rules");
        broken_by.iter().for_each(|line| _ = node.netns().run(line));
        let output = node
            .netns()
            .command(env!("CARGO_BIN_EXE_kube-proxy"))
            .arg("diagnose")
            .args(asked.split(' '))
            .args(["--config".as_ref(), base::config(Mode::Iptables).as_os_str()])
            .args(["--objects".as_ref(), base::objects().as_os_str()])
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = text.lines().take(5).collect::<Vec<_>>().join("\n");
        let title = text.lines().nth(1).unwrap_or_default();
        let flat = first.split_whitespace().collect::<Vec<_>>().join(" ");
        let named = title.starts_with(&format!("CAUSE {cause}:")) || title.starts_with(&format!("SUSPECT {cause}:"));
        let complete = flat.contains("Next: ") && words.iter().all(|word| flat.contains(word));
        if !named || !complete || output.status.success() {
            wrong.push(format!("{ruleset}, {broken_by:?}, diagnose {asked}: expected {cause}, {words:?}:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), OUTAGES.len(), wrong.join("\n"));
}
