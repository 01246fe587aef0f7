//! From a configuration's words to values that can be used.
//!
//! In: a [`File`], whether it came from a file or from flags. Out: [`Settings`], or everything that is wrong.
//! Must not know: flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use proxier::model::config::SyncPeriods;
use proxier::model::{Config, LocalDetector, NodePortAddresses};

use super::{ConfigError, File};

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;
const EXTERNAL_IPS_GATE: &str = "AllowServiceExternalIPs";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What the proxiers are told.
    pub proxier: Config,
    /// Where `/healthz` is served.
    pub healthz: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// The kubeconfig, if any.
    pub kubeconfig: Option<PathBuf>,
    /// Set `nf_conntrack_tcp_be_liberal`.
    pub tcp_be_liberal: bool,
    /// What is odd about the configuration, for the log.
    pub warnings: Vec<String>,
}

/// Checks a configuration. `hostname` is the host's own name.
///
/// # Errors
/// Everything that is wrong, each with its field and value.
pub fn settings(file: &File, hostname: &str) -> Result<Settings, ConfigError> {
    let mut check = Check::default();
    check.mode(&file.mode);
    let bind = check.bind_address(&file.bind_address);
    let [any, localhost]: [IpAddr; 2] = if bind.is_ipv4() {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()]
    } else {
        [Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()]
    };
    let healthz = check.listen("HealthzBindAddress", &file.healthz_bind_address, any, HEALTHZ_PORT);
    let metrics = check.listen("MetricsBindAddress", &file.metrics_bind_address, localhost, METRICS_PORT);
    let node_name = check.node_name(&file.hostname_override, hostname);
    let local_detector = check.local_detector(file);
    let node_port_addresses = check.node_port_addresses(&file.node_port_addresses);
    let masquerade_bit = check.masquerade_bit(file.iptables.masquerade_bit);
    let periods = check.periods(file);
    check.feature_gates(file);
    if !check.errors.is_empty() {
        return Err(ConfigError::Invalid(check.errors));
    }
    Ok(Settings {
        proxier: Config {
            node_name,
            local_detector,
            node_port_addresses,
            bind_address: Some(bind).filter(|ip| !ip.is_unspecified()),
            masquerade_all: file.iptables.masquerade_all,
            masquerade_bit,
            localhost_node_ports: file.iptables.localhost_node_ports.unwrap_or(true),
            hide_external_ips: file.feature_gates.get(EXTERNAL_IPS_GATE) == Some(&false),
            periods,
        },
        healthz,
        metrics,
        kubeconfig: Some(&file.client_connection.kubeconfig).filter(|path| !path.is_empty()).map(PathBuf::from),
        tcp_be_liberal: file.conntrack.tcp_be_liberal,
        warnings: check.warnings,
    })
}

#[derive(Default)]
struct Check {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Check {
    fn invalid(&mut self, field: &str, value: &str, detail: &str) {
        self.errors.push(format!("KubeProxyConfiguration.{field}: Invalid value: {value:?}: {detail}"));
    }

    fn mode(&mut self, mode: &str) {
        match mode {
            "" | "iptables" => {}
            "ipvs" | "nftables" => self.invalid("Mode", mode, "this mode is not built yet; iptables is"),
            _ => self.invalid("Mode", mode, "must be iptables, ipvs or nftables"),
        }
    }

    fn bind_address(&mut self, text: &str) -> IpAddr {
        if text.is_empty() {
            return Ipv4Addr::UNSPECIFIED.into();
        }
        text.parse().unwrap_or_else(|_| {
            self.invalid("BindAddress", text, "not a valid textual representation of an IP address");
            Ipv4Addr::UNSPECIFIED.into()
        })
    }

    /// `IP` or `IP:port`.
    fn listen(&mut self, field: &str, text: &str, ip: IpAddr, port: u16) -> SocketAddr {
        if text.is_empty() {
            return SocketAddr::new(ip, port);
        }
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return SocketAddr::new(ip, port);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => address,
            Ok(address) => {
                self.invalid(field, text, "must be a valid port number, 1-65535");
                address
            }
            Err(_) => {
                self.invalid(field, text, "must be IP:port");
                SocketAddr::new(ip, port)
            }
        }
    }

