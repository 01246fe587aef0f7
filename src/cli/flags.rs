//! The flags of kube-proxy 1.37 and `--objects`, in groups.
//!
//! golden/surface/flags.yaml lists them all, with their effect beside `--config`.

use std::path::PathBuf;

use clap::Args;

use super::values::{Gates, Rate, Switch, ip, ip_port, path};
use crate::config::GoDuration;

pub use super::more_flags::{Conntrack, Ignored, Ipvs, Logs};

/// All of them.
#[derive(Debug, Args)]
pub struct Flags {
    /// What to do, and whose configuration to go by.
    #[command(flatten)]
    pub general: General,
    /// Where objects come from.
    #[command(flatten)]
    pub source: Source,
    /// What rules there shall be.
    #[command(flatten)]
    pub rules: ProxyFlags,
    /// Flags of iptables mode.
    #[command(flatten)]
    pub iptables: Iptables,
    /// Flags of IPVS mode.
    #[command(flatten)]
    pub ipvs: Ipvs,
    /// Flags of connection tracking.
    #[command(flatten)]
    pub conntrack: Conntrack,
    /// How to see what it does.
    #[command(flatten)]
    pub servers: Servers,
    /// How to log.
    #[command(flatten)]
    pub logs: Logs,
    /// What means nothing here.
    #[command(flatten)]
    pub ignored: Ignored,
}

/// What to do, and whose configuration to go by.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to do")]
pub struct General {
    /// List all flags and commands, and exit
    #[arg(short, long, value_name = "BOOL", default_value = "false")]
    pub help: Switch,
    /// KubeProxyConfiguration file. Beside it only --hostname-override, --master and the flags of the log count. It is
    /// watched: when its content changes, the program ends with code 1, to be started again
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub config: Option<PathBuf>,
    /// Write the configuration that would be used to a file, and exit; with --config, that file with all defaults
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub write_config_to: Option<PathBuf>,
    /// The name of this node, if it is not the host's; counts before the configuration file's
    #[arg(long, value_name = "NAME", default_value = "")]
    pub hostname_override: String,
    /// Take away all that any mode left in the kernel, and exit
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub cleanup: Switch,
    /// Do what needs all of root's rights, and exit; what runs after that needs CAP_NET_ADMIN alone
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub init_only: Switch,
    /// Features to switch on or off: NAME=true,NAME=false
    #[arg(long, value_name = "GATES", default_value = "")]
    pub feature_gates: Gates,
    /// How readily the kernel kills this process when memory is short, -1000 (never) to 1000
    #[arg(long, value_name = "NUMBER", default_value = "-999", allow_negative_numbers = true)]
    pub oom_score_adj: i32,
    /// Print the version and exit; raw: with all that is known of it; vX.Y.Z: claim to be that one
    #[arg(
        long,
        value_name = "VERSION",
        default_value = "false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub version: String,
}

/// Where objects come from.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Where objects come from")]
pub struct Source {
    /// Kubeconfig file; without it and --master, the Pod's service account
    #[arg(long, value_name = "FILE", default_value = "")]
    pub kubeconfig: String,
    /// Address of the API server, instead of the kubeconfig's; alone, without credentials
    #[arg(long, value_name = "URL", default_value = "")]
    pub master: String,
    /// Take Nodes, Services and EndpointSlices from a YAML file or a folder of them instead of an API server; edits count
    #[arg(long, value_name = "PATH", value_parser = path)]
    pub objects: Option<PathBuf>,
    /// How many requests per second to make at most; negative: any number
    #[arg(long, value_name = "NUMBER", default_value = "5", allow_hyphen_values = true)]
    pub kube_api_qps: Rate,
    /// How many requests to make at once at most
    #[arg(long, value_name = "NUMBER", default_value = "10", allow_negative_numbers = true)]
    pub kube_api_burst: i32,
    /// Content type of requests to the API server: application/vnd.kubernetes.protobuf or application/json
    #[arg(long, value_name = "TYPE", default_value = "application/vnd.kubernetes.protobuf")]
    pub kube_api_content_type: String,
    /// How often kube-proxy looks at all that it holds again; nothing follows from that here
    #[arg(long, value_name = "DURATION", default_value = "15m0s", allow_hyphen_values = true)]
    pub config_sync_period: GoDuration,
}

