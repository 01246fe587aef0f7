//! Tables of firewalls as administrators write them, with every expression that the walk supports.

use std::net::SocketAddr;

use netfilter::IpFamily;
use proxier::model::Protocol;
use proxier_inspect::walk::{ConnState, Origin, Packet, Verdict};

use crate::machine::{Machine, agrees};

const FIREWALL: &str = r#"
table ip firewall {
	set blocked {
		type ipv4_addr
		flags interval
		elements = { 203.0.113.0/24, 198.51.100.7, 198.51.100.64-198.51.100.80 }
	}
	set pairs {
		type ipv4_addr . inet_service
		flags interval
		elements = { 192.168.0.0/16 . 5000-5010, 198.51.100.0/24 . 5022 }
	}
	set seen {
		type ipv4_addr
		size 100
		flags dynamic,timeout
		timeout 1h
	}
	map ports {
		type inet_service : verdict
		flags interval
		elements = { 1-1023 : jump low, 8000-8999 : goto high, * : continue }
	}
	map marks {
		type ipv4_addr : mark
		elements = { 192.168.50.9 : 0x11, 198.51.100.9 : 0x20 }
	}
	map gates {
		type ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { 192.0.2.1 . 4001 : 10.244.2.21 . 80, 192.0.2.1 . 4002 : 10.244.2.22 . 81 }
	}
	chain untracked {
		type filter hook prerouting priority raw; policy accept;
		udp dport 6000-6100 notrack
		ct state new drop
	}
	chain pre {
		type filter hook prerouting priority mangle; policy accept;
		ip saddr @blocked drop
		meta mark set ip saddr map @marks ct mark set meta mark
		udp dport 5500 update @seen { ip saddr }
		udp dport 5501 ip saddr @seen drop
		udp dport 22 delete @seen { ip saddr } meta mark set 0x300
		th dport vmap @ports
		ip saddr . th dport @pairs counter return
		meta mark & 0x10 == 0x10 tcp dport > 30000 accept
		iifname "eth*" tcp dport { 2222, 2223 } goto high
		ip daddr != { 172.16.0.0/12, 192.0.2.0/24, 192.168.50.2 } ip protocol udp drop
		numgen inc mod 3 vmap { 0 : jump low, 1 : goto high, 2 : return }
	}
	chain alike {
		type filter hook prerouting priority filter + 10; policy accept;
		counter comment "after those of the same priority that were made later"
	}
	chain low {
		tcp dport 23 reject with tcp reset
		tcp dport 25 reject
		udp dport 53 return
		meta l4proto tcp meta mark set meta mark | 0x100
		tcp flags & (syn | ack) == syn tcp dport 80 meta mark set 0x200
	}
	chain high {
		tcp dport 8999 drop
		jhash ip saddr mod 2 vmap { 0 : accept, 1 : return }
	}
	chain early {
		type nat hook prerouting priority dstnat; policy accept;
		tcp dport 8080 dnat to 10.244.2.5
		tcp dport 8081 redirect to :9090
		udp dport 8082 dnat to 10.244.2.7:53
		meta l4proto tcp dnat ip to ip daddr . th dport map @gates
	}
	chain late {
		type nat hook prerouting priority -90; policy accept;
		tcp dport 8080 dnat to 10.9.9.9
		tcp dport 8083 dnat to 10.244.2.9:80
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		udp dport 9 accept comment "the node's markers"
		oifname "eth1" drop
		ct status dnat accept
		ct mark 0x20 accept
		meta mark and 0x300 != 0 accept
		ct original ip daddr 192.0.2.0/24 accept
		ct direction original ip daddr 172.31.0.0/16 numgen random mod 100 < 30 accept
		ct state untracked iif "eth0" oif "eth0" accept
	}
	chain input {
		type filter hook input priority filter; policy accept;
		fib daddr type local tcp dport 9090 meta mark 0 accept
		fib saddr . iif oif missing drop
		tcp dport 10000-10100 reject with icmp type admin-prohibited
	}
	chain output {
		type route hook output priority mangle; policy accept;
		ip daddr 172.31.9.9 meta mark set 0x42
		ip daddr 172.31.9.8 drop
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 10.244.2.5 snat to 192.168.60.2
		meta mark 0x42 oifname "eth0" masquerade fully-random
		ip daddr 10.244.2.9 masquerade random
	}
}
table inet both {
	chain pre {
		type filter hook prerouting priority filter + 10; policy accept;
		meta nfproto ipv6 tcp dport 7000 drop
		ip saddr 192.168.50.0/24 udp dport 7001 drop
		meta protocol ip6 ip6 saddr fd00:19::/64 th dport 7002 reject
		ip6 nexthdr udp th dport 7003 drop
	}
	chain alike {
		type filter hook prerouting priority filter + 10; policy accept;
		counter
	}
	chain unused {
		tcp dport 1-65535 drop
	}
	chain translate {
		type nat hook prerouting priority dstnat - 5; policy accept;
		meta nfproto ipv6 tcp dport 8084 dnat ip6 to [fd00:10:244:2::9]:80
		ip daddr 192.0.2.1 udp dport 4003 dnat ip to 10.244.2.23:53
		tcp dport 22 dnat to :2022
	}
}
table ip asleep {
	flags dormant
	chain pre {
		type filter hook prerouting priority -400; policy drop;
	}
}
"#;

