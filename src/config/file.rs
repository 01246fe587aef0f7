//! KubeProxyConfiguration v1alpha1: its fields, in kube-proxy's order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::duration::GoDuration;
use super::logging::LoggingFile;

/// The configuration file. `None`: not set.
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
    /// The Node's name, if not the host name.
    pub hostname_override: String,
    /// The node's address, unless a wildcard.
    pub bind_address: String,
    /// Address of the health server; empty: the default; `0`: disabled.
    pub healthz_bind_address: String,
    /// Address of the metrics server; empty: the default; `0`: disabled.
    pub metrics_bind_address: String,
    /// Whether the process exits if it cannot listen.
    pub bind_address_hard_fail: bool,
    /// Serve `/debug/`.
    pub enable_profiling: bool,
    /// The release whose hidden metrics are shown.
    pub show_hidden_metrics_for_version: String,
    /// `iptables`, `ipvs` or `nftables`.
    pub mode: String,
    /// Settings of iptables mode, and some of IPVS mode.
    pub iptables: Iptables,
    /// Settings of IPVS mode.
    pub ipvs: Ipvs,
    /// Settings of nftables mode.
    pub nftables: Nftables,
    /// Settings for Windows.
    pub winkernel: Winkernel,
    /// How local traffic is detected.
    pub detect_local_mode: String,
    /// Parameters of local traffic detection.
    pub detect_local: DetectLocal,
    /// Pod networks, comma-separated.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// The addresses on which node ports are served.
    #[serde(serialize_with = "list")]
    pub node_port_addresses: Vec<String>,
    /// The kernel's OOM score adjustment of this process.
    pub oom_score_adj: Option<i32>,
    /// Settings of connection tracking.
    pub conntrack: Conntrack,
    /// The resync period of kube-proxy's informers.
    #[serde(serialize_with = "span")]
    pub config_sync_period: Option<GoDuration>,
    /// Unused since the userspace mode was removed.
    pub port_range: String,
    /// Windows only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub windows_run_as_service: bool,
    /// Metrics that kube-proxy does not have. It ignores the field: strict decoding fails, lenient decoding does not.
    #[serde(skip_serializing_if = "ServiceMetricsFile::is_unset")]
    pub service_metrics: ServiceMetricsFile,
}

/// `serviceMetrics`, a field of this program alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceMetricsFile {
    /// `Services`, `Endpoints` or `Off`.
    pub level: String,
    /// The namespaces of Services that are shown; none: all.
    #[serde(serialize_with = "list")]
    pub namespaces: Vec<String>,
    /// The label selector of Services that are shown; empty: all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The most Service ports that are shown; the default applies if it is unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i32>,
}

impl ServiceMetricsFile {
    /// The default limit of Service ports.
    pub const LIMIT: i32 = 1000;

    /// Whether nothing is set, so that the configuration is shown as kube-proxy shows it.
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Whether anything is counted.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(&*self.level, "" | "Off")
    }
}

/// `clientConnection`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    /// The kubeconfig file; empty: the Pod's service account.
    pub kubeconfig: String,
    /// Accepted encodings of responses.
    pub accept_content_types: String,
    /// The encoding of requests.
    pub content_type: String,
    /// Requests per second; negative: unlimited.
    #[serde(serialize_with = "number")]
    pub qps: f32,
    /// Requests that may be sent at once.
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
    /// The bit of the packet mark that requests masquerading.
    pub masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Serve node ports on loopback addresses too.
    pub localhost_node_ports: Option<bool>,
    /// How soon a failed sync is retried and the rules are checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// The shortest time between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
}

/// `ipvs`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipvs {
    /// How soon a failed sync is retried and the state is checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// The shortest time between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
    /// The IPVS scheduler; empty: `rr`.
    pub scheduler: String,
    /// Networks whose virtual servers belong to other programs.
    #[serde(rename = "excludeCIDRs", serialize_with = "list")]
    pub exclude_cidrs: Vec<String>,
    /// Do not answer ARP for Service addresses.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// How long an idle TCP connection is kept.
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
    /// The bit of the packet mark that requests masquerading.
    pub masquerade_bit: Option<i32>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// How soon a failed sync is retried and the rules are checked.
    #[serde(serialize_with = "span")]
    pub sync_period: Option<GoDuration>,
    /// The shortest time between two syncs.
    #[serde(serialize_with = "span")]
    pub min_sync_period: Option<GoDuration>,
}

/// `winkernel`, unused on Linux.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Winkernel {
    /// The name of an HNS network.
    pub network_name: String,
    /// The source address for masquerading.
    pub source_vip: String,
    /// Direct server return.
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    /// The name of an HNS endpoint.
    pub root_hns_endpoint_name: String,
    /// Forward the health check port.
    pub forward_health_check_vip: bool,
}

/// `conntrack`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    /// Tracked connections per CPU core.
    pub max_per_core: Option<i32>,
    /// The least limit of tracked connections.
    pub min: Option<i32>,
    /// How long an idle established TCP connection is kept.
    pub tcp_established_timeout: Option<GoDuration>,
    /// The same in CLOSE_WAIT.
    pub tcp_close_wait_timeout: Option<GoDuration>,
    /// Accept packets outside of the TCP window.
    pub tcp_be_liberal: bool,
    /// How long an unreplied UDP flow is kept.
    pub udp_timeout: GoDuration,
    /// The same for a replied UDP flow.
    pub udp_stream_timeout: GoDuration,
}

/// Writes an empty list as null, as kube-proxy does.
fn list<S: Serializer>(items: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    if items.is_empty() { serializer.serialize_none() } else { items.serialize(serializer) }
}

/// Writes a whole number without a decimal point, as Go does.
#[allow(clippy::trivially_copy_pass_by_ref, clippy::cast_possible_truncation)] // serde passes a reference; the value is compared
fn number<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = number.trunc() as i64;
    #[allow(clippy::float_cmp, clippy::cast_precision_loss)] // exact comparison is intended
    if whole as f32 == *number { serializer.serialize_i64(whole) } else { serializer.serialize_f32(*number) }
}

#[allow(clippy::ref_option)] // serde passes a reference
fn span<S: Serializer>(duration: &Option<GoDuration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.unwrap_or_default().serialize(serializer)
}
