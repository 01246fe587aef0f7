//! Translates Services to Service ports.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netfilter::IpFamily;

use super::change::{
    Change, LABEL_MAX, ObjectError, ObjectKey, Translation, Translator, canonical, parse_ip, parse_net, unprintable,
};
use super::objects::{Service, ServiceSpec};
use crate::model::annotations::{CILIUM_ALGORITHM, ENDPOINT_HASH};
use crate::model::{Mode, Protocol, ServicePort, ServicePortName};

/// The API server's default affinity timeout: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

impl Translator {
    pub(super) fn service(&self, key: &ObjectKey, service: &Service) -> Result<Translation, ObjectError> {
        let mut translated = Translation { problems: problems(key, service), ..Translation::default() };
        translated.problems.extend(self.unsupported(key, service));
        for family in IpFamily::ALL {
            let ports = self.ports(key, service, family, &mut translated.problems)?;
            translated.changes.push((family, Change::Service(key.name.clone(), ports)));
        }
        Ok(translated)
    }

    /// The request of a Service that the proxy mode cannot fulfil.
    fn unsupported(&self, key: &ObjectKey, service: &Service) -> Option<String> {
        let asks = service.metadata.annotations.extensions().0.endpoint_hash.is_some();
        (asks && self.mode == Some(Mode::Iptables)).then(|| {
            format!(
                "{key}: cannot choose endpoints by a hash in iptables mode, choosing at random; \
                 use --proxy-mode nftables or ipvs, or remove annotation {ENDPOINT_HASH} or {CILIUM_ALGORITHM}"
            )
        })
    }

    fn ports(
        &self,
        key: &ObjectKey,
        service: &Service,
        family: IpFamily,
        problems: &mut Vec<String>,
    ) -> Result<Vec<(ServicePortName, ServicePort)>, ObjectError> {
        let spec = &service.spec;
        let elsewhere = service.metadata.labels.names_another_proxy();
        let headless = matches!(&*spec.cluster_ip, "" | "None");
        if elsewhere || headless || spec.kind == "ExternalName" {
            return Ok(Vec::new());
        }
        let bad = |reason: String| key.error(reason);
        let Some(cluster_ip) = cluster_ip(spec, family).map_err(bad)? else { return Ok(Vec::new()) };
        let mut ports = BTreeMap::new();
        let template = self.template(key, service, family, cluster_ip, problems);
        for (index, port) in spec.ports.iter().enumerate() {
            let protocol = match &*port.protocol {
                "" => Protocol::Tcp,
                other => Protocol::parse(other)
                    .ok_or_else(|| bad(format!("spec.ports[{index}].protocol: {other:?} is none of TCP, UDP, SCTP")))?,
            };
            if port.port == 0 {
                return Err(bad(format!("spec.ports[{index}].port: missing or 0")));
            }
            if let Some(c) = unprintable(&port.name) {
                return Err(bad(format!("spec.ports[{index}].name: {:?} has the character {c:?} in it", port.name)));
            }
            if port.name.len() > LABEL_MAX {
                return Err(bad(format!("spec.ports[{index}].name: it is longer than {LABEL_MAX} characters")));
            }
            let name = ServicePortName { service: key.name.clone(), port: Arc::from(&*port.name), protocol };
            // Of ports with the same name and protocol, the last one counts.
            ports.insert(name, ServicePort { port: port.port, node_port: port.node_port, ..template.clone() });
        }
        Ok(ports.into_iter().collect())
    }

    /// The fields that all ports of a Service share.
    fn template(
        &self,
        key: &ObjectKey,
        service: &Service,
        family: IpFamily,
        cluster_ip: IpAddr,
        problems: &mut Vec<String>,
    ) -> ServicePort {
        let spec = &service.spec;
        let external_ips = addresses(key, "spec.externalIPs", &spec.external_ips, family, problems);
        let vips = service.status.load_balancer.ingress.iter().filter(|ingress| {
            // A load balancer in mode Proxy must see its traffic, so its address is not programmed.
            !ingress.ip.is_empty() && ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP")
        });
        let vips: Vec<String> = vips.map(|ingress| ingress.ip.clone()).collect();
        let outside = matches!(&*spec.kind, "LoadBalancer" | "NodePort") || !spec.external_ips.is_empty();
        let health_check = spec.kind == "LoadBalancer" && spec.external_traffic_policy == "Local";
        ServicePort {
            cluster_ip,
            port: 0,
            node_port: 0,
            hidden_external_ips: self.hide_external_ips && !external_ips.is_empty(),
            external_ips: if self.hide_external_ips { Box::default() } else { external_ips },
            load_balancer_vips: addresses(key, "status.loadBalancer.ingress", &vips, family, problems),
            source_ranges: source_ranges(key, &spec.load_balancer_source_ranges, family, problems),
            affinity_seconds: (spec.session_affinity == "ClientIP")
                .then(|| spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS)),
            internal_local: spec.internal_traffic_policy == "Local",
            external_local: outside && spec.external_traffic_policy == "Local",
            health_check_node_port: if health_check { spec.health_check_node_port } else { 0 },
            extensions: service.metadata.annotations.extensions().0,
        }
    }
}

