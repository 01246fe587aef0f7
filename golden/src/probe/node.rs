//! A node with one neighbour, which sends it packets from any address and receives what it forwards.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::packet::{Observation, Probe, Refusal, Stage, Transport, read, read_body};
use crate::netns::Netns;

/// The entry of a probe to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `eth0`: the node network and beyond.
    Network,
    /// `cbr0`: the pods.
    Pods,
    /// `cbr01`: an interface whose name has the pods' as prefix.
    Beside,
    /// The node itself.
    Host,
}

/// The outcome of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It arrived, with its own source or another.
    Arrived {
        /// The destination.
        at: SocketAddr,
        /// The translated source, if any.
        masqueraded: Option<IpAddr>,
    },
    /// It was refused.
    Refused(Refusal),
    /// It did not arrive and was not refused.
    Dropped,
}

/// The addresses of node-a and of its pods' bridge in the cases.
pub const ADDRESSES: [&str; 8] =
    ["192.168.50.2", "192.168.60.2", "10.244.1.1", "127.0.0.1", "fd00:50::2", "fd00:60::2", "fd00:10:244:1::1", "::1"];

const LINKS: [&str; 4] = ["eth0", "cbr0", "eth1", "cbr01"];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MARKER: u32 = u32::MAX;
/// A packet passes a CPU's queue for each hop: three if it is delivered, refused and reported on the node.
const MARKERS: usize = 4;
const FORWARD_TIMEOUT: Duration = Duration::from_secs(20);
const BUFFER: usize = 16 << 20;

/// A node with its neighbour.
#[derive(Debug)]
pub struct Node {
    netns: Netns,
    _world: Netns,
    links: Vec<Socket>,
    /// Another namespace without rules, which forwards markers: they wait in the same queues of the CPU as probes.
    _turn: Netns,
    turn: Socket,
    host: [Socket; 2],
    sinks: Vec<Sink>,
}

/// Receives packets delivered on the node.
#[derive(Debug)]
struct Sink {
    /// A raw socket wrapped in UdpSocket, whose recv_from is safe.
    socket: UdpSocket,
    protocol: u8,
    at: SinkAddress,
}

/// The source of a packet's destination address, which IPv6 raw sockets do not return.
#[derive(Debug, Clone, Copy)]
enum SinkAddress {
    /// The packet's IP header.
    Header,
    /// The address that the socket is bound to.
    Address(IpAddr),
    /// Unknown; sufficient for refusals.
    Anywhere,
}

impl Node {
    /// A node without rules.
    ///
    /// # Panics
    /// If namespaces, interfaces or raw sockets cannot be created.
    #[must_use]
    pub fn new() -> Self {
        Self::with_links(LINKS)
    }

    /// The same with other names for its interfaces: to the node network, to the pods, to a second network, and beside the
    /// pods.
    ///
    /// # Panics
    /// As above.
    #[must_use]
    pub fn with_links(names: [&str; 4]) -> Self {
        let (netns, world) = (Netns::new(), Netns::new());
        // The order of packets is visible only to their sender, and only while it stays on one CPU.
        netns.run(
            "sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratemask=0 \
             net.ipv6.icmp.ratemask=127 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
             net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0 net.netfilter.nf_conntrack_checksum=0",
        );
        world.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        let mut lines = String::new();
        for link in names {
            // Without ARP, every neighbour is reachable; all links have the address that the frames below contain.
            lines += &format!(
                "link add {link} address 02:00:00:00:00:01 type veth peer name {link} netns {}\n\
                 link set {link} arp off\nlink set {link} up\n",
                world.pid()
            );
        }
        let [eth0, cbr0, eth1, _] = names;
        lines += &format!(
            "addr add 192.168.50.2/24 dev {eth0}\naddr add fd00:50::2/64 dev {eth0} nodad\n\
             addr add 192.168.60.2/24 dev {eth1}\naddr add fd00:60::2/64 dev {eth1} nodad\n\
             addr add 10.244.1.1/24 dev {cbr0}\naddr add fd00:10:244:1::1/64 dev {cbr0} nodad\n\
             route add default dev {eth0}\nroute add ::/0 dev {eth0}\n\
             route add local 192.168.98.0/24 dev lo\nroute add local fd00:98::/64 dev lo\n"
        );
        feed(&netns, "ip", &["-batch", "-"], &lines).unwrap_or_else(|e| panic!("{e}"));
        for link in names {
            world.run(&format!("ip link set {link} up"));
        }
        let turn = Netns::new();
        turn.run(&format!("ip link add turn address 02:00:00:00:00:01 type veth peer name turn netns {}", world.pid()));
        turn.run("sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.turn.rp_filter=0");
        turn.run("sysctl -q -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.turn.send_redirects=0");
        turn.run("ip link set turn arp off up");
        turn.run("ip route add default dev turn");
        world.run("ip link set turn up");
        let links = world.enter(|| names.map(packet_socket).into_iter().collect());
        let turn_socket = world.enter(|| packet_socket("turn"));
        let (host, sinks) = netns.enter(|| {
            let host = [Domain::IPV4, Domain::IPV6].map(|domain| raw(domain, 255)); // IPPROTO_RAW: with header
            (host, sinks())
        });
        Self { netns, _world: world, links, _turn: turn, turn: turn_socket, host, sinks }
    }

