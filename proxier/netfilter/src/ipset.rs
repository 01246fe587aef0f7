//! ipset sets and entries as values, displayed as `ipset save` prints them.
//!
//! Values decoded from the kernel compare equal to the values that were written.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::name::Name;
use crate::IpFamily;

/// The name of a set, at most `IPSET_MAXNAMELEN` - 1 bytes.
pub type SetName = Name<31>;

/// The type of a set: storage method and entry fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetType {
    /// Address, protocol and port.
    HashIpPort,
    /// Address, protocol, port and a second address.
    HashIpPortIp,
    /// Address, protocol, port and a network.
    HashIpPortNet,
    /// Addresses.
    HashIp,
    /// All 65,536 ports, without a protocol.
    BitmapPort,
}

impl SetType {
    /// All types.
    pub const ALL: [Self; 5] =
        [Self::HashIpPort, Self::HashIpPortIp, Self::HashIpPortNet, Self::HashIp, Self::BitmapPort];

    /// The type's name in ipset and the kernel.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::HashIp => "hash:ip",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// The type of a name; `None` if the name is unknown.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set_type| set_type.name() == name)
    }
}

/// The default maximum number of entries (`maxelem`).
pub const MAX_ENTRIES: u32 = 65536;

/// A set without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: SetName,
    /// The type.
    pub set_type: SetType,
    /// The family of its addresses; `None` for sets of ports.
    pub family: Option<IpFamily>,
    /// The maximum number of entries (`maxelem`).
    pub max_entries: u32,
    /// Whether each entry counts the packets that rules matched by it (`counters`).
    pub counters: bool,
}

impl Set {
    /// A set with the default maximum number of entries.
    #[must_use]
    pub fn new(name: SetName, set_type: SetType, family: IpFamily) -> Self {
        let family = (set_type != SetType::BitmapPort).then_some(family);
        Self { name, set_type, family, max_entries: MAX_ENTRIES, counters: false }
    }

    /// The same set, whose entries count packets.
    #[must_use]
    pub fn counting(self) -> Self {
        Self { counters: true, ..self }
    }

    /// Whether a set in the kernel can be used as this one, which it can if it counts although it need not.
    #[must_use]
    pub fn is_satisfied_by(&self, found: &Self) -> bool {
        found == self || found == &self.counting()
    }
}

/// The `create` line, without the parameters that the kernel chooses.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, set_type, family, max_entries, counters } = self;
        write!(f, "create {name} {}", set_type.name())?;
        match family {
            Some(family) => write!(f, " family {} hashsize 1024 maxelem {max_entries}", family.ipset()),
            None => f.write_str(" range 0-65535"),
        }?;
        if *counters { f.write_str(" counters") } else { Ok(()) }
    }
}

/// An entry of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// An entry of [`SetType::HashIpPort`].
    IpPort(IpPortProto),
    /// An entry of [`SetType::HashIpPortIp`].
    IpPortIp(IpPortProto, IpAddr),
    /// An entry of [`SetType::HashIpPortNet`]. The kernel rejects prefixes of length 0.
    IpPortNet(IpPortProto, IpNet),
    /// An entry of [`SetType::HashIp`].
    Ip(IpAddr),
    /// An entry of [`SetType::BitmapPort`].
    Port(u16),
}

/// An address, protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpPortProto {
    /// The address.
    pub ip: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl Entry {
    /// The type of set that holds such entries.
    #[must_use]
    pub fn set_type(&self) -> SetType {
        match self {
            Self::IpPort(_) => SetType::HashIpPort,
            Self::IpPortIp(..) => SetType::HashIpPortIp,
            Self::IpPortNet(..) => SetType::HashIpPortNet,
            Self::Ip(_) => SetType::HashIp,
            Self::Port(_) => SetType::BitmapPort,
        }
    }
}

