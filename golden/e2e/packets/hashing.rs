//! Services that ask for stable hashing: nodes agree on each client's endpoint, and it is the one that is computed.

use std::net::SocketAddr;

use golden::case::Mode;
use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{
    Client, Cluster, Dual, FAR_5, FAR_6, Family, NODE, OUTSIDE_OTHERS, POD_5, POD_6, POD_9, PORT, Pod, Service,
    TARGET_PORT, VIP, eventually, ready,
};
use golden::flavour::Flavour;
use proxier::maglev::MaglevTable;
use proxier::model::EndpointHash;

use super::metrics::Scrape;
use super::{SOON, binary, pods};

const ANNOTATION: &str = "kube-proxy-rust.internal/endpoint-hash";
const UNHASHED: &str = "kubeproxy_sync_proxy_rules_unhashed_services";
const NODE_PORT: u16 = 30085;
const ALL: [Pod; 4] = [POD_5, POD_6, FAR_5, FAR_6];

fn web(value: &str) -> Service {
    Service::new("hashed", 85).node_port(NODE_PORT).load_balancer(VIP).annotation(ANNOTATION, value)
}

fn dns() -> Service {
    Service::new("hashed-dns", 86).protocol("UDP").load_balancer(VIP).annotation(ANNOTATION, "flow")
}

/// A second node with its own proxy, in the mode of the first.
fn second(mode: Mode) -> Cluster {
    Cluster::new(Flavour::Nft, &binary()).configured("mode", mode.to_string().into())
}

/// The pod whose endpoint the table has for a client.
fn computed(among: &[Pod], family: Family, client: SocketAddr, hash: EndpointHash) -> &'static str {
    let table = MaglevTable::of(among.iter().map(|pod| pod.address.at(family, TARGET_PORT)));
    let endpoint = table.endpoint_of(client, hash).expect("an endpoint");
    among.iter().find(|pod| pod.address.of(family) == endpoint.ip()).expect("one of the pods").name
}

/// Clients with their addresses: a pod, and hosts outside.
fn clients(cluster: &Cluster) -> Vec<(Client<'_>, Dual)> {
    let outside = OUTSIDE_OTHERS.into_iter().map(|source| (cluster.outside_as(source), source));
    [(cluster.pod(POD_9), POD_9.address)].into_iter().chain(outside).collect()
}

/// Sends that many UDP flows in a family; returns the pods that answered, and those that were computed.
fn flows(cluster: &Cluster, among: &[Pod], family: Family, count: u16) -> (Vec<String>, Vec<&'static str>) {
    let (clients, dns) = (clients(cluster), dns());
    let tuples = (0..count).map(|number| (&clients[usize::from(number) % clients.len()], 20_000 + number));
    let answers = tuples.map(|((client, source), port)| {
        let to = if port % 2 == 0 { dns.address(family) } else { VIP.at(family, PORT) };
        let answer = client.from_port(port).reach(Udp, to);
        (answer.pod, computed(among, family, source.at(family, port), EndpointHash::Flow))
    });
    answers.unzip()
}

pub(super) fn flows_go_to_the_computed_endpoint_on_every_node(cluster: Cluster) {
    let (here, there) = (cluster, second(Mode::Nftables));
    let here = here.running(&[dns().endpoints(ALL.map(ready))]);
    // The other node lists endpoints in another order, and had others before.
    let there = there.running(&[dns().endpoints([ready(FAR_6), ready(POD_6)])]);
    let mut turned = ALL;
    turned.reverse();
    there.write(&[dns().endpoints(turned.map(ready))]);
    eventually("the other node has all endpoints", SOON, || {
        Family::BOTH.iter().all(|family| {
            let table = there.table(*family);
            ALL.iter().all(|pod| table.contains(&format!(": {} . ", pod.address.of(*family))))
        })
    });
    for family in Family::BOTH {
        let (answers, computed) = flows(&here, &ALL, family, 500);
        assert_eq!(answers, computed, "{family:?}");
        assert_eq!(flows(&there, &ALL, family, 500).0, answers, "{family:?}");
        assert!(ALL.iter().all(|pod| answers.iter().filter(|answer| *answer == pod.name).count() > 60));
    }
    let three = &ALL[1..];
    here.write(&[dns().endpoints(three.iter().map(|pod| ready(*pod)))]);
    eventually("the endpoint is gone", SOON, || {
        Family::BOTH.iter().all(|family| !here.table(*family).contains(&format!(": {} . ", POD_5.address.of(*family))))
    });
    // Conntrack remembers earlier flows, so these are others.
    for family in Family::BOTH {
        let (clients, mut moved) = (clients(&here), 0);
        for number in 0..500 {
            let ((client, source), port) = (&clients[usize::from(number) % clients.len()], 30_000 + number);
            let client_address = source.at(family, port);
            let answer = client.from_port(port).reach(Udp, dns().address(family)).pod;
            assert_eq!(answer, computed(three, family, client_address, EndpointHash::Flow), "{client_address}");
            let before = computed(&ALL, family, client_address, EndpointHash::Flow);
            moved += usize::from(before != POD_5.name && before != answer);
        }
        assert!(moved <= 10, "{moved} of 500 flows left an endpoint that is still there");
    }
}

