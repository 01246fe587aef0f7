//! Minimal Service, EndpointSlice and Node objects, which tests extend.

use serde_json::{Value, json};

/// A Service `default/NAME` with the port `http` 80/TCP.
#[must_use]
pub fn service(name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 }]
        }
    })
}

/// An EndpointSlice of `default/SERVICE` with ready endpoints at port 8080.
#[must_use]
pub fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": "node-b" }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }], "endpoints": endpoints
    })
}

/// A Node in a zone.
#[must_use]
pub fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": zone } },
        "spec": { "podCIDRs": ["10.244.1.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.50.2" }] }
    })
}
