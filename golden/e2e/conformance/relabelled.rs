//! The expected rules of a slice whose service-name label changes, where upstream is wrong.
//!
//! Each Service must have exactly the endpoints of the slices that name it now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use golden::case::{KernelState, Kind};
use regex::Regex;
use serde::Deserialize;

/// The endpoints `ADDRESS:PORT` and addresses of each Service port, by family.
#[derive(Debug)]
pub(crate) struct ExpectedRules {
    endpoints: BTreeMap<Kind, BTreeMap<String, BTreeSet<String>>>,
    addresses: BTreeMap<Kind, BTreeMap<String, String>>,
}

impl ExpectedRules {
    /// The expected rules for the objects of a step.
    pub(crate) fn read(objects: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(objects).map_err(|e| format!("{}: {e}", objects.display()))?;
        let objects: Vec<Object> = serde_saphyr::from_multiple(&text).map_err(|e| e.to_string())?;
        let mut wanted = Self { endpoints: BTreeMap::new(), addresses: BTreeMap::new() };
        for object in &objects {
            for (index, family) in object.families().into_iter().enumerate() {
                let services = wanted.endpoints.entry(family).or_default();
                for (service_port, endpoints) in object.service_ports() {
                    services.entry(service_port).or_default().extend(endpoints);
                }
                if let Some(ip) = object.spec.cluster_ips.get(index) {
                    let named = object.spec.ports.iter().map(|port| (object.service_port(port), at(ip, port.port)));
                    wanted.addresses.entry(family).or_default().extend(named);
                }
            }
        }
        Ok(wanted)
    }

    /// Checks that rules or virtual servers forward each Service to exactly its endpoints.
    pub(crate) fn check(&self, state: &KernelState) -> Result<(), String> {
        for (family, services) in &self.endpoints {
            for (service_port, endpoints) in services {
                let checked = match (state.get(&Kind::Ipvs), self.addresses[family].get(service_port)) {
                    (Some(servers), Some(address)) => check_servers(servers, address, endpoints),
                    (Some(_), None) => Err(format!("no address of {service_port} is known")),
                    (None, _) => check(&state[family], service_port, endpoints),
                };
                checked.map_err(|why| format!("{}: {why}", family.name()))?;
            }
        }
        Ok(())
    }
}

fn check_servers(servers: &str, address: &str, wanted: &BTreeSet<String>) -> Result<(), String> {
    if !servers.lines().any(|line| line.starts_with(&format!("-A -t {address} "))) {
        return Err(format!("there is no virtual server {address}"));
    }
    let of_it = format!("-a -t {address} -r ");
    let reals = servers.lines().filter_map(|line| line.strip_prefix(&of_it)?.split(' ').next());
    let found: BTreeSet<String> = reals.map(str::to_owned).collect();
    if found == *wanted {
        Ok(())
    } else {
        Err(format!("{address} has endpoints {found:?}, its slices have {wanted:?}"))
    }
}

fn at(ip: &str, port: u16) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

fn check(rules: &str, service_port: &str, wanted: &BTreeSet<String>) -> Result<(), String> {
    let name = regex::escape(service_port);
    let found = |pattern: &str| -> BTreeSet<String> {
        let pattern = Regex::new(pattern).expect("a valid pattern");
        rules.lines().filter_map(|rule| Some(pattern.captures(rule)?[1].to_owned())).collect()
    };
    let balanced = found(&format!(r#"^-A KUBE-SVC-.* --comment "{name} -> ([^ "]+)" .*-j KUBE-SEP-"#));
    let translated = found(&format!(r#"^-A KUBE-SEP-.* --comment "?{name}"? .*--to-destination ([^ ]+)"#));
    for (what, found) in [("is balanced over", balanced), ("has endpoint chains for", translated)] {
        if found != *wanted {
            return Err(format!("{service_port} {what} {found:?}, its slices hold {wanted:?}"));
        }
    }
    let rejected = rules.contains(&format!("\"{service_port} has no endpoints\""));
    if rejected != wanted.is_empty() {
        return Err(format!(
            "{service_port} with endpoints {wanted:?} is{} rejected",
            if rejected { "" } else { " not" }
        ));
    }
    Ok(())
}

/// The relevant fields of a Service or an EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    ip_families: Vec<String>,
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: String,
    port: u16,
}

impl Object {
    fn families(&self) -> Vec<Kind> {
        let known = |family: &str| match family {
            "IPv4" => Some(Kind::Iptables),
            "IPv6" => Some(Kind::Ip6tables),
            _ => None,
        };
        let families = self.spec.ip_families.iter().map(String::as_str).chain([self.address_type.as_str()]);
        families.filter_map(known).collect()
    }

    /// The ports of a Service without endpoints, or those of a slice's Service with endpoints.
    fn service_ports(&self) -> Vec<(String, BTreeSet<String>)> {
        let service = match self.kind.as_str() {
            "Service" => Some(&self.metadata.name),
            "EndpointSlice" => self.metadata.labels.get("kubernetes.io/service-name"),
            _ => None,
        };
        let Some(service) = service else { return Vec::new() };
        let endpoints = |port: &Port| -> BTreeSet<String> {
            let addresses = self.endpoints.iter().filter_map(|e| e.addresses.first());
            addresses.map(|ip| at(ip, port.port)).collect()
        };
        let ports = self.spec.ports.iter().chain(&self.ports);
        let name = |port: &Port| format!("{}/{service}:{}", self.metadata.namespace, port.name);
        ports.map(|port| (name(port), endpoints(port))).collect()
    }

    /// The name of a Service port.
    fn service_port(&self, port: &Port) -> String {
        format!("{}/{}:{}", self.metadata.namespace, self.metadata.name, port.name)
    }
}
