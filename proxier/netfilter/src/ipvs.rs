//! IPVS: virtual and real servers as values, as `ipvsadm -S -n` prints them.
//!
//! In: addresses, numbers, names. Out: values that compare equal to what the kernel holds, and their text.
//! Must not know: Kubernetes, or how the kernel is told.

use std::fmt;
use std::net::SocketAddr;

use super::name::Name;

/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;
/// The protocol number of SCTP.
pub const SCTP: u8 = 132;

/// The name of a scheduler (`IP_VS_SCHEDNAME_MAXLEN` less the final NUL). The kernel knows it as module `ip_vs_NAME`.
pub type Scheduler = Name<15>;

/// Which virtual server: there is one for each address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerKey {
    /// Where clients connect to.
    pub address: SocketAddr,
    /// The protocol's number.
    pub protocol: u8,
}

/// `-t 10.96.0.1:443`
impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            TCP => f.write_str("-t ")?,
            UDP => f.write_str("-u ")?,
            SCTP => f.write_str("--sctp-service ")?,
            other => write!(f, "--protocol-{other} ")?,
        }
        self.address.fmt(f)
    }
}

/// How a virtual server schedules, besides the scheduler's name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// Each packet is scheduled on its own (UDP only).
    pub const ONE_PACKET: Self = Self(0x04);
    /// The first flag of the scheduler: for `sh` and `mh`, a server of weight 0 is replaced by another.
    pub const FALLBACK: Self = Self(0x08);
    /// The second flag of the scheduler: for `sh` and `mh`, the client's port counts too.
    pub const PORT: Self = Self(0x10);
    /// The third flag of the scheduler: none uses it.
    pub const THIRD: Self = Self(0x20);

    /// All there are. The kernel has two more bits, for being persistent and for being in its table: no choices of
    /// their own.
    const ALL: u32 = 0x3c;

    /// Those of the kernel's bits that are flags of this kind.
    #[must_use]
    pub fn of_bits(bits: u32) -> Self {
        Self(bits & Self::ALL)
    }

    /// The kernel's bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// These and those.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of those are among these.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The scheduler's own, as ipvsadm calls them.
    fn names(self, scheduler: &str) -> Vec<&'static str> {
        let names = match scheduler {
            "sh" => ["sh-fallback", "sh-port", "flag-3"],
            "mh" => ["mh-fallback", "mh-port", "flag-3"],
            _ => ["flag-1", "flag-2", "flag-3"],
        };
        let flags = [Self::FALLBACK, Self::PORT, Self::THIRD];
        flags.into_iter().zip(names).filter(|(flag, _)| self.has(*flag)).map(|(_, name)| name).collect()
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// That a client stays with the real server it got first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// For how many seconds after its last connection.
    pub seconds: u32,
    /// How many bits of the client's address count: 32 or 128 for each client by itself.
    pub prefix: u8,
}

/// A virtual server: what clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServer {
    /// Which one.
    pub key: ServerKey,
    /// How connections are distributed.
    pub scheduler: Scheduler,
    /// More about that.
    pub flags: Flags,
    /// Whether clients stay where they are.
    pub persistence: Option<Persistence>,
}

impl VirtualServer {
    /// How many bits the addresses of its family have.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        if self.key.address.is_ipv4() { 32 } else { 128 }
    }
}

/// `-A -t 10.96.0.1:443 -s rr -p 10800`
impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, scheduler, flags, persistence } = self;
        write!(f, "-A {key} -s {scheduler}")?;
        if let Some(Persistence { seconds, prefix }) = persistence {
            write!(f, " -p {seconds}")?;
            match (key.address, prefix) {
                (_, prefix) if *prefix == self.address_bits() => {}
                (SocketAddr::V4(_), prefix) => write!(f, " -M {}", netmask(*prefix))?,
                (SocketAddr::V6(_), prefix) => write!(f, " -M {prefix}")?,
            }
        }
        if flags.has(Flags::ONE_PACKET) {
            f.write_str(" -o")?;
        }
        match flags.names(scheduler.as_str()) {
            names if names.is_empty() => Ok(()),
            names => write!(f, " -b {}", names.join(",")),
        }
    }
}

/// The IPv4 netmask of so many bits.
#[must_use]
pub fn netmask(prefix: u8) -> std::net::Ipv4Addr {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or_default().into()
}

/// How packets get to a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// By network address translation: the only one that changes ports, and the only one that kube-proxy uses.
    Masquerade,
    /// They stay on this host.
    Local,
    /// In packets of their own.
    Tunnel,
    /// By another link-layer address.
    Route,
    /// Around IPVS.
    Bypass,
}

impl Forward {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerading",
            Self::Local => "local",
            Self::Tunnel => "tunnel",
            Self::Route => "direct routing",
            Self::Bypass => "bypass",
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Masquerade => "-m",
            Self::Tunnel => "-i",
            // ipvsadm prints all others so.
            Self::Local | Self::Route | Self::Bypass => "-g",
        })
    }
}

/// A real server of a virtual one. A virtual server has one for each address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealServer {
    /// Where its connections go.
    pub address: SocketAddr,
    /// How packets get there.
    pub forward: Forward,
    /// Its share; with 0 it gets no new connections.
    pub weight: u32,
}