/// `10.96.0.1,tcp:443`
impl fmt::Display for IpPortProto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ip, protocol, port } = self;
        match protocol {
            6 => write!(f, "{ip},tcp:{port}"),
            17 => write!(f, "{ip},udp:{port}"),
            132 => write!(f, "{ip},sctp:{port}"),
            136 => write!(f, "{ip},udplite:{port}"),
            other => write!(f, "{ip},{other}:{port}"),
        }
    }
}

/// The text after `add NAME`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpPort(place) => place.fmt(f),
            Self::IpPortIp(place, other) => write!(f, "{place},{other}"),
            // ipset prints a network of one address as the address.
            Self::IpPortNet(place, net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{place},{}", net.addr())
            }
            Self::IpPortNet(place, net) => write!(f, "{place},{}", net.trunc()),
            Self::Ip(ip) => ip.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// What a rule asks a set about a packet: whether it has an entry made of these parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SetQuery {
    /// The set's name.
    pub set: String,
    /// Which end of the packet each part is of: `true` its source.
    pub of_source: Vec<bool>,
    /// The sender.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The interface that it came in by; empty if by none.
    pub in_interface: String,
    /// The interface that it leaves by; empty if that is not decided yet.
    pub out_interface: String,
    /// Its mark.
    pub mark: u32,
}

/// A set as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its name.
    pub name: SetName,
    /// The set as a value; `None` if this crate does not support its type.
    pub set: Option<Set>,
    /// Type, family and size for messages: `hash:ip,port family inet maxelem 65536`.
    pub described: String,
    /// The number of rules and lists that refer to it; a referenced set cannot be destroyed.
    pub references: u32,
    /// The number of entries; `None` on kernels before 4.9.
    pub entries: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ip: &str, protocol: u8) -> IpPortProto {
        IpPortProto { ip: ip.parse().expect("an address"), protocol, port: 80 }
    }

    /// The expected lines come from ipset 7.17.
    #[test]
    fn sets_and_entries_display_as_in_ipset_save() {
        let set = |set_type, family| Set::new(SetName::new("KUBE-X"), set_type, family).to_string();
        assert_eq!(
            set(SetType::HashIpPort, IpFamily::V6),
            "create KUBE-X hash:ip,port family inet6 hashsize 1024 maxelem 65536"
        );
        assert_eq!(set(SetType::BitmapPort, IpFamily::V4), "create KUBE-X bitmap:port range 0-65535");
        assert_eq!(
            Set::new(SetName::new("KUBE-X"), SetType::HashIp, IpFamily::V4).counting().to_string(),
            "create KUBE-X hash:ip family inet hashsize 1024 maxelem 65536 counters"
        );
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        for (entry, text) in [
            (Entry::IpPort(place("10.0.0.1", 6)), "10.0.0.1,tcp:80"),
            (Entry::IpPort(place("10.0.0.1", 132)), "10.0.0.1,sctp:80"),
            (Entry::IpPortIp(place("10.0.0.1", 17), IpAddr::from([10, 0, 0, 1])), "10.0.0.1,udp:80,10.0.0.1"),
            (Entry::IpPortNet(place("fd00::1", 6), net("fd00::/64")), "fd00::1,tcp:80,fd00::/64"),
            (Entry::IpPortNet(place("fd00::1", 6), net("fd00::1/128")), "fd00::1,tcp:80,fd00::1"),
            (Entry::Ip(IpAddr::from([1, 2, 3, 4])), "1.2.3.4"),
            (Entry::Port(30000), "30000"),
        ] {
            assert_eq!(entry.to_string(), text);
        }
    }

    #[test]
    fn set_types_parse_by_name() {
        for set_type in SetType::ALL {
            assert_eq!(SetType::parse(set_type.name()), Some(set_type));
        }
        assert_eq!(SetType::parse("list:set"), None);
        assert!(SetName::parse("KUBE-6-LOAD-BALANCER-SOURCE-CIDR").is_none(), "32 bytes are too many");
    }
}
