//! Behaviour of IPVS mode only: graceful termination of connections, and scheduling.

use golden::case::Mode;
use golden::cluster::Protocol::Tcp;
use golden::cluster::{
    Cluster, FAR_5, Family, LOOPBACK, NODE, OUTSIDE_OTHERS, POD_5, POD_6, POD_9, PORT, Service, Session, VIP,
    eventually, ready,
};
use serde_json::json;

use super::SOON;
use super::restart::unnoticed;

const NODE_PORT: u16 = 30080;

/// An open connection to each of a Service's entrances.
fn sessions(cluster: &Cluster, service: &Service) -> Vec<Session> {
    let entrances = |family| {
        [
            (cluster.pod(POD_9), service.address(family)),
            (cluster.outside(), NODE.at(family, NODE_PORT)),
            (cluster.outside(), VIP.at(family, PORT)),
        ]
    };
    Family::BOTH.into_iter().flat_map(entrances).map(|(client, to)| client.session(to)).collect()
}

fn web() -> Service {
    Service::new("web", 60).node_port(NODE_PORT).load_balancer(VIP)
}

/// How often the virtual servers name a pod, with a weight.
fn named(cluster: &Cluster, pod: golden::cluster::Pod, weight: u32) -> usize {
    let [v4, v6] = Family::BOTH.map(|family| pod.address.of(family).to_string());
    let end = format!("-w {weight}");
    let of_pod = |line: &&str| line.contains(&format!("-r {v4}:")) || line.contains(&format!("-r [{v6}]:"));
    cluster.servers().lines().filter(of_pod).filter(|line| line.trim_end().ends_with(&end)).count()
}

fn still_work(sessions: &mut [Session]) {
    for (number, session) in sessions.iter_mut().enumerate() {
        eprintln!("session {number}");
        session.still_works();
    }
}

pub(super) fn a_connection_outlives_its_endpoint(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(&[web.clone().endpoints([ready(POD_5)])]);
    let mut open = sessions(&cluster, &web);
    cluster.write(&[web.clone().endpoints([ready(POD_6)])]);
    eventually("new connections go elsewhere", SOON, || {
        Family::BOTH.iter().all(|family| {
            cluster.pod(POD_9).attempt(Tcp, web.address(*family)).is_ok_and(|answer| answer.pod == POD_6.name)
        })
    });
    still_work(&mut open);
    assert_eq!(named(&cluster, POD_5, 0), open.len(), "it waits where it has connections: {}", cluster.servers());
    cluster.write(&[web.endpoints([ready(POD_5), ready(POD_6)])]);
    eventually("it comes back", SOON, || named(&cluster, POD_5, 0) == 0 && named(&cluster, POD_5, 1) > 0);
    still_work(&mut open);
}

pub(super) fn a_connection_outlives_its_service(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(&[web.clone().endpoints([ready(POD_5)])]);
    let mut open = sessions(&cluster, &web);
    cluster.write(&[]);
    eventually("it waits for its connections", SOON, || named(&cluster, POD_5, 0) == open.len());
    still_work(&mut open);
    for family in Family::BOTH {
        cluster.outside().refused(Tcp, VIP.at(family, PORT));
    }
    let bound = |cluster: &Cluster| cluster.on_node("ip -o addr show kube-ipvs0");
    assert!(bound(&cluster).contains(VIP.0), "its address has to stay: {}", bound(&cluster));
    open.into_iter().for_each(Session::abort);
    eventually("it goes with its last connection", SOON + SOON, || {
        named(&cluster, POD_5, 0) == 0 && !bound(&cluster).contains(VIP.0) && !cluster.servers().contains(VIP.0)
    });
}

pub(super) fn a_connection_outlives_the_proxy(cluster: Cluster) {
    let web = web();
    let cluster = cluster.running(&[web.clone().endpoints([ready(POD_5)])]);
    let mut open = sessions(&cluster, &web);
    cluster.write(&[web.clone().endpoints([ready(POD_6)])]);
    eventually("it waits for its connections", SOON, || named(&cluster, POD_5, 0) == open.len());
    cluster.kill();
    // Another one is deleted while no connection uses it.
    cluster.write(&[]);
    cluster.start();
    still_work(&mut open);
    open.into_iter().for_each(Session::abort);
    eventually("nothing is left of it", SOON + SOON, || !cluster.servers().contains(VIP.0));
}

pub(super) fn round_robin_is_even(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(POD_6), ready(FAR_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let answers = cluster.pod(POD_9).reach_times(Tcp, web.address(family), 12);
        for pod in [POD_5, POD_6, FAR_5] {
            let count = answers.iter().filter(|answer| answer.pod == pod.name).count();
            assert_eq!(count, 4, "{}: {answers:?}", pod.name);
        }
    }
}

pub(super) fn source_hashing_keeps_clients(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(POD_6), ready(FAR_5)]);
    let config = json!({ "scheduler": "sh", "syncPeriod": "5m", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("ipvs", config).running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        let to = VIP.at(family, PORT);
        let mut chosen = std::collections::BTreeSet::new();
        for client in OUTSIDE_OTHERS {
            let answers = cluster.outside_as(client).reach_times(Tcp, to, 4);
            assert_eq!(super::pods(&answers).len(), 1, "one client went to several endpoints: {answers:?}");
            chosen.insert(answers[0].pod.clone());
        }
        assert!(chosen.len() > 1, "every client is sent to {chosen:?}");
    }
}

