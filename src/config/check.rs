//! Validates every field, with kube-proxy's field paths and messages.

use std::fmt::Display;

use proxier::model::Mode;

use super::defaults::DISABLED;
use super::dns_label::{LABEL, is_label};
use super::duration::GoDuration;
use super::file::ServiceMetricsFile;
use super::gates::{FeatureGates, IPVS};
use super::{KubeProxyConfiguration, label_selector, net, node_ports};
use crate::version::{FIRST_MINOR, LAST_MINOR};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
const BIT: &str = "must be within the range [0, 31]";
const DETECT_LOCAL_MODES: [&str; 5] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", ""];
const SERVICE_METRICS: [&str; 4] = ["", "Off", "Services", "Endpoints"];
/// The longest interface name, in bytes (IFNAMSIZ - 1).
const MAX_INTERFACE_NAME: usize = 15;

/// Validates all fields. Returns every error.
pub fn check(file: &KubeProxyConfiguration, gates: &FeatureGates) -> Vec<String> {
    let mut errors = Errors::default();
    errors.modes(file);
    errors.linux(file);
    if file.mode.parse::<Mode>().is_err() {
        let supported = "must be iptables, ipvs, nftables or blank (blank means iptables)";
        errors.text("Mode.ProxyMode", &file.mode, supported);
    }
    if file.mode == "ipvs" && !gates.enabled(IPVS) {
        errors.text(
            "Mode.ProxyMode",
            &file.mode,
            "must be iptables or nftables: the feature gate KubeProxyIPVS is off",
        );
    }
    if file.client_connection.burst < 0 {
        errors.value("ClientConnection.Burst", file.client_connection.burst, NOT_NEGATIVE);
    }
    errors.periods(file);
    if net::ip(&file.bind_address).is_none() {
        errors.text("BindAddress", &file.bind_address, "not a valid textual representation of an IP address");
    }
    errors.listen("HealthzBindAddress", &file.healthz_bind_address);
    errors.listen("MetricsBindAddress", &file.metrics_bind_address);
    errors.node_port_addresses(&file.node_port_addresses);
    let version = &file.show_hidden_metrics_for_version;
    // Of each release that a configuration may be of, the one before.
    let shown = |minor: u8| *version == format!("1.{}", minor - 1);
    if !version.is_empty() && !(FIRST_MINOR..=LAST_MINOR).any(shown) {
        let (first, last) = (FIRST_MINOR - 1, LAST_MINOR - 1);
        let only = format!("must be omitted or a release from 1.{first} to 1.{last}");
        errors.text("ShowHiddenMetricsForVersion", version, &only);
    }
    errors.local_detection(file);
    errors.logging(file, gates);
    errors.service_metrics(&file.service_metrics);
    errors.0
}

