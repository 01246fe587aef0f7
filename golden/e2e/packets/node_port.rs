//! NodePort: the addresses that answer, with `nodePortAddresses` and on localhost.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, FAR_5, Family, LOOPBACK, NODE, NODE_ETH1, POD_5, POD_9, Service, is_node, ready};
use serde_json::json;

use super::pods;

const NODE_PORT: u16 = 30080;

fn web() -> Service {
    Service::new("web", 20).node_port(NODE_PORT).endpoints([ready(POD_5), ready(FAR_5)])
}

pub(super) fn node_port_on_every_node_address(cluster: Cluster) {
    let cluster = cluster.running(&[web()]);
    for family in Family::BOTH {
        for client in [cluster.outside(), cluster.host(), cluster.pod(POD_9)] {
            for address in [NODE, NODE_ETH1] {
                let answers = client.reach_times(Tcp, address.at(family, NODE_PORT), 20);
                assert_eq!(pods(&answers).len(), 2, "{answers:?}");
                assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
            }
        }
    }
}

pub(super) fn node_port_on_localhost_is_ipv4_only(cluster: Cluster) {
    let cluster = cluster.running(&[web()]);
    let answers = cluster.host().reach_times(Tcp, LOOPBACK.at(Family::V4, NODE_PORT), 20);
    assert_eq!(pods(&answers).len(), 2, "{answers:?}");
    assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
    cluster.host().refused(Tcp, LOOPBACK.at(Family::V6, NODE_PORT));
}

pub(super) fn node_port_addresses_restrict_node_ports(cluster: Cluster) {
    let cluster = cluster.configured("nodePortAddresses", json!(["192.168.60.0/24", "fd00:60::/64"])).running(&[web()]);
    for family in Family::BOTH {
        for client in [cluster.outside(), cluster.host(), cluster.pod(POD_9)] {
            let answer = client.reach(Tcp, NODE_ETH1.at(family, NODE_PORT));
            assert!(is_node(answer.client), "{answer:?}");
            // Nothing translates, and nothing listens on the node.
            client.refused(Tcp, NODE.at(family, NODE_PORT));
        }
        cluster.host().refused(Tcp, LOOPBACK.at(family, NODE_PORT));
    }
}
