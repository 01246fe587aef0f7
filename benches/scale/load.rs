//! Objects besides the synthetic load: the Node, and the probed Service.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The node that the proxy runs on.
pub const NODE: &str = "node-000";
/// Its address.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
/// The cluster IP of the probed Service; the synthetic ones have the first addresses of 10.96.0.0/12.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 111, 255, 1);
/// The two alternating endpoints; both answer.
pub const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 50, 3), Ipv4Addr::new(192, 168, 50, 4)];
/// The port of endpoints.
pub const PORT: u16 = 8080;

/// The nine constant endpoints. Nothing listens there: connections are refused at once.
pub fn others() -> impl Iterator<Item = Ipv4Addr> {
    (11..20).map(|host| Ipv4Addr::new(192, 168, 50, host))
}

/// The proxy's Node.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}, {"type": "Hostname", "address": NODE}]},
    })
}

/// The probed Service.
pub fn service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "probe", "name": "probe"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": CLUSTER_IP,
            "clusterIPs": [CLUSTER_IP],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": PORT}],
        },
    })
}

/// Its ten endpoints, one of them that of `turn`.
pub fn slice(turn: usize) -> Value {
    let endpoint = |ip: Ipv4Addr| {
        json!({
            "addresses": [ip],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node-001",
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": "probe",
            "name": "probe-x7k2p",
            "labels": {"kubernetes.io/service-name": "probe"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": PORT}],
        "endpoints": others().chain([ENDPOINTS[turn]]).map(endpoint).collect::<Vec<_>>(),
    })
}