    /// The namespace of the node.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs a program on the node with this input.
    ///
    /// # Errors
    /// The program's error output.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
        feed(&self.netns, program, arguments, input)
    }

    /// Flushes conntrack and nf_tables.
    ///
    /// # Panics
    /// If that fails.
    pub fn clear(&self) {
        self.netns.run("nft flush ruleset");
        self.forget();
    }

    /// Flushes conntrack.
    pub fn forget(&self) {
        let _ = self.netns.try_run("conntrack -F");
    }

    /// Adds an established TCP connection without translation to conntrack.
    ///
    /// # Panics
    /// If that fails.
    pub fn know(&self, from: SocketAddr, to: SocketAddr) {
        self.netns.run(&format!(
            "conntrack -I -p tcp -s {} -d {} --sport {} --dport {} --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 60",
            from.ip(),
            to.ip(),
            from.port(),
            to.port()
        ));
    }

    /// The nft commands that clear session affinity in the current rules.
    #[must_use]
    pub fn memory(&self) -> String {
        let (mut table, mut set, mut commands) = (String::new(), String::new(), String::new());
        for line in self.netns.run("nft list ruleset").lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["table", family, name, "{"] => table = format!("{family} {name}"),
                [kind @ ("set" | "map"), name, "{"] => set = format!("{kind} {table} {name}"),
                ["flags", flags] if flags.contains("dynamic") => commands += &format!("flush {set}\n"),
                _ => {}
            }
        }
        commands
    }

    /// Clears session affinity.
    ///
    /// # Panics
    /// If that fails.
    pub fn forget_clients(&self, memory: &str) {
        if !memory.is_empty() {
            self.feed("nft", &["-f", "-"], memory).unwrap_or_else(|e| panic!("{e}"));
        }
        // In iptables rules, the lists of the match `recent` hold it.
        self.netns.enter(|| {
            for list in std::fs::read_dir("/proc/thread-self/net/xt_recent").into_iter().flatten().flatten() {
                std::fs::write(list.path(), "/").expect("empty a list of clients");
            }
        });
    }

    /// Sends probes and returns the outcome of each.
    ///
    /// # Panics
    /// If packets cannot be sent.
    #[must_use]
    pub fn send(&self, probes: &[(Entry, Probe)]) -> Vec<Outcome> {
        self.send_and_compare(probes).into_iter().map(|(outcome, _)| outcome).collect()
    }

    /// As [`Node::send`], and whether each source address or port was translated.
    ///
    /// Masquerading to the sender's own address shows only in the port.
    ///
    /// # Panics
    /// If packets cannot be sent.
    #[must_use]
    pub fn send_and_compare(&self, probes: &[(Entry, Probe)]) -> Vec<(Outcome, bool)> {
        let home = pin_to_current_cpu();
        let mut observed = Observations::default();
        for (entry, probe) in probes {
            self.inject(*entry, probe);
        }
        let marker = Probe {
            from: "192.168.50.99:9".parse().expect("an address"),
            to: "172.31.255.254:9".parse().expect("an address"),
            transport: Transport::Udp,
            tag: MARKER,
            stage: Stage::First,
        };
        let started = Instant::now();
        for wanted in 1..=MARKERS {
            frame(&self.turn, &marker).expect("a marker is sent");
            while observed.markers < wanted {
                self.drain(&mut observed);
                assert!(started.elapsed() < FORWARD_TIMEOUT, "no marker comes back");
            }
        }
        self.drain(&mut observed);
        restore_affinity(&home);
        probes.iter().map(|(_, probe)| (observed.outcome(probe), observed.replaced(probe))).collect()
    }

    fn inject(&self, entry: Entry, probe: &Probe) {
        let sent = match entry {
            Entry::Host => {
                let socket = &self.host[usize::from(probe.to.is_ipv6())];
                // Rules may reject at once, or route to nowhere: outcomes like any other.
                match socket.send_to(&probe.bytes(), &SocketAddr::new(probe.to.ip(), 0).into()) {
                    Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) => return,
                    sent => sent,
                }
            }
            Entry::Network | Entry::Pods | Entry::Beside => {
                let link = match entry {
                    Entry::Pods => 1,
                    Entry::Beside => 3,
                    _ => 0,
                };
                frame(&self.links[link], probe)
            }
        };
        sent.unwrap_or_else(|e| panic!("{probe:?}: {e}"));
    }

    fn drain(&self, observed: &mut Observations) {
        let mut buffer = [0; 2048];
        for link in self.links.iter().chain([&self.turn]) {
            while let Some(length) = next(link, &mut buffer) {
                observed.take(buffer.get(14..length).and_then(read));
            }
        }
        for sink in &self.sinks {
            while let Some((length, from)) = sink.next(&mut buffer) {
                let packet = &buffer[..length];
                let seen = match sink.at {
                    SinkAddress::Header => read(packet),
                    SinkAddress::Address(to) => read_body(sink.protocol, from, to, packet),
                    SinkAddress::Anywhere => read_body(sink.protocol, from, from, packet)
                        .filter(|seen| matches!(seen, Observation::Refused { .. })),
                };
                observed.take(seen);
            }
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

/// The observed packets, by probe.
#[derive(Debug, Default)]
struct Observations {
    passed: HashMap<u32, (SocketAddr, SocketAddr)>,
    refused: HashMap<u16, Refusal>,
    markers: usize,
}

impl Observations {
    fn take(&mut self, seen: Option<Observation>) {
        match seen {
            Some(Observation::Passed { tag: MARKER, .. }) => self.markers += 1,
            Some(Observation::Passed { tag, from, to }) => {
                self.passed.insert(tag, (from, to));
            }
            Some(Observation::Refused { port, by }) => {
                self.refused.insert(port, by);
            }
            None => {}
        }
    }

    fn outcome(&self, probe: &Probe) -> Outcome {
        match (self.passed.get(&probe.tag), self.refused.get(&probe.from.port())) {
            (Some((from, to)), _) => {
                Outcome::Arrived { at: *to, masqueraded: (from.ip() != probe.from.ip()).then_some(from.ip()) }
            }
            (None, Some(by)) => Outcome::Refused(*by),
            (None, None) => Outcome::Dropped,
        }
    }

    fn replaced(&self, probe: &Probe) -> bool {
        self.passed.get(&probe.tag).is_some_and(|(from, _)| *from != probe.from)
    }
}

impl Sink {
    fn new(domain: Domain, protocol: u8, at: SinkAddress) -> Self {
        let socket = raw(domain, protocol);
        if let SinkAddress::Address(address) = at {
            socket.bind(&SocketAddr::new(address, 0).into()).expect("bind to the node's address");
        }
        Self { socket: socket.into(), protocol, at }
    }

    fn next(&self, buffer: &mut [u8]) -> Option<(usize, IpAddr)> {
        match self.socket.recv_from(buffer) {
            Ok((length, from)) => Some((length, from.ip())),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => panic!("read a raw socket: {e}"),
        }
    }
}

fn next(mut socket: &Socket, buffer: &mut [u8]) -> Option<usize> {
    match socket.read(buffer) {
        Ok(length) => Some(length),
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        Err(e) => panic!("read a raw socket: {e}"),
    }
}

/// Sends a packet on a link, to the address that the links of the node have.
fn frame(mut link: &Socket, probe: &Probe) -> std::io::Result<usize> {
    let kind: [u8; 2] = if probe.to.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    link.write(&[&NODE_MAC[..], &[2, 0, 0, 0, 0, 2], &kind, &probe.bytes()].concat())
}

/// A socket that receives every packet of a link.
fn packet_socket(link: &str) -> Socket {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
        .expect("a packet socket");
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
    let mut addresses = nix::ifaddrs::getifaddrs().expect("the links");
    let of_link = addresses.find_map(|own| Some(*own.address?.as_link_addr()?).filter(|_| own.interface_name == link));
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &of_link.expect("the link")).expect("bind to the link");
    Socket::from(socket)
}

fn raw(domain: Domain, protocol: u8) -> Socket {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).expect("a raw socket");
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
    socket.set_nonblocking(true).expect("a socket that does not block");
    socket
}

