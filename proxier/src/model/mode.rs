//! Proxy modes, and the configuration of IPVS mode.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// A proxy mode (`mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// iptables rules.
    Iptables,
    /// IPVS virtual servers, with some iptables rules.
    Ipvs,
    /// nftables rules and maps.
    Nftables,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// Its name in configuration, metrics and pages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or(UnknownMode)
    }
}

/// An unknown mode name, including removed modes (`userspace`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such mode; there are iptables, ipvs and nftables")]
pub struct UnknownMode;

/// The configuration of IPVS mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsConfig {
    /// The scheduler of virtual servers; empty means `rr`.
    pub scheduler: String,
    /// Networks whose virtual servers belong to other programs.
    pub exclude_cidrs: Vec<IpNet>,
    /// Whether to not answer ARP for addresses of the dummy device.
    pub strict_arp: bool,
    /// Timeout of idle TCP connections; zero keeps the kernel's value.
    pub tcp_timeout: Duration,
    /// Timeout of TCP connections after a FIN; zero keeps the kernel's value.
    pub tcp_fin_timeout: Duration,
    /// Timeout of UDP flows; zero keeps the kernel's value.
    pub udp_timeout: Duration,
}
