//! Checks a configuration for addresses of the wrong family, against itself and against the node.
//!
//! The conditions are kube-proxy's. Most are warnings; two make the proxy exit.

use ipnet::IpNet;
use netfilter::IpFamily;
use proxier::model::config::NodePortMatch;
use proxier::model::{LocalDetector, Mode, NodePortAddresses};

use super::ValidatedConfig;
use super::gates::LOCALHOST_NODE_PORTS;

/// kube-proxy's log message about a configuration that is probably wrong.
pub const INCONSISTENT: &str = "Kube-proxy configuration may be incomplete or incorrect";

/// The facts about the node that a configuration is checked against.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The family of the node's first address.
    pub primary: IpFamily,
    /// Whether both families are served.
    pub dual_stack: bool,
    /// The pod networks of the Node; empty: unknown.
    pub pod_cidrs: Vec<IpNet>,
}

/// The result of a check against the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inconsistencies {
    /// Warnings for the log.
    pub warnings: Vec<String>,
    /// An error that makes the proxy exit.
    pub fatal: Option<String>,
}

/// Checks a configuration without knowing the node. Returns warnings.
#[must_use]
pub fn check_config(settings: &ValidatedConfig) -> Vec<String> {
    let NodePortAddresses { primary, networks } = &settings.proxier.node_port_addresses;
    if networks.is_empty() && !primary {
        let text = "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. Consider using \
                    `--nodeport-addresses primary`";
        return vec![text.to_owned()];
    }
    networks.iter().filter(|net| is_loopback(net)).filter_map(|net| loopback_warning(settings, *net)).collect()
}

/// Whether a network is given for its loopback addresses; the network of all addresses is not.
fn is_loopback(net: &IpNet) -> bool {
    net.prefix_len() > 0 && NodePortMatch::Within(vec![*net]).covers_loopback(IpFamily::of_net(net))
}

/// The effect of a loopback network in `nodePortAddresses`; `None`: its node ports are served as named.
///
/// In iptables mode `route_localnet` serves them, which IPv6 does not have; in nftables mode a proxy in user space, if the
/// feature gate is on. kube-proxy leaves out the others silently.
fn loopback_warning(settings: &ValidatedConfig, net: IpNet) -> Option<String> {
    let family = IpFamily::of_net(&net);
    let includes = format!("--nodeport-addresses includes localhost ({net})");
    let config = &settings.proxier;
    let why = match settings.mode {
        Mode::Iptables if !family.has_route_localnet() => format!("localhost NodePorts are not supported on {family}"),
        Mode::Iptables if config.localhost_node_ports => {
            return Some(format!(
                "{includes}: setting route_localnet=1 to allow node ports on localhost, which works in iptables mode \
                 and for IPv4 only"
            ));
        }
        Mode::Iptables => "--iptables-localhost-nodeports=false was passed".to_owned(),
        Mode::Nftables if !config.nftables_localhost_node_ports => {
            format!("localhost NodePorts in nftables mode need the feature gate {LOCALHOST_NODE_PORTS}")
        }
        Mode::Nftables if config.proxies_localhost(family) => return None,
        Mode::Nftables => format!("not {}, so no localhost NodePort of {family} is served", family.localhost()),
        Mode::Ipvs => "localhost NodePorts are not supported in ipvs mode".to_owned(),
    };
    let NodePortAddresses { primary, networks } = &config.node_port_addresses;
    let mut of_family = networks.iter().filter(|other| IpFamily::of_net(other) == family);
    let alone = !primary && of_family.all(|other| family.loopback().contains(other));
    let rest = if alone { format!("; no node port is served over {family}") } else { String::new() };
    Some(format!("{includes} but {why}{rest}"))
}

