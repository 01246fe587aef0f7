//! What the kernel is told about connection tracking at the start.
//!
//! In: values of the configuration. Out: [`ConntrackConfig`]. Must not know: sysctls.

use std::time::Duration;

/// `conntrack` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// How many connections to track per CPU core; 0 leaves the kernel's limit and makes `min` mean nothing.
    pub max_per_core: u32,
    /// How many at least, whatever the number of cores.
    pub min: u32,
    /// How long an idle established TCP connection is remembered; zero leaves the kernel's value.
    pub tcp_established_timeout: Duration,
    /// The same in CLOSE_WAIT.
    pub tcp_close_wait_timeout: Duration,
    /// Do not hold packets out of the window against a TCP connection; off leaves the kernel's value.
    pub tcp_be_liberal: bool,
    /// How long an unanswered UDP flow is remembered; zero leaves the kernel's value.
    pub udp_timeout: Duration,
    /// The same for one that was answered and went on.
    pub udp_stream_timeout: Duration,
}
