//! Translates EndpointSlices.

use std::sync::Arc;
use std::time::SystemTime;

use netfilter::IpFamily;

use super::change::{Change, ObjectError, ObjectKey, SliceContent, Translation, Translator, canonical, parse_ip};
use super::objects::{Endpoint, EndpointPort, EndpointSlice};
use crate::model::endpoint::{NodeHint, ZoneHints};
use crate::model::{Protocol, Slice, SliceEndpoint, SlicePort};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Translator {
    pub(super) fn slice(&mut self, key: ObjectKey, slice: &EndpointSlice) -> Result<Translation, ObjectError> {
        let mut problems = Vec::new();
        // A slice of another address type, of a headless Service or of none counts as deleted.
        let labels = &slice.metadata.labels;
        let service = labels.service_name.as_ref().filter(|name| !name.is_empty());
        if service.is_none() {
            problems.push(format!("{key}: metadata.labels: no {SERVICE_NAME}, slice left out"));
        }
        let service = service.filter(|_| labels.headless.is_none());
        let Some(family) = IpFamily::parse(&slice.address_type) else {
            problems.push(format!("{key}: addressType: {:?} is neither IPv4 nor IPv6", slice.address_type));
            let changes = Translation::everywhere(&Change::Slice(key.name, None)).changes;
            return Ok(Translation { changes, problems, ..Translation::default() });
        };
        let mut content = match service {
            None => None,
            Some(service) => {
                let ports = ports(&key, &slice.ports, &mut problems)?;
                let endpoints = slice.endpoints.iter().enumerate();
                let endpoints =
                    endpoints.filter_map(|(index, e)| self.endpoint(&key, index, e, family, &mut problems)).collect();
                let trigger = trigger(&slice.metadata.annotations.trigger_time);
                Some(SliceContent { service: Arc::from(&**service), slice: Slice { ports, endpoints }, trigger })
            }
        };
        let changes = IpFamily::ALL.map(|each| {
            // The slice may have been of the other family before.
            (each, Change::Slice(key.name.clone(), if each == family { content.take() } else { None }))
        });
        Ok(Translation { changes: changes.to_vec(), problems, ..Translation::default() })
    }

    fn endpoint(
        &mut self,
        key: &ObjectKey,
        index: usize,
        endpoint: &Endpoint,
        family: IpFamily,
        problems: &mut Vec<String>,
    ) -> Option<SliceEndpoint> {
        let mut note = |what: String| problems.push(format!("{key}: endpoints[{index}].{what}"));
        let Some(text) = &endpoint.address else {
            note("addresses: empty, endpoint left out".to_owned());
            return None;
        };
        let Some(ip) = parse_ip(text).map(canonical).filter(|ip| IpFamily::of(ip) == family) else {
            note(format!("addresses[0]: {text:?} is not an {family} address, endpoint left out"));
            return None;
        };
        let conditions = &endpoint.conditions;
        let for_nodes = &endpoint.hints.for_nodes;
        Some(SliceEndpoint {
            ip,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            local: endpoint.node_name == self.node_name,
            node_hint: if for_nodes.is_empty() {
                NodeHint::None
            } else if for_nodes.iter().any(|name| **name == *self.node_name) {
                NodeHint::Here
            } else {
                NodeHint::Elsewhere
            },
            zone_hints: self.zone_hints(endpoint),
        })
    }

    fn zone_hints(&mut self, endpoint: &Endpoint) -> Option<ZoneHints> {
        let zones = &endpoint.hints.for_zones[..];
        if zones.is_empty() {
            return None;
        }
        Some(self.zones.share(zones))
    }
}

/// Parses a trigger time. An invalid one is ignored, since it affects no rule.
fn trigger(noted: &str) -> Option<SystemTime> {
    noted.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// The ports with a name (perhaps empty) and a number.
fn ports(key: &ObjectKey, ports: &[EndpointPort], problems: &mut Vec<String>) -> Result<Box<[SlicePort]>, ObjectError> {
    let mut found = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        let (Some(name), Some(number @ 1..)) = (&port.name, port.port) else {
            let field = if port.name.is_none() { "name" } else { "port" };
            problems.push(format!("{key}: ports[{index}].{field}: missing, port left out"));
            continue;
        };
        let protocol = match &*port.protocol {
            "" => Protocol::Tcp,
            other => Protocol::parse(other)
                .ok_or_else(|| key.error(format!("ports[{index}].protocol: {other:?} is none of TCP, UDP, SCTP")))?,
        };
        found.push(SlicePort { name: Arc::from(&**name), protocol, port: number });
    }
    Ok(found.into())
}