pub(super) fn clients_keep_their_endpoint_at_every_address(cluster: Cluster) {
    let cluster = cluster.running(&[web("client").endpoints(ALL.map(ready))]);
    for family in Family::BOTH {
        let entrances = [web("").address(family), VIP.at(family, PORT), NODE.at(family, NODE_PORT)];
        for source in OUTSIDE_OTHERS {
            let client = cluster.outside_as(source);
            let answers: Vec<_> = entrances.iter().flat_map(|to| client.reach_times(Tcp, *to, 3)).collect();
            let wanted = computed(&ALL, family, source.at(family, 0), EndpointHash::Client);
            assert_eq!(pods(&answers), [wanted].into(), "{source:?}");
        }
    }
    // Affinity asks for one endpoint for each client, whatever is to be hashed.
    cluster.write(&[web("flow").affinity(10).endpoints([ready(POD_5), ready(FAR_5)])]);
    eventually("two endpoints are left", SOON, || !cluster.table(Family::V6).contains("jhash ip6 saddr . th sport"));
    for source in OUTSIDE_OTHERS {
        let wanted = computed(&[POD_5, FAR_5], Family::V4, source.at(Family::V4, 0), EndpointHash::Client);
        eventually("the client goes to its endpoint", SOON, || {
            let answers = cluster.outside_as(source).reach_times(Tcp, VIP.at(Family::V4, PORT), 3);
            pods(&answers) == [wanted].into()
        });
    }
}

/// What `kube-proxy trace` says of a client.
fn trace(cluster: &Cluster, from: &str, to: SocketAddr) -> (Option<i32>, String) {
    let mut command = cluster.node().command(&binary().to_string_lossy());
    let output = command.envs(cluster.environment()).args(["trace", "--from", from, "--to", &to.to_string()]).output();
    let output = output.expect("it starts");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(super) fn trace_follows_the_hash_of_a_known_client_only(cluster: Cluster) {
    let cluster = cluster.running(&[web("flow").endpoints(ALL.map(ready))]);
    let family = Family::V4;
    let to = VIP.at(family, PORT);
    for port in [20_001, 20_002, 20_003] {
        let client = OUTSIDE_OTHERS[0].at(family, port);
        let wanted = computed(&ALL, family, client, EndpointHash::Flow);
        let endpoint = ALL.iter().find(|pod| pod.name == wanted).expect("a pod").address.at(family, TARGET_PORT);
        let (status, text) = trace(&cluster, &client.to_string(), to);
        assert!(status == Some(0) && text.contains(&endpoint.to_string()) && !text.contains("% take this"), "{text}");
        assert_eq!(cluster.outside_as(OUTSIDE_OTHERS[0]).from_port(port).reach(Tcp, to).pod, wanted);
    }
    // The port of this one is an example.
    let (_, text) = trace(&cluster, "192.168.50.11", to);
    let all = ALL.map(|pod| pod.address.at(family, TARGET_PORT).to_string());
    assert!(all.iter().all(|endpoint| text.contains(endpoint)), "{text}");
    let mut dump = cluster.node().command(&binary().to_string_lossy());
    let dump =
        dump.envs(cluster.environment()).args(["dump", "--service", "default/hashed"]).output().expect("it starts");
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(all.iter().all(|endpoint| dump.contains(endpoint)) && !dump.contains("Difference"), "{dump}");
}

pub(super) fn iptables_mode_says_that_it_does_not_hash(cluster: Cluster) {
    let cluster = cluster.running(&[web("flow").endpoints([ready(POD_5), ready(FAR_5)])]);
    for family in Family::BOTH {
        assert_eq!(pods(&cluster.pod(POD_9).reach_times(Tcp, web("").address(family), 40)).len(), 2);
    }
    let warnings =
        |cluster: &Cluster| cluster.log().matches("cannot choose endpoints by a hash in iptables mode").count();
    assert_eq!(warnings(&cluster), 1, "{}", cluster.log());
    assert!(cluster.log().contains("default/hashed"), "{}", cluster.log());
    let unhashed = |count: u64| {
        let values = || {
            let scrape = Scrape::attempt(&cluster)?;
            Some(scrape.values(UNHASHED, &[]).into_values().collect::<Vec<_>>())
        };
        eventually("both families count the Services", SOON, || values() == Some(vec![count; 2]));
    };
    unhashed(1);
    cluster.write(&[]);
    unhashed(0);
}

pub(super) fn virtual_servers_hash_and_nodes_agree(cluster: Cluster) {
    let (here, there) = (cluster, second(Mode::Ipvs));
    let here = here.running(&[web("client").endpoints(ALL.map(ready)), dns().endpoints(ALL.map(ready))]);
    let there = there.running(&[web("client").endpoints(ALL.map(ready)), dns().endpoints(ALL.map(ready))]);
    let servers = here.servers();
    let of = |flags: &str| servers.lines().filter(|line| line.ends_with(flags)).count();
    assert!(of("-s mh -b mh-fallback") >= 6 && of("-s mh -b mh-fallback,mh-port") == 4, "{servers}");
    for family in Family::BOTH {
        let mut chosen = std::collections::BTreeSet::new();
        for source in OUTSIDE_OTHERS {
            let answers = |cluster: &Cluster| {
                let client = cluster.outside_as(source);
                [VIP.at(family, PORT), NODE.at(family, NODE_PORT)].map(|to| client.reach_times(Tcp, to, 3)).concat()
            };
            let answers = [answers(&here), answers(&there)].concat();
            assert_eq!(pods(&answers).len(), 1, "{source:?}: {answers:?}");
            chosen.insert(answers[0].pod.clone());
        }
        assert!(chosen.len() > 1, "every client goes to {chosen:?}");
        assert_eq!(flows(&here, &ALL, family, 300).0, flows(&there, &ALL, family, 300).0, "{family:?}");
    }
}
