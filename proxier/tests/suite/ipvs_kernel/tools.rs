//! Objects written over netlink read back with ipvsadm, ipset and ip, and vice versa. Needs what `ipvs_kernel` needs.

use std::process::Command;

use netfilter::IpFamily;
use netfilter::ipset::{Entry, Set, SetName, SetType};
use netfilter::ipvs::{Flags, Forward, Persistence, RealServer, SCTP, TCP, UDP, VirtualServer};
use netfilter::kernel::{IpSetError, IpSets, IpvsError, IpvsTable, LinkError, Links, Operation, SetOperation};
use netfilter::kernel::{SystemIpSets, SystemIpvs, SystemLinks};

use crate::common::namespace::{in_namespace, run};
use crate::contract::{ipset, ipvs, link};

/// The lines of an output, sorted.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipvsadm_prints_what_was_written() {
    in_namespace(|| {
        let mut table = SystemIpvs::open().expect("IPVS");
        let kept = |seconds, prefix| Some(Persistence { seconds, prefix });
        let both = Flags::FALLBACK.with(Flags::PORT);
        let servers = [
            VirtualServer { persistence: kept(10800, 32), ..ipvs::virtual_server(ipvs::key(TCP, "10.0.0.1:80"), "rr") },
            VirtualServer { persistence: kept(9, 16), ..ipvs::virtual_server(ipvs::key(TCP, "10.0.0.2:80"), "lc") },
            VirtualServer { flags: both, ..ipvs::virtual_server(ipvs::key(UDP, "10.0.0.1:53"), "mh") },
            VirtualServer { flags: Flags::PORT, ..ipvs::virtual_server(ipvs::key(SCTP, "10.0.0.1:53"), "sh") },
            VirtualServer { flags: Flags::ONE_PACKET, ..ipvs::virtual_server(ipvs::key(UDP, "10.0.0.3:53"), "rr") },
            VirtualServer {
                persistence: kept(100, 128),
                ..ipvs::virtual_server(ipvs::key(TCP, "[fd00::1]:80"), "wrr")
            },
            VirtualServer { persistence: kept(100, 64), ..ipvs::virtual_server(ipvs::key(TCP, "[fd00::2]:80"), "wrr") },
        ];
        let mut text = String::new();
        for server in servers {
            let address = if server.key.address.is_ipv4() { "10.1.0.1:8080" } else { "[fd01::1]:8080" };
            let route = RealServer {
                forward: Forward::Route,
                ..ipvs::real(&address.replace("8080", &server.key.address.port().to_string()), 0)
            };
            let reals = [ipvs::real(address, 1), route];
            let add = [Operation::AddVirtual(server)]
                .into_iter()
                .chain(reals.map(|real| Operation::AddReal(server.key, real)));
            assert_eq!(ipvs::apply(&mut table, &add.collect::<Vec<_>>()), []);
            text += &format!("{server}\n-a {} {}\n-a {} {}\n", server.key, reals[0], server.key, reals[1]);
        }
        assert_eq!(sorted(&run("ipvsadm -S -n")), sorted(&text));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn what_ipvsadm_writes_is_read() {
    in_namespace(|| {
        run("ipvsadm -A -t 10.0.0.1:80 -s wlc -p 300");
        run("ipvsadm -a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 5");
        run("ipvsadm -A -f 5 -s rr");
        run("ipvsadm -A -u [fd00::1]:53 -s mh -b mh-port");
        let mut table = SystemIpvs::open().expect("IPVS");
        let key = ipvs::key(TCP, "10.0.0.1:80");
        let persistence = Some(Persistence { seconds: 300, prefix: 32 });
        let first = VirtualServer { persistence, ..ipvs::virtual_server(key, "wlc") };
        let second = VirtualServer { flags: Flags::PORT, ..ipvs::virtual_server(ipvs::key(UDP, "[fd00::1]:53"), "mh") };
        assert_eq!(ipvs::virtual_servers(&mut table), [first, second], "firewall marks are left out");
        let reals: Vec<RealServer> = ipvs::real_servers(&mut table, key).into_iter().map(|(real, _)| real).collect();
        assert_eq!(reals, [ipvs::real("10.1.0.1:8080", 5)]);
        run("ipvsadm --set 100 20 30");
        let timeouts = table.timeouts().expect("timeouts");
        assert_eq!((timeouts.tcp, timeouts.tcp_fin, timeouts.udp), (100, 20, 30));
        let info = table.info().expect("info");
        let ([major, minor, patch], size) = (info.version, info.connection_table);
        let head = format!("IP Virtual Server version {major}.{minor}.{patch} (size={size})");
        assert!(run("ipvsadm -L -n").starts_with(&head), "{head}");
    });
}

/// `ipset save` without what the kernel chooses.
fn saved() -> Vec<String> {
    let text = run("ipset save");
    sorted(&text).into_iter().map(|line| line.split(" bucketsize").next().unwrap_or_default().to_owned()).collect()
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ipset_prints_and_restores_what_was_written() {
    in_namespace(|| {
        let mut sets = SystemIpSets::open().expect("ipset");
        let net = "fd00:2::/64".parse().expect("a network");
        let all = [
            (SetType::HashIpPort, IpFamily::V4, Entry::IpPort(ipset::place("10.0.0.1", 132, 80))),
            (
                SetType::HashIpPortIp,
                IpFamily::V6,
                Entry::IpPortIp(ipset::place("fd00::1", 17, 80), ipset::ip("fd00::2")),
            ),
            (SetType::HashIpPortNet, IpFamily::V6, Entry::IpPortNet(ipset::place("fd00::1", 6, 80), net)),
            (SetType::HashIp, IpFamily::V4, Entry::Ip(ipset::ip("10.0.0.1"))),
            (SetType::BitmapPort, IpFamily::V6, Entry::Port(30000)),
        ];
        let mut text = String::new();
        for (number, (set_type, family, entry)) in all.into_iter().enumerate() {
            let name = SetName::parse(&format!("OURS-{number}")).expect("a name");
            let set = Set::new(name, set_type, family);
            assert_eq!(ipset::apply(&mut sets, &[SetOperation::Create(set), SetOperation::Add(name, entry)]), []);
            text += &format!("{set}\nadd {name} {entry}\n");
        }
        assert_eq!(saved(), sorted(&text));
        // Each side takes the other's sets for what it would have made itself, and they can be exchanged.
        for line in sorted(&text).iter().filter(|line| line.starts_with("create")) {
            run(&format!("ipset {line} -exist"));
            let theirs = line.replace("OURS", "THEIRS");
            run(&format!("ipset {theirs}"));
            let name = theirs.split(' ').nth(1).expect("a name");
            let found = sets.set(SetName::parse(name).expect("a name")).expect("an answer").expect("it is there");
            let set = found.set.unwrap_or_else(|| panic!("{theirs} is read as one of ours"));
            assert_eq!(set.to_string(), theirs);
            let ours = SetName::parse(&name.replace("THEIRS", "OURS")).expect("a name");
            assert_eq!(ipset::apply(&mut sets, &[SetOperation::Create(set), SetOperation::Swap(ours, set.name)]), []);
        }
        let mut expected = text.replace("add OURS", "add THEIRS");
        for line in text.lines().filter(|line| line.starts_with("create")) {
            expected += &(line.replace("OURS", "THEIRS") + "\n");
        }
        assert_eq!(saved(), sorted(&expected));
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn referenced_sets_stay_and_foreign_sets_are_distinguished() {
    in_namespace(|| {
        let mut sets = SystemIpSets::open().expect("ipset");
        let used = SetName::new("KUBE-USED");
        let set = Set::new(used, SetType::HashIpPort, IpFamily::V4);
        assert_eq!(ipset::apply(&mut sets, &[SetOperation::Create(set)]), []);
        run("iptables-legacy -A INPUT -m set --match-set KUBE-USED dst,dst -j ACCEPT");
        assert_eq!(sets.set(used).expect("an answer").map(|found| found.references), Some(1));
        let expected =
            "ipset KUBE-USED is in use: delete the rules that refer to it first (iptables-save | grep KUBE-USED)";
        assert_eq!(ipset::apply(&mut sets, &[SetOperation::Destroy(used)]), [(0, expected.to_owned())]);
        run("iptables-legacy -F INPUT");
        assert_eq!(ipset::apply(&mut sets, &[SetOperation::Destroy(used)]), []);
        run("ipset create L list:set");
        run("ipset create N hash:net family inet6");
        run("ipset create P bitmap:port range 1-7");
        let described: Vec<String> = ipset::found(&mut sets)
            .into_iter()
            .map(|found| {
                assert_eq!(found.set, None);
                found.described
            })
            .collect();
        assert_eq!(described, ["list:set", "hash:net family inet6", "bitmap:port"]);
        let set = Set::new(SetName::new("N"), SetType::HashIp, IpFamily::V6);
        let refused = ipset::apply(&mut sets, &[SetOperation::Create(set)]);
        assert!(refused[0].1.contains("found hash:net family inet6, wanted hash:ip family inet6"), "{refused:?}");
        let error = sets.entries(SetName::new("N"), &mut |_| panic!("no entries")).expect_err("none of ours");
        assert_eq!(error.to_string(), "ipset N: unsupported type hash:net family inet6");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn ip_shows_what_was_written() {
    in_namespace(|| {
        let mut links = SystemLinks::open().expect("rtnetlink");
        links.create_dummy(link::DEVICE).expect("made");
        let nets = ["10.96.0.1/32", "10.96.0.10/32", "fd00::1/128"].map(link::net);
        assert_eq!(link::apply(&mut links, &nets.map(netfilter::kernel::AddressOperation::Add)), []);
        let text = run("ip -oneline address show dev kube-ipvs0");
        let shown: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
        assert_eq!(shown, ["10.96.0.1/32", "10.96.0.10/32", "fd00::1/128"]);
        assert!(text.lines().all(|line| line.contains("scope global")), "{text}");
        assert!(run("ip -details link show kube-ipvs0").contains("dummy"));
        run("ip address add 192.168.7.7/24 dev kube-ipvs0");
        run("ip address add 192.168.8.8/24 dev lo");
        let found = link::addresses(&mut links);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.contains(&link::net("192.168.7.7/24")), "{found:?}");
    });
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn a_device_without_ipv6_is_distinguished_from_missing_permissions() {
    in_namespace(|| {
        let mut links = SystemLinks::open().expect("rtnetlink");
        links.create_dummy(link::DEVICE).expect("made");
        run("sysctl -q -w net.ipv6.conf.kube-ipvs0.disable_ipv6=1");
        let both = ["10.96.0.1/32", "fd00::1/128"].map(|net| netfilter::kernel::AddressOperation::Add(link::net(net)));
        let refused = link::apply(&mut links, &both);
        assert!(matches!(&refused[..], [(1, text)] if text.contains("disable_ipv6=0")), "{refused:?}");
        assert_eq!(link::addresses(&mut links), [link::net("10.96.0.1/32")]);
    });
}

/// What this test looks for in its environment when it is its own child, without rights.
const CHILD: &str = "PROXIER_TEST_WITHOUT_RIGHTS";

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn missing_rights_are_named() {
    if std::env::var_os(CHILD).is_none() {
        let itself = std::env::current_exe().expect("a program");
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]).arg(itself);
        let output = command
            .args(["--include-ignored", "--exact", "ipvs_kernel::tools::missing_rights_are_named"])
            .env(CHILD, "1")
            .output();
        let output = output.expect("setpriv runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    assert!(matches!(SystemIpvs::open().map(|_| ()), Ok(())), "asking for its number needs no rights");
    let mut table = SystemIpvs::open().expect("IPVS");
    let add = Operation::AddVirtual(ipvs::virtual_server(ipvs::key(TCP, "10.0.0.1:80"), "rr"));
    let mut errors = Vec::new();
    table.apply(&[add], &mut |_, error| errors.push(error)).expect("a conversation");
    assert!(matches!(errors[..], [IpvsError::NotPermitted]), "{errors:?}");
    let error = table.virtual_servers(IpFamily::V4, &mut |_| ()).expect_err("no rights");
    assert!(matches!(error, IpvsError::NotPermitted) && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    let error = SystemIpSets::open().expect_err("no rights");
    assert!(matches!(error, IpSetError::NotPermitted) && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    let error = SystemLinks::open().expect("a socket").create_dummy(link::DEVICE).expect_err("no rights");
    assert!(matches!(error, LinkError::NotPermitted) && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}
