//! More flags: of IPVS mode, conntrack and the log, and flags that are accepted without effect.

use clap::Args;

use super::values::{Switch, Vmodule};
use crate::config::GoDuration;
use crate::config::logging::Quantity;

/// Flags of IPVS mode.
#[derive(Debug, Args)]
#[command(next_help_heading = "IPVS mode")]
pub struct Ipvs {
    /// Which scheduler virtual servers have; rr if unset
    #[arg(long, value_name = "NAME", default_value = "")]
    pub ipvs_scheduler: String,
    /// Networks whose virtual servers belong to other programs
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub ipvs_exclude_cidrs: Vec<String>,
    /// Do not answer ARP for service addresses
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub ipvs_strict_arp: Switch,
    /// How long an idle TCP connection is remembered; 0 leaves the kernel's value
    #[arg(long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true)]
    pub ipvs_tcp_timeout: GoDuration,
    /// The same after a FIN
    #[arg(long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true)]
    pub ipvs_tcpfin_timeout: GoDuration,
    /// The same for UDP
    #[arg(long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true)]
    pub ipvs_udp_timeout: GoDuration,
    /// How soon a failed sync is retried and how often everything is checked
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true)]
    pub ipvs_sync_period: GoDuration,
    /// How long to wait at least between two syncs
    #[arg(long, value_name = "DURATION", default_value = "1s", allow_hyphen_values = true)]
    pub ipvs_min_sync_period: GoDuration,
}

/// Flags of connection tracking.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection tracking")]
pub struct Conntrack {
    /// How many connections to track per CPU core; 0 leaves the kernel's limit
    #[arg(long, value_name = "NUMBER", default_value = "32768", allow_negative_numbers = true)]
    pub conntrack_max_per_core: i32,
    /// How many at least, unless that is 0
    #[arg(long, value_name = "NUMBER", default_value = "131072", allow_negative_numbers = true)]
    pub conntrack_min: i32,
    /// How long an idle established TCP connection is remembered; 0 leaves the kernel's value
    #[arg(long, value_name = "DURATION", default_value = "24h0m0s", allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_established: GoDuration,
    /// The same in CLOSE_WAIT
    #[arg(long, value_name = "DURATION", default_value = "1h0m0s", allow_hyphen_values = true)]
    pub conntrack_tcp_timeout_close_wait: GoDuration,
    /// Do not hold packets out of the window against a TCP connection
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub conntrack_tcp_be_liberal: Switch,
    /// How long an unanswered UDP flow is remembered; 0 leaves the kernel's value
    #[arg(long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true)]
    pub conntrack_udp_timeout: GoDuration,
    /// The same for one that was answered and went on
    #[arg(long, value_name = "DURATION", default_value = "0s", allow_hyphen_values = true)]
    pub conntrack_udp_timeout_stream: GoDuration,
}

/// How to log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct Logs {
    /// How much to log: 2 adds each sync, 5 each change
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value = "0")]
    pub verbosity: u32,
    /// How much to log in files of the program, by name without .rs: FILE=LEVEL,FILE*=LEVEL; text only
    #[arg(long, value_name = "LEVELS", default_value = "")]
    pub vmodule: Vmodule,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub logging_format: String,
    /// How long a line may wait at most; here none waits
    #[arg(long, value_name = "DURATION", default_value = "5s", allow_hyphen_values = true)]
    pub log_flush_frequency: GoDuration,
    /// Errors to standard error, the rest to standard output (feature gate LoggingAlphaOptions)
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub log_text_split_stream: Switch,
    /// The same for JSON
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub log_json_split_stream: Switch,
    /// How many bytes may wait before standard output (feature gate LoggingAlphaOptions); here none waits
    #[arg(long, value_name = "BYTES", default_value = "0")]
    pub log_text_info_buffer_size: Quantity,
    /// The same for JSON
    #[arg(long, value_name = "BYTES", default_value = "0")]
    pub log_json_info_buffer_size: Quantity,
}

/// What means nothing here: flags of Windows, and two that kube-proxy has by accident.
#[derive(Debug, Args)]
#[command(next_help_heading = "Without effect")]
pub struct Ignored {
    /// Of Windows
    #[arg(long, value_name = "BOOL", default_value = "false", hide = true)]
    pub windows_service: Switch,
    /// Of Windows
    #[arg(long, value_name = "IP", default_value = "", hide = true)]
    pub source_vip: String,
    /// Of Windows
    #[arg(long, value_name = "NAME", default_value = "", hide = true)]
    pub network_name: String,
    /// Of Windows
    #[arg(long, value_name = "BOOL", default_value = "false", hide = true)]
    pub enable_dsr: Switch,
    /// Of Windows
    #[arg(long, value_name = "NAME", default_value = "cbr0", hide = true)]
    pub root_hnsendpoint_name: String,
    /// Of Windows
    #[arg(long, value_name = "BOOL", default_value = "false", hide = true)]
    pub forward_healthcheck_vip: Switch,
    /// Of no effect in kube-proxy either
    #[arg(long, value_name = "FILE", default_value = "/proc/sys/kernel/random/boot_id", hide = true)]
    pub boot_id_file: String,
    /// Of no effect in kube-proxy either
    #[arg(long, value_name = "FILES", default_value = "/etc/machine-id,/var/lib/dbus/machine-id", hide = true)]
    pub machine_id_file: String,
}
