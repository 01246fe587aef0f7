//! The command line.
//!
//! In: arguments. Out: [`Cli`], or a [`File`] made of flags. Must not know: how commands are done.
//! Names may have `_` for `-`, switches may be `--switch=true`, and what is not built yet is named in a warning.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};

use crate::config::{ClientConnection, DetectLocal, File, Iptables, parse_duration};

/// kube-proxy: makes the kernel of a node send packets for Services to their endpoints.
#[derive(Debug, Parser)]
#[command(name = "kube-proxy", disable_version_flag = true, args_override_self = true, max_term_width = 100)]
pub struct Cli {
    /// What to do; without a command, run the proxy
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of the proxy itself.
    #[command(flatten)]
    pub flags: Flags,
}

/// Commands for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the proxy at work in network namespaces of its own, without a cluster and without touching this host's rules
    Demo,
    /// Show what this node does with Services: addresses, endpoints, rules, flows, and what differs from what should be
    Dump(crate::dump::Arguments),
    /// Walk a packet through the rules in the kernel, without sending it
    Trace(crate::trace::Arguments),
    /// Find out why a connection to a Service fails; status 0: healthy, 1: a cause was found, 2: could not tell
    Diagnose(crate::diagnose::Arguments),
}

/// The flags of the proxy.
#[derive(Debug, Default, Args)]
#[allow(clippy::struct_excessive_bools)] // that many switches there are
pub struct Flags {
    /// KubeProxyConfiguration file; it replaces all other flags but --hostname-override, --master and -v
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// The name of this node, if it is not the host's
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = "Configuration")]
    pub hostname_override: String,

    /// Kubeconfig file; without it and --master, the Pod's service account
    #[arg(
        long,
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Where objects come from"
    )]
    pub kubeconfig: String,
    /// Address of the API server, instead of the kubeconfig's
    #[arg(
        long,
        value_name = "URL",
        default_value = "",
        hide_default_value = true,
        help_heading = "Where objects come from"
    )]
    pub master: String,
    /// Take Nodes, Services and EndpointSlices from a YAML file or a folder of them instead of an API server; edits count
    #[arg(long, value_name = "PATH", help_heading = "Where objects come from")]
    pub objects: Option<PathBuf>,

    /// How packets are directed: iptables (ipvs and nftables are not built yet)
    #[arg(
        long,
        alias = "mode",
        value_name = "MODE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Rules"
    )]
    pub proxy_mode: String,
    /// Networks of the cluster's pods, one per family, with a comma between
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "", hide_default_value = true, help_heading = "Rules")]
    pub cluster_cidr: String,
    /// How to tell traffic of this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true, help_heading = "Rules")]
    pub detect_local_mode: String,
    /// The bridge of BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, help_heading = "Rules")]
    pub pod_bridge_interface: String,
    /// The prefix of InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true, help_heading = "Rules")]
    pub pod_interface_name_prefix: String,
    /// Networks whose local addresses serve node ports, or "primary" for the Node's own; all if unset
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', help_heading = "Rules")]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade all traffic to cluster IPs
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", hide_possible_values = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Rules")]
    pub masquerade_all: bool,
    /// The node's address; wildcards mean the Node's own
    #[arg(long, value_name = "IP", default_value = "", hide_default_value = true, help_heading = "Rules")]
    pub bind_address: String,

    /// Which bit of the packet mark asks for masquerading, 0 to 31
    #[arg(
        long,
        value_name = "BIT",
        default_value_t = 14,
        allow_negative_numbers = true,
        help_heading = "iptables mode"
    )]
    pub iptables_masquerade_bit: i64,
    /// Serve node ports on loopback addresses too
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", hide_possible_values = true, default_value_t = true, default_missing_value = "true", action = ArgAction::Set, help_heading = "iptables mode")]
    pub iptables_localhost_nodeports: bool,
    /// How soon a failed sync is retried and how often the rules are checked
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration, help_heading = "iptables mode")]
    pub iptables_sync_period: Duration,
    /// How long to wait at least between two syncs
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration, help_heading = "iptables mode")]
    pub iptables_min_sync_period: Duration,

    /// Where /healthz and /livez are served [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP[:PORT]", default_value = "", hide_default_value = true, help_heading = "Watching it")]
    pub healthz_bind_address: String,
    /// Where /metrics is served [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP[:PORT]", default_value = "", hide_default_value = true, help_heading = "Watching it")]
    pub metrics_bind_address: String,
    /// How much to log: 2 adds each sync, 5 each change
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0, help_heading = "Watching it")]
    pub verbosity: u32,
    /// Print the version and exit
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", hide_possible_values = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, help_heading = "Watching it")]
    pub version: bool,
}

impl Flags {
    /// The configuration that the flags stand for, without a file.
    #[must_use]
    pub fn to_file(&self) -> File {
        File {
            mode: self.proxy_mode.clone(),
            client_connection: ClientConnection { kubeconfig: self.kubeconfig.clone() },
            hostname_override: self.hostname_override.clone(),
            bind_address: self.bind_address.clone(),
            healthz_bind_address: self.healthz_bind_address.clone(),
            metrics_bind_address: self.metrics_bind_address.clone(),
            cluster_cidr: self.cluster_cidr.clone(),
            detect_local_mode: self.detect_local_mode.clone(),
            detect_local: DetectLocal {
                bridge_interface: self.pod_bridge_interface.clone(),
                interface_name_prefix: self.pod_interface_name_prefix.clone(),
            },
            node_port_addresses: self.nodeport_addresses.clone(),
            iptables: Iptables {
                masquerade_bit: Some(self.iptables_masquerade_bit),
                masquerade_all: self.masquerade_all,
                localhost_node_ports: Some(self.iptables_localhost_nodeports),
                sync_period: Some(self.iptables_sync_period),
                min_sync_period: Some(self.iptables_min_sync_period),
            },
            ..File::default()
        }
    }
}

