//! Random cluster histories with few names, ports and addresses, so that collisions are frequent.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proxier::track::Kind;
use serde_json::{Value, json};

pub const NODE: &str = "node-a";
const SERVICES: usize = 4;
const SLICES: usize = 6;

/// Something that happens to a cluster, to the proxy, or to the kernel.
#[derive(Clone, Debug)]
pub enum Operation {
    /// An object is made or changed.
    Apply(Kind, Value),
    /// An object is deleted, if it is there.
    Delete(Kind, usize),
    /// An object comes that cannot be understood.
    Garble(Kind, usize),
    /// All objects of a kind are listed again. Bits tell which ones have vanished, which ones cannot be understood, and
    /// whether the list breaks off once in the middle.
    Relist(Kind, u8, u8, bool),
    /// The kernel is made to hold what is known.
    Sync,
    /// The proxy is killed and started again.
    Restart,
    /// Another program empties a chain.
    Damage(usize),
    /// The tool refuses everything for once.
    Failure,
    /// From now on the tool refuses whatever has to do with a pod, by its line or not; or nothing.
    Refuse(Option<(u8, bool)>),
}

/// A sequence of operations; with `trouble`, including drift, failures and refusals.
pub fn operations(length: usize, trouble: bool) -> impl Strategy<Value = Vec<Operation>> {
    use Operation::{Apply, Damage, Delete, Failure, Garble, Refuse, Relist, Restart, Sync};
    let kind = || prop_oneof![4 => Just(Kind::Service), 4 => Just(Kind::EndpointSlice), 1 => Just(Kind::ServiceCidr)];
    let apply = || {
        prop_oneof![
            2 => (0..SERVICES).prop_flat_map(|n| service(n).prop_map(move |object| Apply(Kind::Service, object))),
            3 => (0..SLICES).prop_flat_map(|n| slice(n).prop_map(move |object| Apply(Kind::EndpointSlice, object))),
        ]
    };
    let usual = prop_oneof![
        16 => apply(),
        1 => node().prop_map(|object| Apply(Kind::Node, object)),
        1 => (0..SERVICES).prop_flat_map(|n| {
            service_cidr(n).prop_map(move |object| Apply(Kind::ServiceCidr, object))
        }),
        2 => (kind(), 0..SLICES).prop_map(|(kind, n)| Delete(kind, n)),
        1 => (kind(), 0..SLICES).prop_map(|(kind, n)| Garble(kind, n)),
        1 => (kind(), some(), some(), any::<bool>())
            .prop_map(|(kind, gone, garbled, broken)| Relist(kind, gone, garbled, broken)),
        12 => Just(Sync),
        1 => Just(Restart),
    ];
    let unusual = prop_oneof![
        1 => any::<usize>().prop_map(Damage),
        1 => Just(Failure),
        2 => option::of((0..4_u8, any::<bool>())).prop_map(Refuse),
    ];
    let operation = if trouble { prop_oneof![9 => usual, 1 => unusual].boxed() } else { usual.boxed() };
    // Something to begin with, for things to happen to.
    (vec(apply(), 0..16), vec(operation, 1..length)).prop_map(|(first, then)| [first, then].concat())
}

/// Some of the bits, but not many.
fn some() -> impl Strategy<Value = u8> {
    (any::<u8>(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c)| a & b & c)
}

/// The namespace and name of an object. Two Services, and two slices, have the same name in different namespaces.
pub fn name(kind: Kind, number: usize) -> (&'static str, String) {
    let namespace = if number.is_multiple_of(2) { "even" } else { "odd" };
    match kind {
        Kind::Service => (namespace, format!("svc-{}", number / 2)),
        Kind::EndpointSlice => (namespace, format!("slice-{}", number / 2)),
        Kind::Node => ("", NODE.to_owned()),
        Kind::ServiceCidr => ("", format!("cidr-{number}")),
    }
}

fn metadata(kind: Kind, number: usize) -> Value {
    let (namespace, name) = name(kind, number);
    json!({ "namespace": namespace, "name": name, "labels": {} })
}

fn address(number: u8) -> String {
    format!("10.0.0.{number}")
}

fn protocol() -> impl Strategy<Value = &'static str> {
    prop_oneof![8 => Just("TCP"), 1 => Just("UDP"), 1 => Just("SCTP")]
}

fn port_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![6 => Just("a"), 2 => Just("b"), 1 => Just("")]
}

fn policy() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("Cluster"), 1 => Just("Local")]
}

