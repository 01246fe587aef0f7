//! What new connections are spared: hooks that no Service needs, and lookups of addresses that decide nothing.

use std::time::Instant;

use netfilter::nft::{Operation, Transaction};
use proxier::backend::Backend;
use proxier::testing::objects;
use proxier::track::Kind;
use serde_json::{Value, json};

use super::work::Cluster;

/// The base chains of source ranges.
const CHECKS: [&str; 2] = ["filter-prerouting-pre-dnat", "filter-output-pre-dnat"];
const VIP: &str = "203.0.113.9";

/// A Service of type LoadBalancer with [`VIP`].
fn balancer(ranges: &[&str]) -> Value {
    let mut service = objects::service("ns", "balancer", objects::address(60_000));
    service["spec"]["type"] = json!("LoadBalancer");
    service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": VIP, "ipMode": "VIP" }] } });
    service
}

fn endpoints(of: &[u32]) -> Value {
    let endpoints: Vec<_> = of.iter().map(|number| objects::address(*number)).collect();
    objects::slice("ns", "balancer", "balancer-1", &endpoints)
}

fn cidr(net: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": [net] },
    })
}

/// Where the first operation of a kind is: batch and operation.
fn first(written: &[Transaction], is: impl Fn(&Operation) -> bool) -> Option<(usize, usize)> {
    let at = |(batch, transaction): (usize, &Transaction)| {
        transaction.operations().iter().position(&is).map(|operation| (batch, operation))
    };
    written.iter().enumerate().find_map(at)
}

/// The elements of a set, one a line.
fn elements(text: &str, set: &str) -> Vec<String> {
    let rest = text.split(&format!("set {set} {{")).nth(1).unwrap_or_default();
    let body = rest.split("\n\t}").next().unwrap_or_default();
    let list = body.split("elements = {").nth(1).unwrap_or_default().split('}').next().unwrap_or_default();
    list.split(',').map(|element| element.trim().to_owned()).filter(|element| !element.is_empty()).collect()
}

#[test]
fn hooks_before_dnat_exist_only_while_a_service_has_source_ranges() {
    let mut cluster = Cluster::unsynced(3);
    cluster.sync();
    assert!(CHECKS.iter().all(|chain| !cluster.kernel.text().contains(chain)), "{}", cluster.kernel.text());
    for of in [&[1, 2][..], &[1, 2, 3]] {
        cluster.take(Kind::Service, balancer(&["198.51.100.0/24"]));
        cluster.take(Kind::EndpointSlice, endpoints(of));
        let written = cluster.sync();
        let added = |name: &str| first(&written, |op| matches!(op, Operation::AddChain(chain) if *chain.name == *name));
        let served = first(&written, |op| matches!(op, Operation::AddElements(set, _) if &*set.name == "service-ips"));
        assert!(CHECKS.iter().all(|chain| added(chain).is_some() && added(chain) < served), "{written:?}");
        assert_eq!(cluster.backend.check_drift_quickly(Instant::now()).expect("a look"), None);
        // Without ranges they are gone, and nothing else is.
        cluster.take(Kind::Service, balancer(&[]));
        cluster.sync();
        assert!(CHECKS.iter().all(|chain| !cluster.kernel.text().contains(chain)), "{}", cluster.kernel.text());
        assert_eq!(cluster.backend.check_drift_quickly(Instant::now()).expect("a look"), None);
    }
}

#[test]
fn addresses_in_service_cidrs_are_found_by_their_network() {
    let mut cluster = Cluster::unsynced(3);
    cluster.sync();
    let refusable = |cluster: &Cluster| elements(&cluster.kernel.text(), "refusable-ips");
    assert_eq!(refusable(&cluster).len(), 3, "without ServiceCIDRs, all cluster IPs");
    cluster.take(Kind::ServiceCidr, cidr("10.0.0.0/8"));
    cluster.sync();
    assert_eq!(refusable(&cluster), Vec::<String>::new());
    assert!(cluster.kernel.text().contains("ip daddr 10.0.0.0/8 goto refusals"));
    // A load balancer address is looked for only while it has no endpoints.
    cluster.take(Kind::Service, balancer(&[]));
    cluster.sync();
    assert_eq!(refusable(&cluster), [VIP]);
    cluster.take(Kind::EndpointSlice, endpoints(&[1]));
    let written = cluster.sync();
    assert_eq!(refusable(&cluster), Vec::<String>::new());
    let served = first(&written, |op| matches!(op, Operation::AddElements(set, _) if &*set.name == "service-ips"));
    let spared = first(&written, |op| matches!(op, Operation::DeleteElements(set, _) if &*set.name == "refusable-ips"));
    assert!(served.is_some() && spared.is_some(), "{written:?}");
    cluster.take(Kind::EndpointSlice, endpoints(&[]));
    cluster.sync();
    assert_eq!(refusable(&cluster), [VIP]);
    // Cluster IPs outside all ServiceCIDRs are refused as before.
    cluster.take(Kind::ServiceCidr, cidr("10.128.0.0/9"));
    cluster.sync();
    assert_eq!(refusable(&cluster).len(), 5, "{:?}", refusable(&cluster));
}
