//! Pods that connect to their own Service over a bridge without hairpin mode, or without masquerading.
//!
//! Connections and the diagnosis must agree.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use golden::cluster::eventually;
use golden::flavour::Flavour;
use golden::netns::{Netns, veth};

use super::node::Node;

const SERVICE: &str = "10.96.10.12:80";
const POD: &str = "10.244.1.5";
const OTHER: &str = "10.244.1.6";

/// A pod behind port `pod5` of bridge `cbr0`, which is the endpoint of that Service and listens.
struct OnBridge {
    node: Node,
    pod: Netns,
    /// Another pod of the bridge, behind port `pod6`.
    other: Netns,
    _listener: TcpListener,
}

impl OnBridge {
    fn new() -> Self {
        Self::on(Node::recorded("003-clusterip-1-endpoint", Flavour::Nft))
    }

    fn on(mut node: Node) -> Self {
        let (pod, other) = (Netns::new(), Netns::new());
        node.lab.remove_pods();
        node.lab.node().run("ip link add cbr0 type bridge");
        veth(node.lab.node(), "pod5", &pod, "eth0");
        for line in ["ip addr add 10.244.1.1/24 dev cbr0", "ip link set pod5 master cbr0", "ip link set cbr0 up"] {
            node.lab.node().run(line);
        }
        veth(node.lab.node(), "pod6", &other, "eth0");
        node.lab.node().run("ip link set pod6 master cbr0");
        for (netns, address) in [(&pod, POD), (&other, OTHER)] {
            netns.run(&format!("ip addr add {address}/24 dev eth0"));
            netns.run("ip route add default via 10.244.1.1");
        }
        let listener = pod.enter(|| TcpListener::bind((POD, 8080)).expect("a port"));
        let on_bridge = Self { node, pod, other, _listener: listener };
        on_bridge.bridge_calls_iptables(1);
        on_bridge.hairpin("on");
        on_bridge
    }

    fn bridge_calls_iptables(&self, value: i64) {
        self.node.sysctl("net/bridge/bridge-nf-call-iptables", value);
    }

    fn hairpin(&self, word: &str) {
        for port in ["pod5", "pod6"] {
            self.node.lab.node().run(&format!("ip link set {port} type bridge_slave hairpin {word}"));
        }
    }

    /// Whether the pod gets through to itself, which may take that long.
    fn gets_through(&self, limit: Duration) -> bool {
        let to: SocketAddr = SERVICE.parse().expect("an address");
        self.pod.enter(|| TcpStream::connect_timeout(&to, limit).is_ok())
    }

    /// What is found of connections of the pod to itself.
    fn found(&self) -> Vec<String> {
        self.node.diagnose(&format!("{SERVICE} --from {POD}")).0
    }

    #[track_caller]
    fn healthy(&self) {
        assert!(self.gets_through(Duration::from_secs(10)));
        assert_eq!(self.found(), [""; 0]);
    }
}

#[test]
fn a_pod_behind_a_port_that_sends_nothing_back_is_named() {
    let pod = OnBridge::new();
    pod.healthy();
    pod.hairpin("off");
    assert!(!pod.gets_through(Duration::from_millis(500)));
    assert_eq!(pod.found(), ["hairpin"]);
    // A connection of another client does not fail for this reason, and the client is not given.
    assert_eq!(pod.node.diagnose(SERVICE), (vec!["hairpin?".to_owned()], 2));
    // Another port of the bridge has it, but the kernel knows that the pod is not there.
    pod.node.lab.node().run("ip link set pod6 type bridge_slave hairpin on");
    // All namespaces share the room for neighbours: what was heard may be forgotten until the pod sends again.
    eventually("the port is known", Duration::from_secs(30), || {
        !pod.gets_through(Duration::from_millis(200)) && pod.found() == ["hairpin"]
    });
    // A bridge that does not show packets to the rules lets them go to the node, which sends them back.
    pod.bridge_calls_iptables(0);
    assert!(pod.gets_through(Duration::from_secs(10)));
    assert!(!pod.found().iter().any(|cause| cause.starts_with("hairpin")));
}

#[test]
fn pod_without_masquerading_is_reported() {
    let pod = OnBridge::new();
    pod.node.iptables(&format!(
        "-t nat -D KUBE-SEP-SA5H4ODZBICXEPBI -s {POD}/32 -m comment --comment default/local:http -j KUBE-MARK-MASQ"
    ));
    assert!(!pod.gets_through(Duration::from_millis(500)));
    assert_eq!(pod.found(), ["rules-altered", "hairpin"]);
    let without_objects = super::node::diagnosis(&pod.node.run(&format!("diagnose -o json {SERVICE} --from {POD}")));
    assert_eq!(without_objects, (vec!["hairpin".to_owned()], 1));
}

#[test]
fn bridge_that_shows_no_packets_to_the_rules_matters_to_pods_of_that_bridge_alone() {
    let recorded = |flavour| Node::recorded("003-clusterip-1-endpoint", flavour);
    let nodes = [recorded(Flavour::Nft), recorded(Flavour::Legacy), Node::our_tables("003-clusterip-1-endpoint")];
    for on_bridge in nodes.map(OnBridge::on) {
        let to: SocketAddr = SERVICE.parse().expect("an address");
        let limit = |works: bool| Duration::from_millis(if works { 10_000 } else { 500 });
        let connects = |netns: &Netns, works| netns.enter(|| TcpStream::connect_timeout(&to, limit(works)).is_ok());
        let found = |words: &str| on_bridge.node.diagnose(&format!("{SERVICE} {words}"));
        let outside = "--from 198.51.100.7 --in-interface eth0";
        let from_pod = format!("--from {OTHER}");
        for (value, works) in [(1, true), (0, false)] {
            on_bridge.bridge_calls_iptables(value);
            assert_eq!(connects(&on_bridge.other, works), works, "{value}");
            assert!(connects(on_bridge.node.lab.node(), true), "{value}");
            for elsewhere in [outside, "--from host"] {
                assert_eq!(found(elsewhere), (vec![], 0), "{value} {elsewhere}");
            }
            let causes = if works { vec![] } else { vec!["bridge-netfilter-off".to_owned()] };
            for sender in [&*from_pod, ""] {
                assert_eq!(found(sender), (causes.clone(), i32::from(!works)), "{value} {sender}");
            }
        }
    }
}
