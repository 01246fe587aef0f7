//! Builds the configuration from a configuration file or from flags.
//!
//! Beside `--config`, the same flags count as with kube-proxy: those of the log, `--hostname-override` and `--master`. The
//! result is a complete [`KubeProxyConfiguration`] with warnings; it is validated later.

use std::net::IpAddr;

use crate::config::file::{ClientConnection, Conntrack, DetectLocal, Iptables, Ipvs, Nftables, ServiceMetricsFile};
use crate::config::logging::{FlushFrequency, LoggingFile, LoggingOptions, OutputRouting};
use crate::config::{self, ConfigError, DISABLED, KubeProxyConfiguration};

use super::CommandLine;
use super::flags::{Flags, Logs};

/// Flags that count beside `--config`, or that are not about the configuration.
const KEPT: &[&str] = &[
    "boot-id-file",
    "cleanup",
    "config",
    "debug-rules",
    "hostname-override",
    "init-only",
    "iptables-backend",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
    "logging-format",
    "machine-id-file",
    "master",
    "objects",
    "service-metrics",
    "service-metrics-limit",
    "service-metrics-namespaces",
    "service-metrics-selector",
    "v",
    "version",
    "vmodule",
    "write-config-to",
];

const DEPRECATED: &[(&str, &str)] =
    &[("healthz-port", "--healthz-bind-address"), ("metrics-port", "--metrics-bind-address")];

const WINDOWS: &[&str] = &[
    "enable-dsr",
    "forward-healthcheck-vip",
    "network-name",
    "root-hnsendpoint-name",
    "source-vip",
    "windows-service",
];

/// The warning about a configuration without a mode (KEP-5343; kube-proxy warns since 1.37).
pub const NO_MODE: &str = "The proxy mode is not set: using iptables. The default will change to nftables in Kubernetes \
                           1.40; set mode in the configuration file (or --proxy-mode) to keep iptables";

/// The configuration with warnings about its sources.
#[derive(Debug)]
pub struct EffectiveConfig {
    /// All fields.
    pub file: KubeProxyConfiguration,
    /// The same for nftables mode: defaults drop what other modes' sections say.
    pub in_nftables_mode: KubeProxyConfiguration,
    /// The text of the configuration file, if there is one.
    pub text: Option<String>,
    /// Errors of strict decoding of the configuration file; empty: none.
    pub strict_errors: Vec<String>,
    /// Warnings about flags and about an unset mode, for the log.
    pub warnings: Vec<String>,
}

impl CommandLine {
    /// The configuration.
    ///
    /// # Errors
    /// If there is a file and it cannot be read.
    pub fn complete(&self) -> Result<EffectiveConfig, ConfigError> {
        let flags = &self.flags;
        let (mut file, mut strict_errors, mut text) = (self.file(), Vec::new(), None);
        if let Some(path) = &flags.general.config {
            let decoded = config::read(path)?;
            (file, strict_errors, text) = (decoded.file, decoded.strict_errors, Some(decoded.text));
            self.add_logs(&flags.logs, &mut file.logging);
        }
        self.add_service_metrics(&mut file.service_metrics);
        let name = &flags.general.hostname_override;
        if !name.is_empty() {
            file.hostname_override = name.trim().to_lowercase();
            if file.hostname_override.is_empty() {
                return Err(ConfigError::Hostname);
            }
        }
        let mut warnings = self.warnings();
        if file.mode.is_empty() {
            warnings.push(NO_MODE.to_owned());
        }
        let in_nftables_mode = file.clone().in_nftables_mode();
        Ok(EffectiveConfig { file: file.with_defaults(), in_nftables_mode, text, strict_errors, warnings })
    }

    /// Warnings about deprecated flags.
    #[must_use]
    pub fn deprecations(&self) -> Vec<String> {
        let used = DEPRECATED.iter().filter(|(name, _)| self.given.contains(*name));
        used.map(|(name, instead)| format!("Flag --{name} has been deprecated, use {instead} instead")).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for name in &self.given {
            if WINDOWS.contains(&&**name) {
                warnings.push(format!("flag --{name} does nothing: this is not Windows"));
            } else if self.flags.general.config.is_some() && !KEPT.contains(&&**name) {
                warnings.push(format!("flag --{name} is ignored because of --config"));
            }
        }
        warnings
    }

    /// What the flags say, without a file.
    fn file(&self) -> KubeProxyConfiguration {
        let Flags { general, source, rules, conntrack, servers, .. } = &self.flags;
        let [health, metrics] = config::default_hosts(&rules.bind_address);
        let mut logging = LoggingFile::default();
        self.add_logs(&self.flags.logs, &mut logging);
        KubeProxyConfiguration {
            feature_gates: general.feature_gates.0.clone(),
            client_connection: ClientConnection {
                kubeconfig: source.kubeconfig.clone(),
                content_type: source.kube_api_content_type.clone(),
                qps: source.kube_api_qps.0,
                burst: source.kube_api_burst,
                ..ClientConnection::default()
            },
            logging,
            bind_address: rules.bind_address.clone(),
            healthz_bind_address: self.listen("healthz", &servers.healthz_bind_address, servers.healthz_port, health),
            metrics_bind_address: self.listen("metrics", &servers.metrics_bind_address, servers.metrics_port, metrics),
            bind_address_hard_fail: servers.bind_address_hard_fail.0,
            enable_profiling: servers.profiling.0,
            show_hidden_metrics_for_version: servers.show_hidden_metrics_for_version.clone(),
            mode: rules.proxy_mode.clone(),
            iptables: self.iptables(),
            ipvs: self.ipvs(),
            nftables: self.nftables(),
            detect_local_mode: rules.detect_local_mode.clone(),
            detect_local: DetectLocal {
                bridge_interface: rules.pod_bridge_interface.clone(),
                interface_name_prefix: rules.pod_interface_name_prefix.clone(),
            },
            cluster_cidr: rules.cluster_cidr.clone(),
            node_port_addresses: items(&rules.nodeport_addresses),
            oom_score_adj: Some(general.oom_score_adj),
            conntrack: Conntrack {
                max_per_core: Some(conntrack.conntrack_max_per_core),
                min: Some(conntrack.conntrack_min),
                tcp_established_timeout: Some(conntrack.conntrack_tcp_timeout_established),
                tcp_close_wait_timeout: Some(conntrack.conntrack_tcp_timeout_close_wait),
                tcp_be_liberal: conntrack.conntrack_tcp_be_liberal.0,
                udp_timeout: conntrack.conntrack_udp_timeout,
                udp_stream_timeout: conntrack.conntrack_udp_timeout_stream,
            },
            config_sync_period: Some(source.config_sync_period),
            ..KubeProxyConfiguration::default()
        }
    }