/// The pod networks of `clusterCIDR`. Blanks and empty items are ignored (behaviour.yaml I17).
pub fn cluster_cidrs(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    /// Reports a text value.
    fn text(&mut self, field: &str, value: &str, detail: &str) {
        self.value(field, format!("{value:?}"), detail);
    }

    fn value(&mut self, field: &str, value: impl Display, detail: &str) {
        self.0.push(format!("KubeProxyConfiguration.{field}: Invalid value: {value}: {detail}"));
    }

    fn not_negative(&mut self, field: &str, duration: GoDuration) {
        if duration < GoDuration::ZERO {
            self.value(field, duration, NOT_NEGATIVE);
        }
    }

    fn bit(&mut self, section: &str, bit: Option<i32>) {
        let bit = bit.unwrap_or_default();
        if !(0..=31).contains(&bit) {
            self.value(&format!("{section}.MasqueradeBit"), bit, BIT);
        }
    }

    fn modes(&mut self, file: &KubeProxyConfiguration) {
        self.bit("KubeProxyIPTablesConfiguration", file.iptables.masquerade_bit);
        match &*file.mode {
            "ipvs" => {
                let section = "KubeProxyIPVSConfiguration";
                self.not_negative(&format!("{section}.TCPTimeout"), file.ipvs.tcp_timeout);
                self.not_negative(&format!("{section}.TCPFinTimeout"), file.ipvs.tcp_fin_timeout);
                self.not_negative(&format!("{section}.UDPTimeout"), file.ipvs.udp_timeout);
                self.cidrs(&format!("{section}.ExcludeCidrs"), &file.ipvs.exclude_cidrs);
            }
            "nftables" => self.bit("KubeProxyNFTablesConfiguration", file.nftables.masquerade_bit),
            _ => {}
        }
    }

    fn service_metrics(&mut self, file: &ServiceMetricsFile) {
        if !SERVICE_METRICS.contains(&&*file.level) {
            self.text("ServiceMetrics.Level", &file.level, "must be Off, Services or Endpoints");
        }
        if let Some(limit) = file.limit.filter(|limit| *limit <= 0) {
            self.value("ServiceMetrics.Limit", limit, POSITIVE);
        }
        for namespace in file.namespaces.iter().filter(|name| !is_label(name.trim())) {
            self.text("ServiceMetrics.Namespaces", namespace, LABEL);
        }
        if let Err(reason) = label_selector::parse(&file.selector) {
            self.text("ServiceMetrics.Selector", &file.selector, &format!("must be a label selector: {reason}"));
        }
    }

    fn linux(&mut self, file: &KubeProxyConfiguration) {
        const LINUX: &str = "KubeProxyLinuxConfiguration";
        let conntrack = &file.conntrack;
        let field = |name: &str| format!("{LINUX}.KubeProxyConntrackConfiguration.{name}");
        for (name, number) in [("MaxPerCore", conntrack.max_per_core), ("Min", conntrack.min)] {
            if let Some(number) = number.filter(|number| *number < 0) {
                self.value(&field(name), number, NOT_NEGATIVE);
            }
        }
        self.not_negative(&field("TCPEstablishedTimeout"), conntrack.tcp_established_timeout.unwrap_or_default());
        self.not_negative(&field("TCPCloseWaitTimeout"), conntrack.tcp_close_wait_timeout.unwrap_or_default());
        self.not_negative(&field("UDPTimeout"), conntrack.udp_timeout);
        self.not_negative(&field("UDPStreamTimeout"), conntrack.udp_stream_timeout);
        let score = file.oom_score_adj.unwrap_or_default();
        if !(-1000..=1000).contains(&score) {
            self.value(&format!("{LINUX}.OOMScoreAdj"), score, "must be within the range [-1000, 1000]");
        }
    }

    fn periods(&mut self, file: &KubeProxyConfiguration) {
        let config_sync_period = file.config_sync_period.unwrap_or_default();
        if config_sync_period <= GoDuration::ZERO {
            self.value("ConfigSyncPeriod", config_sync_period, POSITIVE);
        }
        let (sync, min) = file.sync_periods();
        if sync <= GoDuration::ZERO {
            self.value("SyncPeriod", sync, POSITIVE);
        }
        if min < GoDuration::ZERO {
            self.value("MinSyncPeriod", min, NOT_NEGATIVE);
        }
        if min > sync {
            self.value("SyncPeriod", min, "must be greater than or equal to KubeProxyConfiguration.MinSyncPeriod");
        }
    }

    fn listen(&mut self, field: &str, text: &str) {
        if text == DISABLED {
            return;
        }
        let Some((host, port)) = net::host_port(text) else {
            return self.text(field, text, "must be IP:port");
        };
        if net::ip(host).is_none() {
            self.text(field, host, "must be a valid IP");
        }
        if !port.parse::<u16>().is_ok_and(|port| port != 0) {
            self.text(field, port, "must be a valid port, 1 to 65535");
        }
    }

    fn cidrs(&mut self, field: &str, items: &[String]) {
        for (index, item) in items.iter().enumerate().filter(|(_, item)| net::cidr(item).is_none()) {
            self.text(&format!("{field}[{index}]"), item, "must be a valid CIDR");
        }
    }

    fn node_port_addresses(&mut self, items: &[String]) {
        for (index, item) in items.iter().enumerate().filter(|(_, item)| node_ports::item(item).is_none()) {
            let detail = "must be a valid CIDR, or 'primary', 'localhost' or 'all'";
            self.text(&format!("NodePortAddresses[{index}]"), item, detail);
        }
    }

    fn local_detection(&mut self, file: &KubeProxyConfiguration) {
        let mode = &*file.detect_local_mode;
        if !DETECT_LOCAL_MODES.contains(&mode) {
            let modes = DETECT_LOCAL_MODES.map(|mode| format!("{mode:?}")).join(", ");
            let path = "KubeProxyConfiguration.DetectLocalMode";
            self.0.push(format!("{path}: Unsupported value: {mode:?}: supported values: {modes}"));
        }
        match mode {
            "BridgeInterface" => self.interface("InterfaceName", &file.detect_local.bridge_interface),
            "InterfaceNamePrefix" => self.interface("InterfacePrefix", &file.detect_local.interface_name_prefix),
            "ClusterCIDR" => self.cluster_cidrs(&cluster_cidrs(&file.cluster_cidr)),
            _ => {}
        }
    }

    /// Validates a name that can be part of a rule. kube-proxy requires only that it is not empty.
    fn interface(&mut self, field: &str, name: &str) {
        let field = format!("DetectLocalConfiguration.{field}");
        if name.is_empty() {
            self.text(&field, name, "must not be empty");
        } else if name.len() > MAX_INTERFACE_NAME || name.contains(|c: char| !c.is_ascii_graphic() || c == '"') {
            self.text(&field, name, "is not an interface name: at most 15 printable ASCII characters");
        }
    }

    fn cluster_cidrs(&mut self, items: &[&str]) {
        const FIELD: &str = "DetectLocalConfiguration.ClusterCIDRs";
        const PAIR: &str =
            "must be either a single CIDR or a pair of both families, such as 10.100.0.0/16,fde4:8dba:82e1::/48";
        let all = format!("{items:?}");
        if items.len() > 2 {
            return self.value(FIELD, all, PAIR);
        }
        let nets: Vec<_> = items.iter().map(|item| net::cidr(item)).collect();
        for (index, _) in nets.iter().enumerate().filter(|(_, net)| net.is_none()) {
            self.text(&format!("{FIELD}[{index}]"), items[index], "must be a valid CIDR block, such as 10.100.0.0/16");
        }
        if let [Some(a), Some(b)] = nets[..]
            && a.addr().is_ipv4() == b.addr().is_ipv4()
        {
            self.value(FIELD, all, PAIR);
        }
    }

    fn logging(&mut self, file: &KubeProxyConfiguration, gates: &FeatureGates) {
        let logging = &file.logging;
        let json = logging.format == "json";
        if !json && logging.format != "text" {
            self.text("logging.format", &logging.format, "Unsupported log format: must be text or json");
        } else if json && !gates.enabled("LoggingBetaOptions") {
            self.forbidden("logging.format", "Log format json is BETA and disabled, see LoggingBetaOptions feature");
        }
        let flush = logging.flush_frequency.map(|frequency| frequency.duration).unwrap_or_default();
        if flush <= GoDuration::ZERO {
            self.value("logging.flushFrequency", flush, POSITIVE);
        }
        if i32::try_from(logging.verbosity).is_err() {
            self.value("logging.verbosity", logging.verbosity, &format!("Must be <= {}", i32::MAX));
        }
        self.vmodule(file, json);
        for (name, options) in [("text", &logging.options.text), ("json", &logging.options.json)] {
            let field = format!("logging.options.{name}");
            let off = "alpha options are off, see the feature gate LoggingAlphaOptions";
            if options.split_stream && !gates.enabled("LoggingAlphaOptions") {
                self.forbidden(&format!("{field}.splitStream"), off);
            }
            if options.info_buffer_size.bytes() != 0 && !gates.enabled("LoggingAlphaOptions") {
                self.forbidden(&format!("{field}.infoBufferSize"), off);
            }
        }
    }

    fn vmodule(&mut self, file: &KubeProxyConfiguration, json: bool) {
        let items = &file.logging.vmodule;
        if json && !items.is_empty() {
            self.forbidden("logging.vmodule", "Only supported for text log format");
        }
        for (index, item) in items.iter().enumerate() {
            let field = format!("logging.vmodule[{index}]");
            if item.file_pattern.is_empty() {
                let path = format!("KubeProxyConfiguration.{field}.filePattern");
                self.0.push(format!("{path}: Required value: File pattern must not be empty"));
            }
            if item.file_pattern.contains(['=', ',']) {
                let no = "File pattern must not contain equal sign or comma";
                self.text(&format!("{field}.filePattern"), &item.file_pattern, no);
            }
            if i32::try_from(item.verbosity).is_err() {
                self.value(&format!("{field}.verbosity"), item.verbosity, &format!("Must be <= {}", i32::MAX));
            }
        }
    }

    fn forbidden(&mut self, field: &str, detail: &str) {
        self.0.push(format!("KubeProxyConfiguration.{field}: Forbidden: {detail}"));
    }
}
