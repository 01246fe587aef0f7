//! Which changes of objects become work, and what is known after them.

use netfilter::IpFamily;
use proxier::model::Scope;
use proxier::model::annotations::END_STALE_CONNECTIONS;
use proxier::track::{Change, Kind, Object, Tracker, Translator};
use serde_json::{Value, json};

/// A tracker of IPv4 with a translator for node `here`.
struct Cluster {
    translator: Translator,
    tracker: Tracker,
}

impl Cluster {
    fn new() -> Self {
        Self { translator: Translator::new("here", false), tracker: Tracker::default() }
    }

    /// Applies an object; whether the kernel has to learn of it.
    fn apply(&mut self, kind: Kind, object: Value) -> Result<bool, Box<dyn std::error::Error>> {
        let translated = self.translator.applied(Object::from_value(kind, object)?)?;
        let ours = translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4);
        Ok(ours.map(|(_, change)| self.tracker.apply(change)).fold(false, |any, one| any | one))
    }

    fn service(&mut self, object: Value) -> bool {
        self.apply(Kind::Service, object).expect("a good Service")
    }

    fn slice(&mut self, object: Value) -> bool {
        self.apply(Kind::EndpointSlice, object).expect("a good EndpointSlice")
    }

    /// The Service ports that the next sync looks at.
    fn pending(&mut self) -> Vec<String> {
        match self.tracker.take_scope() {
            Scope::Full => vec!["everything".to_owned()],
            Scope::Changed(ports) => ports.iter().map(ToString::to_string).collect(),
        }
    }

    fn endpoints(&self, service: &str) -> Vec<String> {
        let snapshot = self.tracker.snapshot(IpFamily::V4.localhost());
        let port = snapshot.ports.keys().find(|port| *port.service.name == *service).expect("a known Service");
        snapshot.endpoints.of(port).iter().map(ToString::to_string).collect()
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "1"},
           "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
           "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

#[test]
fn metadata_is_no_change() {
    let mut cluster = Cluster::new();
    assert!(cluster.service(service("a")));
    assert!(cluster.slice(slice("a-1", "a", &["10.0.0.1"])));
    assert_eq!(cluster.pending(), ["ns/a:http"]);

    let mut again = service("a");
    again["metadata"]["resourceVersion"] = json!("2");
    again["metadata"]["annotations"] = json!({"x": "y"});
    assert!(!cluster.service(again));
    let mut again = slice("a-1", "a", &["10.0.0.1"]);
    again["metadata"]["resourceVersion"] = json!("3");
    again["metadata"]["managedFields"] = json!([{"manager": "m"}]);
    assert!(!cluster.slice(again));
    assert_eq!(cluster.pending(), [] as [&str; 0]);
}

#[test]
fn an_annotation_that_the_proxy_understands_is_a_change() {
    let mut cluster = Cluster::new();
    cluster.service(service("a"));
    cluster.pending();
    let mut annotated = service("a");
    annotated["metadata"]["annotations"] = json!({END_STALE_CONNECTIONS: "true"});
    assert!(cluster.service(annotated.clone()));
    assert_eq!(cluster.pending(), ["ns/a:http"]);
    annotated["metadata"]["annotations"]["x"] = json!("y");
    assert!(!cluster.service(annotated));
}

#[test]
fn a_relabelled_slice_leaves_its_old_service() {
    let mut cluster = Cluster::new();
    cluster.service(service("a"));
    cluster.service(service("b"));
    cluster.slice(slice("s", "a", &["10.0.0.1"]));
    cluster.pending();
    assert!(cluster.slice(slice("s", "b", &["10.0.0.1"])));
    assert_eq!(cluster.pending(), ["ns/a:http", "ns/b:http"]);
    assert_eq!(cluster.endpoints("a"), [] as [&str; 0]);
    assert_eq!(cluster.endpoints("b"), ["10.0.0.1:8080"]);
    let mut unlabelled = slice("s", "b", &["10.0.0.1"]);
    unlabelled["metadata"]["labels"] = json!({});
    assert!(cluster.slice(unlabelled));
    assert_eq!(cluster.endpoints("b"), [] as [&str; 0]);
}

#[test]
fn endpoints_are_in_the_order_of_their_text_and_once() {
    let mut cluster = Cluster::new();
    cluster.service(service("a"));
    cluster.slice(slice("a-1", "a", &["10.0.0.9", "10.0.0.10", "10.0.0.9"]));
    cluster.slice(slice("a-2", "a", &["10.0.0.1", "10.0.0.10"]));
    assert_eq!(cluster.endpoints("a"), ["10.0.0.10:8080", "10.0.0.1:8080", "10.0.0.9:8080"]);
}

#[test]
fn a_list_deletes_what_it_does_not_show() {
    let mut cluster = Cluster::new();
    for kind in [Kind::Service, Kind::EndpointSlice] {
        cluster.tracker.apply(Change::Listing(kind));
    }
    cluster.service(service("a"));
    cluster.service(service("b"));
    assert!(!cluster.tracker.complete());
    assert!(cluster.tracker.apply(Change::Listed(Kind::Service)));
    assert!(cluster.tracker.apply(Change::Listed(Kind::EndpointSlice)));
    assert!(cluster.tracker.complete());
    cluster.pending();

    cluster.tracker.apply(Change::Listing(Kind::Service));
    assert!(!cluster.service(service("b")), "nothing vanishes while the list is under way");
    assert!(cluster.tracker.apply(Change::Listed(Kind::Service)));
    assert_eq!(cluster.pending(), ["ns/a:http"]);
}