/// `-r 10.244.1.5:8080 -m -w 1`: the end of ipvsadm's line, after `-a` and the virtual server's key.
impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-r {} {} -w {}", self.address, self.forward, self.weight)
    }
}

/// How many connections a real server has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connections {
    /// Established.
    pub active: u32,
    /// All others that are remembered: being made or closed, and those of UDP.
    pub inactive: u32,
    /// Clients that stay with it ([`Persistence`]).
    pub persistent: u32,
}

impl Connections {
    /// Whether it has none that somebody might yet send on.
    #[must_use]
    pub fn none(self) -> bool {
        self.active == 0 && self.inactive == 0
    }
}

/// What a virtual or real server has counted since it was made, or since somebody set it to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Statistics {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets back to them.
    pub packets_back: u64,
    /// Bytes back to them.
    pub bytes_back: u64,
}

/// What the kernel lists as a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedServer {
    /// One with an address.
    Server(VirtualServer, Statistics),
    /// One for packets with a firewall mark, whatever their address.
    FirewallMark(u32, Scheduler),
}

/// For how many seconds connections are remembered after their last packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Those of TCP.
    pub tcp: u32,
    /// Those of TCP that are being closed.
    pub tcp_fin: u32,
    /// Those of UDP.
    pub udp: u32,
}

/// A change to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a virtual server; fails if it exists.
    AddVirtual(VirtualServer),
    /// Has one schedule otherwise; its real servers and connections stay. Fails if there is none.
    UpdateVirtual(VirtualServer),
    /// Deletes one with its real servers; fails if there is none.
    DeleteVirtual(ServerKey),
    /// Adds a real server; fails if it is there, or if there is no such virtual server.
    AddReal(ServerKey, RealServer),
    /// Changes its weight; its connections stay. Fails if there is none.
    UpdateReal(ServerKey, RealServer),
    /// Takes one out: its connections end with their next packet. Fails if there is none.
    DeleteReal(ServerKey, SocketAddr),
}

impl Operation {
    /// The virtual server that it is about.
    #[must_use]
    pub fn key(&self) -> ServerKey {
        match self {
            Self::AddVirtual(server) | Self::UpdateVirtual(server) => server.key,
            Self::DeleteVirtual(key) | Self::AddReal(key, _) | Self::UpdateReal(key, _) | Self::DeleteReal(key, _) => {
                *key
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(protocol: u8, address: &str, scheduler: &str) -> VirtualServer {
        let address = address.parse().expect("an address");
        let scheduler = Scheduler::parse(scheduler).expect("a name");
        let key = ServerKey { address, protocol };
        VirtualServer { key, scheduler, flags: Flags::default(), persistence: None }
    }

    /// The lines are ipvsadm 1.31's own.
    #[test]
    fn servers_print_as_ipvsadm_prints_them() {
        let both = Flags::FALLBACK.with(Flags::PORT);
        let kept = |seconds, prefix| Some(Persistence { seconds, prefix });
        let (v4, v6) = ("10.0.0.1:80", "[fd00::1]:80");
        for (server, text) in [
            (server(TCP, v4, "rr"), "-A -t 10.0.0.1:80 -s rr"),
            (
                VirtualServer { persistence: kept(10800, 32), ..server(TCP, v4, "rr") },
                "-A -t 10.0.0.1:80 -s rr -p 10800",
            ),
            (
                VirtualServer {
                    persistence: kept(50, 16),
                    flags: both.with(Flags::ONE_PACKET),
                    ..server(UDP, "10.0.0.1:53", "mh")
                },
                "-A -u 10.0.0.1:53 -s mh -p 50 -M 255.255.0.0 -o -b mh-fallback,mh-port",
            ),
            (
                VirtualServer { flags: both.with(Flags::THIRD), ..server(UDP, v4, "rr") },
                "-A -u 10.0.0.1:80 -s rr -b flag-1,flag-2,flag-3",
            ),
            (
                VirtualServer { flags: Flags::PORT, ..server(SCTP, v4, "sh") },
                "-A --sctp-service 10.0.0.1:80 -s sh -b sh-port",
            ),
            (
                VirtualServer { persistence: kept(100, 64), ..server(TCP, v6, "wrr") },
                "-A -t [fd00::1]:80 -s wrr -p 100 -M 64",
            ),
            (
                VirtualServer { persistence: kept(100, 128), ..server(TCP, v6, "wrr") },
                "-A -t [fd00::1]:80 -s wrr -p 100",
            ),
        ] {
            assert_eq!(server.to_string(), text);
        }
        let address = "10.1.0.1:8080".parse().expect("an address");
        let real = RealServer { address, forward: Forward::Masquerade, weight: 1 };
        assert_eq!(real.to_string(), "-r 10.1.0.1:8080 -m -w 1");
    }

    #[test]
    fn masks_and_flags_are_the_kernels() {
        assert_eq!(
            [0, 1, 24, 32].map(|prefix| netmask(prefix).to_string()),
            ["0.0.0.0", "128.0.0.0", "255.255.255.0", "255.255.255.255"]
        );
        assert_eq!(Flags::of_bits(0x13), Flags::PORT, "being persistent and hashed are no choices");
        assert!(Scheduler::parse("a-name-of-16-byt").is_none());
    }
}
