//! A node whose rules are asked, packet by packet, where connections end.
//!
//! In: rules as nft reads them, probes. Out: what the kernel does with each. Must not know: what is right.

pub mod packet;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use self::packet::{Kind, Sight, TTL, UDP};
use crate::netns::{Netns, veth};

/// `ETH_P_ALL`, in network order.
const ALL_PROTOCOLS: u16 = 3_u16.to_be();
const IPPROTO_RAW: i32 = 255;
/// How long a packet may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Where a connection is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum From {
    /// Somewhere else: the packet comes in by an interface.
    Outside,
    /// A process on the node.
    Host,
}

/// A connection that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Where.
    pub from: From,
    /// IP's number of the protocol.
    pub protocol: u8,
    /// From which address.
    pub source: IpAddr,
    /// To which address and port.
    pub destination: SocketAddr,
}

/// Where a probe ended.
pub type Outcomes = BTreeSet<String>;

/// The node, the world around it, and sockets to look and send with.
#[derive(Debug)]
pub struct Asked {
    node: Netns,
    _world: Netns,
    capture: Socket,
    senders: BTreeMap<(From, bool), Socket>,
    next: u32,
}

impl Asked {
    /// A node without rules. Everything that it does not keep goes out by `eth0`, to where everything comes from.
    ///
    /// # Panics
    /// When namespaces or sockets cannot be made here: run the tests as root.
    #[must_use]
    pub fn new() -> Self {
        let (node, world) = (Netns::new(), Netns::new());
        veth(&node, "eth0", &world, "eth0");
        let [of_node, of_world] = [(&node, "02:00:00:00:00:02"), (&world, "02:00:00:00:00:01")].map(|(netns, mac)| {
            netns.run(&format!("ip link set eth0 address {mac}"));
            mac
        });
        for (netns, own, other, mac) in [(&node, 2, 1, of_world), (&world, 1, 2, of_node)] {
            for line in [
                format!("ip addr add 192.168.50.{own}/24 dev eth0"),
                format!("ip addr add fd00:50::{own}/64 dev eth0 nodad"),
                format!("ip neigh replace 192.168.50.{other} lladdr {mac} dev eth0 nud permanent"),
                format!("ip neigh replace fd00:50::{other} lladdr {mac} dev eth0 nud permanent"),
                format!("ip route add default via 192.168.50.{other}"),
                format!("ip route add default via fd00:50::{other}"),
            ] {
                netns.run(&line);
            }
        }
        node.run("ip link add eth1 type veth peer name eth1p");
        for line in ["ip link set eth1 up", "ip link set eth1p up", "ip addr add 192.168.60.2/24 dev eth1"] {
            node.run(line);
        }
        node.run("ip addr add fd00:60::2/64 dev eth1 nodad");
        for setting in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.eth0.rp_filter=0",
            // Rejections are not to be counted out.
            "net.ipv4.icmp_ratemask=0",
            "net.ipv6.icmp.ratemask=128",
            "net.ipv6.icmp.ratelimit=0",
            // SCTP's is not filled in.
            "net.netfilter.nf_conntrack_checksum=0",
        ] {
            node.run(&format!("sysctl -q -w {setting}"));
        }
        let capture = node.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ALL_PROTOCOLS))));
            let socket = socket.expect("a packet socket");
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).expect("room for packets");
            socket.set_nonblocking(true).expect("not to wait");
            socket
        });
        let mut senders = BTreeMap::new();
        for (from, netns) in [(From::Host, &node), (From::Outside, &world)] {
            for (v6, domain) in [(false, Domain::IPV4), (true, Domain::IPV6)] {
                let socket = netns.enter(|| Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW))));
                senders.insert((from, v6), socket.expect("a raw socket"));
            }
        }
        Self { node, _world: world, capture, senders, next: 1 }
    }

    /// Gives the node one more address, from which processes on it may send.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn add_address(&self, address: IpAddr) {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let nodad = if address.is_ipv4() { "" } else { " nodad" };
        self.node.run(&format!("ip addr add {address}/{length} dev lo{nodad}"));
    }

    /// Replaces all rules and forgets all connections.
    ///
    /// # Panics
    /// When nft does not read them.
    pub fn load(&self, tables: &str) {
        let mut nft = self.node.command("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft");
        let text = format!("flush ruleset\n{tables}");
        nft.stdin.take().expect("piped").write_all(text.as_bytes()).expect("nft reads");
        let output = nft.wait_with_output().expect("it ends");
        assert!(output.status.success(), "nft: {}\n{text}", String::from_utf8_lossy(&output.stderr));
        // Ports come again: what other rules made of them must be forgotten.
        let flushed = self.node.command("conntrack").arg("-F").stderr(Stdio::null()).status();
        assert!(flushed.expect("conntrack").success(), "conntrack -F failed");
    }

    /// Tries each connection once; what became of it, nothing if the packet vanished.
    ///
    /// # Panics
    /// When nothing works at all.
    pub fn ask(&mut self, probes: &[Probe]) -> Vec<Outcomes> {
        let first = self.next;
        for probe in probes {
            self.send(probe);
        }
        // What was sent before it is through when this one is.
        let destination = |v6| if v6 { "[2001:db8:ffff::9]:9" } else { "9.9.9.9:9" }.parse().expect("an address");
        let last = [false, true].map(|v6| {
            let destination: SocketAddr = destination(v6);
            let source = if v6 { "2001:db8:ffff::8" } else { "8.8.4.4" }.parse().expect("an address");
            self.send(&Probe { from: From::Outside, protocol: UDP, source, destination })
        });
        let mut outcomes = vec![Outcomes::new(); probes.len()];
        let mut left: BTreeSet<u32> = last.into_iter().collect();
        let started = Instant::now();
        let mut buffer = [0; 2048];
        loop {
            let length = match (&self.capture).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock && left.is_empty() => return outcomes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(started.elapsed() < LIMIT, "packets do not come through");
                    std::thread::yield_now();
                    continue;
                }
                Err(error) => panic!("capture: {error}"),
            };
            let Some(Sight { probe, kind }) = packet::read(&buffer[..length]) else { continue };
            if matches!(kind, Kind::Probe(.., ttl) if ttl < TTL) {
                left.remove(&probe);
            }
            let index = usize::try_from(probe.wrapping_sub(first)).expect("a number");
            if let Some(asked) = probes.get(index) {
                outcomes[index].extend(outcome(asked, kind));
            }
        }
    }

    fn send(&mut self, probe: &Probe) -> u32 {
        let number = self.next;
        self.next += 1;
        let port = 1024 + u16::try_from(number % 60_000).expect("a port");
        let packet = packet::build(probe.protocol, (probe.source, port).into(), probe.destination, number);
        // The port of the address is nothing to a raw socket, and must be none.
        let to = SocketAddr::new(probe.destination.ip(), 0);
        let sender = &self.senders[&(probe.from, to.is_ipv6())];
        match sender.send_to(&packet, &to.into()) {
            // So a process on the node learns that its packet is not let out.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => panic!("{probe:?}: {error}"),
        }
        number
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self::new()
    }
}

/// What a packet tells of where a probe ended.
fn outcome(probe: &Probe, kind: Kind) -> Option<String> {
    match kind {
        Kind::Rejected => Some("rejected".to_owned()),
        Kind::Reset => Some("reset".to_owned()),
        Kind::Probe(source, destination, ttl) => {
            // On its way in.
            if probe.from == From::Outside && ttl == TTL && destination == probe.destination {
                return None;
            }
            let masqueraded = if source.ip() == probe.source { "" } else { ", masqueraded" };
            Some(format!("{destination}{masqueraded}"))
        }
    }
}
