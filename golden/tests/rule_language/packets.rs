//! Generated rules against the kernel: which of them count a packet, and which the walk says it meets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use golden::flavour::Flavour;
use golden::netns::{Netns, veth};
use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost, SystemIpSets, node};
use proxier::model::Protocol;
use proxier_inspect::rules::Ruleset;
use proxier_inspect::walk::{Branch, ConnState, Node, Origin, Packet, RecentLists, Trace};

/// A sender, a node that forwards, and a destination.
struct Machine {
    node: Netns,
    pod: Netns,
    _out: Netns,
    flavour: Flavour,
    lock: std::path::PathBuf,
}

const POD: [&str; 2] = ["10.9.1.2", "fd00:9:1::2"];
const OUT: [&str; 2] = ["10.9.2.2", "fd00:9:2::2"];

fn of(family: IpFamily, both: [&str; 2]) -> IpAddr {
    both[usize::from(family == IpFamily::V6)].parse().unwrap()
}

impl Machine {
    fn new(flavour: Flavour) -> Self {
        let (node, pod, out) = (Netns::new(), Netns::new(), Netns::new());
        for (other, name, net) in [(&pod, "pod0", 1), (&out, "out0", 2)] {
            veth(&node, name, other, "eth0");
            for (netns, device, host) in [(&node, name, 1), (other, "eth0", 2)] {
                netns.run(&format!("ip addr add 10.9.{net}.{host}/24 dev {device}"));
                netns.run(&format!("ip addr add fd00:9:{net}::{host}/64 dev {device} nodad"));
            }
            other.run(&format!("ip route add default via 10.9.{net}.1"));
            other.run(&format!("ip -6 route add default via fd00:9:{net}::1"));
        }
        node.run("ip link set pod0 group 7");
        node.enter(|| {
            for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                SystemHost.set_sysctl(name, 1).unwrap();
            }
        });
        let lock = std::env::temp_dir().join(format!("rule-language-{}-{flavour}.lock", std::process::id()));
        let machine = Self { node, pod, _out: out, flavour, lock };
        machine.feed("ipset", &["restore"], SETS);
        machine
    }

    fn feed(&self, program: &str, arguments: &[&str], text: &str) {
        let mut tool = self.node.command(program);
        tool.args(arguments).env("XTABLES_LOCKFILE", &self.lock).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut tool = tool.spawn().unwrap();
        tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = tool.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whether this kernel and tool take a condition.
    fn takes(&self, family: IpFamily, condition: &str) -> bool {
        let program = format!("{}-{}-restore", family.iptables(), self.flavour);
        let mut tool = self.node.command(&program);
        tool.arg("--noflush").env("XTABLES_LOCKFILE", &self.lock).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut tool = tool.spawn().unwrap();
        // Some conditions are for certain hooks only.
        let text =
            format!("*mangle\n:TRIAL - [0:0]\n-F PREROUTING\n-A TRIAL {condition}\n-A PREROUTING -j TRIAL\nCOMMIT\n");
        tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        tool.wait().unwrap().success()
    }

    fn rules(&self, family: IpFamily) -> Ruleset {
        self.flavour.ruleset(&self.node, family)
    }

    fn as_met(&self, family: IpFamily) -> Node {
        self.node.enter(|| {
            let mut addresses = SystemHost.addresses(family).unwrap();
            addresses.retain(|ip| !ip.is_loopback());
            let interfaces = node::interfaces().unwrap();
            let groups = node::groups(&interfaces);
            assert_eq!(groups.get("pod0"), Some(&7), "{groups:?}");
            Node { addresses, routes: node::routes(family), groups, interfaces, ..Node::default() }
        })
    }

    /// The trace, with what the kernel's sets say.
    fn trace(&self, rules: &Ruleset, packet: &Packet, node: &mut Node) -> Trace {
        let first = rules.trace(packet, node, &RecentLists::new()).unwrap();
        self.node.enter(|| {
            let mut sets = SystemIpSets::open().unwrap();
            for query in &first.queries {
                node.answers.insert(query.clone(), sets.test(query).map_err(|error| error.to_string()));
            }
        });
        rules.trace(packet, node, &RecentLists::new()).unwrap()
    }

    /// Sends the first packet of a connection as a program does.
    fn send(&self, packet: &Packet) {
        let from = if packet.origin == Origin::Host { &self.node } else { &self.pod };
        let (source, to) = (packet.source, packet.destination);
        from.enter(|| {
            if packet.protocol == Protocol::Udp {
                UdpSocket::bind(source).unwrap().send_to(&[0; 8], to).unwrap();
                return;
            }
            let kind = socket2::Type::STREAM;
            let socket = socket2::Socket::new(socket2::Domain::for_address(to), kind, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&source.into()).unwrap();
            // No process listens there: the answer is a reset, or nothing.
            assert!(socket.connect_timeout(&to.into(), Duration::from_millis(300)).is_err());
            drop(TcpStream::from(socket));
        });
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.lock);
    }
}