    fn node_name(&mut self, hostname_override: &str, hostname: &str) -> String {
        let name = if hostname_override.is_empty() { hostname } else { hostname_override };
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            self.invalid("HostnameOverride", hostname_override, "an empty host name cannot be a Node's name");
        }
        name
    }

    fn local_detector(&mut self, file: &File) -> LocalDetector {
        let details = &file.detect_local;
        match &*file.detect_local_mode {
            "" | "ClusterCIDR" => LocalDetector::ClusterCidr(self.cluster_cidrs(&file.cluster_cidr)),
            "NodeCIDR" => LocalDetector::NodeCidr,
            "BridgeInterface" => {
                if details.bridge_interface.is_empty() {
                    self.invalid("DetectLocalConfiguration.InterfaceName", "", "must not be empty");
                }
                LocalDetector::BridgeInterface(self.interface(&details.bridge_interface))
            }
            "InterfaceNamePrefix" => {
                if details.interface_name_prefix.is_empty() {
                    self.invalid("DetectLocalConfiguration.InterfacePrefix", "", "must not be empty");
                }
                LocalDetector::InterfaceNamePrefix(self.interface(&details.interface_name_prefix))
            }
            other => {
                let modes = "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.invalid("DetectLocalMode", other, modes);
                LocalDetector::NodeCidr
            }
        }
    }

    /// A name that can stand in a rule; the kernel's limit is 15 bytes.
    fn interface(&mut self, name: &str) -> String {
        if name.len() > 15 || name.contains(|c: char| !c.is_ascii_graphic() || c == '"') {
            self.invalid("DetectLocalConfiguration", name, "is not the name of an interface");
        }
        name.to_owned()
    }

    fn cluster_cidrs(&mut self, text: &str) -> Vec<IpNet> {
        let cidrs = self.cidrs("ClusterCIDRs", text.split(',').map(str::trim).filter(|item| !item.is_empty()));
        let families: Vec<_> = cidrs.iter().map(|net| net.addr().is_ipv4()).collect();
        if families.len() > 2 {
            self.invalid("DetectLocalConfiguration.ClusterCIDRs", text, "only one network per family is allowed");
        } else if let [a, b] = families[..]
            && a == b
        {
            self.invalid("DetectLocalConfiguration.ClusterCIDRs", text, "two networks must be of different families");
        }
        cidrs
    }

    fn cidrs<'a>(&mut self, field: &str, items: impl Iterator<Item = &'a str>) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (index, item) in items.enumerate() {
            match item.parse::<IpNet>() {
                Ok(net) => nets.push(net.trunc()),
                Err(_) => self.invalid(&format!("{field}[{index}]"), item, "must be a network in CIDR notation"),
            }
        }
        nets
    }

    fn node_port_addresses(&mut self, items: &[String]) -> NodePortAddresses {
        if items.is_empty() {
            let text =
                "nodePortAddresses is unset: node ports are served on all local addresses; [\"primary\"] narrows that";
            self.warnings.push(text.to_owned());
        }
        if items.iter().any(|item| item == "primary") {
            if items.len() > 1 {
                self.invalid("NodePortAddresses", &items.join(","), "\"primary\" must stand alone");
            }
            return NodePortAddresses::Primary;
        }
        NodePortAddresses::Cidrs(self.cidrs("NodePortAddresses", items.iter().map(String::as_str)))
    }

    fn masquerade_bit(&mut self, bit: Option<i64>) -> u8 {
        match bit.map_or(Ok(14), u8::try_from) {
            Ok(bit @ 0..=31) => bit,
            _ => {
                let value = bit.unwrap_or_default().to_string();
                self.invalid(
                    "KubeProxyIPTablesConfiguration.MasqueradeBit",
                    &value,
                    "must be within the range [0, 31]",
                );
                0
            }
        }
    }

    fn periods(&mut self, file: &File) -> SyncPeriods {
        let sync = file.iptables.sync_period.unwrap_or(Duration::from_secs(30));
        let min = file.iptables.min_sync_period.unwrap_or(Duration::from_secs(1));
        if sync.is_zero() {
            self.invalid("SyncPeriod", "0s", "must be greater than 0");
        } else if min > sync {
            self.invalid("SyncPeriod", &format!("{min:?}"), &format!("must be greater than or equal to {sync:?}"));
        }
        SyncPeriods { min, sync }
    }

    fn feature_gates(&mut self, file: &File) {
        for gate in file.feature_gates.keys().filter(|gate| *gate != EXTERNAL_IPS_GATE) {
            self.warnings.push(format!("feature gate {gate:?} has no effect here"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(file: &File) -> Result<Settings, String> {
        settings(file, " Host-A ").map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_kube_proxys() {
        let settings = check(&File::default()).expect("defaults are valid");
        assert_eq!(settings.proxier.node_name, "host-a");
        assert_eq!(settings.healthz.to_string(), "0.0.0.0:10256");
        assert_eq!(settings.metrics.to_string(), "127.0.0.1:10249");
        assert_eq!(settings.proxier.masquerade_mark(), 0x4000);
        let v6 = check(&File { bind_address: "fd00::1".to_owned(), ..File::default() }).expect("valid");
        assert_eq!(
            (v6.healthz.to_string(), v6.metrics.to_string()),
            ("[::]:10256".to_owned(), "[::1]:10249".to_owned())
        );
    }

    #[test]
    fn everything_wrong_is_said_at_once_with_field_and_value() {
        let file = File {
            mode: "userspace".to_owned(),
            cluster_cidr: "10.0.0.0/8,x".to_owned(),
            bind_address: "here".to_owned(),
            node_port_addresses: vec!["10.0.0.1".to_owned()],
            iptables: Iptables32::bit(32),
            ..File::default()
        };
        let errors = check(&file).expect_err("all of it is wrong");
        for part in [
            "Mode",
            "\"userspace\"",
            "ClusterCIDRs[1]",
            "BindAddress",
            "NodePortAddresses[0]",
            "MasqueradeBit",
            "\"32\"",
        ] {
            assert!(errors.contains(part), "{part} in {errors}");
        }
    }

    struct Iptables32;
    impl Iptables32 {
        fn bit(bit: i64) -> super::super::Iptables {
            super::super::Iptables { masquerade_bit: Some(bit), ..Default::default() }
        }
    }

    #[test]
    fn blanks_in_cluster_cidr_are_nothing() {
        let file = File { cluster_cidr: "10.0.0.0/8, ".to_owned(), ..File::default() };
        let expected = LocalDetector::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a network")]);
        assert_eq!(check(&file).expect("valid").proxier.local_detector, expected);
    }
}