/// Whether iptables' rules of either family mention this.
fn mentions(cluster: &Cluster, table: &str, text: &str) -> bool {
    Family::BOTH.iter().any(|family| cluster.rules(*family, table).text().contains(text))
}

pub(super) fn a_node_moves_between_modes(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5), ready(FAR_5)]);
    let periods = json!({ "syncPeriod": "2s", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("iptables", periods.clone()).configured("ipvs", periods.clone());
    let mut cluster = cluster.configured("nftables", periods);
    cluster.set_mode(Mode::Iptables);
    let mut cluster = cluster.running(std::slice::from_ref(&web));
    let mut before = Mode::Iptables;
    for mode in [Mode::Ipvs, Mode::Nftables, Mode::Ipvs, Mode::Iptables] {
        cluster.set_mode(mode);
        let moving = &cluster;
        unnoticed(moving, &web, NODE_PORT, || {
            moving.kill();
            moving.start();
            eventually("the other mode's rules are gone", SOON * 6, || match before {
                Mode::Nftables => Family::BOTH.iter().all(|family| moving.table(*family).is_empty()),
                Mode::Ipvs => !mentions(moving, "filter", "KUBE-IPVS-FILTER"),
                Mode::Iptables => !mentions(moving, "nat", "KUBE-SVC-"),
            });
        });
        before = mode;
    }
    // Leftovers are tried again after a hundred times what the last attempt took.
    eventually("nothing is left of IPVS mode once its connections are closed", SOON * 15, || {
        cluster.servers().is_empty() && !cluster.on_node("ip link").contains("kube-ipvs0")
    });
    assert!(!cluster.on_node("ipset list -n").contains("KUBE-"));
}

/// Where IPVS mode does something else than iptables mode, as kube-proxy's does.
pub(super) fn local_policies_bind_pods_and_fall_back(cluster: Cluster) {
    let local = web().external_local().endpoints([ready(POD_5), ready(FAR_5)]);
    let far = Service::new("far", 61).internal_local().node_port(30081).endpoints([ready(FAR_5)]);
    let inside = Service::new("inside", 62).internal_local().endpoints([ready(FAR_5)]);
    let cluster = cluster.running(&[local.clone(), far.clone(), inside.clone()]);
    for family in Family::BOTH {
        let client = cluster.pod(POD_9);
        let answers = client.reach_times(Tcp, VIP.at(family, PORT), 8);
        assert!(answers.iter().all(|answer| answer.pod == POD_5.name), "{answers:?}");
        assert_eq!(super::pods(&client.reach_times(Tcp, local.address(family), 8)).len(), 2);
        assert_eq!(client.reach(Tcp, far.address(family)).pod, FAR_5.name, "none is here, so those elsewhere serve");
        // Without external access, endpoints on other nodes do not matter.
        client.refused(Tcp, inside.address(family));
    }
}

pub(super) fn addresses_of_services_have_no_other_ports(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5)]);
    let cluster = cluster.running(std::slice::from_ref(&web));
    for family in Family::BOTH {
        for client in [cluster.pod(POD_9), cluster.outside()] {
            for ip in [web.address(family).ip(), VIP.of(family)] {
                client.refused(Tcp, std::net::SocketAddr::new(ip, PORT + 1));
            }
        }
        cluster.host().refused(Tcp, LOOPBACK.at(family, NODE_PORT));
    }
}

pub(super) fn flushed_virtual_servers_and_rules_are_restored(cluster: Cluster) {
    let web = web().endpoints([ready(POD_5)]);
    let config = json!({ "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    let cluster = cluster.configured("ipvs", config).running(std::slice::from_ref(&web));
    let reached = || {
        Family::BOTH.iter().all(|family| {
            let rules = cluster.rules(*family, "nat").text().contains("CLUSTER-IP dst,dst -j ACCEPT");
            rules && cluster.outside().attempt(Tcp, VIP.at(*family, PORT)).is_ok()
        })
    };
    for line in ["ipvsadm -C", "ip link delete kube-ipvs0", "iptables -t nat -F", "ip6tables -t nat -F"] {
        let _ = cluster.on_node(line);
        // Looks at the rules may take one hundredth of a CPU, and the kernel may be a slow one.
        eventually(line, SOON * 5, reached);
    }
    let set = "KUBE-CLUSTER-IP";
    let _ = cluster.on_node(&format!("ipset flush {set}"));
    let address = web.address(Family::V4).ip().to_string();
    eventually("a flushed set is filled", SOON * 5, || {
        cluster.on_node(&format!("ipset list {set}")).contains(&address)
    });
}

pub(super) fn servers_of_others_stay(cluster: Cluster) {
    let config = json!({ "excludeCIDRs": ["198.51.100.0/24"], "syncPeriod": "1s", "minSyncPeriod": "100ms" });
    let web = web().endpoints([ready(POD_5)]);
    for line in ["ipvsadm -A -t 198.51.100.7:80 -s wlc", "ipvsadm -a -t 198.51.100.7:80 -r 10.244.1.5:80 -m -w 7"] {
        let _ = cluster.on_node(line);
    }
    let cluster = cluster.configured("ipvs", config).running(std::slice::from_ref(&web));
    let others = |cluster: &Cluster| {
        let servers = cluster.servers();
        servers.lines().filter(|line| line.contains("198.51.100.7")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = others(&cluster);
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(before[1].contains("-w 7"), "{before:?}");
    cluster.write(&[]);
    eventually("our own goes", SOON, || !cluster.servers().contains(VIP.0));
    assert_eq!(others(&cluster), before);
}
