//! API objects as JSON, with the fields that a test needs.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netfilter::IpFamily;
use serde_json::{Value, json};

use crate::model::config::{ServiceMetrics, SyncPeriods};
use crate::model::{Config, LocalDetector, NodePortAddresses};
use crate::track::{Kind, Object};

/// The name of the node of [`config`] and [`node`].
pub const NODE: &str = "node-a";

/// kube-proxy's default configuration, but with `minSyncPeriod` zero.
#[must_use]
pub fn config() -> Config {
    Config {
        node_name: NODE.to_owned(),
        local_detector: LocalDetector::ClusterCidr(Vec::new()),
        node_port_addresses: NodePortAddresses::default(),
        bind_address: None,
        masquerade_all: false,
        masquerade_bit: 14,
        localhost_node_ports: true,
        nftables_localhost_node_ports: false,
        hide_external_ips: false,
        service_metrics: ServiceMetrics::Off,
        periods: SyncPeriods { min: Duration::ZERO, sync: Duration::from_secs(30) },
    }
}

/// The own Node with these addresses.
#[must_use]
pub fn node(addresses: &[IpAddr]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "status": {"addresses": addresses}})
}

/// A Service of type ClusterIP with one port, `http`, 80/TCP.
#[must_use]
pub fn service(namespace: &str, name: &str, cluster_ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": [IpFamily::of(&cluster_ip).name()],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "internalTrafficPolicy": "Cluster",
        },
    })
}

/// An EndpointSlice of a Service with port `http`, 8080/TCP, whose endpoints are ready and on other nodes.
#[must_use]
pub fn slice(namespace: &str, service: &str, name: &str, endpoints: &[IpAddr]) -> Value {
    let family = endpoints.first().map_or(IpFamily::V4, IpFamily::of);
    let endpoint = |ip: &IpAddr| {
        json!({
            "addresses": [ip],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node-b",
            "zone": "zone-b",
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family.name(),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// The address of 10.0.0.0/8 with this number.
#[must_use]
pub fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | (number & 0xff_ffff)).into()
}

/// Decodes an object with a name.
///
/// # Panics
/// If it has no name.
#[must_use]
pub fn decoded(kind: Kind, object: Value) -> Object {
    Object::from_value(kind, object).expect("an object with a name")
}
