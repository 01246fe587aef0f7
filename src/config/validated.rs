//! The validated configuration that the program runs with.

use std::net::SocketAddr;
use std::path::PathBuf;

use proxier::model::{Config, ConntrackConfig, IpvsConfig, Mode};

use super::KubeProxyConfiguration;
use super::gates::FeatureGates;
use super::logging::Logging;

/// A validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedConfig {
    /// The proxy mode.
    pub mode: Mode,
    /// Settings of the proxiers; periods, masquerade bit and the like are those of `mode`.
    pub proxier: Config,
    /// Further settings of IPVS mode.
    pub ipvs: IpvsConfig,
    /// Settings of the kernel's connection tracking.
    pub conntrack: ConntrackConfig,
    /// The kernel's OOM score adjustment of this process.
    pub oom_score_adj: i32,
    /// Address of the health server; `None`: disabled.
    pub healthz: Option<SocketAddr>,
    /// Address of the metrics server; `None`: disabled.
    pub metrics: Option<SocketAddr>,
    /// Whether the process exits if it cannot listen.
    pub bind_address_hard_fail: bool,
    /// Whether `/debug/` is served.
    pub enable_profiling: bool,
    /// The connection to the API server.
    pub client: ClientConfig,
    /// The feature gates.
    pub gates: FeatureGates,
    /// The logging configuration.
    pub logging: Logging,
    /// The complete configuration, to be shown or written.
    pub file: KubeProxyConfiguration,
    /// Warnings for the log.
    pub warnings: Vec<String>,
}

/// The connection to the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// The kubeconfig, if any.
    pub kubeconfig: Option<PathBuf>,
    /// Accepted encodings of responses, if configured.
    pub accept_content_types: String,
    /// The encoding of requests.
    pub content_type: String,
    /// Requests per second; `None`: unlimited.
    pub qps: Option<f32>,
    /// Requests that may be sent at once.
    pub burst: u32,
}
