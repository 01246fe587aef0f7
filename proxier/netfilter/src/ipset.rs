//! ipset: sets and their entries as values, as `ipset save` prints them.
//!
//! In: names, types, addresses. Out: values that compare equal to what the kernel holds, and their text.
//! Must not know: Kubernetes, which rules ask the sets, or how the kernel is told.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::name::Name;
use crate::IpFamily;

/// The name of a set (`IPSET_MAXNAMELEN` less the final NUL).
pub type SetName = Name<31>;

/// What a set holds, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SetType {
    /// Addresses with a protocol and a port.
    HashIpPort,
    /// The same with one more address.
    HashIpPortIp,
    /// The same with a network.
    HashIpPortNet,
    /// Addresses.
    HashIp,
    /// All ports there are, of no protocol.
    BitmapPort,
}

impl SetType {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::HashIpPort, Self::HashIpPortIp, Self::HashIpPortNet, Self::HashIp, Self::BitmapPort];

    /// The kernel's name.
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

    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set_type| set_type.name() == name)
    }
}

/// How many entries a set takes unless it is told otherwise.
pub const MAX_ENTRIES: u32 = 65536;

/// A set without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    /// Its name.
    pub name: SetName,
    /// What it holds.
    pub set_type: SetType,
    /// The family of the addresses in it; ports have none.
    pub family: Option<IpFamily>,
    /// How many entries it takes.
    pub max_entries: u32,
}

impl Set {
    /// A set of the usual size.
    #[must_use]
    pub fn new(name: SetName, set_type: SetType, family: IpFamily) -> Self {
        let family = (set_type != SetType::BitmapPort).then_some(family);
        Self { name, set_type, family, max_entries: MAX_ENTRIES }
    }
}

/// `create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536`, without what the kernel chooses.
impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, set_type, family, max_entries } = self;
        write!(f, "create {name} {}", set_type.name())?;
        match family {
            Some(family) => write!(f, " family {} hashsize 1024 maxelem {max_entries}", family.ipset()),
            None => f.write_str(" range 0-65535"),
        }
    }
}

/// An entry of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// Of [`SetType::HashIpPort`].
    IpPort(IpPortProto),
    /// Of [`SetType::HashIpPortIp`].
    IpPortIp(IpPortProto, IpAddr),
    /// Of [`SetType::HashIpPortNet`]. The kernel takes no prefix of length 0.
    IpPortNet(IpPortProto, IpNet),
    /// Of [`SetType::HashIp`].
    Ip(IpAddr),
    /// Of [`SetType::BitmapPort`].
    Port(u16),
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpPortProto {
    /// The address.
    pub ip: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

impl Entry {
    /// The type of the sets that it can be in.
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

/// What comes after `add NAME`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IpPort(place) => place.fmt(f),
            Self::IpPortIp(place, other) => write!(f, "{place},{other}"),
            // A network of one address is printed as the address.
            Self::IpPortNet(place, net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{place},{}", net.addr())
            }
            Self::IpPortNet(place, net) => write!(f, "{place},{}", net.trunc()),
            Self::Ip(ip) => ip.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// A set that is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its name.
    pub name: SetName,
    /// The set as we would have made it; `None` if its type is none of ours.
    pub set: Option<Set>,
    /// What it is, for messages: `hash:ip,port family inet maxelem 65536`.
    pub described: String,
    /// How many rules and lists refer to it: it cannot be destroyed while there are any.
    pub references: u32,
    /// How many entries it has; kernels before 4.9 do not say.
    pub entries: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ip: &str, protocol: u8) -> IpPortProto {
        IpPortProto { ip: ip.parse().expect("an address"), protocol, port: 80 }
    }

    /// The lines are ipset 7.17's own.
    #[test]
    fn sets_and_entries_print_as_ipset_prints_them() {
        let set = |set_type, family| Set::new(SetName::new("KUBE-X"), set_type, family).to_string();
        assert_eq!(
            set(SetType::HashIpPort, IpFamily::V6),
            "create KUBE-X hash:ip,port family inet6 hashsize 1024 maxelem 65536"
        );
        assert_eq!(set(SetType::BitmapPort, IpFamily::V4), "create KUBE-X bitmap:port range 0-65535");
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
    fn types_are_known_by_name() {
        for set_type in SetType::ALL {
            assert_eq!(SetType::parse(set_type.name()), Some(set_type));
        }
        assert_eq!(SetType::parse("list:set"), None);
        assert!(SetName::parse("KUBE-6-LOAD-BALANCER-SOURCE-CIDR").is_none(), "32 bytes are too many");
    }
}
