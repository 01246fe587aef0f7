//! The example objects: machines of the demo, and the folder of files that the proxy watches.
//!
//! The files are those of deploy/examples at build time.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use proxier::track::Kind;
use serde::Deserialize;

use crate::source::objects;

const FILES: [(&str, &str); 3] = [
    ("node.yaml", include_str!("../../deploy/examples/node.yaml")),
    ("web.yaml", include_str!("../../deploy/examples/web.yaml")),
    ("cart.yaml", include_str!("../../deploy/examples/cart.yaml")),
];

/// The examples and their files.
#[derive(Debug)]
pub struct Example {
    /// The folder of the files.
    pub folder: PathBuf,
    /// The node's name.
    pub node: String,
    /// The node's addresses.
    pub node_addresses: Vec<IpAddr>,
    services: Vec<Service>,
    /// One pod for each name in the endpoints.
    pub pods: Vec<Pod>,
}

/// A Service.
#[derive(Debug)]
pub struct Service {
    /// `namespace/name`
    pub name: String,
    /// `namespace/name:port`, as in rules.
    pub port_name: String,
    /// Its cluster IPs and port.
    pub cluster: Vec<SocketAddr>,
    /// Its node port.
    pub node_port: Option<u16>,
}

/// A pod of a Service.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its Service.
    pub service: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Where it listens.
    pub port: u16,
}

impl Example {
    /// Creates the folder and writes the files.
    pub fn write(folder: PathBuf) -> Result<Self, String> {
        std::fs::create_dir(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        let mut example =
            Self { folder, node: String::new(), node_addresses: Vec::new(), services: Vec::new(), pods: Vec::new() };
        for (name, text) in FILES {
            let path = example.folder.join(name);
            std::fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            for object in objects::parse(text).map_err(|error| format!("{name}: {error}"))?.objects {
                let fields = serde_json::from_value(object.value).map_err(|error| format!("{name}: {error}"))?;
                example.add(object.key.kind, fields);
            }
        }
        Ok(example)
    }

    fn add(&mut self, kind: Kind, object: Object) {
        match kind {
            Kind::Node => {
                self.node = object.metadata.name;
                self.node_addresses = object.status.addresses.iter().filter_map(|a| a.address.parse().ok()).collect();
            }
            Kind::Service => {
                let Some(port) = object.spec.ports.first() else { return };
                let name = object.metadata.full_name();
                self.services.push(Service {
                    port_name: format!("{name}:{}", port.name),
                    cluster: object.spec.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port.port)).collect(),
                    node_port: port.node_port,
                    name,
                });
            }
            Kind::ServiceCidr => {}
            Kind::EndpointSlice => {
                let port = object.ports.first().map_or(0, |port| port.port);
                for endpoint in object.endpoints {
                    let name = endpoint.target_ref.name;
                    match self.pods.iter_mut().find(|pod| pod.name == name) {
                        Some(pod) => pod.addresses.extend(endpoint.addresses),
                        None => self.pods.push(Pod {
                            name,
                            service: format!("{}/{}", object.metadata.namespace, object.metadata.labels.service_name),
                            addresses: endpoint.addresses,
                            port,
                        }),
                    }
                }
            }
        }
    }

    /// A Service by name.
    pub fn service(&self, name: &str) -> Result<&Service, String> {
        let found = self.services.iter().find(|service| service.name == name);
        found.ok_or_else(|| format!("the examples have no Service {name}"))
    }

    /// The names of a Service's pods.
    pub fn pods_of(&self, service: &str) -> Vec<String> {
        self.pods.iter().filter(|pod| pod.service == service).map(|pod| pod.name.clone()).collect()
    }

    /// Removes the endpoints of a pod, which are one per line, from the files. Returns the name of the file and the
    /// lines.
    pub fn remove_endpoints(&self, pod: &str) -> Result<(&'static str, Vec<String>), String> {
        let mark = format!("name: {pod}}}");
        let (name, text) = FILES
            .into_iter()
            .find(|(_, text)| text.contains(&mark))
            .ok_or_else(|| format!("no endpoint of {pod} in the examples"))?;
        let (gone, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(&mark));
        replace(&self.folder, name, &(kept.join("\n") + "\n"))
            .map_err(|error| format!("cannot replace {name}: {error}"))?;
        Ok((name, gone.into_iter().map(str::to_owned).collect()))
    }
}

/// Replaces a file by a rename, so that no reader sees half a file.
fn replace(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let new = folder.join(format!(".{name}.new"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, folder.join(name))
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: Labels,
}

impl Metadata {
    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default, rename = "kubernetes.io/service-name")]
    service_name: String,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "clusterIPs")]
    cluster_ips: Vec<IpAddr>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Default, Deserialize)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: String,
    port: u16,
    node_port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    addresses: Vec<IpAddr>,
    target_ref: TargetRef,
}

#[derive(Deserialize)]
struct TargetRef {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_say_what_the_demo_needs() {
        let folder = std::env::temp_dir().join(format!("kube-proxy-examples-{}", std::process::id()));
        let example = Example::write(folder.clone()).expect("the examples");
        let (file, gone) = example.remove_endpoints("web-2").expect("an edit");
        let text = std::fs::read_to_string(folder.join(file)).expect("a file");
        std::fs::remove_dir_all(folder).expect("removed");
        assert_eq!((&*example.node, example.node_addresses.len()), ("demo-node", 2));
        assert_eq!(example.pods_of("shop/web"), ["web-1", "web-2", "web-3"]);
        assert!(example.pods.iter().filter(|pod| pod.service == "shop/web").all(|pod| pod.addresses.len() == 2));
        let web = example.service("shop/web").expect("web");
        assert_eq!((&*web.port_name, web.node_port, web.cluster.len()), ("shop/web:http", Some(30080), 2));
        assert_eq!((file, gone.len()), ("web.yaml", 2));
        assert!(
            !text.contains("web-2") && objects::parse(&text).is_ok_and(|parsed| parsed.objects.len() == 3),
            "{text}"
        );
    }
}
