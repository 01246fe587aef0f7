//! The connection tracking settings that are applied at startup.

use std::time::Duration;

/// `conntrack` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Table size per CPU core; 0 keeps the kernel's size and disables `min`.
    pub max_per_core: u32,
    /// Minimum table size, whatever the number of cores.
    pub min: u32,
    /// Timeout of established TCP connections; zero keeps the kernel's value.
    pub tcp_established_timeout: Duration,
    /// Timeout of TCP connections in CLOSE_WAIT; zero keeps the kernel's value.
    pub tcp_close_wait_timeout: Duration,
    /// Accept out-of-window TCP packets; off keeps the kernel's value.
    pub tcp_be_liberal: bool,
    /// Timeout of unreplied UDP flows; zero keeps the kernel's value.
    pub udp_timeout: Duration,
    /// Timeout of UDP streams; zero keeps the kernel's value.
    pub udp_stream_timeout: Duration,
}
