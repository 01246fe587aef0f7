//! A client, a node that forwards, and a sink, each a network namespace.

use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::PacketBuilder;
use golden::netns::{Netns, veth};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::rules::cluster_ip;

/// Packets per round: few enough that most rounds are not interrupted.
const PACKETS: usize = 2_000;
/// Packets to one kind of destination: each of another connection.
const FRAMES: u32 = 20_000;

/// Where packets go.
#[derive(Clone, Copy, Debug)]
pub enum Destination {
    /// To so many Services in turn.
    Services(u32),
    /// To an address that is no Service's.
    Elsewhere,
}

/// The packets to one kind of destination, and a socket on the client's link.
pub struct Sender {
    socket: Socket,
    frames: Vec<Vec<u8>>,
}

/// The three namespaces.
pub struct Topology {
    client: Netns,
    /// The node, which has the rules.
    pub node: Netns,
    sink: Netns,
}

impl Topology {
    /// Makes the namespaces and links, without rules.
    pub fn new() -> Self {
        let topology = Self { client: Netns::new(), node: Netns::new(), sink: Netns::new() };
        let Self { client, node, sink } = &topology;
        // No packets but the measured ones.
        for netns in [client, node, sink] {
            netns.run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        }
        veth(client, "eth0", node, "client");
        veth(sink, "eth0", node, "sink");
        node.run("ip addr add 10.200.0.1/16 dev client");
        node.run("ip addr add 10.201.0.1/24 dev sink");
        for link in ["client", "sink"] {
            node.run(&format!("sysctl -q -w net.ipv4.conf.{link}.rp_filter=0"));
        }
        node.run("sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.ip_forward=1");
        let mac = address_of(sink, "eth0");
        node.run(&format!("ip neigh replace 10.201.0.2 lladdr {mac} dev sink nud permanent"));
        node.run("ip route add default via 10.201.0.2");
        // The sink spends as little as it can.
        let drop =
            "table netdev sink { chain arriving { type filter hook ingress device eth0 priority 0; policy drop; }; }";
        crate::rules::nft(sink, drop);
        topology
    }

    /// Makes the SYNs for a destination and a socket that sends them.
    pub fn sender(&self, to: Destination) -> Sender {
        let destination = address_of(&self.node, "client");
        let source = address_of(&self.client, "eth0");
        let frames = (0..FRAMES).map(|n| frame(&source, &destination, n, to)).collect();
        let socket = self.client.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>).expect("a packet socket");
            bind(&socket, "eth0");
            socket
        });
        Sender { socket, frames }
    }

    /// Sends the next [`PACKETS`] SYNs, of connections that the node does not know; returns the CPU time per packet.
    pub fn round(&self, sender: &Sender, round: usize) -> Duration {
        let _ = self.node.try_run("conntrack -F");
        let at = round * PACKETS % sender.frames.len();
        let start = cpu_time();
        for frame in &sender.frames[at..at + PACKETS] {
            sender.socket.send(frame).expect("sent");
        }
        (cpu_time() - start) / u32::try_from(PACKETS).expect("small")
    }

    /// Checks that every packet of a round leaves the node, and whether each is translated.
    ///
    /// # Panics
    /// If not: the times would then be those of another way.
    pub fn check(&self, sender: &Sender, translated: bool) {
        let before = self.sent_to_sink();
        self.round(sender, 0);
        assert_eq!(self.sent_to_sink() - before, PACKETS, "packets that left the node");
        let listed = self.node.try_run("conntrack -L -g").stdout;
        let entries = listed.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(entries, if translated { PACKETS } else { 0 }, "translated connections");
    }

    fn sent_to_sink(&self) -> usize {
        let shown = self.node.run("cat /proc/net/dev");
        let line = shown.lines().find_map(|line| line.trim_start().strip_prefix("sink:")).expect("the link is there");
        // After eight numbers about received packets: bytes and packets sent.
        line.split_whitespace().nth(9).and_then(|packets| packets.parse().ok()).expect("a number")
    }
}

/// Pins this thread to a CPU.
pub fn pin() {
    let mut one = CpuSet::new();
    one.set(1).expect("two CPUs");
    sched_setaffinity(Pid::from_raw(0), &one).expect("this thread may be pinned");
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has this clock").into()
}

/// Binds a packet socket to a link of this namespace.
#[allow(unsafe_code)] // socket2 has no safe way to make such an address
fn bind(socket: &Socket, link: &str) {
    let index = if_nametoindex(link).expect("the link is there");
    let fill = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        let address = storage.cast::<libc::sockaddr_ll>();
        // SAFETY: the storage is zeroed, large enough and aligned for every address.
        unsafe {
            (*address).sll_family = u16::try_from(libc::AF_PACKET).expect("small");
            (*address).sll_protocol = u16::try_from(libc::ETH_P_IP).expect("small").to_be();
            (*address).sll_ifindex = i32::try_from(index).expect("small");
            *length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
        }
        Ok(())
    };
    // SAFETY: the closure writes a valid address and its length.
    let ((), address) = unsafe { SockAddr::try_init(fill) }.expect("an address");
    socket.bind(&address).expect("bound");
}

fn address_of(netns: &Netns, link: &str) -> String {
    let shown = netns.run(&format!("ip -o link show {link}"));
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("a hardware address").to_owned()
}

/// The SYN of one flow: each has another source; destinations take turns.
fn frame(source: &str, destination: &str, number: u32, to: Destination) -> Vec<u8> {
    let mac = |text: &str| {
        let mut bytes = [0; 6];
        let parts = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hexadecimal"));
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        bytes
    };
    let from = Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 1, 0).to_bits() + number / 20_000);
    let to = match to {
        Destination::Services(services) => cluster_ip(number.wrapping_mul(7919) % services),
        Destination::Elsewhere => Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 0).to_bits() + number),
    };
    let port = u16::try_from(20_000 + number % 20_000).expect("below 65,536");
    let builder = PacketBuilder::ethernet2(mac(source), mac(destination)).ipv4(from.octets(), to.octets(), 64);
    let mut frame = Vec::new();
    builder.tcp(port, 80, number, 1024).syn().write(&mut frame, &[]).expect("a small packet");
    frame
}
