//! IPVS virtual and real servers as values, displayed as `ipvsadm -S -n` prints them.
//!
//! Values decoded from the kernel compare equal to the values that were written.

use std::fmt;
use std::net::SocketAddr;

use super::name::Name;

/// The IP protocol number of TCP.
pub const TCP: u8 = 6;
/// The IP protocol number of UDP.
pub const UDP: u8 = 17;
/// The IP protocol number of SCTP.
pub const SCTP: u8 = 132;

/// The name of a scheduler, at most `IP_VS_SCHEDNAME_MAXLEN` - 1 bytes; its module is `ip_vs_NAME`.
pub type Scheduler = Name<15>;

/// The key of a virtual server: address, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerKey {
    /// The virtual IP address and port.
    pub address: SocketAddr,
    /// The IP protocol number.
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

/// The flags of a virtual server (`IP_VS_SVC_F_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(u32);

impl Flags {
    /// Schedules each packet by itself (UDP only).
    pub const ONE_PACKET: Self = Self(0x04);
    /// The first scheduler flag. `sh` and `mh` replace a server of weight 0 by another one.
    pub const FALLBACK: Self = Self(0x08);
    /// The second scheduler flag. `sh` and `mh` include the client's port in the hash.
    pub const PORT: Self = Self(0x10);
    /// The third scheduler flag, which no scheduler uses.
    pub const THIRD: Self = Self(0x20);

    /// All flags. The kernel's other two bits, for persistence and for being hashed, follow from other fields.
    const ALL: u32 = 0x3c;

    /// The flags among the kernel's bits.
    #[must_use]
    pub fn of_bits(bits: u32) -> Self {
        Self(bits & Self::ALL)
    }

    /// The kernel's bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The union of two sets of flags.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all flags of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of the scheduler flags in ipvsadm.
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

/// Session persistence: a client stays with its first real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// The timeout in seconds after the client's last connection.
    pub seconds: u32,
    /// The prefix length of a client's address; 32 or 128 separates all clients.
    pub prefix: u8,
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServer {
    /// Its address, port and protocol.
    pub key: ServerKey,
    /// The scheduler that distributes connections.
    pub scheduler: Scheduler,
    /// Its flags.
    pub flags: Flags,
    /// Session persistence, if enabled.
    pub persistence: Option<Persistence>,
}

impl VirtualServer {
    /// The length of an address of its family in bits.
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

/// The IPv4 netmask of a prefix length.
#[must_use]
pub fn netmask(prefix: u8) -> std::net::Ipv4Addr {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or_default().into()
}

/// The forwarding method of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// Network address translation (`-m`), the only method that can change ports.
    Masquerade,
    /// Delivery on this host.
    Local,
    /// IP-in-IP tunnel (`-i`).
    Tunnel,
    /// Direct routing by link-layer address (`-g`).
    Route,
    /// Delivery without IPVS.
    Bypass,
}

impl Forward {
    /// The method in words, for messages.
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
            // ipvsadm prints every other method as -g.
            Self::Local | Self::Route | Self::Bypass => "-g",
        })
    }
}

/// A real server. A virtual server has one for each address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealServer {
    /// The address and port that connections are forwarded to.
    pub address: SocketAddr,
    /// The forwarding method.
    pub forward: Forward,
    /// The scheduling weight; a server of weight 0 gets no new connections.
    pub weight: u32,
}

/// The end of ipvsadm's line, after `-a` and the virtual server: `-r 10.244.1.5:8080 -m -w 1`.
impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-r {} {} -w {}", self.address, self.forward, self.weight)
    }
}

/// The connection counts of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Connections {
    /// Established connections.
    pub active: u32,
    /// All other entries: connections being opened or closed, and all of UDP.
    pub inactive: u32,
    /// Persistence entries, one for each client ([`Persistence`]).
    pub persistent: u32,
}

impl Connections {
    /// Whether no connection is left that a client may still use.
    #[must_use]
    pub fn none(self) -> bool {
        self.active == 0 && self.inactive == 0
    }
}

/// The traffic counters of a virtual or real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Statistics {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets: u64,
    /// Bytes from clients.
    pub bytes: u64,
    /// Packets to clients.
    pub packets_back: u64,
    /// Bytes to clients.
    pub bytes_back: u64,
}

/// A virtual server as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedServer {
    /// A server with an address.
    Server(VirtualServer, Statistics),
    /// A server for packets with a firewall mark, whatever their address.
    FirewallMark(u32, Scheduler),
}

/// The idle timeouts of connections, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections after a FIN.
    pub tcp_fin: u32,
    /// UDP flows.
    pub udp: u32,
}

/// A change to the IPVS table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Adds a virtual server; fails if it exists.
    AddVirtual(VirtualServer),
    /// Changes scheduler, flags and persistence; real servers and connections stay. Fails if it does not exist.
    UpdateVirtual(VirtualServer),
    /// Deletes a virtual server with its real servers; fails if it does not exist.
    DeleteVirtual(ServerKey),
    /// Adds a real server; fails if it exists or the virtual server does not.
    AddReal(ServerKey, RealServer),
    /// Changes a real server's weight; its connections stay. Fails if it does not exist.
    UpdateReal(ServerKey, RealServer),
    /// Deletes a real server, whose connections end with their next packet. Fails if it does not exist.
    DeleteReal(ServerKey, SocketAddr),
}

impl Operation {
    /// The virtual server that the operation changes.
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

    /// The expected lines come from ipvsadm 1.31.
    #[test]
    fn servers_display_as_in_ipvsadm_save() {
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
    fn masks_and_flags_have_the_kernels_values() {
        assert_eq!(
            [0, 1, 24, 32].map(|prefix| netmask(prefix).to_string()),
            ["0.0.0.0", "128.0.0.0", "255.255.255.0", "255.255.255.255"]
        );
        assert_eq!(Flags::of_bits(0x13), Flags::PORT, "being persistent and hashed are no choices");
        assert!(Scheduler::parse("a-name-of-16-byt").is_none());
    }
}
