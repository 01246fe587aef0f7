//! Load balancer virtual IPs, externalIPs and `loadBalancerSourceRanges`.

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{
    Cluster, EXTERNAL_IP, FAR_5, Family, NODE, OUTSIDE, OUTSIDE_OTHERS, POD_5, POD_9, PORT, Service, VIP, is_node,
    ready,
};

use super::pods;

const NODE_PORT: u16 = 30080;

fn web() -> Service {
    Service::new("web", 30).node_port(NODE_PORT).load_balancer(VIP).endpoints([ready(POD_5), ready(FAR_5)])
}

pub(super) fn load_balancer_and_external_ip_from_outside(cluster: Cluster) {
    let cluster = cluster.running(&[web().external_ip(EXTERNAL_IP)]);
    for family in Family::BOTH {
        for to in [VIP, EXTERNAL_IP] {
            for client in [cluster.outside(), cluster.host(), cluster.pod(POD_9)] {
                let answers = client.reach_times(Tcp, to.at(family, PORT), 20);
                assert_eq!(pods(&answers).len(), 2, "{answers:?}");
                assert!(answers.iter().all(|answer| is_node(answer.client)), "{answers:?}");
            }
        }
    }
}

pub(super) fn source_ranges_drop_other_clients(cluster: Cluster) {
    let allowed = [format!("{}/32", OUTSIDE.0), format!("{}/128", OUTSIDE.1)];
    let allowed = [allowed[0].as_str(), allowed[1].as_str()];
    let udp = Service::new("dns", 31).protocol("UDP").node_port(30053).load_balancer(VIP).source_ranges(&allowed);
    let web = web().source_ranges(&allowed);
    let cluster = cluster.running(&[web.clone(), udp.endpoints([ready(POD_5)])]);
    for family in Family::BOTH {
        let vip = VIP.at(family, PORT);
        for protocol in [Tcp, Udp] {
            let answer = cluster.outside().reach(protocol, vip);
            assert!(is_node(answer.client), "{answer:?}");
            cluster.outside_as(OUTSIDE_OTHERS[0]).dropped(protocol, vip);
            cluster.pod(POD_9).dropped(protocol, vip);
        }
        // The other entrances have no such list.
        let _ = cluster.outside_as(OUTSIDE_OTHERS[0]).reach(Tcp, NODE.at(family, NODE_PORT));
        let _ = cluster.outside_as(OUTSIDE_OTHERS[0]).reach(Tcp, web.address(family));
    }
}
