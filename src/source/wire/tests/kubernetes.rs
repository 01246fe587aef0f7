//! Kubernetes' types in protobuf, as an API server encodes them: field numbers of `generated.proto`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::encode::{message, text, varint};

type Texts = Option<Vec<String>>;

/// A type that can be encoded.
pub trait Encode {
    fn encode(&self, out: &mut Vec<u8>);
}

fn optional(out: &mut Vec<u8>, number: u32, value: Option<&String>) {
    if let Some(value) = value {
        text(out, number, value);
    }
}

fn texts(out: &mut Vec<u8>, number: u32, values: &Texts) {
    values.iter().flatten().for_each(|value| text(out, number, value));
}

fn integer(out: &mut Vec<u8>, number: u32, value: Option<i32>) {
    if let Some(value) = value {
        varint(out, number, value.into());
    }
}

fn boolean(out: &mut Vec<u8>, number: u32, value: Option<bool>) {
    integer(out, number, value.map(i32::from));
}

fn map(out: &mut Vec<u8>, number: u32, values: Option<&BTreeMap<String, String>>) {
    for (key, value) in values.into_iter().flatten() {
        message(out, number, |entry| {
            text(entry, 1, key);
            text(entry, 2, value);
        });
    }
}

fn messages<T: Encode>(out: &mut Vec<u8>, number: u32, values: Option<&Vec<T>>) {
    values.into_iter().flatten().for_each(|value| message(out, number, |out| value.encode(out)));
}

impl Encode for ObjectMeta {
    fn encode(&self, out: &mut Vec<u8>) {
        optional(out, 1, self.name.as_ref());
        text(out, 2, "");
        optional(out, 3, self.namespace.as_ref());
        optional(out, 5, self.uid.as_ref());
        optional(out, 6, self.resource_version.as_ref());
        varint(out, 7, self.generation.unwrap_or_default());
        for (number, time) in [(8, &self.creation_timestamp), (9, &self.deletion_timestamp)] {
            if let Some(Time(time)) = time {
                message(out, number, |out| {
                    varint(out, 1, time.as_second());
                    varint(out, 2, time.subsec_nanosecond().into());
                });
            }
        }
        map(out, 11, self.labels.as_ref());
        map(out, 12, self.annotations.as_ref());
        texts(out, 14, &self.finalizers);
        message(out, 17, |managed| text(managed, 1, "kubectl"));
    }
}

impl Encode for ServicePort {
    fn encode(&self, out: &mut Vec<u8>) {
        optional(out, 1, self.name.as_ref());
        optional(out, 2, self.protocol.as_ref());
        varint(out, 3, self.port.into());
        message(out, 4, |target| varint(target, 2, 8080));
        integer(out, 5, self.node_port);
        optional(out, 6, self.app_protocol.as_ref());
    }
}

impl Encode for Service {
    fn encode(&self, out: &mut Vec<u8>) {
        message(out, 1, |out| self.metadata.encode(out));
        if let Some(spec) = &self.spec {
            message(out, 2, |out| {
                messages(out, 1, spec.ports.as_ref());
                map(out, 2, spec.selector.as_ref());
                optional(out, 3, spec.cluster_ip.as_ref());
                optional(out, 4, spec.type_.as_ref());
                texts(out, 5, &spec.external_ips);
                optional(out, 7, spec.session_affinity.as_ref());
                texts(out, 9, &spec.load_balancer_source_ranges);
                optional(out, 11, spec.external_traffic_policy.as_ref());
                integer(out, 12, spec.health_check_node_port);
                if let Some(client_ip) = spec.session_affinity_config.as_ref().and_then(|it| it.client_ip.as_ref()) {
                    message(out, 14, |out| message(out, 1, |out| integer(out, 1, client_ip.timeout_seconds)));
                }
                texts(out, 18, &spec.cluster_ips);
                texts(out, 19, &spec.ip_families);
                optional(out, 22, spec.internal_traffic_policy.as_ref());
            });
        }
        let ingress = self.status.as_ref().and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        message(out, 3, |out| {
            message(out, 1, |out| {
                for ingress in ingress.into_iter().flatten() {
                    message(out, 1, |out| {
                        optional(out, 1, ingress.ip.as_ref());
                        optional(out, 2, ingress.hostname.as_ref());
                        optional(out, 3, ingress.ip_mode.as_ref());
                    });
                }
            });
        });
    }
}

impl Encode for Endpoint {
    fn encode(&self, out: &mut Vec<u8>) {
        self.addresses.iter().for_each(|address| text(out, 1, address));
        if let Some(conditions) = &self.conditions {
            message(out, 2, |out| {
                boolean(out, 1, conditions.ready);
                boolean(out, 2, conditions.serving);
                boolean(out, 3, conditions.terminating);
            });
        }
        message(out, 4, |target| text(target, 1, "Pod"));
        optional(out, 6, self.node_name.as_ref());
        optional(out, 7, self.zone.as_ref());
        if let Some(hints) = &self.hints {
            message(out, 8, |out| {
                let zones = hints.for_zones.iter().flatten().map(|zone| (1, &zone.name));
                let nodes = hints.for_nodes.iter().flatten().map(|node| (2, &node.name));
                zones.chain(nodes).for_each(|(number, name)| message(out, number, |out| text(out, 1, name)));
            });
        }
    }
}

impl Encode for EndpointPort {
    fn encode(&self, out: &mut Vec<u8>) {
        optional(out, 1, self.name.as_ref());
        optional(out, 2, self.protocol.as_ref());
        integer(out, 3, self.port);
        optional(out, 4, self.app_protocol.as_ref());
    }
}

impl Encode for EndpointSlice {
    fn encode(&self, out: &mut Vec<u8>) {
        message(out, 1, |out| self.metadata.encode(out));
        messages(out, 2, Some(&self.endpoints));
        messages(out, 3, self.ports.as_ref());
        text(out, 4, &self.address_type);
    }
}

impl Encode for Node {
    fn encode(&self, out: &mut Vec<u8>) {
        message(out, 1, |out| self.metadata.encode(out));
        if let Some(spec) = &self.spec {
            message(out, 2, |out| {
                optional(out, 1, spec.pod_cidr.as_ref());
                for taint in spec.taints.iter().flatten() {
                    message(out, 5, |out| {
                        text(out, 1, &taint.key);
                        text(out, 3, &taint.effect);
                    });
                }
                texts(out, 7, &spec.pod_cidrs);
            });
        }
        if let Some(status) = &self.status {
            message(out, 3, |out| {
                message(out, 1, |capacity| text(capacity, 1, "cpu"));
                for address in status.addresses.iter().flatten() {
                    message(out, 5, |out| {
                        text(out, 1, &address.type_);
                        text(out, 2, &address.address);
                    });
                }
            });
        }
    }
}

impl Encode for ServiceCIDR {
    fn encode(&self, out: &mut Vec<u8>) {
        message(out, 1, |out| self.metadata.encode(out));
        if let Some(spec) = &self.spec {
            message(out, 2, |out| texts(out, 1, &spec.cidrs));
        }
    }
}
