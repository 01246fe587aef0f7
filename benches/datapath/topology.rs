//! A client, a node that forwards, and a sink, each a network namespace.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use golden::netns::{Netns, veth};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::rules::cluster_ip;

/// Packets per round: their conntrack entries fit every table.
const PACKETS: u32 = 20_000;
const ROUNDS: usize = 21;
/// Rounds before the measured ones, for caches and lazily loaded modules.
const WARM_UP: usize = 3;

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

    /// Sends rounds of SYNs to the Services in turn, or to [`STATIC`]; returns the time per packet of each round.
    pub fn measure(&self, services: u32) -> Vec<Duration> {
        let destination = address_of(&self.node, "client");
        let source = address_of(&self.client, "eth0");
        let frames: Vec<Vec<u8>> = (0..PACKETS).map(|n| frame(&source, &destination, n, services)).collect();
        self.client.enter(|| {
            let mut one = CpuSet::new();
            one.set(1).expect("two CPUs");
            sched_setaffinity(Pid::from_raw(0), &one).expect("this thread may be pinned");
            let socket = Socket::new(Domain::PACKET, Type::RAW, None::<Protocol>).expect("a packet socket");
            bind(&socket, "eth0");
            let mut rounds = Vec::new();
            for _ in 0..WARM_UP + ROUNDS {
                let _ = self.node.try_run("conntrack -F");
                let start = Instant::now();
                for frame in &frames {
                    socket.send(frame).expect("sent");
                }
                rounds.push(start.elapsed() / PACKETS);
            }
            rounds.split_off(WARM_UP)
        })
    }
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
fn frame(source: &str, destination: &str, number: u32, services: u32) -> Vec<u8> {
    let mac = |text: &str| {
        let mut bytes = [0; 6];
        let parts = text.split(':').map(|part| u8::from_str_radix(part, 16).expect("hexadecimal"));
        bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = part);
        bytes
    };
    let from = Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 1, 0).to_bits() + number / 20_000);
    let to = cluster_ip(number.wrapping_mul(7919) % services);
    let port = u16::try_from(20_000 + number % 20_000).expect("below 65,536");
    let builder = PacketBuilder::ethernet2(mac(source), mac(destination)).ipv4(from.octets(), to.octets(), 64);
    let mut frame = Vec::new();
    builder.tcp(port, 80, number, 1024).syn().write(&mut frame, &[]).expect("a small packet");
    frame
}