fn sinks() -> Vec<Sink> {
    let mut sinks: Vec<Sink> =
        [6, 17, 132, 1].map(|protocol| Sink::new(Domain::IPV4, protocol, SinkAddress::Header)).into();
    for address in ADDRESSES.iter().map(|text| text.parse::<IpAddr>().expect("an address")).filter(IpAddr::is_ipv6) {
        sinks.extend([6, 17, 132].map(|protocol| Sink::new(Domain::IPV6, protocol, SinkAddress::Address(address))));
    }
    // Refusals of probes from the node are sent to their source addresses.
    sinks.extend([6, 58].map(|protocol| Sink::new(Domain::IPV6, protocol, SinkAddress::Anywhere)));
    sinks
}

/// Runs a program in a namespace with this input.
fn feed(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> Result<(), String> {
    let mut command = netns.command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let written = child.stdin.take().expect("it was piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    written.map_err(|e| format!("{program}: {e}"))
}

/// Pins this thread to its current CPU, whose queues keep the order; returns its previous affinity.
fn pin_to_current_cpu() -> CpuSet {
    let home = sched_getaffinity(Pid::from_raw(0)).expect("this thread's processors");
    let mut here = CpuSet::new();
    here.set(sched_getcpu().expect("this thread's processor")).expect("a processor");
    sched_setaffinity(Pid::from_raw(0), &here).expect("stay on one processor");
    home
}

fn restore_affinity(home: &CpuSet) {
    sched_setaffinity(Pid::from_raw(0), home).expect("the processors of before");
}
