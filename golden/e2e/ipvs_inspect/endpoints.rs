//! Causes at endpoints and in settings, in IPVS mode: real connections and the diagnosis must agree.

use golden::cluster::Protocol::Tcp;
use golden::cluster::{Cluster, Family, NODE, NODE_ETH1, POD_5, Service, ready};
use golden::flavour::Flavour;
use serde_json::{Value, json};

const NODE_PORT: u16 = 30080;

/// The causes that `diagnose` finds, certain or not, and all that it says.
fn diagnose(cluster: &Cluster, words: &str) -> (Vec<String>, String) {
    let mut command = cluster.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
    let words = format!("diagnose {words} -o json");
    let output = command.envs(cluster.environment()).args(words.split_whitespace()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let causes = found["findings"].as_array().cloned().unwrap_or_default();
    let mut causes: Vec<String> = causes
        .iter()
        .map(|one| {
            format!("{}{}", one["cause"].as_str().unwrap_or_default(), if one["certain"] == true { "" } else { "?" })
        })
        .collect();
    causes.dedup();
    (causes, text)
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn causes_at_endpoints_are_named() {
    let open = Service::new("web", 60).endpoints([ready(POD_5)]);
    let closed = Service::new("closed", 61).target_port(9090).endpoints([ready(POD_5)]);
    let cluster =
        Cluster::new(Flavour::Nft, env!("CARGO_BIN_EXE_kube-proxy").as_ref()).configured("mode", "ipvs".into());
    let cluster = cluster.running(&[open.clone(), closed.clone()]);
    for family in Family::BOTH {
        let (to, direct) = (format!("{} --from host", open.address(family)), POD_5.address.at(family, 8080));
        assert!(cluster.host().attempt(Tcp, open.address(family)).is_ok());
        let (causes, said) = diagnose(&cluster, &to);
        assert!(causes.is_empty(), "{said}");
        let (causes, said) = diagnose(&cluster, &format!("{direct} --from host"));
        assert!(causes.is_empty() && said.contains("an endpoint of default/web:p"), "{said}");
        assert!(cluster.host().attempt(Tcp, closed.address(family)).is_err());
        let (causes, said) = diagnose(&cluster, &format!("{} --from host", closed.address(family)));
        assert_eq!(causes, ["not-listening"], "{said}");
        assert!(said.contains("listens on port 8080"), "{said}");
    }
    cluster.in_pod(POD_5, "ip addr flush dev eth0");
    let _ = cluster.on_node(&format!("ip neigh flush dev {}", POD_5.name));
    assert!(cluster.host().attempt(Tcp, open.address(Family::V4)).is_err());
    let (causes, said) = diagnose(&cluster, &format!("{} --from host", open.address(Family::V4)));
    assert_eq!(causes, ["neighbour-unreachable"], "{said}");
}

#[test]
#[ignore = "needs a kernel with IPVS: make test-ipvs"]
fn node_port_addresses_that_leave_an_address_out_are_named() {
    let service = Service::new("web", 60).node_port(NODE_PORT).endpoints([ready(POD_5)]);
    let cluster = Cluster::new(Flavour::Nft, env!("CARGO_BIN_EXE_kube-proxy").as_ref())
        .configured("mode", "ipvs".into())
        .configured("nodePortAddresses", json!(["192.168.50.0/24", "fd00:50::/64"]))
        .running(&[service]);
    for family in Family::BOTH {
        assert!(cluster.outside().attempt(Tcp, NODE.at(family, NODE_PORT)).is_ok());
        let (causes, said) = diagnose(&cluster, &NODE.at(family, NODE_PORT).to_string());
        assert!(causes.is_empty(), "{said}");
        let left_out = NODE_ETH1.at(family, NODE_PORT);
        assert!(cluster.host().attempt(Tcp, left_out).is_err());
        let (causes, said) = diagnose(&cluster, &left_out.to_string());
        assert_eq!(causes, ["not-translated"], "{said}");
        assert!(said.contains("nodePortAddresses"), "{said}");
    }
}
