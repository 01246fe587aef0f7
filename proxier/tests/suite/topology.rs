//! Which endpoints a node uses, as a table: policies, hints, readiness.

use proxier::model::endpoint::NodeHint;
use proxier::model::{CategorizedEndpoints, Endpoint, NodeInfo, ServiceExtensions, ServicePort, SliceEndpoint};

/// An endpoint in a few letters: `r`eady, `s`erving and terminating, `d`own; `L` local; `a`/`b` its zone hint;
/// `+`/`-` a node hint for this node or another.
fn endpoint(index: usize, letters: &str) -> Endpoint {
    let has = |c| letters.contains(c);
    let zone = ["a", "b"].into_iter().find(|zone| has(*zone));
    let ip = format!("10.0.0.{}", index + 1).parse().expect("an address");
    Endpoint {
        address: std::net::SocketAddr::new(ip, 80),
        state: SliceEndpoint {
            ip,
            ready: has("r"),
            serving: has("r") || has("s"),
            terminating: has("s"),
            local: has("L"),
            node_hint: if has("+") {
                NodeHint::Here
            } else if has("-") {
                NodeHint::Elsewhere
            } else {
                NodeHint::None
            },
            zone_hints: zone.map(|zone| vec![zone.into()].into()),
        },
    }
}

fn port(policies: &str) -> ServicePort {
    ServicePort {
        cluster_ip: "10.96.0.1".parse().expect("an address"),
        port: 80,
        node_port: if policies.contains("NodePort") { 30_000 } else { 0 },
        external_ips: Box::default(),
        load_balancer_vips: Box::default(),
        source_ranges: Box::default(),
        affinity_seconds: None,
        internal_local: policies.contains("internal"),
        external_local: policies.contains("external"),
        health_check_node_port: 0,
        hidden_external_ips: false,
        extensions: ServiceExtensions::default(),
    }
}

/// The lists as `cluster/local/reachable`, endpoints by number, and whether there is any at all.
fn lists(policies: &str, endpoints: &str) -> String {
    let endpoints: Vec<_> = endpoints.split_whitespace().enumerate().map(|(i, e)| endpoint(i, e)).collect();
    let node = NodeInfo { zone: "a".into(), ..NodeInfo::default() };
    let service_port = port(policies);
    let found = CategorizedEndpoints::of(&endpoints, &service_port, &node);
    let numbers = |list: &[&Endpoint]| -> String {
        list.iter().map(|e| e.address.ip().to_string().rsplit('.').next().unwrap_or("?").to_owned()).collect()
    };
    format!("{}/{}/{} {}", numbers(&found.cluster), numbers(&found.local), numbers(&found.reachable), found.any)
}

#[test]
fn endpoints_are_chosen_as_kube_proxy_chooses_them() {
    for (policies, endpoints, expected, why) in [
        ("", "", "// false", "nothing there"),
        ("", "r rL d", "12//12 true", "ready ones, wherever they are"),
        ("", "d d", "// false", "none is usable"),
        ("", "d s sL", "23//23 true", "where none is ready, serving ones"),
        ("", "r s", "1//1 true", "a ready one keeps the terminating ones out"),
        ("internal", "r rL", "/2/2 true", "only this node's"),
        ("internal", "r", "// true", "elsewhere there is one"),
        ("internal", "r sL", "/2/2 true", "a terminating local one is better than a drop"),
        ("internal", "s", "// true", "a terminating one elsewhere counts as one"),
        ("external NodePort", "r rL", "12/2/12 true", "cluster for inside, local for outside"),
        ("external", "r rL", "12//12 true", "a policy without anything external means nothing"),
        ("external NodePort", "r sL", "1/2/12 true", "each list falls back by itself"),
        ("internal external NodePort", "r rL", "12/2/12 true", "the node itself may use node ports everywhere"),
        ("", "ra rb", "1//1 true", "our zone"),
        ("", "ra r", "12//12 true", "one without a hint and hints do not count"),
        ("", "rb rb", "12//12 true", "no hint for us: hints do not count"),
        ("", "ra rb sb", "1//1 true", "only ready ones need hints"),
        ("", "db rb ra", "3//3 true", "unready ones do not count"),
        ("", "sa sb", "12//12 true", "hints do not count in the fallback"),
        ("", "r+ r-", "1//1 true", "our node"),
        ("", "r+b r-a", "1//1 true", "node hints go before zone hints"),
        ("", "r-a r-b", "1//1 true", "no node hint for us: the zone counts"),
        ("external NodePort", "ra rbL", "1/2/12 true", "hints do not touch local traffic"),
    ] {
        assert_eq!(lists(policies, endpoints), expected, "{policies:?} with {endpoints:?}: {why}");
    }
}
