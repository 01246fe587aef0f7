//! Random objects of Kubernetes' types.

use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, NodeSpec, NodeStatus, Service,
    ServicePort, ServiceSpec, ServiceStatus, SessionAffinityConfig, Taint,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use proxier::model::annotations::{END_STALE_CONNECTIONS, UDP_CONNECTION_HANDLING};

/// Values that have a meaning in some field.
const WORDS: [&str; 22] = [
    "",
    "None",
    "TCP",
    "UDP",
    "ICMP",
    "IPv4",
    "IPv6",
    "ClientIP",
    "Local",
    "LoadBalancer",
    "NodePort",
    "ExternalName",
    "VIP",
    "10.0.0.1",
    "fd00::1",
    "10.0.0.0/8",
    "InternalIP",
    "node-a",
    "zone-a",
    "http",
    "true",
    "ToBeDeletedByClusterAutoscaler",
];

const KEYS: [&str; 9] = [
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "service.kubernetes.io/service-proxy-name",
    "topology.kubernetes.io/zone",
    "endpoints.kubernetes.io/last-change-trigger-time",
    "k8s.io/initial-events-end",
    END_STALE_CONNECTIONS,
    UDP_CONNECTION_HANDLING,
    "app",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![4 => select(&WORDS[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

/// Mostly one of these words, so that most objects are valid.
fn mostly(words: &'static [&'static str]) -> BoxedStrategy<Option<String>> {
    prop_oneof![30 => select(words).prop_map(|word| Some(word.to_owned())), 1 => of(word())].boxed()
}

fn words() -> BoxedStrategy<Option<Vec<String>>> {
    of(vec(word(), 0..3)).boxed()
}

fn port() -> impl Strategy<Value = i32> {
    prop_oneof![30 => 1..65_536, 1 => Just(0), 1 => any::<i32>()]
}

fn time() -> impl Strategy<Value = Option<Time>> {
    of((0..4_000_000_000_i64).prop_map(|second| Time(Timestamp::from_second(second).expect("a time"))))
}

fn metadata() -> impl Strategy<Value = ObjectMeta> {
    let map = || of(btree_map(select(&KEYS[..]).prop_map(str::to_owned), word(), 0..4));
    let name = prop_oneof![9 => "[a-z]{1,9}", 1 => word()];
    (name, of(word()), of("[0-9]{1,9}"), map(), map(), time()).prop_map(
        |(name, namespace, resource_version, labels, annotations, deletion_timestamp)| ObjectMeta {
            name: Some(name),
            namespace,
            resource_version,
            labels,
            annotations,
            deletion_timestamp,
            ..ObjectMeta::default()
        },
    )
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let name = mostly(&["", "http", "dns"]);
    (name, mostly(&["TCP", "UDP", ""]), port(), of(port())).prop_map(|(name, protocol, port, node_port)| ServicePort {
        name,
        protocol,
        port,
        node_port,
        ..ServicePort::default()
    })
}

fn ingress() -> impl Strategy<Value = LoadBalancerIngress> {
    (mostly(&["203.0.113.1", "2001:db8::1"]), mostly(&["VIP", "Proxy"])).prop_map(|(ip, ip_mode)| LoadBalancerIngress {
        ip,
        ip_mode,
        ..LoadBalancerIngress::default()
    })
}

/// Boxed: as one type, such strategies are too large for the stack of a test thread.
fn service_spec() -> BoxedStrategy<ServiceSpec> {
    let texts = (
        mostly(&["ClusterIP", "LoadBalancer", "NodePort"]),
        mostly(&["10.0.0.1", "fd00::1"]),
        mostly(&["Local", "Cluster"]),
        mostly(&["Local", "Cluster"]),
        mostly(&["ClientIP", "None"]),
    );
    let families = prop_oneof![
        4 => Just((None, None)),
        4 => Just((Some(vec!["10.0.0.1", "fd00::1"]), Some(vec!["IPv4", "IPv6"]))),
    ];
    let families = families.prop_map(|(ips, names)| {
        let owned = |texts: Option<Vec<&str>>| texts.map(|texts| texts.into_iter().map(str::to_owned).collect());
        (owned(ips), owned(names))
    });
    let lists = (prop_oneof![9 => families, 1 => (words(), words())], words(), words());
    (texts, lists, of(vec(service_port(), 0..3)), of(port()), of(of(port())))
        .prop_map(|(texts, lists, ports, health_check_node_port, timeout)| {
            let config =
                |timeout_seconds| SessionAffinityConfig { client_ip: Some(ClientIPConfig { timeout_seconds }) };
            ServiceSpec {
                type_: texts.0,
                cluster_ip: texts.1,
                external_traffic_policy: texts.2,
                internal_traffic_policy: texts.3,
                session_affinity: texts.4,
                cluster_ips: lists.0.0,
                ip_families: lists.0.1,
                external_ips: lists.1,
                load_balancer_source_ranges: lists.2,
                ports,
                health_check_node_port,
                session_affinity_config: timeout.map(config),
                ..ServiceSpec::default()
            }
        })
        .boxed()
}

pub fn service() -> impl Strategy<Value = Service> {
    (metadata(), of(service_spec()), of(vec(ingress(), 0..3))).prop_map(|(metadata, spec, ingress)| {
        let load_balancer = Some(LoadBalancerStatus { ingress });
        Service { metadata, spec, status: Some(ServiceStatus { load_balancer, ..ServiceStatus::default() }) }
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let conditions = of((of(any::<bool>()), of(any::<bool>()), of(any::<bool>())));
    let hints = of((words(), words()));
    (vec(word(), 0..3), conditions, of(word()), hints).prop_map(|(addresses, conditions, node_name, hints)| Endpoint {
        addresses,
        conditions: conditions.map(|(ready, serving, terminating)| EndpointConditions { ready, serving, terminating }),
        node_name,
        hints: hints.map(|(zones, nodes)| EndpointHints {
            for_zones: zones.map(|names| names.into_iter().map(|name| ForZone { name }).collect()),
            for_nodes: nodes.map(|names| names.into_iter().map(|name| ForNode { name }).collect()),
        }),
        ..Endpoint::default()
    })
}

pub fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (mostly(&["", "http"]), mostly(&["TCP", "UDP"]), of(port()))
        .prop_map(|(name, protocol, port)| EndpointPort { name, protocol, port, ..EndpointPort::default() });
    (metadata(), select(&["IPv4", "IPv6", "FQDN"][..]), vec(endpoint(), 0..4), of(vec(port, 0..3))).prop_map(
        |(metadata, address_type, endpoints, ports)| EndpointSlice {
            metadata,
            address_type: address_type.to_owned(),
            endpoints,
            ports,
        },
    )
}

pub fn node() -> impl Strategy<Value = Node> {
    let name = prop_oneof![Just(Some("node-a".to_owned())), of(word())];
    let address = (word(), word()).prop_map(|(type_, address)| NodeAddress { type_, address });
    let taint = word().prop_map(|key| Taint { key, ..Taint::default() });
    let spec = (words(), of(vec(taint, 0..2)));
    (name, metadata(), of(spec), of(of(vec(address, 0..3)))).prop_map(|(name, metadata, spec, addresses)| Node {
        metadata: ObjectMeta { name, ..metadata },
        spec: spec.map(|(pod_cidrs, taints)| NodeSpec { pod_cidrs, taints, ..NodeSpec::default() }),
        status: addresses.map(|addresses| NodeStatus { addresses, ..NodeStatus::default() }),
    })
}

pub fn service_cidr() -> impl Strategy<Value = ServiceCIDR> {
    (metadata(), of(words())).prop_map(|(metadata, cidrs)| ServiceCIDR {
        metadata,
        spec: cidrs.map(|cidrs| ServiceCIDRSpec { cidrs }),
        status: None,
    })
}