/// Problems that an API server would reject, but that do not invalidate the Service.
fn problems(key: &ObjectKey, service: &Service) -> Vec<String> {
    let spec = &service.spec;
    let mut found = Vec::new();
    if spec.kind == "ExternalName" || spec.cluster_ip == "None" {
        return found;
    }
    if spec.cluster_ip.is_empty() {
        found.push(format!("{key}: spec.clusterIP: empty, the Service is unreachable"));
    }
    if spec.ports.is_empty() {
        found.push(format!("{key}: spec.ports: empty, the Service is unreachable"));
    }
    found.extend(service.metadata.annotations.extensions().1.into_iter().map(|problem| format!("{key}: {problem}")));
    for (index, port) in spec.ports.iter().enumerate() {
        let same = |other: &super::objects::ServicePort| {
            let protocol = |port: &super::objects::ServicePort| Protocol::parse(&port.protocol).or(Some(Protocol::Tcp));
            other.name == port.name && protocol(other) == protocol(port)
        };
        if spec.ports[..index].iter().any(same) {
            let name = &port.name;
            found.push(format!(
                "{key}: spec.ports[{index}].name: {name:?} is defined more than once, using the last one"
            ));
        }
    }
    found
}

/// The cluster IP of a family, by its position in `ipFamilies`; without that list, by its format.
fn cluster_ip(spec: &ServiceSpec, family: IpFamily) -> Result<Option<IpAddr>, String> {
    let (field, text) = if spec.ip_families.is_empty() {
        ("spec.clusterIP".to_owned(), Some(&spec.cluster_ip))
    } else {
        let Some(index) = spec.ip_families.iter().position(|name| name == family.name()) else { return Ok(None) };
        // Old objects have no `clusterIPs`.
        let first = Some(&spec.cluster_ip).filter(|_| index == 0);
        (format!("spec.clusterIPs[{index}]"), spec.cluster_ips.get(index).or(first))
    };
    let Some(text) = text else { return Ok(None) };
    let ip = parse_ip(text).map(canonical).ok_or_else(|| format!("{field}: {text:?} is not an IP address"))?;
    if IpFamily::of(&ip) == family {
        Ok(Some(ip))
    } else if spec.ip_families.is_empty() {
        Ok(None)
    } else {
        Err(format!("{field}: {text:?} is not of the family {family} that spec.ipFamilies names"))
    }
}

fn addresses(
    key: &ObjectKey,
    field: &str,
    texts: &[String],
    family: IpFamily,
    problems: &mut Vec<String>,
) -> Box<[IpAddr]> {
    let mut found = Vec::with_capacity(texts.len());
    for text in texts {
        match parse_ip(text).map(canonical) {
            Some(ip) if IpFamily::of(&ip) == family => found.push(ip),
            Some(_) => {}
            None => note(key, field, text, "IP address", family, problems),
        }
    }
    found.into()
}

/// The source ranges of a family. A range of everything restricts nothing, as do ranges of the other family.
fn source_ranges(key: &ObjectKey, texts: &[String], family: IpFamily, problems: &mut Vec<String>) -> Box<[IpNet]> {
    const FIELD: &str = "spec.loadBalancerSourceRanges";
    let mut found = Vec::with_capacity(texts.len());
    for text in texts {
        match parse_net(text.trim()) {
            Some(net) if IpFamily::of_net(&net) == family => found.push(net),
            Some(_) => {}
            None => note(key, FIELD, text, "network", family, problems),
        }
    }
    if found.iter().any(|net| net.prefix_len() == 0) {
        found.clear();
    }
    found.into()
}

/// Records an ignored value once, not once per family.
fn note(key: &ObjectKey, field: &str, text: &str, what: &str, family: IpFamily, problems: &mut Vec<String>) {
    if family == IpFamily::V4 {
        problems.push(format!("{key}: {field}: {text:?} is not a {what}, left out"));
    }
}
