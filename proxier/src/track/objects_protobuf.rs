//! The same fields in protobuf, numbered as in `generated.proto` of `k8s.io/api` and `k8s.io/apimachinery`.

use super::annotations::Annotations;
use super::objects::{
    ClientIpConfig, Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, LoadBalancerIngress, LoadBalancerStatus,
    Meta, Node, NodeAddress, NodeSpec, NodeStatus, Service, ServiceCidr, ServiceCidrSpec, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig, SetLabel, Taint,
};
use crate::protobuf::{Fault, Message, Value, merge};

/// Decodes fields by number: how each is decoded, its place in the struct, and its name in JSON for errors.
macro_rules! message {
    ($message:ident $(<$labels:ident: $bound:ident>)? { $($number:literal => $decode:ident $field:ident $name:literal,)+ }) => {
        impl $(<$labels: $bound>)? Message for $message $(<$labels>)? {
            fn field(&mut self, number: u32, value: Value<'_>) -> Result<(), Fault> {
                match number {
                    $($number => $decode(&mut self.$field, value, $name),)+
                    _ => Ok(()),
                }
            }
        }
    };
}

fn text(into: &mut String, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let text = value.text().map_err(|fault| fault.within(name))?;
    text.clone_into(into);
    Ok(())
}

fn optional_text(into: &mut Option<String>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    text(into.get_or_insert_default(), value, name)
}

fn texts(into: &mut Vec<String>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let text = value.text().map_err(|fault| fault.within(&format!("{name}[{}]", into.len())))?;
    into.push(text.to_owned());
    Ok(())
}

/// The first of a list; the others are only validated.
fn first(into: &mut Option<String>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let text = value.text().map_err(|fault| fault.within(name))?;
    into.get_or_insert_with(|| text.to_owned());
    Ok(())
}

/// An item of a list of messages with only a name (1).
fn names(into: &mut Vec<Box<str>>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let (text, _) = entry(value).map_err(|fault| fault.within(&format!("{name}[{}]", into.len())))?;
    into.push(text.into());
    Ok(())
}

fn message<M: Message>(into: &mut M, value: Value<'_>, name: &str) -> Result<(), Fault> {
    value.bytes().and_then(|bytes| merge(into, bytes)).map_err(|fault| fault.within(name))
}

fn messages<M: Message + Default>(into: &mut Vec<M>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let mut item = M::default();
    let decoded = value.bytes().and_then(|bytes| merge(&mut item, bytes));
    decoded.map_err(|fault| fault.within(&format!("{name}[{}]", into.len())))?;
    into.push(item);
    Ok(())
}

fn boolean(into: &mut Option<bool>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    *into = Some(value.boolean().map_err(|fault| fault.within(name))?);
    Ok(())
}

fn port(into: &mut u16, value: Value<'_>, name: &str) -> Result<(), Fault> {
    *into = value.number("a number from 0 to 65535").map_err(|fault| fault.within(name))?;
    Ok(())
}

fn optional_port(into: &mut Option<u16>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    port(into.get_or_insert_default(), value, name)
}

fn seconds(into: &mut Option<u32>, value: Value<'_>, name: &str) -> Result<(), Fault> {
    *into = Some(value.number("a number from 0 to 4294967295").map_err(|fault| fault.within(name))?);
    Ok(())
}

/// A time of which only the presence matters.
fn present(into: &mut bool, value: Value<'_>, name: &str) -> Result<(), Fault> {
    value.bytes().map_err(|fault| fault.within(name))?;
    *into = true;
    Ok(())
}

/// A map entry: a message of key (1) and value (2), either omitted if empty.
fn entry<'a>(value: Value<'a>) -> Result<(&'a str, &'a str), Fault> {
    let (mut key, mut text) = ("", "");
    let mut reader = crate::protobuf::Reader::new(value.bytes()?);
    while let Some((number, value)) = reader.field()? {
        match number {
            1 => key = value.text()?,
            2 => text = value.text()?,
            _ => {}
        }
    }
    Ok((key, text))
}

fn labels(into: &mut impl SetLabel, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let (key, value) = entry(value).map_err(|fault| fault.within(name))?;
    into.set(key, value);
    Ok(())
}

fn annotations(into: &mut Annotations, value: Value<'_>, name: &str) -> Result<(), Fault> {
    let (key, value) = entry(value).map_err(|fault| fault.within(name))?;
    if let Some(annotation) = into.of(key) {
        value.clone_into(annotation);
    }
    Ok(())
}

message!(Meta<L: SetLabel> {
    1 => text name "name",
    3 => text namespace "namespace",
    6 => text resource_version "resourceVersion",
    9 => present deleted "deletionTimestamp",
    11 => labels labels "labels",
    12 => annotations annotations "annotations",
});

message!(Service {
    1 => message metadata "metadata",
    2 => message spec "spec",
    3 => message status "status",
});

message!(ServiceSpec {
    1 => messages ports "ports",
    3 => text cluster_ip "clusterIP",
    4 => text kind "type",
    5 => texts external_ips "externalIPs",
    7 => text session_affinity "sessionAffinity",
    9 => texts load_balancer_source_ranges "loadBalancerSourceRanges",
    11 => text external_traffic_policy "externalTrafficPolicy",
    12 => port health_check_node_port "healthCheckNodePort",
    14 => message session_affinity_config "sessionAffinityConfig",
    18 => texts cluster_ips "clusterIPs",
    19 => texts ip_families "ipFamilies",
    22 => text internal_traffic_policy "internalTrafficPolicy",
});

message!(ServicePort {
    1 => text name "name",
    2 => text protocol "protocol",
    3 => port port "port",
    5 => port node_port "nodePort",
});

message!(SessionAffinityConfig {
    1 => message client_ip "clientIP",
});

message!(ClientIpConfig {
    1 => seconds timeout_seconds "timeoutSeconds",
});

message!(ServiceStatus {
    1 => message load_balancer "loadBalancer",
});

message!(LoadBalancerStatus {
    1 => messages ingress "ingress",
});

message!(LoadBalancerIngress {
    1 => text ip "ip",
    3 => optional_text ip_mode "ipMode",
});

message!(EndpointSlice {
    1 => message metadata "metadata",
    2 => messages endpoints "endpoints",
    3 => messages ports "ports",
    4 => text address_type "addressType",
});

message!(EndpointPort {
    1 => optional_text name "name",
    2 => text protocol "protocol",
    3 => optional_port port "port",
});

message!(Endpoint {
    1 => first address "addresses",
    2 => message conditions "conditions",
    6 => text node_name "nodeName",
    8 => message hints "hints",
});

message!(Conditions {
    1 => boolean ready "ready",
    2 => boolean serving "serving",
    3 => boolean terminating "terminating",
});

message!(Hints {
    1 => names for_zones "forZones",
    2 => names for_nodes "forNodes",
});

message!(Node {
    1 => message metadata "metadata",
    2 => message spec "spec",
    3 => message status "status",
});

message!(NodeSpec {
    5 => messages taints "taints",
    7 => texts pod_cidrs "podCIDRs",
});

message!(Taint {
    1 => text key "key",
});

message!(NodeStatus {
    5 => messages addresses "addresses",
});

message!(NodeAddress {
    1 => text kind "type",
    2 => text address "address",
});

message!(ServiceCidr {
    1 => message metadata "metadata",
    2 => message spec "spec",
});

message!(ServiceCidrSpec {
    1 => texts cidrs "cidrs",
});
