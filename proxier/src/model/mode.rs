//! How packets are directed, and what only one way of doing it has to be told.
//!
//! In: names and values of the configuration. Out: [`Mode`] and [`IpvsConfig`]. Must not know: how a mode works.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

/// A way of directing packets (`mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Rules of iptables.
    Iptables,
    /// Virtual servers of IPVS, with some rules of iptables.
    Ipvs,
    /// Rules and maps of nftables.
    Nftables,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// Its name in configurations, metrics and pages.
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

/// A name that no mode has, though it may have had one once (`userspace`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such mode; there are iptables, ipvs and nftables")]
pub struct UnknownMode;

/// What IPVS mode alone is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsConfig {
    /// Which scheduler virtual servers have; empty: `rr`.
    pub scheduler: String,
    /// Virtual servers in these networks are somebody else's.
    pub exclude_cidrs: Vec<IpNet>,
    /// Do not answer ARP for addresses of the dummy device.
    pub strict_arp: bool,
    /// How long an idle TCP connection is remembered; zero leaves the kernel's value.
    pub tcp_timeout: Duration,
    /// The same after a FIN.
    pub tcp_fin_timeout: Duration,
    /// The same for UDP.
    pub udp_timeout: Duration,
}
