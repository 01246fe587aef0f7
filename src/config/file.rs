//! KubeProxyConfiguration v1alpha1: its fields, in the order in which kube-proxy shows them.
//!
//! In: what a file or flags say. Out: the same as values, or as JSON. Must not know: what is allowed or the default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::duration::GoDuration;
use super::logging::LoggingFile;

/// The configuration. `None`: not said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeProxyConfiguration {
    /// `KubeProxyConfiguration`
    pub kind: String,
    /// `kubeproxy.config.k8s.io/v1alpha1`
    pub api_version: String,
    /// Feature gates, on or off.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    /// How to reach the API server.
    pub client_connection: ClientConnection,
    /// How to log.
    pub logging: LoggingFile,
    /// The name of this node, if not the host's.
    pub hostname_override: String,
    /// The node's address, if not a wildcard.
    pub bind_address: String,
    /// Where `/healthz` is served; empty: at the usual place; `0`: nowhere.
    pub healthz_bind_address: String,
    /// Where `/metrics` is served; empty: at the usual place; `0`: nowhere.
    pub metrics_bind_address: String,
    /// Whether a port that cannot be had is the end.
    pub bind_address_hard_fail: bool,
    /// Serve `/debug/`.
    pub enable_profiling: bool,
    /// Show metrics that this release hides.
    pub show_hidden_metrics_for_version: String,
    /// `iptables`, `ipvs` or `nftables`.
    pub mode: String,
    /// Settings of iptables mode, and some of IPVS mode.
    pub iptables: Iptables,
    /// Settings of IPVS mode.
    pub ipvs: Ipvs,
    /// Settings of nftables mode.
    pub nftables: Nftables,
    /// Settings of Windows.
    pub winkernel: Winkernel,
    /// How to tell local traffic.
    pub detect_local_mode: String,
    /// Details of that.
    pub detect_local: DetectLocal,
    /// Pod networks, with a comma between.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// Where node ports are served.
    #[serde(serialize_with = "list")]
    pub node_port_addresses: Vec<String>,
    /// How readily the kernel kills this process when memory is short.
    pub oom_score_adj: Option<i32>,
    /// Settings of connection tracking.
    pub conntrack: Conntrack,
    /// How often everything was taken from the API server again, once.
    #[serde(serialize_with = "span")]
    pub config_sync_period: Option<GoDuration>,
    /// Means nothing since the userspace mode is gone.
    pub port_range: String,
    /// Of Windows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub windows_run_as_service: bool,
}

/// `clientConnection`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    /// A kubeconfig file; without one, the Pod's service account.
    pub kubeconfig: String,
    /// What answers may be encoded in.
    pub accept_content_types: String,
    /// What requests are encoded in.
    pub content_type: String,
    /// How many requests per second; negative: any number.
    #[serde(serialize_with = "number")]
    pub qps: f32,
    /// How many requests at once.
    pub burst: i32,
}

/// `detectLocal`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocal {
    /// For mode `BridgeInterface`.
    pub bridge_interface: String,
    /// For mode `InterfaceNamePrefix`.
    pub interface_name_prefix: String,
}

/// `iptables`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Iptables {
    /// Which bit of the mark asks for masquerading.
    pub masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Serve node ports on loopback addresses too.
    pub localhost_node_ports: Option<bool>,
    /// How soon failures are retried and the rules checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// How long to wait at least between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
}

/// `ipvs`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipvs {
    /// How soon failures are retried and everything is checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// How long to wait at least between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
    /// Which scheduler; empty: `rr`.
    pub scheduler: String,
    /// Networks whose virtual servers are somebody else's.
    #[serde(rename = "excludeCIDRs", serialize_with = "list")]
    pub exclude_cidrs: Vec<String>,
    /// Do not answer ARP for service addresses.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// How long an idle TCP connection is remembered.
    pub tcp_timeout: GoDuration,
    /// The same after a FIN.
    pub tcp_fin_timeout: GoDuration,
    /// The same for UDP.
    pub udp_timeout: GoDuration,
}

/// `nftables`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Nftables {
    /// Which bit of the mark asks for masquerading.
    pub masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// How soon failures are retried and the rules checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// How long to wait at least between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
}

/// `winkernel`, which means nothing on Linux
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Winkernel {
    /// A network of HNS.
    pub network_name: String,
    /// An address to masquerade with.
    pub source_vip: String,
    /// Direct server return.
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    /// An endpoint of HNS.
    pub root_hns_endpoint_name: String,
    /// Forward the health check port.
    pub forward_health_check_vip: bool,
}

/// `conntrack`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    /// How many connections to track per CPU core.
    pub max_per_core: Option<i32>,
    /// How many at least.
    pub min: Option<i32>,
    /// How long an idle established TCP connection is remembered.
    pub tcp_established_timeout: Option<GoDuration>,
    /// The same in CLOSE_WAIT.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// Do not hold packets out of the window against a TCP connection.
    pub tcp_be_liberal: bool,
    /// How long an unanswered UDP flow is remembered.
    pub udp_timeout: GoDuration,
    /// The same for one that was answered and went on.
    pub udp_stream_timeout: GoDuration,
}

/// An empty list is none at all, as kube-proxy writes it.
fn list<S: Serializer>(items: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if items.is_empty() { serializer.serialize_none() } else { items.serialize(serializer) }
}

/// A whole number has no point, as Go writes it.
#[allow(clippy::trivially_copy_pass_by_ref, clippy::cast_possible_truncation)] // serde asks for it so; checked
fn number<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = number.trunc() as i64;
    #[allow(clippy::float_cmp, clippy::cast_precision_loss)] // either it is that number or it is not
    if whole as f32 == *number { serializer.serialize_i64(whole) } else { serializer.serialize_f32(*number) }
}

#[allow(clippy::ref_option)] // serde asks for it so
fn span<S: Serializer>(duration: &Option<GoDuration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.unwrap_or_default().serialize(serializer)
}
