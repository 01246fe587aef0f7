//! Validates a complete configuration and translates it to [`ValidatedConfig`].

use std::path::PathBuf;

use ipnet::IpNet;
use proxier::model::config::{ServiceMetrics, SyncPeriods};
use proxier::model::{Config, ConntrackConfig, IpvsConfig, LocalDetector, Mode};

use super::check::{check, cluster_cidrs};
use super::duration::GoDuration;
use super::gates::{FeatureGates, LOCALHOST_NODE_PORTS};
use super::logging::Logging;
use super::validated::{ClientConfig, ValidatedConfig};
use super::{ConfigError, KubeProxyConfiguration, net, node_ports};

impl KubeProxyConfiguration {
    /// `syncPeriod` and `minSyncPeriod` of the mode.
    #[must_use]
    pub fn sync_periods(&self) -> (GoDuration, GoDuration) {
        let (sync, min) = match &*self.mode {
            "ipvs" => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            "nftables" => (self.nftables.sync_period, self.nftables.min_sync_period),
            _ => (self.iptables.sync_period, self.iptables.min_sync_period),
        };
        (sync.unwrap_or_default(), min.unwrap_or_default())
    }
}

/// Validates a complete configuration. `hostname`: the host's own name.
///
/// # Errors
/// Every invalid field with its value.
pub fn validate(file: KubeProxyConfiguration, hostname: &str) -> Result<ValidatedConfig, ConfigError> {
    let (gates, mut warnings) = FeatureGates::new(&file.feature_gates);
    let mut errors = check(&file, &gates);
    let node_name = if file.hostname_override.is_empty() { hostname } else { &file.hostname_override };
    let node_name = node_name.trim().to_lowercase();
    if node_name.is_empty() {
        let field = "KubeProxyConfiguration.HostnameOverride: Invalid value";
        errors.push(format!("{field}: {:?}: an empty host name cannot be a Node's name", file.hostname_override));
    }
    let mode = match file.mode.parse::<Mode>() {
        Ok(mode) if errors.is_empty() => mode,
        _ => return Err(ConfigError::Invalid(errors)),
    };
    warnings.extend(without_effect(&file));
    let client = &file.client_connection;
    let conntrack = &file.conntrack;
    Ok(ValidatedConfig {
        mode,
        proxier: proxier_config(&file, mode, node_name, &gates),
        ipvs: IpvsConfig {
            scheduler: file.ipvs.scheduler.clone(),
            exclude_cidrs: nets(&file.ipvs.exclude_cidrs),
            strict_arp: file.ipvs.strict_arp,
            tcp_timeout: file.ipvs.tcp_timeout.to_std(),
            tcp_fin_timeout: file.ipvs.tcp_fin_timeout.to_std(),
            udp_timeout: file.ipvs.udp_timeout.to_std(),
        },
        conntrack: ConntrackConfig {
            max_per_core: conntrack.max_per_core.unwrap_or_default().unsigned_abs(),
            min: conntrack.min.unwrap_or_default().unsigned_abs(),
            tcp_established_timeout: conntrack.tcp_established_timeout.unwrap_or_default().to_std(),
            tcp_close_wait_timeout: conntrack.tcp_close_wait_timeout.unwrap_or_default().to_std(),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp_timeout: conntrack.udp_timeout.to_std(),
            udp_stream_timeout: conntrack.udp_stream_timeout.to_std(),
        },
        oom_score_adj: file.oom_score_adj.unwrap_or_default(),
        // A value that is no address is [`super::DISABLED`] here.
        healthz: net::socket(&file.healthz_bind_address),
        metrics: net::socket(&file.metrics_bind_address),
        bind_address_hard_fail: file.bind_address_hard_fail,
        enable_profiling: file.enable_profiling,
        client: ClientConfig {
            kubeconfig: Some(&client.kubeconfig).filter(|path| !path.is_empty()).map(PathBuf::from),
            accept_content_types: client.accept_content_types.clone(),
            content_type: client.content_type.clone(),
            qps: Some(client.qps).filter(|qps| *qps > 0.0),
            burst: client.burst.unsigned_abs(),
        },
        gates,
        logging: logging(&file),
        warnings,
        file,
    })
}

fn proxier_config(file: &KubeProxyConfiguration, mode: Mode, node_name: String, gates: &FeatureGates) -> Config {
    let (sync, min) = file.sync_periods();
    let (bit, all) = match mode {
        Mode::Nftables => (file.nftables.masquerade_bit, file.nftables.masquerade_all),
        Mode::Iptables | Mode::Ipvs => (file.iptables.masquerade_bit, file.iptables.masquerade_all),
    };
    let details = &file.detect_local;
    Config {
        node_name,
        local_detector: match &*file.detect_local_mode {
            "NodeCIDR" => LocalDetector::NodeCidr,
            "BridgeInterface" => LocalDetector::BridgeInterface(details.bridge_interface.clone()),
            "InterfaceNamePrefix" => LocalDetector::InterfaceNamePrefix(details.interface_name_prefix.clone()),
            _ => LocalDetector::ClusterCidr(nets(&cluster_cidrs(&file.cluster_cidr))),
        },
        node_port_addresses: node_ports::addresses(&file.node_port_addresses),
        bind_address: net::ip(&file.bind_address).filter(|ip| !ip.is_unspecified()),
        masquerade_all: all,
        masquerade_bit: u8::try_from(bit.unwrap_or_default()).unwrap_or_default(),
        localhost_node_ports: file.iptables.localhost_node_ports.unwrap_or(true),
        nftables_localhost_node_ports: mode == Mode::Nftables && gates.enabled(LOCALHOST_NODE_PORTS),
        hide_external_ips: !gates.enabled("AllowServiceExternalIPs"),
        service_metrics: match &*file.service_metrics.level {
            "Services" => ServiceMetrics::Services,
            "Endpoints" => ServiceMetrics::Endpoints,
            _ => ServiceMetrics::Off,
        },
        periods: SyncPeriods { min: min.to_std(), sync: sync.to_std() },
    }
}

/// Parses networks that were validated.
fn nets(items: &[impl AsRef<str>]) -> Vec<IpNet> {
    items.iter().filter_map(|item| net::cidr(item.as_ref())).collect()
}

fn logging(file: &KubeProxyConfiguration) -> Logging {
    let logging = &file.logging;
    let json = logging.format == "json";
    let options = if json { &logging.options.json } else { &logging.options.text };
    Logging { json, verbosity: logging.verbosity, vmodule: logging.vmodule.clone(), split_stream: options.split_stream }
}

/// Warnings about settings of kube-proxy that have no effect here.
fn without_effect(file: &KubeProxyConfiguration) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut say = |field: &str, why: &str| warnings.push(format!("{field} has no effect here: {why}"));
    let options = [&file.logging.options.text, &file.logging.options.json];
    if options.iter().any(|options| options.info_buffer_size.bytes() != 0) {
        say("logging.options.*.infoBufferSize", "every line is written at once");
    }
    let client = &file.client_connection;
    let media_types = [("acceptContentTypes", &client.accept_content_types), ("contentType", &client.content_type)];
    for (field, types) in media_types {
        if !types.is_empty() && !["json", "protobuf", "*"].iter().any(|known| types.contains(known)) {
            say(&format!("clientConnection.{field}"), "only JSON and Kubernetes protobuf are supported");
        }
    }
    if file.winkernel != super::file::Winkernel::default() || file.windows_run_as_service {
        say("winkernel, windowsRunAsService", "this is not Windows");
    }
    warnings
}

#[cfg(test)]
mod tests;