const SETS: &str = "create net hash:net\nadd net 10.9.1.0/28\nadd net 10.9.1.2 nomatch\ncreate net6 hash:net family inet6\n\
    add net6 fd00:9:1::/64\ncreate ports bitmap:port range 0-1024\nadd ports 80\ncreate ip hash:ip\nadd ip 10.9.2.2\n\
    create iface hash:net,iface\nadd iface 10.9.0.0/16,pod0\ncreate all list:set\nadd all net\nadd all ip\n\
    create place hash:ip,port\nadd place 10.9.2.2,tcp:80\n";

/// Conditions of both families; `{from}` and `{to}` are the machine's addresses.
const CONDITIONS: &[&str] = &[
    "! -s {from}",
    "-s {from}",
    "-d {to}",
    "! -d {to}",
    "-i pod0",
    "-i po+",
    "! -i pod+",
    "-i lo",
    "-p tcp",
    "! -p udp",
    "-p 17",
    "! -p 47",
    "-p tcp -m tcp --dport 80",
    "-p tcp -m tcp ! --dport 1:79",
    "-p tcp -m tcp --sport 30000:",
    "-p udp -m udp --dport 53:80",
    "-p tcp -m tcp --tcp-flags SYN,ACK SYN",
    "-p tcp -m tcp ! --syn",
    "-p tcp -m tcp --tcp-flags ALL NONE",
    "-p tcp -m tcp --tcp-option 2",
    "-p tcp -m multiport --dports 22,80,443",
    "-p udp -m multiport ! --ports 53,8000:9000",
    "-m iprange --src-range {from}-{from}",
    "-m iprange ! --dst-range {from}-{from}",
    "-m addrtype --src-type UNICAST",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL",
    "-m addrtype --dst-type MULTICAST",
    "-m conntrack --ctstate NEW",
    "-m conntrack ! --ctstate RELATED,ESTABLISHED",
    "-m conntrack --ctstate INVALID,UNTRACKED",
    "-m conntrack --ctstate DNAT",
    "-m conntrack --ctorigdst {to}",
    "-m conntrack ! --ctorigsrc {from}",
    "-m conntrack --ctreplsrc {to}",
    "-m conntrack --ctproto 6",
    "-m conntrack --ctdir REPLY",
    "-m conntrack --ctstatus CONFIRMED",
    "-m conntrack --ctorigdstport 80",
    "-m state --state NEW",
    "-m state ! --state ESTABLISHED",
    "-m mark --mark 0x0/0x1",
    "-m mark ! --mark 0x5",
    "-m connmark --mark 0x0",
    "-m connmark ! --mark 0x1/0xff",
    "-m tos --tos 0x00/0x3f",
    "-m dscp ! --dscp 0x00",
    "-m length --length 0:39",
    "-m length --length 20:65535",
    "-p tcp -m length --length 40:100",
    "-m owner --uid-owner 0",
    "-m owner ! --uid-owner 1000",
    "-m owner --socket-exists",
    "-m pkttype --pkt-type unicast",
    "-m pkttype ! --pkt-type multicast",
    "-m policy --dir in --pol none",
    "-m policy --dir in --pol ipsec",
    "-m physdev --physdev-is-in",
    "-m physdev ! --physdev-is-bridged",
    "-m rpfilter",
    "-m rpfilter --invert",
    "-m devgroup --src-group 0x7",
    "-m devgroup ! --src-group 0x7/0x3",
    "-m recent --rcheck --name empty",
    "-m recent --set --name mine",
    "-m recent --rcheck --name mine",
    "-m recent --update --seconds 60 --name mine",
    "-m recent ! --rcheck --seconds 60 --hitcount 50 --name mine",
    "-m recent --remove --name mine",
    "-m helper --helper ftp",
    "-m connbytes --connbytes 100000: --connbytes-dir both --connbytes-mode bytes",
    "-m connlimit --connlimit-above 1000",
    "-m connlimit --connlimit-upto 1000",
    "-m limit --limit 1000/sec",
    "-m quota --quota 100000000",
    "-p sctp -m sctp --dport 80",
    "-p esp -m esp --espspi 1",
    "-m statistic --mode random --probability 0.0",
    "-m statistic ! --mode random --probability 0.0",
    "-m comment --comment \"-j DROP\" -m comment --comment \"quoted \\\"x\\\"\"",
    "-m ipvs ! --ipvs",
    "-p tcp -m ecn ! --ecn-tcp-ece",
    "-m ecn --ecn-ip-ect 0",
    "-p tcp -m tcpmss --mss 1:65535",
    "-m socket",
    "-m mark --mark 0x3 -m mark --mark 0x4",
    "-m set --match-set ports dst",
    "-m set ! --match-set ports src",
];
const OF_IPV4: &[&str] = &[
    "-s 10.0.1.0/255.0.255.0",
    "-d 10.9.2.3/255.255.255.254",
    "-f",
    "-m ttl --ttl-gt 0",
    "-m realm --realm 0x0",
    "-p icmp -m icmp --icmp-type 8",
    "-m set --match-set net src",
    "-m set ! --match-set net dst",
    "-m set --match-set ip dst",
    "-m set --match-set iface src,src",
    "-m set --match-set all dst",
    "-m set --match-set all src",
    "-m set --match-set place dst,dst",
    "-m set --match-set net6 src",
    "-m addrtype --dst-type BROADCAST",
];
const OF_IPV6: &[&str] = &[
    "-m hl --hl-gt 0",
    "-p ipv6-icmp -m icmp6 --icmpv6-type 128",
    "-m frag --fragid 0:4294967295",
    "-m dst --dst-len 8",
    "-m hbh",
    "-m rt --rt-type 0",
    "-m ipv6header --header frag --soft",
    "-m set --match-set net6 src",
    "-m set --match-set net src",
];
/// What rules do: nothing that ends the chain.
const TARGETS: &[&str] = &[
    "-j MARK --set-xmark 0x0/0x0",
    "-j MARK --set-xmark 0x4/0xf",
    "-j MARK --or-mark 0x8",
    "-j MARK --and-mark 0x3",
    "-j MARK --xor-mark 0x5",
    "-j CONNMARK --save-mark --nfmask 0xf --ctmask 0xf",
    "-j CONNMARK --set-xmark 0x10/0xf0",
    "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff",
    "-j TOS --set-tos 0x10/0x3f",
    "-j DSCP --set-dscp 0x01",
];

/// Numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// Rules of one to three conditions, each known by a comment of its own.
fn generated(machine: &Machine, family: IpFamily, count: usize, numbers: &mut Numbers) -> String {
    let own = if family == IpFamily::V4 { OF_IPV4 } else { OF_IPV6 };
    let spelled = |text: &&str| {
        text.replace("{from}", &of(family, POD).to_string()).replace("{to}", &of(family, OUT).to_string())
    };
    let all: Vec<String> = CONDITIONS.iter().chain(own).map(spelled).collect();
    let known: Vec<String> = all.iter().filter(|condition| machine.takes(family, condition)).cloned().collect();
    assert!(known.len() * 10 >= all.len() * 8, "this kernel knows {} of {} conditions", known.len(), all.len());
    let mut rules = String::new();
    for number in 0..count {
        // Each once alone.
        let mut rule = known.get(number).cloned().unwrap_or_default();
        for _ in 0..if number < known.len() { 0 } else { 1 + numbers.below(3) } {
            let next = &known[numbers.below(known.len())];
            let names = |text: &str, option: &str| text.split(' ').any(|word| word == option);
            if !["-p", "-s", "-d", "-i"].iter().any(|option| names(next, option) && names(&rule, option)) {
                rule = format!("{rule} {next}");
            }
        }
        let target = if number < known.len() { TARGETS[0] } else { TARGETS[numbers.below(TARGETS.len())] };
        rules += &format!("-A TEST {rule} -m comment --comment rule-{number} {target}\n");
    }
    rules
}