/// Flags of the real one that are not built yet, and whether they need a value.
const NOT_BUILT: &[(&str, bool)] = &[
    ("bind-address-hard-fail", false),
    ("boot-id-file", true),
    ("cleanup", false),
    ("config-sync-period", true),
    ("conntrack-max-per-core", true),
    ("conntrack-min", true),
    ("conntrack-tcp-be-liberal", false),
    ("conntrack-tcp-timeout-close-wait", true),
    ("conntrack-tcp-timeout-established", true),
    ("conntrack-udp-timeout", true),
    ("conntrack-udp-timeout-stream", true),
    ("enable-dsr", false),
    ("feature-gates", true),
    ("forward-healthcheck-vip", false),
    ("healthz-port", true),
    ("init-only", false),
    ("ipvs-exclude-cidrs", true),
    ("ipvs-min-sync-period", true),
    ("ipvs-scheduler", true),
    ("ipvs-strict-arp", false),
    ("ipvs-sync-period", true),
    ("ipvs-tcp-timeout", true),
    ("ipvs-tcpfin-timeout", true),
    ("ipvs-udp-timeout", true),
    ("kube-api-burst", true),
    ("kube-api-content-type", true),
    ("kube-api-qps", true),
    ("log-flush-frequency", true),
    ("log-json-info-buffer-size", true),
    ("log-json-split-stream", false),
    ("log-text-info-buffer-size", true),
    ("log-text-split-stream", false),
    ("logging-format", true),
    ("machine-id-file", true),
    ("metrics-port", true),
    ("network-name", true),
    ("oom-score-adj", true),
    ("profiling", false),
    ("root-hnsendpoint-name", true),
    ("show-hidden-metrics-for-version", true),
    ("source-vip", true),
    ("vmodule", true),
    ("windows-service", false),
    ("write-config-to", true),
];

/// Flags that would make the program do something else than run: to ignore them would be worse than to stop.
const REFUSED: &[&str] = &["cleanup", "init-only", "write-config-to"];

/// Brings arguments to clap's form: `_` in names becomes `-`; flags that are not built yet are taken out.
/// Returns the arguments left and the warnings.
///
/// # Errors
/// A flag that is not built and must not be ignored.
pub fn normalise(arguments: impl IntoIterator<Item = String>) -> Result<(Vec<String>, Vec<String>), String> {
    let (mut kept, mut warnings) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        // One dash and a long name is as good as two, as with kube-proxy's own parser it is not: leave it to clap.
        let Some(body) = argument.strip_prefix("--").filter(|body| !body.is_empty()) else {
            kept.push(argument);
            continue;
        };
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let Some((_, needs_value)) = NOT_BUILT.iter().find(|(known, _)| *known == name) else {
            kept.push(value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}")));
            continue;
        };
        let off = value == Some("false") || value == Some("");
        if REFUSED.contains(&&*name) && !off {
            return Err(format!("flag --{name} is not built yet"));
        }
        if *needs_value && value.is_none() {
            arguments.next();
        }
        warnings.push(format!("flag --{name} is not built yet and has no effect"));
    }
    Ok((kept, warnings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> (Flags, Vec<String>) {
        let arguments = std::iter::once("kube-proxy").chain(line.split_whitespace()).map(str::to_owned);
        let (arguments, warnings) = normalise(arguments).expect("nothing refused");
        (Cli::try_parse_from(arguments).expect("valid").flags, warnings)
    }

    #[test]
    fn flags_are_taken_in_every_spelling() {
        let line = "--mode iptables --masquerade_all --iptables-localhost-nodeports=false -v2 --cluster_cidr=10.0.0.0/8 \
                    --nodeport-addresses a,b --iptables-sync-period 1m --masquerade-all=true --v=4";
        let (flags, warnings) = parse(line);
        assert_eq!(
            (&*flags.proxy_mode, flags.masquerade_all, flags.iptables_localhost_nodeports),
            ("iptables", true, false)
        );
        assert_eq!((flags.verbosity, &*flags.cluster_cidr, flags.nodeport_addresses.len()), (4, "10.0.0.0/8", 2));
        assert_eq!(flags.iptables_sync_period, Duration::from_secs(60));
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn what_is_not_built_is_named_and_what_is_unknown_refused() {
        let (flags, warnings) = parse("--kube-api-qps 50 --oom_score_adj=-998 --profiling --proxy-mode iptables");
        assert_eq!(flags.proxy_mode, "iptables");
        assert_eq!(warnings.len(), 3);
        assert!(warnings[1].contains("--oom-score-adj"), "{warnings:?}");
        assert!(Cli::try_parse_from(["kube-proxy", "--no-such-flag"]).is_err());
        assert!(normalise(["--cleanup".to_owned()]).is_err());
        assert!(normalise(["--cleanup=false".to_owned()]).is_ok());
    }
}