const CLIENTS: [&str; 7] =
    ["192.168.50.9", "192.168.50.77", "198.51.100.7", "198.51.100.9", "198.51.100.70", "203.0.113.5", "198.51.100.90"];
const PLACES: [&str; 3] = ["192.0.2.1", "172.31.4.4", "192.168.50.2"];
const PORTS: [u16; 28] = [
    22, 23, 25, 53, 80, 2222, 4001, 4002, 4003, 5005, 5022, 5500, 5501, 6050, 7000, 7001, 7002, 7003, 8080, 8081, 8082,
    8083, 8084, 8999, 9090, 10050, 30001, 40000,
];

fn packets() -> Vec<Packet> {
    let on = |name: &str| Origin::Interface(name.to_owned());
    let packet = |from: &str, to: &str, port, protocol, origin| Packet {
        source: SocketAddr::new(from.parse().unwrap(), 1),
        destination: SocketAddr::new(to.parse().unwrap(), port),
        protocol,
        origin,
        state: ConnState::New,
    };
    let mut all = Vec::new();
    for (nth, port) in PORTS.into_iter().enumerate() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            for (other, place) in PLACES.into_iter().enumerate() {
                let client = CLIENTS[(nth + other * 3) % CLIENTS.len()];
                all.push(packet(client, place, port, protocol, on("eth0")));
                all.push(packet("192.168.50.9", place, port, protocol, on("eth0")));
            }
            all.push(packet("fd00:19::4", "fd00:99::1", port, protocol, on("eth0")));
        }
    }
    for to in ["172.31.9.9", "172.31.9.8", "172.31.9.7"] {
        all.push(packet("192.168.50.2", to, 80, Protocol::Tcp, Origin::Host));
    }
    all
}

#[test]
fn foreign_tables_are_walked_as_in_the_kernel() {
    let mut machine = Machine::new();
    machine.load(FIREWALL);
    let nodes = IpFamily::ALL.map(|family| machine.as_met(family));
    let (mut verdicts, mut failures, mut branching) = ([0; 4], Vec::new(), 0);
    let packets = packets();
    for packet in &packets {
        let packet = machine.next(packet);
        let trace = machine.walk(&packet, &nodes[usize::from(packet.source.is_ipv6())]);
        let total: f64 = trace.branches.iter().map(|branch| branch.outcome.probability).sum();
        assert!((total - 1.0).abs() < 1e-9, "{packet}: odds sum to {total}");
        let doubts: Vec<_> = trace.branches.iter().flat_map(|branch| &branch.doubts).collect();
        assert!(doubts.is_empty(), "{packet}: {doubts:?}");
        branching += usize::from(trace.branches.len() > 1);
        let sent = machine.send(&packet);
        match trace.branches.iter().find(|branch| agrees(branch, &packet, &sent)) {
            Some(branch) => match branch.outcome.verdict {
                Verdict::Delivered(_) => verdicts[0] += 1,
                Verdict::Rejected => verdicts[1] += 1,
                Verdict::Dropped => verdicts[2] += 1,
                Verdict::Untouched => verdicts[3] += 1,
                Verdict::Forwarded(..) => panic!("IPVS: {branch:?}"),
            },
            None => failures.push(format!("{packet}\nthe kernel: {sent:#?}\nthe walk:\n{trace}")),
        }
    }
    println!("{} packets, {verdicts:?}, {branching} by chance", packets.len());
    assert!(failures.is_empty(), "{} failures, the first: {}", failures.len(), failures[0]);
    assert!(verdicts.iter().all(|count| *count > 10) && branching > 10, "{verdicts:?}, {branching}");
}