/// What rules there shall be.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rules")]
pub struct ProxyFlags {
    /// How packets are directed: iptables, ipvs or nftables
    #[arg(long, visible_alias = "mode", value_name = "MODE", default_value = "")]
    pub proxy_mode: String,
    /// Networks of the cluster's pods, one per family, with a comma between
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "")]
    pub cluster_cidr: String,
    /// How to tell traffic of this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "")]
    pub detect_local_mode: String,
    /// The bridge of BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pod_bridge_interface: String,
    /// The prefix of InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub pod_interface_name_prefix: String,
    /// Networks whose local addresses serve node ports, "primary" (the Node's own addresses), "localhost" (in nftables
    /// mode with the feature gate KubeProxyNFTablesLocalhostNodePorts) and "all", in any combination; all if unset
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub masquerade_all: Switch,
    /// The node's address; wildcards and nothing mean the Node's own
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = ip)]
    pub bind_address: String,
}

/// Flags of iptables mode; nftables mode uses the periods too.
#[derive(Debug, Args)]
#[command(next_help_heading = "iptables mode (the periods: nftables mode too)")]
pub struct Iptables {
    /// Which bit of the packet mark asks for masquerading, 0 to 31; in IPVS mode too
    #[arg(long, value_name = "BIT", default_value = "14", allow_negative_numbers = true)]
    pub iptables_masquerade_bit: i32,
    /// Serve node ports on loopback addresses too
    #[arg(long, value_name = "BOOL", default_value = "true")]
    pub iptables_localhost_nodeports: Switch,
    /// How soon a failed sync is retried and how often the rules are checked
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true)]
    pub iptables_sync_period: GoDuration,
    /// How long to wait at least between two syncs
    #[arg(long, value_name = "DURATION", default_value = "1s", allow_hyphen_values = true)]
    pub iptables_min_sync_period: GoDuration,
    /// Who writes rules where iptables is nf_tables: the proxier itself, or iptables's programs (IPVS mode too); it counts beside
    /// --config too
    #[arg(long, value_name = "programs|native", default_value = "native")]
    pub iptables_backend: IptablesBackend,
}

/// Who writes rules where iptables is of the nf_tables flavour. Legacy tables are written by the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum IptablesBackend {
    /// `iptables-nft-restore` and `-save`
    Programs,
    /// The proxier, over netlink
    Native,
}

/// The flag's value.
impl std::fmt::Display for IptablesBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Programs => "programs",
            Self::Native => "native",
        })
    }
}

/// How to see what it does.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct Servers {
    /// Where /healthz and /livez are served; 0 or nothing: nowhere
    #[arg(long, value_name = "IP[:PORT]", default_value = "0.0.0.0:10256", value_parser = ip_port)]
    pub healthz_bind_address: String,
    /// Where /metrics is served; 0 or nothing: nowhere
    #[arg(long, value_name = "IP[:PORT]", default_value = "127.0.0.1:10249", value_parser = ip_port)]
    pub metrics_bind_address: String,
    /// The port of --healthz-bind-address if that has none; 0: nowhere
    #[arg(long, value_name = "PORT", default_value = "10256", allow_negative_numbers = true, hide = true)]
    pub healthz_port: i32,
    /// The port of --metrics-bind-address if that has none; 0: nowhere
    #[arg(long, value_name = "PORT", default_value = "10249", allow_negative_numbers = true, hide = true)]
    pub metrics_port: i32,
    /// End if one of these ports cannot be had, instead of trying again
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub bind_address_hard_fail: Switch,
    /// Serve /debug/ beside /metrics
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub profiling: Switch,
    /// Serve /debug/rules beside /metrics: what this node's rules do with Services; it counts beside --config too
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub debug_rules: Switch,
    /// Count new connections to Services (Services), or to their endpoints too (Endpoints), and show them among the metrics;
    /// these flags count beside --config too
    #[arg(long, value_name = "Off|Services|Endpoints", default_value = "Off")]
    pub service_metrics: String,
    /// The most Service ports that these metrics show, and a tenth of the most endpoints
    #[arg(long, value_name = "NUMBER", default_value = "1000", allow_negative_numbers = true)]
    pub service_metrics_limit: i32,
    /// The namespaces whose Services these metrics show; all if unset
    #[arg(long, value_name = "NAMESPACE,...", value_delimiter = ',')]
    pub service_metrics_namespaces: Vec<String>,
    /// The label selector of the Services that these metrics show, as kubectl's -l takes it; all if unset
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    pub service_metrics_selector: String,
    /// Show metrics that are hidden since the release before this one (1.36)
    #[arg(long, value_name = "VERSION", default_value = "")]
    pub show_hidden_metrics_for_version: String,
}
