//! The two IP families, with every name and constant that differs between them.
//!
//! Code that takes an [`IpFamily`] needs no branch of its own for IPv4 and IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// An IP family, named as Kubernetes names it in `spec.ipFamilies` and `addressType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// `IPv4`
    V4,
    /// `IPv6`
    V6,
}

impl IpFamily {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_net(net: &IpNet) -> Self {
        if net.addr().is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The other family.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The Kubernetes name, `IPv4` or `IPv6`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The family of a Kubernetes name; `None` for any other text, such as `FQDN`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Checks that the kernel supports the family in this network namespace.
    ///
    /// # Errors
    /// The reason why it does not.
    pub fn available(self) -> Result<(), &'static str> {
        let disabled =
            || std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.trim() == "1");
        match self {
            Self::V6 if !std::path::Path::new("/proc/net/if_inet6").exists() => Err("the kernel has no IPv6"),
            Self::V6 if disabled() => Err("IPv6 is disabled by net.ipv6.conf.all.disable_ipv6"),
            _ => Ok(()),
        }
    }

    /// The prefix of the iptables program names: `iptables`, `ip6tables`.
    #[must_use]
    pub fn iptables(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// The name in ipset: `inet`, `inet6`.
    #[must_use]
    pub fn ipset(self) -> &'static str {
        match self {
            Self::V4 => "inet",
            Self::V6 => "inet6",
        }
    }

    /// The file that lists the existing legacy iptables tables of this network namespace.
    #[must_use]
    pub fn legacy_table_names(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    /// The family of a netfilter protocol number (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    #[must_use]
    pub fn of_nfproto(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.nfproto() == number)
    }

    /// The netfilter protocol number (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    #[must_use]
    pub fn nfproto(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The loopback network: `127.0.0.0/8` or `::1/128`.
    #[must_use]
    pub fn loopback(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)),
            Self::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
        }
    }

    /// The loopback address, `127.0.0.1` or `::1`.
    #[must_use]
    pub fn localhost(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// Whether an address is valid on one link only.
    ///
    /// Only IPv6 link-local addresses count: IPv4 link-local addresses are used like other addresses.
    #[must_use]
    pub fn is_link_local(self, ip: &IpAddr) -> bool {
        matches!(ip, IpAddr::V6(ip) if self == Self::V6 && ip.is_unicast_link_local())
    }

    /// Whether the kernel can route packets from other hosts to loopback addresses.
    /// `route_localnet` exists for IPv4 only.
    #[must_use]
    pub fn has_route_localnet(self) -> bool {
        self == Self::V4
    }

    /// The value of `--reject-with` for "port unreachable".
    #[must_use]
    pub fn reject_with(self) -> &'static str {
        match self {
            Self::V4 => "icmp-port-unreachable",
            Self::V6 => "icmp6-port-unreachable",
        }
    }

    /// The name in nft, of tables and of headers: `ip`, `ip6`.
    #[must_use]
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The ICMP or ICMPv6 code for "port unreachable".
    #[must_use]
    pub fn port_unreachable(self) -> u8 {
        match self {
            Self::V4 => 3,
            Self::V6 => 4,
        }
    }

    /// The mask that `-m recent` prints for a single address.
    #[must_use]
    pub fn recent_mask(self) -> &'static str {
        match self {
            Self::V4 => "255.255.255.255",
            Self::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