#[test]
fn services_for_other_proxies_have_no_ports() {
    let mut cluster = Cluster::new();
    for (field, value) in [
        ("/metadata/labels", json!({"service.kubernetes.io/service-proxy-name": ""})),
        ("/spec/clusterIP", json!("None")),
        ("/spec/clusterIP", json!("")),
        ("/spec/type", json!("ExternalName")),
        ("/spec/clusterIP", json!("fd00::1")),
        ("/spec/ports", Value::Null),
    ] {
        let mut object = service("a");
        object["metadata"]["labels"] = json!({});
        object["spec"]["type"] = json!("ClusterIP");
        *object.pointer_mut(field).expect("a field") = value.clone();
        assert!(!cluster.service(object), "{field} = {value}");
    }
}

#[test]
fn invalid_objects_are_named_with_their_field() {
    let mut cluster = Cluster::new();
    let mut bad_port = service("a");
    bad_port["spec"]["ports"][0]["nodePort"] = json!(70_000);
    let mut bad_protocol = service("a");
    bad_protocol["spec"]["ports"][0]["protocol"] = json!("ICMP");
    let mut bad_ip = service("a");
    bad_ip["spec"]["clusterIP"] = json!("ten");
    for (object, words) in [
        (bad_port, ["Service ns/a", "spec.ports[0].nodePort", "70000"]),
        (bad_protocol, ["Service ns/a", "spec.ports[0].protocol", "ICMP"]),
        (bad_ip, ["Service ns/a", "spec.clusterIP", "ten"]),
        (
            json!({"metadata": {"name": "a\"\n-A INPUT"}}),
            ["Service default/a\\\"\\n-A INPUT is", "metadata.name", "'\\n'"],
        ),
        (json!({"spec": {}}), ["cannot decode Service", "", "metadata.name is missing"]),
        (json!("text"), ["cannot decode Service", "metadata.name is missing", "invalid type"]),
    ] {
        let message = cluster.apply(Kind::Service, object).expect_err("nonsense").to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn source_ranges_of_everything_or_of_the_other_family_restrict_nothing() {
    let mut cluster = Cluster::new();
    for (ranges, expected) in [
        (json!(["10.0.0.0/8 ", " 192.168.1.7/24"]), vec!["10.0.0.0/8", "192.168.1.0/24"]),
        (json!(["10.0.0.0/8", "0.0.0.0/0"]), vec![]),
        (json!(["fd00::/8"]), vec![]),
        (json!(["10.0.0.0/33", "x"]), vec![]),
    ] {
        let mut object = service("a");
        object["spec"]["loadBalancerSourceRanges"] = ranges.clone();
        cluster.service(object);
        let snapshot = cluster.tracker.snapshot(IpFamily::V4.localhost());
        let found: Vec<_> =
            snapshot.ports.values().flat_map(|port| &port.source_ranges).map(ToString::to_string).collect();
        assert_eq!(found, expected, "{ranges}");
    }
}

#[test]
fn service_cidrs_count_each_once_and_only_their_own_family() {
    let mut cluster = Cluster::new();
    let mut cidr = |name: &str, cidrs: &[&str]| {
        let object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
        let differs = cluster.apply(Kind::ServiceCidr, object).expect("a good ServiceCIDR");
        let nets = cluster.tracker.snapshot(IpFamily::V4.localhost()).service_cidrs.to_vec();
        (differs, nets.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let nets = |nets: &[&str]| nets.iter().map(|net| (*net).to_owned()).collect::<Vec<_>>();
    assert_eq!(cidr("a", &["10.96.0.0/12", "fd00::/108"]), (true, nets(&["10.96.0.0/12"])));
    assert_eq!(cidr("b", &["10.96.0.0/12"]), (false, nets(&["10.96.0.0/12"])));
    assert_eq!(cidr("a", &["fd00::/108"]), (false, nets(&["10.96.0.0/12"])), "b has it still");
    assert_eq!(cidr("b", &["10.1.0.0/16", "nonsense"]), (true, nets(&["10.1.0.0/16"])));
    assert_eq!(cidr("b", &[]), (true, nets(&[])));
}

/// Since 1.37 a Service's name may begin with a digit. Objects older than StrictIPCIDRValidation may have addresses with
/// leading zeros and networks with host bits.
#[test]
fn relaxed_service_names_and_addresses_of_old_objects_are_taken() {
    let mut cluster = Cluster::new();
    let mut old = service("1-web");
    old["spec"]["clusterIP"] = json!("010.096.0.01");
    old["spec"]["type"] = json!("LoadBalancer");
    old["spec"]["loadBalancerSourceRanges"] = json!(["192.168.0.1/24", " 10.0.0.0/8"]);
    old["spec"]["trafficDistribution"] = json!("PreferSameNode");
    old["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.000.113.010"}]}});
    assert!(cluster.service(old));
    assert!(cluster.slice(slice("1-web-x", "1-web", &["010.1.0.005"])));
    assert_eq!(cluster.endpoints("1-web"), ["10.1.0.5:8080"]);
    let snapshot = cluster.tracker.snapshot(IpFamily::V4.localhost());
    let (_, port) = snapshot.ports.iter().next().expect("one port");
    assert_eq!(port.cluster_ip.to_string(), "10.96.0.1");
    let ranges: Vec<String> = port.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["192.168.0.0/24", "10.0.0.0/8"]);
    assert_eq!(port.load_balancer_vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.10"]);
}
