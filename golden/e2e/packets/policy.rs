//! Traffic policies and Services without endpoints: who answers, and whether others are dropped or refused.
//!
//! Dropped means that another node may have endpoints, refused that no node has.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{
    Cluster, EXTERNAL_IP, FAR_5, FAR_6, Family, NODE, OUTSIDE, POD_5, POD_9, PORT, Service, VIP, ready, unready,
};

use super::pods;

const NODE_PORT: u16 = 30080;

fn web() -> Service {
    Service::new("web", 50).node_port(NODE_PORT).load_balancer(VIP).external_ip(EXTERNAL_IP)
}

/// Where `web` is entered from outside.
fn entrances(family: Family) -> [std::net::SocketAddr; 3] {
    [NODE.at(family, NODE_PORT), VIP.at(family, PORT), EXTERNAL_IP.at(family, PORT)]
}

pub(super) fn external_local_keeps_the_client_and_stays_on_the_node(cluster: Cluster) {
    let cluster = cluster.running(&[web().external_local().endpoints([ready(POD_5), ready(FAR_5), ready(FAR_6)])]);
    for family in Family::BOTH {
        for to in entrances(family) {
            for answer in cluster.outside().reach_times(Tcp, to, 40) {
                assert_eq!((answer.pod.as_str(), answer.client), (POD_5.name, OUTSIDE.of(family)), "{to}");
            }
        }
    }
}

pub(super) fn external_local_does_not_bind_pods(cluster: Cluster) {
    let web = web().external_local().endpoints([ready(POD_5), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        for to in entrances(family).into_iter().chain([web.address(family)]) {
            for client in [cluster.pod(POD_9), cluster.host()] {
                let answers = client.reach_times(Tcp, to, 30);
                assert_eq!(pods(&answers).len(), 2, "{to}: {answers:?}");
            }
        }
    }
}

pub(super) fn internal_local_stays_on_the_node(cluster: Cluster) {
    let web = web().internal_local().endpoints([ready(POD_5), ready(FAR_5), ready(FAR_6)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        for client in [cluster.pod(POD_9), cluster.host(), cluster.outside()] {
            let answers = client.reach_times(Tcp, web.address(family), 40);
            assert_eq!(pods(&answers).into_iter().collect::<Vec<_>>(), [POD_5.name]);
        }
        let answers = cluster.outside().reach_times(Tcp, NODE.at(family, NODE_PORT), 40);
        assert_eq!(pods(&answers).len(), 3, "the internal policy is not for node ports: {answers:?}");
    }
}

pub(super) fn external_local_without_local_endpoints_drops(cluster: Cluster) {
    let web = web().external_local().endpoints([ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        for to in entrances(family) {
            cluster.outside().dropped(Tcp, to);
            assert_eq!(cluster.pod(POD_9).reach(Tcp, to).pod, FAR_5.name, "pods may go to any endpoint");
        }
        assert_eq!(cluster.pod(POD_9).reach(Tcp, web.address(family)).pod, FAR_5.name);
    }
}

pub(super) fn internal_local_without_local_endpoints_drops(cluster: Cluster) {
    let web = web().internal_local().endpoints([ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        for client in [cluster.pod(POD_9), cluster.host(), cluster.outside()] {
            client.dropped(Tcp, web.address(family));
        }
        for to in entrances(family) {
            assert_eq!(cluster.outside().reach(Tcp, to).pod, FAR_5.name);
        }
    }
}

pub(super) fn no_endpoints_refuse_at_once(cluster: Cluster) {
    let empty = web();
    let local = Service::new("local", 51).node_port(30081).external_local().internal_local();
    let not_ready = Service::new("not-ready", 52).node_port(30082).endpoints([unready(POD_5)]);
    let cluster = cluster.running(&[empty.clone(), local.clone(), not_ready.clone()]);
    for family in Family::BOTH {
        for service in [&empty, &local, &not_ready] {
            for client in [cluster.pod(POD_9), cluster.host(), cluster.outside()] {
                client.refused(Tcp, service.address(family));
            }
        }
        let others = [NODE.at(family, 30081), NODE.at(family, 30082)];
        for to in entrances(family).into_iter().chain(others) {
            for client in [cluster.pod(POD_9), cluster.outside()] {
                client.refused(Tcp, to);
            }
        }
    }
}