fn service(number: usize) -> impl Strategy<Value = Value> {
    let port = (port_name(), protocol(), 80..82_u16, prop_oneof![Just(0), Just(30080), Just(30081)]).prop_map(
        |(name, protocol, port, node_port)| json!({ "name": name, "protocol": protocol, "port": port, "nodePort": node_port }),
    );
    let kind = prop_oneof![8 => Just("ClusterIP"), 6 => Just("NodePort"), 6 => Just("LoadBalancer"), 1 => Just("ExternalName")];
    let cluster_ip = prop_oneof![9 => Just("10.96.0.1"), 9 => Just("10.96.0.2"), 1 => Just(""), 1 => Just("fd00::1")];
    let affinity = option::of(1..3_u32);
    let ingress = vec((0..3_u8, option::of(prop_oneof![Just("VIP"), Just("Proxy")])), 0..3);
    let ranges =
        vec(prop_oneof![Just("0.0.0.0/0"), Just("10.0.0.0/24"), Just("192.168.50.2/32"), Just("fd00::/8")], 0..2);
    let outside = (ingress, ranges, vec(0..3_u8, 0..2), prop_oneof![3 => Just(0), 1 => Just(32000)]);
    (vec(port, 0..6), kind, cluster_ip, policy(), policy(), affinity, outside, prop::bool::weighted(0.02)).prop_map(
        move |(ports, kind, cluster_ip, internal, external, affinity, outside, elsewhere)| {
            let (ingress, ranges, external_ips, health_check) = outside;
            let ingress: Vec<Value> =
                ingress.iter().map(|(n, mode)| json!({ "ip": format!("203.0.113.{n}"), "ipMode": mode })).collect();
            let mut metadata = metadata(Kind::Service, number);
            if elsewhere {
                metadata["labels"]["service.kubernetes.io/service-proxy-name"] = json!("other");
            }
            json!({
                "metadata": metadata,
                "spec": {
                    "type": kind, "clusterIP": cluster_ip, "ports": ports,
                    "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                    "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" },
                    "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": affinity } },
                    "externalIPs": external_ips.iter().map(|n| format!("192.0.2.{n}")).collect::<Vec<_>>(),
                    "loadBalancerSourceRanges": ranges, "healthCheckNodePort": health_check
                },
                "status": { "loadBalancer": { "ingress": ingress } }
            })
        },
    )
}

fn endpoint() -> impl Strategy<Value = Value> {
    let conditions = prop_oneof![
        6 => Just(json!({})),
        1 => Just(json!({ "ready": false, "serving": true, "terminating": true })),
        1 => Just(json!({ "ready": false, "serving": false })),
    ];
    let zone = || option::of(prop_oneof![Just("zone-a"), Just("zone-b")]);
    let node = || option::of(prop_oneof![Just(NODE), Just("node-b")]);
    (0..4_u8, conditions, node(), zone(), option::weighted(0.2, node())).prop_map(
        |(ip, conditions, at, zone, for_node)| {
            let hints = |name: Option<&str>| name.map(|name| json!([{ "name": name }]));
            json!({
                "addresses": [address(ip)], "conditions": conditions, "nodeName": at,
                "hints": { "forZones": hints(zone), "forNodes": hints(for_node.flatten()) }
            })
        },
    )
}

fn slice(number: usize) -> impl Strategy<Value = Value> {
    let port = (port_name(), protocol(), option::weighted(0.95, 8080..8082_u16))
        .prop_map(|(name, protocol, port)| json!({ "name": name, "protocol": protocol, "port": port }));
    let service = prop_oneof![8 => Just("svc-0"), 8 => Just("svc-1"), 1 => Just("missing"), 1 => Just("")];
    let family = prop_oneof![20 => Just("IPv4"), 1 => Just("IPv6")];
    (vec(port, 0..6), vec(endpoint(), 0..5), service, family).prop_map(move |(ports, endpoints, service, family)| {
        let mut metadata = metadata(Kind::EndpointSlice, number);
        metadata["labels"]["kubernetes.io/service-name"] = json!(service);
        json!({ "metadata": metadata, "addressType": family, "ports": ports, "endpoints": endpoints })
    })
}

fn service_cidr(number: usize) -> impl Strategy<Value = Value> {
    let net = prop_oneof![Just("10.96.0.0/12"), Just("10.112.0.0/16"), Just("fd00:10:96::/108")];
    vec(net, 0..3).prop_map(
        move |nets| json!({ "metadata": { "name": name(Kind::ServiceCidr, number).1 }, "spec": { "cidrs": nets } }),
    )
}

fn node() -> impl Strategy<Value = Value> {
    let zone = prop_oneof![Just("zone-a"), Just("zone-b"), Just("")];
    let address = prop_oneof![Just("192.168.50.2"), Just("192.168.50.3")];
    (zone, address).prop_map(|(zone, address)| {
        json!({
            "metadata": { "name": NODE, "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] }
        })
    })
}