/// Checks a configuration against the node.
#[must_use]
pub fn check_node(settings: &ValidatedConfig, node: &NodeFacts) -> Inconsistencies {
    let mut found = Inconsistencies::default();
    let (primary, single) = (node.primary, !node.dual_stack);
    let (name, other) = (primary.name(), primary.other().name());
    // `primary` has an address of each family that the node has.
    let NodePortAddresses { primary: own, networks } = &settings.proxier.node_port_addresses;
    let node_ports: &[IpNet] = if *own { &[] } else { networks };
    let cluster: &[IpNet] = match &settings.proxier.local_detector {
        LocalDetector::ClusterCidr(nets) => nets,
        _ => &[],
    };
    let excluded = &settings.ipvs.exclude_cidrs;
    if !node_ports.is_empty() {
        let lists = [cluster, node_ports, excluded, &node.pod_cidrs];
        if !has(node_ports, primary) {
            found.warn(format!("cluster is {name} but NodePortAddresses has no {name} addresses: {node_ports:?}"));
        } else if !has(node_ports, primary.other()) && lists.iter().any(|nets| is_dual_stack(nets)) {
            let text = "cluster appears to be dual-stack but NodePortAddresses contains only";
            found.warn(format!("{text} {name} addresses: NodePort connections of {other} are accepted on all IPs"));
        }
    }
    let only_other = |what: &str| format!("cluster is {name} but {what} contains only {other} addresses");
    if only(cluster, primary.other()) {
        found.add(only_other("clusterCIDRs"), single);
    }
    if only(&node.pod_cidrs, primary.other()) {
        let fatal = settings.proxier.local_detector == LocalDetector::NodeCidr;
        found.add(only_other("node.spec.podCIDRs"), fatal);
    }
    if single && only(excluded, primary.other()) {
        found.warn(only_other("ipvs.excludeCIDRs"));
    }
    for (field, address) in [("healthzBindAddress", settings.healthz), ("metricsBindAddress", settings.metrics)] {
        let address = address.filter(|address| single && !address.ip().is_unspecified());
        if let Some(address) = address.filter(|address| IpFamily::of(&address.ip()) != primary) {
            found.warn(format!("cluster is {name} but {field} is {other}: {address}"));
        }
    }
    found
}

impl Inconsistencies {
    fn warn(&mut self, text: String) {
        self.warnings.push(text);
    }

    fn add(&mut self, text: String, fatal: bool) {
        if fatal && self.fatal.is_none() {
            self.fatal = Some(format!("kube-proxy configuration is incorrect: {text}"));
        } else {
            self.warn(text);
        }
    }
}

fn has(nets: &[IpNet], family: IpFamily) -> bool {
    nets.iter().any(|net| IpFamily::of_net(net) == family)
}

fn only(nets: &[IpNet], family: IpFamily) -> bool {
    !nets.is_empty() && nets.iter().all(|net| IpFamily::of_net(net) == family)
}

fn is_dual_stack(nets: &[IpNet]) -> bool {
    has(nets, IpFamily::V4) && has(nets, IpFamily::V6)
}

#[cfg(test)]
mod tests {
    use super::super::{KubeProxyConfiguration, validate};
    use super::*;

    fn of(change: impl FnOnce(&mut KubeProxyConfiguration)) -> ValidatedConfig {
        let mut file = KubeProxyConfiguration::default();
        change(&mut file);
        validate(file.with_defaults(), "node").expect("valid")
    }

    fn node(primary: IpFamily, dual_stack: bool, pods: &[&str]) -> NodeFacts {
        let pod_cidrs = pods.iter().map(|net| net.parse().expect("a network")).collect();
        NodeFacts { primary, dual_stack, pod_cidrs }
    }

    #[test]
    fn unset_node_port_addresses_are_warned_about_where_they_mean_all() {
        assert_eq!(check_config(&of(|_| ())).len(), 1);
        let primary = of(|file| file.node_port_addresses = vec!["primary".to_owned()]);
        assert_eq!(check_config(&primary), Vec::<String>::new());
        assert_eq!(check_config(&of(|file| file.mode = "nftables".to_owned())), Vec::<String>::new());
    }

    #[test]
    fn loopback_networks_in_node_port_addresses_when_given_are_warned_about_by_mode() {
        let warnings = |mode: &str, localhost: bool, nets: &[&str]| {
            check_config(&of(|file| {
                file.mode = mode.to_owned();
                file.iptables.localhost_node_ports = Some(localhost);
                file.node_port_addresses = nets.iter().map(ToString::to_string).collect();
            }))
        };
        let [served] = &warnings("iptables", true, &["127.0.0.0/8"])[..] else { panic!("one warning") };
        assert!(served.contains("(127.0.0.0/8): setting route_localnet=1"), "{served}");
        for (mode, localhost, net, why) in [
            ("iptables", false, "127.0.0.1/32", "--iptables-localhost-nodeports=false was passed"),
            ("iptables", true, "::1/128", "localhost NodePorts are not supported on IPv6"),
            (
                "nftables",
                true,
                "127.0.0.0/8",
                "localhost NodePorts in nftables mode need the feature gate KubeProxyNFTablesLocalhostNodePorts",
            ),
            ("ipvs", true, "126.0.0.0/7", "localhost NodePorts are not supported in ipvs mode"),
        ] {
            let [alone] = &warnings(mode, localhost, &[net])[..] else { panic!("one warning") };
            let [beside] = &warnings(mode, localhost, &[net, "10.0.0.0/8", "fd00::/8"])[..] else {
                panic!("one warning")
            };
            assert!(alone.contains(&format!("includes localhost ({net}) but {why}")), "{alone}");
            let nothing = format!("; no node port is served over {}", if net == "::1/128" { "IPv6" } else { "IPv4" });
            assert_eq!(alone.contains(&nothing), net != "126.0.0.0/7", "{alone}");
            assert!(!beside.contains("no node port is served"), "{beside}");
        }
        for nets in [&["0.0.0.0/0", "::/0"][..], &["10.0.0.0/8"]] {
            assert_eq!(warnings("nftables", true, nets), Vec::<String>::new(), "{nets:?}");
        }
    }