fn number(text: &str) -> Option<usize> {
    text.split("rule-").nth(1)?.split([' ', '"']).next()?.parse().ok()
}

fn counted(rules: &Ruleset) -> BTreeMap<usize, u64> {
    let chain = rules.chain("mangle", "TEST").unwrap();
    chain.rules.iter().filter_map(|rule| Some((number(&rule.text)?, rule.counters.packets))).collect()
}

fn met(branch: &Branch) -> BTreeSet<usize> {
    branch.steps.iter().filter_map(|step| number(&step.rule)).collect()
}

/// Sends packets through the rules; returned is how many rules were compared.
fn check(flavour: Flavour, family: IpFamily, count: usize) -> usize {
    let machine = Machine::new(flavour);
    let (pod, out) = (of(family, POD), of(family, OUT));
    let rules = generated(&machine, family, count, &mut Numbers(42));
    let text = format!(
        "*mangle\n:TEST - [0:0]\n-F PREROUTING\n{rules}-A PREROUTING -s {pod} -d {out} -p tcp --dport 80 -j TEST\n\
         -A PREROUTING -s {pod} -d {out} -p udp --dport 80 -j TEST\nCOMMIT\n"
    );
    let rejected = |rule: &str| !machine.takes(family, rule.split_once("-A TEST ").map_or(rule, |(_, rule)| rule));
    let restore = format!("{}-{flavour}-restore", family.iptables());
    // Conditions that the kernel refuses together are left out.
    let text = text.lines().filter(|line| !line.starts_with("-A TEST") || !line.contains(" -p ") || !rejected(line));
    machine.feed(&restore, &["--noflush"], &(text.collect::<Vec<_>>().join("\n") + "\n"));
    let mut node = machine.as_met(family);
    let mut compared = 0;
    for (at, protocol) in [Protocol::Tcp, Protocol::Udp, Protocol::Tcp].into_iter().enumerate() {
        let port = 40000 + u16::try_from(at).unwrap();
        // The lists of the kernel are as they were before the first packet.
        let rules = machine.rules(family);
        let packet = Packet {
            source: SocketAddr::new(pod, port),
            destination: SocketAddr::new(out, 80),
            protocol,
            origin: Origin::Interface("pod0".to_owned()),
            state: ConnState::New,
        };
        let memory_is_empty = at == 0;
        let trace = machine.trace(&rules, &packet, &mut node);
        let before = counted(&rules);
        machine.send(&packet);
        let after = counted(&machine.rules(family));
        let [branch] = &trace.branches[..] else { panic!("{} ways", trace.branches.len()) };
        let matched = met(branch);
        let doubted: BTreeSet<usize> =
            branch.doubts.iter().chain(&branch.harmless).filter_map(|doubt| number(&doubt.rule)).collect();
        let chain = rules.chain("mangle", "TEST").unwrap();
        for rule in &chain.rules {
            let Some(number) = number(&rule.text) else { continue };
            if doubted.contains(&number) || (!memory_is_empty && rule.text.contains("recent")) {
                continue;
            }
            let real = after[&number] > before[&number];
            assert_eq!(matched.contains(&number), real, "{flavour} {family}: {packet}: {}", rule.text);
            compared += 1;
        }
    }
    compared
}

#[test]
fn generated_rules_match_as_the_kernel_says() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        for family in IpFamily::ALL {
            let compared = check(flavour, family, 300);
            assert!(compared > 600, "{flavour} {family}: {compared}");
        }
    }
}
