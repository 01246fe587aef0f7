//! What the program goes by.
//!
//! In: values that were checked. Out: [`ValidatedConfig`]. Must not know: files, flags, or how anything is done with them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proxier::model::{Config, ConntrackConfig, IpvsConfig, Mode};

use super::KubeProxyConfiguration;
use super::gates::FeatureGates;
use super::logging::Logging;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedConfig {
    /// How packets are directed.
    pub mode: Mode,
    /// What the proxiers of every mode are told; periods, masquerade bit and the like are those of `mode`.
    pub proxier: Config,
    /// What IPVS mode is told besides.
    pub ipvs: IpvsConfig,
    /// What the kernel is told about connection tracking.
    pub conntrack: ConntrackConfig,
    /// How readily the kernel kills this process when memory is short.
    pub oom_score_adj: i32,
    /// Where `/healthz` is served; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// Whether a port that cannot be had is the end.
    pub bind_address_hard_fail: bool,
    /// Serve `/debug/`.
    pub enable_profiling: bool,
    /// How to reach the API server.
    pub client: ClientConfig,
    /// Which features are on.
    pub gates: FeatureGates,
    /// How to log.
    pub logging: Logging,
    /// The configuration in full, to be shown or written.
    pub file: KubeProxyConfiguration,
    /// What is odd about it, for the log.
    pub warnings: Vec<String>,
}

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// The kubeconfig, if any.
    pub kubeconfig: Option<PathBuf>,
    /// What answers may be encoded in, if that is said.
    pub accept_content_types: String,
    /// What requests are encoded in.
    pub content_type: String,
    /// How many requests per second; `None`: any number.
    pub qps: Option<f32>,
    /// How many requests at once.
    pub burst: u32,
    /// How often kube-proxy looks at everything it holds again.
    pub resync: Duration,
}
