//! The fields of API objects that rules depend on, decoded from JSON.
//!
//! Lists, maps and strings may be null, as the API server and people write them. Fields that are not here are skipped
//! without being copied: `managedFields` alone can be half of an object.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::annotations::Annotations;

/// Deserializes null like an absent field.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Deserializes some keys of a map. A derived struct alone would accept a list of its fields.
fn keys<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    struct Keys<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for Keys<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_unit<E>(self) -> Result<T, E> {
            Ok(T::default())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_any(Keys(PhantomData))
}

/// Whether a field is present and not null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.is_some())
}

/// The names in a list of objects with only a name.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Box<str>>, D::Error> {
    let named: Vec<Named> = nullable(deserializer)?;
    Ok(named.into_iter().map(|named| named.name).collect())
}

/// The first string of a list; the others are only validated.
fn first<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
            let first = texts.next_element()?;
            while texts.next_element::<String>()?.is_some() {}
            Ok(first)
        }
    }
    deserializer.deserialize_any(First)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", bound = "L: DeserializeOwned + Default")]
pub(super) struct Meta<L = Labels> {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub resource_version: String,
    #[serde(deserialize_with = "keys")]
    pub labels: L,
    #[serde(rename = "deletionTimestamp", deserialize_with = "present")]
    pub deleted: bool,
    #[serde(deserialize_with = "keys")]
    pub annotations: Annotations,
}

/// The labels that matter, of all kinds but Services.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Labels {
    /// On an EndpointSlice: its Service.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    /// On an EndpointSlice: its Service has no cluster IP.
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Option<String>,
    /// On a Node: its zone.
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<String>,
}

/// All labels of a Service, for label selectors. They are dropped with the decoded object.
#[derive(Debug, Default)]
pub(super) struct ServiceLabels(pub BTreeMap<String, String>);

impl ServiceLabels {
    /// Whether another proxy serves the Service.
    pub fn names_another_proxy(&self) -> bool {
        self.0.contains_key("service.kubernetes.io/service-proxy-name")
    }
}

impl<'de> Deserialize<'de> for ServiceLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let labels = BTreeMap::<String, Option<String>>::deserialize(deserializer)?;
        Ok(Self(labels.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()))
    }
}

/// Labels as protobuf has them, one by one.
pub(super) trait SetLabel {
    /// Sets a label, if it matters. Of duplicate keys the last one counts.
    fn set(&mut self, key: &str, value: &str);
}

impl SetLabel for Labels {
    fn set(&mut self, key: &str, value: &str) {
        let label = match key {
            "kubernetes.io/service-name" => &mut self.service_name,
            "service.kubernetes.io/headless" => &mut self.headless,
            "topology.kubernetes.io/zone" => &mut self.zone,
            _ => return,
        };
        *label = Some(value.to_owned());
    }
}

impl SetLabel for ServiceLabels {
    fn set(&mut self, key: &str, value: &str) {
        self.0.insert(key.to_owned(), value.to_owned());
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    /// The `kind`; empty in lists and in protobuf.
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    pub metadata: Meta<ServiceLabels>,
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServiceSpec {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(rename = "clusterIP", deserialize_with = "nullable")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub external_traffic_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub session_affinity: String,
    #[serde(deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    #[serde(deserialize_with = "nullable")]
    pub health_check_node_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServicePort {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    pub port: u16,
    #[serde(deserialize_with = "nullable")]
    pub node_port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SessionAffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "nullable")]
    pub client_ip: ClientIpConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ClientIpConfig {
    pub timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoadBalancerStatus {
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<LoadBalancerIngress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LoadBalancerIngress {
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
    pub ip_mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    /// The `kind`; empty in lists and in protobuf.
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<EndpointPort>,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointPort {
    pub name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub protocol: String,
    pub port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Endpoint {
    /// The first address; the API defines no use for others except in FQDN slices.
    #[serde(rename = "addresses", deserialize_with = "first")]
    pub address: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Conditions,
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    #[serde(deserialize_with = "nullable")]
    pub hints: Hints,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Hints {
    #[serde(deserialize_with = "names")]
    pub for_zones: Vec<Box<str>>,
    #[serde(deserialize_with = "names")]
    pub for_nodes: Vec<Box<str>>,
}

/// A hinted zone or node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: Box<str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    /// The `kind`; empty in lists and in protobuf.
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: NodeSpec,
    #[serde(deserialize_with = "nullable")]
    pub status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidr {
    /// The `kind`; empty in lists and in protobuf.
    #[serde(deserialize_with = "nullable")]
    pub kind: String,
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub spec: ServiceCidrSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidrSpec {
    #[serde(deserialize_with = "nullable")]
    pub cidrs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Taint {
    pub key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<NodeAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}
