//! Defaults of KubeProxyConfiguration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::duration::GoDuration;
use super::file::ServiceMetricsFile;
use super::logging::FlushFrequency;
use super::{KubeProxyConfiguration, net};

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;
const CLUSTER_CIDR: &str = "ClusterCIDR";

/// The default encoding of requests. Requests have no body here; it only selects the responses' encoding.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The address of a disabled server.
pub const DISABLED: &str = "0";

impl KubeProxyConfiguration {
    /// Fills in every unset field. Sections of other modes keep nothing that depends on the mode, as kube-proxy shows
    /// them.
    #[must_use]
    pub fn with_defaults(mut self) -> Self {
        "KubeProxyConfiguration".clone_into(&mut self.kind);
        "kubeproxy.config.k8s.io/v1alpha1".clone_into(&mut self.api_version);
        self.addresses();
        self.periods();
        let client = &mut self.client_connection;
        fill(&mut client.content_type, CONTENT_TYPE);
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }
        fill(&mut self.logging.format, "text");
        let flush = FlushFrequency { duration: GoDuration::from_secs(5), number: false };
        self.logging.flush_frequency.get_or_insert(flush);
        fill(&mut self.detect_local_mode, CLUSTER_CIDR);
        self.oom_score_adj.get_or_insert(-999);
        let conntrack = &mut self.conntrack;
        conntrack.max_per_core.get_or_insert(32_768);
        conntrack.min.get_or_insert(131_072);
        conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
        conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
        self.config_sync_period.get_or_insert(GoDuration::from_secs(15 * 60));
        self.port_range.clear();
        let service_metrics = &mut self.service_metrics;
        if service_metrics.is_on() {
            service_metrics.limit.get_or_insert(ServiceMetricsFile::LIMIT);
        }
        self
    }

    /// The same configuration with `mode: nftables` and the defaults of that mode.
    #[must_use]
    pub fn in_nftables_mode(self) -> Self {
        Self { mode: "nftables".to_owned(), ..self }.with_defaults()
    }

    fn addresses(&mut self) {
        fill(&mut self.bind_address, "0.0.0.0");
        let [health, metrics] = default_hosts(&self.bind_address);
        listen(&mut self.healthz_bind_address, health, HEALTHZ_PORT);
        listen(&mut self.metrics_bind_address, metrics, METRICS_PORT);
    }

    fn periods(&mut self) {
        fill(&mut self.mode, "iptables");
        for bit in [&mut self.iptables.masquerade_bit, &mut self.nftables.masquerade_bit] {
            bit.get_or_insert(14);
        }
        self.iptables.localhost_node_ports.get_or_insert(true);
        let (iptables, ipvs, nftables) = (&mut self.iptables, &mut self.ipvs, &mut self.nftables);
        let iptables_periods = (&mut iptables.sync_period, &mut iptables.min_sync_period);
        let ipvs_periods = (&mut ipvs.sync_period, &mut ipvs.min_sync_period);
        let nftables_periods = (&mut nftables.sync_period, &mut nftables.min_sync_period);
        let ((sync, min), others) = match &*self.mode {
            "ipvs" => (ipvs_periods, [iptables_periods, nftables_periods]),
            "nftables" => (nftables_periods, [iptables_periods, ipvs_periods]),
            _ => (iptables_periods, [ipvs_periods, nftables_periods]),
        };
        sync.get_or_insert(GoDuration::from_secs(30));
        // The same in every mode, from a file and from flags; kube-proxy has no default for IPVS in a file (behaviour.yaml I16).
        min.get_or_insert(GoDuration::from_secs(1));
        for (sync, min) in others {
            (*sync, *min) = (None, None);
        }
        if self.mode == "nftables" {
            iptables.masquerade_all = false;
            if self.node_port_addresses.is_empty() {
                self.node_port_addresses.push("primary".to_owned());
            }
        } else {
            nftables.masquerade_all = false;
        }
    }
}

/// The default addresses of the health and metrics servers, in the family of the node's address.
#[must_use]
pub fn default_hosts(bind_address: &str) -> [IpAddr; 2] {
    if net::ip(bind_address).is_some_and(|ip| ip.is_ipv6()) {
        [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()]
    }
}

fn fill(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

/// An address alone gets the usual port.
fn listen(field: &mut String, ip: IpAddr, port: u16) {
    if field.is_empty() {
        *field = SocketAddr::new(ip, port).to_string();
    } else if let Some(ip) = net::ip(field.trim_start_matches('[').trim_end_matches(']')) {
        *field = SocketAddr::new(ip, port).to_string();
    }
}