    #[test]
    fn localhost_node_ports_of_nftables_mode_are_not_warned_about_where_they_are_served() {
        let warnings = |gate: bool, items: &[&str]| {
            check_config(&of(|file| {
                file.mode = "nftables".to_owned();
                file.feature_gates.insert(LOCALHOST_NODE_PORTS.to_owned(), gate);
                file.node_port_addresses = items.iter().map(ToString::to_string).collect();
            }))
        };
        assert_eq!(warnings(true, &["primary", "localhost"]), Vec::<String>::new());
        assert_eq!(warnings(false, &["primary", "localhost"]).len(), 2, "one for each family");
        let [other] = &warnings(true, &["127.0.0.2/32", "primary"])[..] else { panic!("one warning") };
        assert!(other.ends_with("but not 127.0.0.1, so no localhost NodePort of IPv4 is served"), "{other}");
        assert_eq!(warnings(false, &["all"]), Vec::<String>::new());
    }

    #[test]
    fn pod_networks_of_the_other_family_are_fatal_where_they_are_needed() {
        let v6 = of(|file| file.cluster_cidr = "fd00::/48".to_owned());
        let found = check_node(&v6, &node(IpFamily::V4, false, &[]));
        assert!(
            found.fatal.is_some_and(|text| text.starts_with("kube-proxy configuration is incorrect: cluster is IPv4"))
        );
        let found = check_node(&v6, &node(IpFamily::V4, true, &[]));
        assert_eq!((found.fatal, found.warnings.len()), (None, 1));
        assert_eq!(check_node(&v6, &node(IpFamily::V6, true, &[])), Inconsistencies::default());

        let node_cidr = of(|file| file.detect_local_mode = "NodeCIDR".to_owned());
        assert!(check_node(&node_cidr, &node(IpFamily::V4, true, &["fd00::/64"])).fatal.is_some());
        assert_eq!(
            check_node(&node_cidr, &node(IpFamily::V4, true, &["fd00::/64", "10.0.0.0/24"])),
            Inconsistencies::default()
        );
        let found = check_node(&of(|_| ()), &node(IpFamily::V4, false, &["fd00::/64"]));
        assert_eq!((found.fatal, found.warnings.len()), (None, 1));
    }

    #[test]
    fn node_port_addresses_are_compared_with_the_families_of_all_other_networks() {
        let settings = of(|file| {
            file.node_port_addresses = vec!["10.0.0.0/8".to_owned()];
            file.cluster_cidr = "10.0.0.0/8,fd00::/48".to_owned();
        });
        let [text] = &check_node(&settings, &node(IpFamily::V4, true, &[])).warnings[..] else { panic!("one warning") };
        assert!(text.contains("dual-stack but NodePortAddresses contains only IPv4 addresses"), "{text}");
        let [text] = &check_node(&settings, &node(IpFamily::V6, true, &[])).warnings[..] else { panic!("one warning") };
        assert!(text.contains("NodePortAddresses has no IPv6 addresses"), "{text}");
    }

    #[test]
    fn addresses_of_the_other_family_are_warned_about_on_a_single_stack_node() {
        let settings = of(|file| {
            file.mode = "ipvs".to_owned();
            file.ipvs.exclude_cidrs = vec!["fd00::/48".to_owned()];
            file.metrics_bind_address = "[::1]:10249".to_owned();
        });
        assert_eq!(check_node(&settings, &node(IpFamily::V4, false, &[])).warnings.len(), 2);
        assert_eq!(check_node(&settings, &node(IpFamily::V4, true, &[])).warnings.len(), 0);
    }
}
