//! Kubernetes objects of tests: a Service with its defaults and one EndpointSlice for each family.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::address::{Dual, Family, NODE, NODE_B, POD_9, Pod, TARGET_PORT};

/// The port of every Service.
pub const PORT: u16 = 80;

/// A Service with its endpoints.
#[derive(Debug, Clone)]
pub struct Service {
    name: &'static str,
    number: u8,
    protocol: &'static str,
    target_port: u16,
    node_port: Option<u16>,
    vip: Option<Dual>,
    annotations: Map<String, Value>,
    labels: Map<String, Value>,
    spec: Map<String, Value>,
    endpoints: Vec<Value>,
}

impl Service {
    /// A dual-stack ClusterIP Service `default/NAME` with one TCP port and no endpoints.
    ///
    /// The number determines its cluster IPs.
    #[must_use]
    pub fn new(name: &'static str, number: u8) -> Self {
        let (annotations, labels, spec) = (Map::new(), Map::new(), Map::new());
        let (protocol, target_port, endpoints) = ("TCP", TARGET_PORT, Vec::new());
        Self { name, number, protocol, target_port, node_port: None, vip: None, annotations, labels, spec, endpoints }
    }

    /// Sets the protocol of the port.
    #[must_use]
    pub fn protocol(mut self, protocol: &'static str) -> Self {
        self.protocol = protocol;
        self
    }

    /// Sets the port of its endpoints.
    #[must_use]
    pub fn target_port(mut self, port: u16) -> Self {
        self.target_port = port;
        self
    }

    /// Makes it a NodePort Service.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        self.node_port = Some(port);
        self
    }

    /// Makes it a LoadBalancer Service with this virtual IP.
    #[must_use]
    pub fn load_balancer(mut self, vip: Dual) -> Self {
        self.vip = Some(vip);
        self
    }

    /// Adds an externalIP of each family.
    #[must_use]
    pub fn external_ip(self, address: Dual) -> Self {
        self.field("externalIPs", json!([address.0, address.1]))
    }

    /// Sets the `loadBalancerSourceRanges`.
    #[must_use]
    pub fn source_ranges(self, ranges: &[&str]) -> Self {
        self.field("loadBalancerSourceRanges", json!(ranges))
    }

    /// Sets `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.field("externalTrafficPolicy", json!("Local"))
    }

    /// Sets `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.field("internalTrafficPolicy", json!("Local"))
    }

    /// Sets ClientIP affinity with a timeout in seconds, valid or not.
    #[must_use]
    pub fn affinity(self, seconds: i64) -> Self {
        self.field("sessionAffinity", json!("ClientIP"))
            .field("sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": seconds } }))
    }

    /// Sets another field of the spec.
    #[must_use]
    pub fn field(mut self, key: &str, value: Value) -> Self {
        self.spec.insert(key.to_owned(), value);
        self
    }

    /// Replaces the endpoints: see [`ready`], [`unready`] and [`terminating`].
    #[must_use]
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        self.endpoints = endpoints.into_iter().map(|endpoint| endpoint.0).collect();
        self
    }

    /// `default/NAME`, as in rule comments and logs.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("default/{}", self.name)
    }

    /// The cluster IP and port.
    ///
    /// # Panics
    /// Never, because the text is an address.
    #[must_use]
    pub fn address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.cluster_ip(family).parse().expect("an address"), PORT)
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.into());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.into());
        self
    }

    fn cluster_ip(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.96.0.{}", self.number),
            Family::V6 => format!("fd00:10:96::{:x}", self.number),
        }
    }

    fn documents(&self) -> Vec<Value> {
        let mut documents = vec![self.service()];
        documents.extend(Family::BOTH.iter().map(|family| self.slice(*family)));
        documents
    }

    fn service(&self) -> Value {
        let (v4, v6) = (self.cluster_ip(Family::V4), self.cluster_ip(Family::V6));
        let mut port = json!({ "name": "p", "port": PORT, "protocol": self.protocol, "targetPort": self.target_port });
        if let Some(node_port) = self.node_port {
            port["nodePort"] = json!(node_port);
        }
        let kind = match (self.vip, self.node_port) {
            (Some(_), _) => "LoadBalancer",
            (None, Some(_)) => "NodePort",
            (None, None) => "ClusterIP",
        };
        let mut spec = json!({
            "type": kind, "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [port],
        });
        for (key, value) in &self.spec {
            spec[key] = value.clone();
        }
        let ingress: Vec<Value> =
            self.vip.iter().flat_map(|vip| [vip.0, vip.1]).map(|ip| json!({ "ip": ip })).collect();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "default", "name": self.name, "annotations": self.annotations, "labels": self.labels },
            "spec": spec, "status": { "loadBalancer": { "ingress": ingress } },
        })
    }

    fn slice(&self, family: Family) -> Value {
        let (name, index) = match family {
            Family::V4 => ("IPv4", 0),
            Family::V6 => ("IPv6", 1),
        };
        let endpoints = self.endpoints.iter().map(|endpoint| {
            let mut endpoint = endpoint.clone();
            endpoint["addresses"] = json!([endpoint["addresses"][index]]);
            endpoint
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": format!("{}-{}", self.name, name.to_lowercase()),
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": name, "ports": [{ "name": "p", "port": self.target_port, "protocol": self.protocol }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }
}

/// An endpoint in both families.
#[derive(Debug, Clone)]
pub struct Endpoint(Value);

/// A ready endpoint.
#[must_use]
pub fn ready(pod: Pod) -> Endpoint {
    endpoint(pod, true, true, false)
}

/// An endpoint whose readiness probe fails.
#[must_use]
pub fn unready(pod: Pod) -> Endpoint {
    endpoint(pod, false, false, false)
}

/// A terminating endpoint that still serves.
#[must_use]
pub fn terminating(pod: Pod) -> Endpoint {
    endpoint(pod, false, true, true)
}

/// A terminating endpoint that does not serve any more.
#[must_use]
pub fn stopping(pod: Pod) -> Endpoint {
    endpoint(pod, false, false, true)
}

fn endpoint(pod: Pod, ready: bool, serving: bool, terminating: bool) -> Endpoint {
    Endpoint(json!({
        "addresses": [pod.address.0, pod.address.1], "nodeName": pod.node,
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
    }))
}

/// Two Services in every cluster, with rules in the nat and in the filter table.
///
/// When both have rules, the first sync is complete, which `/healthz` does not show.
pub(super) fn markers() -> [Service; 2] {
    [Service::new("marker", 254).endpoints([ready(POD_9)]), Service::new("marker-empty", 255)]
}

/// The objects file: both Nodes, the Services and the markers, as JSON, which is YAML.
pub(super) fn file(services: &[Service]) -> String {
    let mut documents = vec![node("node-a", NODE, 1), node("node-b", NODE_B, 2)];
    documents.extend(services.iter().chain(&markers()).flat_map(Service::documents));
    documents.iter().map(|document| format!("---\n{document}\n")).collect()
}

fn node(name: &str, address: Dual, number: u8) -> Value {
    let pod_cidrs = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs },
        "status": { "addresses": [
            { "type": "InternalIP", "address": address.0 },
            { "type": "InternalIP", "address": address.1 },
            { "type": "Hostname", "address": name },
        ] },
    })
}
