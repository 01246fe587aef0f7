//! The network of the test cluster: namespaces, links, addresses and routes.
//!
//! The host outside routes the Service networks to node-a, as a router in front of a cluster does.

use std::io::Write;
use std::process::Stdio;

use super::address::{
    Dual, EXTERNAL_IP, FAR_PODS, LOCAL_PODS, NODE, NODE_B, NODE_CNI, NODE_ETH1, OUTSIDE, OUTSIDE_OTHERS, Pod,
    SERVICE_NETWORK, STRANGER, VIP,
};
use crate::netns::{Netns, veth};

/// The namespaces of a cluster.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) outside: Netns,
    pub(super) node: Netns,
    pub(super) node_b: Netns,
    pub(super) pods: Vec<(Pod, Netns)>,
    pub(super) stranger: Netns,
}

impl Wiring {
    pub(super) fn new() -> Self {
        let wiring = Self {
            outside: host(false),
            node: host(true),
            node_b: host(false),
            pods: LOCAL_PODS.iter().map(|pod| (*pod, host(false))).collect(),
            stranger: host(false),
        };
        wiring.node_network();
        for (pod, netns) in &wiring.pods {
            wiring.attach(pod, netns);
        }
        wiring.attach_stranger();
        wiring
    }

    /// The namespace of a pod: its own on node-a, the node's on node-b.
    pub(super) fn home(&self, pod: &Pod) -> &Netns {
        self.pods.iter().find(|(own, _)| own == pod).map_or(&self.node_b, |(_, netns)| netns)
    }

    /// The host outside holds the switch that connects node-a, node-b and itself.
    fn node_network(&self) {
        ip(&self.outside, "link add switch type bridge mcast_snooping 0\nlink set switch up\n");
        for (port, machine) in [("node-a", &self.node), ("node-b", &self.node_b)] {
            veth(&self.outside, port, machine, "eth0");
            ip(&self.outside, &format!("link set {port} master switch\n"));
        }
        veth(&self.outside, "second", &self.node, "eth1");
        let mut outside = address(OUTSIDE, 24, 64, "switch");
        outside += &address(Dual("192.168.60.1", "fd00:60::1"), 24, 64, "second");
        for other in OUTSIDE_OTHERS {
            outside += &address(other, 24, 64, "switch");
        }
        for services in [SERVICE_NETWORK, VIP, EXTERNAL_IP] {
            outside += &route(services, NODE);
        }
        ip(&self.outside, &outside);

        let mut node = address(NODE, 24, 64, "eth0");
        node += &address(NODE_ETH1, 24, 64, "eth1");
        node += &route(Dual("10.244.2.0/24", "fd00:10:244:2::/64"), NODE_B);
        node += &route(Dual("default", "default"), OUTSIDE);
        ip(&self.node, &node);

        let mut node_b = address(NODE_B, 24, 64, "eth0");
        for pod in FAR_PODS {
            node_b += &address(pod.address, 32, 128, "lo");
        }
        node_b += &route(Dual("10.244.1.0/24", "fd00:10:244:1::/64"), NODE);
        node_b += &route(Dual("default", "default"), OUTSIDE);
        ip(&self.node_b, &node_b);
    }

    /// Connects a pod by a routed link of its own, so that even its traffic to itself passes the node.
    fn attach(&self, pod: &Pod, netns: &Netns) {
        veth(&self.node, pod.name, netns, "eth0");
        let Dual(v4, v6) = pod.address;
        let mut node = address(NODE_CNI, 32, 128, pod.name);
        node += &format!("route add {v4} dev {0}\nroute add {v6} dev {0}\n", pod.name);
        ip(&self.node, &node);
        let mut own = address(pod.address, 32, 128, "eth0");
        own += &format!("route add {} dev eth0\nroute add {} dev eth0\n", NODE_CNI.0, NODE_CNI.1);
        own += &route(Dual("default", "default"), NODE_CNI);
        ip(netns, &own);
    }

    /// Gives the stranger all Service addresses.
    ///
    /// It answers packets that node-a did not translate; otherwise a missing rule would look like a rule that drops.
    fn attach_stranger(&self) {
        self.attach(&STRANGER, &self.stranger);
        let mut node = String::new();
        for services in [SERVICE_NETWORK, VIP, EXTERNAL_IP] {
            node += &route(services, STRANGER.address);
        }
        ip(&self.node, &node);
        let Dual(v4, v6) = SERVICE_NETWORK;
        let mut own = format!("route add local {v4} dev lo\nroute add local {v6} dev lo\n");
        for single in [VIP, EXTERNAL_IP] {
            own += &address(single, 32, 128, "lo");
        }
        ip(&self.stranger, &own);
    }
}

/// A host that accepts no redirects and does not limit ICMP errors.
///
/// Redirects would bypass the node under test, and the kernel's limit is a few refusals a second.
fn host(router: bool) -> Netns {
    let netns = Netns::new();
    let forward = i32::from(router);
    let mut settings = format!("net.ipv4.ip_forward={forward} net.ipv6.conf.all.forwarding={forward}");
    settings += " net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0";
    for scope in ["all", "default"] {
        settings += &format!(
            " net.ipv4.conf.{scope}.rp_filter=0 net.ipv4.conf.{scope}.accept_redirects=0 \
             net.ipv4.conf.{scope}.send_redirects=0 net.ipv6.conf.{scope}.accept_redirects=0 \
             net.ipv6.conf.{scope}.accept_dad=0"
        );
    }
    netns.run(&format!("sysctl -q -w {settings}"));
    netns
}

fn address(of: Dual, v4_bits: u8, v6_bits: u8, device: &str) -> String {
    format!("addr add {}/{v4_bits} dev {device}\naddr add {}/{v6_bits} dev {device} nodad\n", of.0, of.1)
}

fn route(to: Dual, via: Dual) -> String {
    format!("route add {} via {}\nroute add {} via {}\n", to.0, via.0, to.1, via.1)
}

/// Runs a batch of `ip` commands in a namespace: one process instead of twenty.
fn ip(netns: &Netns, batch: &str) {
    let mut command = netns.command("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ip can be started");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(batch.as_bytes()).expect("ip reads its batch");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    assert!(output.status.success(), "ip: {}\n{batch}", String::from_utf8_lossy(&output.stderr));
}
