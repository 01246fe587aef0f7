//! The network of the demo: the node in the calling thread's namespace, its pods, and a machine outside.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use netfilter::IpFamily;

use super::example::{Example, Pod};
use super::machine::{Machine, ip};

/// Additional addresses of the client pod, which make it several clients: 10.244.1.64/29.
pub const CLIENTS: [IpAddr; 8] = {
    let mut clients = [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 8];
    let mut last = 64;
    while last < 72 {
        clients[last as usize - 64] = IpAddr::V4(Ipv4Addr::new(10, 244, 1, last));
        last += 1;
    }
    clients
};

/// The client pod's own addresses.
pub const CLIENT: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 244, 1, 5)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 5))];

/// The address of the machine outside.
pub const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 50, 1));

/// The node's address on each pod's link.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 1));

/// Sysctls of a router; without `accept_dad=0` IPv6 addresses are tentative for a second.
const SYSCTLS: [(IpFamily, &str, &str); 3] = [
    (IpFamily::V4, "ipv4/ip_forward", "1"),
    (IpFamily::V6, "ipv6/conf/all/forwarding", "1"),
    (IpFamily::V6, "ipv6/conf/default/accept_dad", "0"),
];

/// The machines.
#[derive(Debug)]
pub struct Lab {
    /// The families that the kernel supports.
    pub families: Vec<IpFamily>,
    /// A pod that uses Services.
    pub client: Machine,
    /// A machine outside of the cluster.
    pub outside: Machine,
    _pods: Vec<Machine>,
}

impl Lab {
    /// Creates all machines; the calling thread is on the node.
    pub fn new(example: &Example) -> Result<Self, String> {
        ip("link set lo up\n")?;
        let families: Vec<IpFamily> = IpFamily::ALL.into_iter().filter(|family| family.available().is_ok()).collect();
        for (_, name, value) in SYSCTLS.iter().filter(|(family, ..)| families.contains(family)) {
            let path = format!("/proc/sys/net/{name}");
            std::fs::write(&path, value).map_err(|error| format!("cannot write {path}: {error}"))?;
        }
        let outside = outside(example, &families)?;
        let client = pod("client", &CLIENT, &families)?;
        let more = CLIENTS.map(|ip| format!("addr add {ip}/32 dev eth0\n")).concat();
        client.ip(more)?;
        ip(&format!("route add {}/29 dev client\n", CLIENTS[0]))?;
        let mut pods = Vec::new();
        for of in &example.pods {
            let machine = pod(&of.name, &of.addresses, &families)?;
            serve(&machine, of, &families)?;
            pods.push(machine);
        }
        Ok(Self { families, client, outside, _pods: pods })
    }

    /// Cuts off a pod, as if its machine had failed.
    pub fn kill(&self, pod: &str) -> Result<(), String> {
        ip(&format!("link delete {pod}\n"))
    }
}

/// A machine in the node's network, connected to its interface eth0.
fn outside(example: &Example, families: &[IpFamily]) -> Result<Machine, String> {
    let machine = Machine::new("outside")?;
    let mut commands = format!("link add eth0 type veth peer name eth0 netns {}\n", machine.thread);
    for address in example.node_addresses.iter().filter(|ip| families.contains(&IpFamily::of(ip))) {
        let length = if address.is_ipv4() { 24 } else { 64 };
        commands += &format!("addr add {address}/{length} dev eth0\n");
    }
    commands += "link set eth0 up\n";
    ip(&commands)?;
    machine.ip(format!("link set lo up\nlink set eth0 up\naddr add {OUTSIDE}/24 dev eth0\n"))?;
    Ok(machine)
}

/// A pod with its own routed link, as most network plugins have it. The node's end has the pod's name.
fn pod(name: &str, addresses: &[IpAddr], families: &[IpFamily]) -> Result<Machine, String> {
    let machine = Machine::new(name)?;
    let mut node = format!("link add {name} type veth peer name eth0 netns {}\nlink set {name} up\n", machine.thread);
    let mut pod = "link set lo up\nlink set eth0 up\n".to_owned();
    for address in addresses.iter().filter(|ip| families.contains(&IpFamily::of(ip))) {
        let (length, gateway) = if address.is_ipv4() { (32, GATEWAY.to_string()) } else { (128, "fe80::1".to_owned()) };
        let nodad = if address.is_ipv4() { "" } else { "nodad" };
        let scope = if address.is_ipv4() { 32 } else { 64 };
        node += &format!("addr add {gateway}/{scope} dev {name} {nodad}\nroute add {address}/{length} dev {name}\n");
        pod +=
            &format!("addr add {address}/{length} dev eth0 {nodad}\nroute add default via {gateway} dev eth0 onlink\n");
    }
    ip(&node)?;
    machine.ip(pod)?;
    Ok(machine)
}

/// Answers each connection with the pod's name and the client's address.
fn serve(machine: &Machine, pod: &Pod, families: &[IpFamily]) -> Result<(), String> {
    let any: IpAddr =
        if families.contains(&IpFamily::V6) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let (name, port) = (pod.name.clone(), pod.port);
    let started = machine.run(move || {
        let listener = TcpListener::bind((any, port))?;
        // A thread inherits the namespace of its parent thread.
        std::thread::Builder::new().name(name.clone()).spawn(move || {
            for connection in listener.incoming() {
                // The client reports errors.
                let _ = connection.and_then(|mut stream| {
                    let peer = stream.peer_addr()?.ip().to_canonical();
                    stream.write_all(format!("{name} {peer}\n").as_bytes())
                });
            }
        })
    })?;
    started.map(drop).map_err(|error| format!("{} cannot listen: {error}", pod.name))
}