    fn iptables(&self) -> Iptables {
        let flags = &self.flags.iptables;
        Iptables {
            masquerade_bit: Some(flags.iptables_masquerade_bit),
            masquerade_all: self.flags.rules.masquerade_all.0,
            localhost_node_ports: Some(flags.iptables_localhost_nodeports.0),
            sync_period: Some(flags.iptables_sync_period),
            min_sync_period: Some(flags.iptables_min_sync_period),
        }
    }

    fn ipvs(&self) -> Ipvs {
        let flags = &self.flags.ipvs;
        Ipvs {
            sync_period: Some(flags.ipvs_sync_period),
            min_sync_period: Some(flags.ipvs_min_sync_period),
            scheduler: flags.ipvs_scheduler.clone(),
            exclude_cidrs: items(&flags.ipvs_exclude_cidrs),
            strict_arp: flags.ipvs_strict_arp.0,
            tcp_timeout: flags.ipvs_tcp_timeout,
            tcp_fin_timeout: flags.ipvs_tcpfin_timeout,
            udp_timeout: flags.ipvs_udp_timeout,
        }
    }

    /// There are no flags for nftables mode alone: it takes the periods of iptables mode, not its bit.
    fn nftables(&self) -> Nftables {
        let flags = &self.flags.iptables;
        Nftables {
            masquerade_bit: None,
            masquerade_all: self.flags.rules.masquerade_all.0,
            sync_period: Some(flags.iptables_sync_period),
            min_sync_period: Some(flags.iptables_min_sync_period),
        }
    }

    /// Where to listen: nothing that was said on purpose, and a port that is 0, are nowhere (behaviour.yaml I1, I2). What
    /// was not said depends on the family of the node's address (I18).
    fn listen(&self, name: &str, address: &str, port: i32, usual: IpAddr) -> String {
        let given = |end: &str| self.given.contains(&format!("{name}-{end}"));
        if given("port") && port == 0 || given("bind-address") && address.is_empty() {
            return DISABLED.to_owned();
        }
        let host = if given("bind-address") { config::net::ip(address) } else { Some(usual) };
        match host {
            // What is no port at all is for the check to say.
            Some(host) if given("port") && host.is_ipv6() => format!("[{host}]:{port}"),
            Some(host) if given("port") => format!("{host}:{port}"),
            _ if given("bind-address") => address.to_owned(),
            _ => String::new(),
        }
    }

    /// Sets the fields of those flags of service metrics that were given.
    fn add_service_metrics(&self, file: &mut ServiceMetricsFile) {
        let (flags, given) = (&self.flags.servers, |name: &str| self.given.contains(name));
        if given("service-metrics") {
            file.level.clone_from(&flags.service_metrics);
        }
        if given("service-metrics-limit") {
            file.limit = Some(flags.service_metrics_limit);
        }
        if given("service-metrics-namespaces") {
            file.namespaces = items(&flags.service_metrics_namespaces);
        }
        if given("service-metrics-selector") {
            file.selector.clone_from(&flags.service_metrics_selector);
        }
    }

    /// Takes over those flags of the log that were given.
    fn add_logs(&self, flags: &Logs, logging: &mut LoggingFile) {
        let given = |name: &str| self.given.contains(name);
        if given("logging-format") {
            logging.format.clone_from(&flags.logging_format);
        }
        if given("log-flush-frequency") {
            logging.flush_frequency = Some(FlushFrequency { duration: flags.log_flush_frequency, number: false });
        }
        if given("v") {
            logging.verbosity = flags.verbosity;
        }
        let mut vmodule = flags.vmodule.0.clone();
        vmodule.append(&mut logging.vmodule);
        logging.vmodule = vmodule;
        let LoggingOptions { text, json } = &mut logging.options;
        let route = |kind: &str, options: &mut OutputRouting, split: bool, buffer| {
            if given(&format!("log-{kind}-split-stream")) {
                options.split_stream = split;
            }
            if given(&format!("log-{kind}-info-buffer-size")) {
                options.info_buffer_size = buffer;
            }
        };
        route("text", text, flags.log_text_split_stream.0, flags.log_text_info_buffer_size.clone());
        route("json", json, flags.log_json_split_stream.0, flags.log_json_info_buffer_size.clone());
    }
}

/// The items of a list; nothing between commas is none.
fn items(list: &[String]) -> Vec<String> {
    list.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}
