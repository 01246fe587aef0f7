//! The pods of a recorded node, as one namespace that has all their addresses and listens where endpoints are.

use std::any::Any;
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::netns::{Netns, veth};

/// The node's end of the link.
pub const LINK: &str = "pods0";
/// The node of the recorded cases, and its addresses.
const NODE: &str = "node-a";
const NODE_ADDRESSES: [&str; 4] = ["192.168.50.2", "192.168.60.2", "fd00:50::2", "fd00:60::2"];

/// A socket that is open while it exists.
pub type Socket = Box<dyn Any + Send + Sync>;

/// The endpoints on a node, with their sockets.
#[derive(Debug)]
pub struct LocalPods {
    netns: Netns,
    _sockets: Vec<Socket>,
}

impl LocalPods {
    /// Gives the endpoints of a file that are on the recorded node a namespace, routes and sockets.
    ///
    /// # Panics
    /// If the file cannot be read, or links and sockets cannot be made.
    #[must_use]
    pub fn new(node: &Netns, objects: &Path) -> Self {
        let (netns, endpoints) = (Netns::new(), endpoints(objects));
        veth(node, LINK, &netns, "eth0");
        let pods: BTreeSet<IpAddr> = endpoints.iter().map(|(at, _)| at.ip()).filter(|ip| !is_of_node(ip)).collect();
        // An address of the link itself would be one more of the node's.
        let mut routes = format!("link set {LINK} addrgenmode none\naddr flush dev {LINK}\n");
        let mut addresses = String::new();
        for ip in &pods {
            routes += &format!("route add {ip} dev {LINK}\n");
            addresses += &format!("addr add {ip} dev eth0{}\n", if ip.is_ipv6() { " nodad" } else { "" });
        }
        batch(node, &routes);
        batch(&netns, &addresses);
        let (here, in_pods): (Vec<_>, Vec<_>) = endpoints.iter().partition(|(at, _)| is_of_node(&at.ip()));
        let sockets = listeners(node, here).into_iter().chain(listeners(&netns, in_pods)).collect();
        Self { netns, _sockets: sockets }
    }

    /// The namespace of the pods; its interface is `eth0`.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

/// Sockets of the endpoints of a file that use the recorded node's own addresses.
///
/// # Panics
/// If the file cannot be read, or a port is taken.
#[must_use]
pub fn listen_on_node(node: &Netns, objects: &Path) -> Vec<Socket> {
    let endpoints = endpoints(objects);
    listeners(node, endpoints.iter().filter(|(at, _)| is_of_node(&at.ip())))
}

fn is_of_node(ip: &IpAddr) -> bool {
    NODE_ADDRESSES.contains(&ip.to_string().as_str())
}

fn listeners<'a>(netns: &Netns, endpoints: impl IntoIterator<Item = &'a (SocketAddr, String)>) -> Vec<Socket> {
    endpoints.into_iter().filter_map(|(at, protocol)| netns.enter(|| listener(*at, protocol))).collect()
}

fn listener(at: SocketAddr, protocol: &str) -> Option<Socket> {
    match protocol {
        "TCP" => Some(Box::new(TcpListener::bind(at).unwrap_or_else(|e| panic!("{at}: {e}")))),
        "UDP" => Some(Box::new(UdpSocket::bind(at).unwrap_or_else(|e| panic!("{at}: {e}")))),
        _ => None,
    }
}

/// The endpoints on the recorded node, with their protocols.
fn endpoints(objects: &Path) -> BTreeSet<(SocketAddr, String)> {
    let text = std::fs::read_to_string(objects).unwrap_or_else(|e| panic!("{}: {e}", objects.display()));
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = BTreeSet::new();
    for slice in documents.iter().filter(|object| object["kind"] == "EndpointSlice") {
        for endpoint in list(&slice["endpoints"]).iter().filter(|endpoint| endpoint["nodeName"] == NODE) {
            for port in list(&slice["ports"]) {
                let number = port["port"].as_u64().and_then(|port| u16::try_from(port).ok());
                let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
                for ip in list(&endpoint["addresses"]).iter().filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok()) {
                    found.extend(number.map(|number| (SocketAddr::new(ip, number), protocol.clone())));
                }
            }
        }
    }
    found
}

fn batch(netns: &Netns, lines: &str) {
    let mut ip = netns.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip");
    ip.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("it reads");
    assert!(ip.wait().expect("it ends").success(), "{lines}");
}
