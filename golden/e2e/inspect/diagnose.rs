//! `kube-proxy diagnose`: each cause provoked, and a healthy node.

use golden::flavour::Flavour;
use golden::netns::Netns;
use netfilter::IpFamily;
use netfilter::kernel::{Host, SystemHost};

use super::node::{Node, json};

const LOCAL: &str = "402-both-local";

pub fn causes(node: &Node, words: &str) -> Vec<String> {
    let (causes, status) = node.diagnose(words);
    let certain = causes.iter().any(|cause| !cause.ends_with('?'));
    let expected = if certain {
        1
    } else if causes.is_empty() {
        0
    } else {
        2
    };
    assert_eq!(status, expected, "{words}: {causes:?}");
    causes
}

/// Nodes with the rules of a case: of iptables mode, and of nftables mode by the real one and by ours.
fn of_each_mode(case: &str) -> [Node; 3] {
    [Node::recorded(case, Flavour::Nft), Node::recorded_tables(case), Node::our_tables(case)]
}

#[test]
fn a_healthy_node_has_no_cause() {
    for (case, service) in [(LOCAL, "default/with-local"), ("003-clusterip-1-endpoint", "default/local")] {
        for flavour in Flavour::ALL {
            let node = Node::recorded(case, flavour);
            assert_eq!(causes(&node, service), [""; 0], "{case} {flavour}");
        }
    }
    let node = Node::recorded(LOCAL, Flavour::Nft);
    assert_eq!(causes(&node, "10.96.10.11:80"), [""; 0]);
    assert_eq!(causes(&node, "192.168.50.2:30081/tcp --from outside"), [""; 0]);
}

#[test]
fn causes_in_the_service_are_named() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    assert_eq!(causes(&node, "default/gone"), ["no-such-service"]);
    assert_eq!(causes(&node, "10.96.99.99:80"), ["no-such-service"]);
    assert_eq!(causes(&node, "default/kubernetes"), ["no-endpoints"]);
    assert_eq!(causes(&node, "10.96.0.1:443/tcp"), ["no-endpoints"]);
    assert_eq!(causes(&node, "default/no-local"), ["no-local-endpoints"]);
    let node = Node::recorded("410-conditions-clusterip", Flavour::Nft);
    let text = std::fs::read_to_string(&node.objects).expect("objects");
    let dump = node.dump();
    let services = dump["services"].as_array().expect("services").iter();
    let unready = services.filter(|s| {
        let endpoints = s["endpoints"].as_array().cloned().unwrap_or_default();
        !endpoints.is_empty() && endpoints.iter().all(|e| e["unused"] == "it is not ready")
    });
    let unready: Vec<&str> = unready.filter_map(|s| s["name"].as_str()?.split(':').next()).collect();
    assert!(!unready.is_empty(), "{text}");
    assert_eq!(causes(&node, unready[0]), ["endpoints-not-ready"]);
    let node = Node::recorded("210-lb-source-ranges", Flavour::Nft);
    let dump = node.dump();
    let ranged = dump["services"]
        .as_array()
        .expect("services")
        .iter()
        .find(|s| s["family"] == "IPv4" && s["source_ranges"].as_array().is_some_and(|ranges| !ranges.is_empty()));
    let vips = ranged.expect("a Service with ranges")["addresses"].as_array().expect("addresses").clone();
    let vip = vips.iter().find(|a| a["kind"] == "LoadBalancer").expect("a VIP");
    let to = format!("{}:{}/tcp", vip["ip"].as_str().expect("an address"), vip["port"]);
    assert_eq!(causes(&node, &format!("{to} --from 192.0.2.200")), ["source-range-refuses"]);
}

#[test]
fn a_foreign_rule_that_diverts_a_services_packets_is_named() {
    // Beside a table of nftables mode, with the same hook and priority, the order of registration decides, which NAT chains
    // do not tell.
    let certain = ["diverted-by-others"].as_slice();
    let doubted = ["diverted-by-others?", "not-understood?"].as_slice();
    for (node, expected) in of_each_mode(LOCAL).into_iter().zip([certain, doubted, doubted]) {
        node.iptables("-t nat -I PREROUTING -p tcp --dport 30081 -j DNAT --to-destination 172.17.0.2:80");
        assert_eq!(causes(&node, "192.168.50.2:30081/tcp --from outside"), expected);
        let said = node.run("diagnose 192.168.50.2:30081/tcp --from outside -o wide");
        let said = String::from_utf8_lossy(&said.stdout).replace("\n  ", " ");
        assert!(said.contains("172.17.0.2:80, which is no endpoint") && said.contains("--dport 30081"), "{said}");
    }
}

#[test]
fn connections_of_a_local_pod_are_followed_by_default() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    node.iptables("-I FORWARD -p tcp -j DROP");
    let diagnosis = json(&node.run_with_objects("diagnose 10.96.10.11:80 -o json"));
    let followed = diagnosis["followed"].as_array().expect("a list");
    assert_eq!(followed.len(), 2, "{diagnosis}");
    assert_eq!(followed[0], "host -> 10.96.10.11:80/tcp");
    assert_eq!(diagnosis["findings"][0]["cause"], "refused-by-others", "{diagnosis}");
}

#[test]
fn unread_state_is_neither_healthy_nor_a_certain_cause() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    let no_server = node.run("diagnose default/with-local --master http://127.0.0.1:9 --timeout 2s");
    let said = String::from_utf8_lossy(&no_server.stdout).into_owned();
    assert_eq!(no_server.status.code(), Some(2), "{said}");
    assert!(said.contains("could not read objects") && said.contains("not all could be read"), "{said}");
    let program = env!("CARGO_BIN_EXE_kube-proxy");
    let no_rights = format!("setpriv --reuid 65534 --regid 65534 --clear-groups {program} diagnose default/with-local");
    let no_rights = node.lab.node().try_run(&no_rights);
    let said = String::from_utf8_lossy(&no_rights.stdout).into_owned();
    assert_eq!(no_rights.status.code(), Some(2), "{said}{}", String::from_utf8_lossy(&no_rights.stderr));
    assert!(!said.contains("CAUSE"), "{said}");
    let flag = node.run("diagnose default/with-local --proxy-mode iptables");
    assert_eq!(flag.status.code(), Some(0), "{}", String::from_utf8_lossy(&flag.stderr));
    let mistyped = node.run("diagnose default/with-local --form host");
    let said = String::from_utf8_lossy(&mistyped.stderr).into_owned();
    assert!(mistyped.status.code() == Some(22) && said.contains("unknown flag: --form"), "{said}");
    let interface = node.run("diagnose 10.96.10.11:80 --from 10.9.9.9 --in-interface nope");
    let said = String::from_utf8_lossy(&interface.stderr).into_owned();
    assert!(interface.status.code() == Some(2) && said.contains("no interface nope"), "{said}");
    let interface = node.run("trace --from 10.9.9.9 --to 10.96.10.11:80 --in-interface nope");
    assert_eq!(interface.status.code(), Some(1));
    // A node without a default route: nothing can be followed from outside.
    let _ = node.lab.node().run("ip route flush default");
    let no_route = node.run("diagnose 192.168.50.2:30081/tcp --from outside");
    let said = String::from_utf8_lossy(&no_route.stderr).into_owned();
    assert!(no_route.status.code() == Some(2) && said.contains("no route to"), "{said}");
    let no_port = node.run("diagnose 10.96.10.11");
    let said = String::from_utf8_lossy(&no_port.stderr).into_owned();
    assert!(no_port.status.code() == Some(22) && said.contains("give the port too"), "{said}");
    assert_eq!(node.run("diagnose 10.96.10.11:80/icmp").status.code(), Some(22), "an address is no name of a Service");
}

#[test]
fn causes_in_the_rules_are_named() {
    let node = Node::empty(LOCAL, Flavour::Nft);
    assert_eq!(causes(&node, "default/with-local")[0], "no-proxy");
    let node = Node::recorded(LOCAL, Flavour::Nft);
    node.iptables("-t nat -F KUBE-SVL-3FNP6KDT3RDA4WFJ");
    assert_eq!(causes(&node, "default/with-local"), ["rules-altered", "not-translated"]);
    let (without_objects, status) = super::node::diagnosis(&node.run("diagnose -o json default/with-local"));
    assert_eq!((&*without_objects[0], status), ("rules-altered", 1));
    let node = Node::recorded(LOCAL, Flavour::Nft);
    node.iptables("-t nat -D PREROUTING 1");
    assert_eq!(causes(&node, "default/with-local")[0], "rules-altered");
    let node = Node::recorded(LOCAL, Flavour::Nft);
    node.restore(IpFamily::V4, Flavour::Nft, "*filter\n:FIREWALL-X - [0:0]\n-I FORWARD -d 10.244.0.0/16 -j FIREWALL-X\n-A FIREWALL-X -p tcp -j DROP\nCOMMIT\n");
    assert_eq!(causes(&node, "203.0.113.11:80 --from outside"), ["refused-by-others"]);
}

#[test]
fn emptied_dispatch_without_objects_is_reported_as_altered_rules() {
    let is_altered = |node: &Node| {
        for target in ["10.96.10.11:80", "default/with-local"] {
            let (causes, status) = super::node::diagnosis(&node.run(&format!("diagnose -o json {target}")));
            assert_eq!(
                (causes.first().map(String::as_str), status),
                (Some("rules-altered"), 1),
                "{target}: {causes:?}"
            );
            assert!(!causes.iter().any(|cause| cause.starts_with("no-such-service")), "{target}: {causes:?}");
        }
    };
    for flavour in Flavour::ALL {
        let node = Node::recorded(LOCAL, flavour);
        node.iptables("-t nat -F KUBE-SERVICES");
        is_altered(&node);
    }
    let node = Node::recorded_tables(LOCAL);
    node.nft("flush map ip kube-proxy service-ips\nflush map ip kube-proxy service-nodeports\n");
    is_altered(&node);
}

#[test]
fn service_whose_dispatch_rule_is_gone_may_exist() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    node.iptables("-t nat -D KUBE-SERVICES 1");
    let (causes, status) = super::node::diagnosis(&node.run("diagnose -o json 10.96.10.12:80"));
    assert_eq!((causes, status), (vec!["no-such-service?".to_owned()], 2));
}

#[test]
fn node_in_ipvs_mode_is_reported_and_not_misread() {
    let node = Node::empty(LOCAL, Flavour::Nft);
    let text = "*filter\n:KUBE-IPVS-FILTER - [0:0]\n-A INPUT -j KUBE-IPVS-FILTER\nCOMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n\
        -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";
    node.restore(IpFamily::V4, Flavour::Nft, text);
    let (without_objects, status) = super::node::diagnosis(&node.run("diagnose -o json default/with-local"));
    assert_eq!((without_objects, status), (vec!["not-understood?".to_owned()], 2));
    // Of IPVS there is nothing here but these rules.
    assert_eq!(causes(&node, "default/with-local"), ["rules-altered"]);
    let dump = node.dump();
    assert_eq!(dump["facts"]["mode"], "ipvs");
    let differences = dump["differences"].as_array().expect("differences");
    assert!(differences.iter().any(|d| d["kind"] == "missing_virtual_server"), "{differences:?}");
}

#[test]
fn rules_in_both_flavours_and_two_proxies_are_named() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    node.restore(
        IpFamily::V4,
        Flavour::Legacy,
        "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n",
    );
    assert_eq!(causes(&node, "default/local"), [""; 0], "a chain without rules");
    node.restore(IpFamily::V4, Flavour::Legacy, "*nat\n-A KUBE-SERVICES -d 10.96.99.99/32 -j RETURN\nCOMMIT\n");
    assert_eq!(causes(&node, "default/local"), ["wrong-flavour"]);
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    node.lab.node().run("nft add table ip kube-proxy");
    assert_eq!(causes(&node, "default/local"), ["two-proxies"]);
    // Two processes of that name; what they are does not matter.
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    let fake = node.lab.dir().join("kube-proxy");
    std::os::unix::fs::symlink("/bin/sleep", &fake).expect("a link");
    let start = || node.lab.node().command(&fake.to_string_lossy()).arg("600").spawn().expect("it runs");
    let mut running = [start(), start()];
    let found = causes(&node, "default/local");
    running.iter_mut().for_each(|child| {
        child.kill().expect("killed");
        child.wait().expect("ended");
    });
    assert_eq!(found, ["two-proxies"]);
}

#[test]
fn a_stale_udp_flow_is_named() {
    let node = Node::recorded("009-protocols-on-one-port", Flavour::Nft);
    let dump = node.dump();
    let services = dump["services"].as_array().expect("services");
    let udp = services.iter().find(|s| {
        s["protocol"] == "udp" && s["family"] == "IPv4" && s["endpoints"].as_array().is_some_and(|e| !e.is_empty())
    });
    let udp = udp.expect("a UDP Service");
    let to = (
        udp["addresses"][0]["ip"].as_str().expect("an address"),
        udp["addresses"][0]["port"].as_u64().expect("a port"),
    );
    // A flow of an endpoint that is gone.
    node.lab.node().run(&format!(
        "conntrack -I -p udp -s 192.168.50.2 -d {} --sport 5000 --dport {} -r 10.244.9.9 -q 192.168.50.2 --reply-port-src 53 \
         --reply-port-dst 5000 -t 600 -u SEEN_REPLY",
        to.0, to.1
    ));
    let service = udp["name"].as_str().and_then(|name| name.split(':').next()).expect("a name");
    assert_eq!(causes(&node, service), ["stale-udp-flow"]);
}

#[test]
fn a_full_conntrack_table_is_named() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    // None of them may go before the last one is there, however slow the machine is.
    node.sysctl("net/netfilter/nf_conntrack_udp_timeout", 3600);
    let (full, nearly) = node.lab.node().enter(|| {
        let number = |name: &str| SystemHost.sysctl(&format!("net/netfilter/nf_conntrack_{name}")).expect("conntrack");
        let max = number("max");
        assert!(max < 2_000_000, "{max} flows would take too long");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut next = 0_u32;
        // Without a listener, each packet is a new flow, and may get an error about an earlier one.
        let mut fill = |thousandths: i64| {
            for _ in 0..2 * max {
                if next.is_multiple_of(1024) && number("count") * 1000 >= number("max") * thousandths {
                    return true;
                }
                let [_, a, b, c] = next.to_be_bytes();
                let _ = socket.send_to(b"?", (std::net::Ipv4Addr::new(127, 1 + a, b, c), 9));
                next += 1;
            }
            false
        };
        let nearly = fill(920);
        let found = causes(&node, "default/local");
        (fill(995), (nearly, found))
    });
    assert_eq!(nearly, (true, vec!["conntrack-full?".to_owned()]));
    assert!(full);
    assert_eq!(causes(&node, "default/local"), ["conntrack-full"]);
}

#[test]
fn causes_in_the_node_are_named() {
    of_each_mode("003-clusterip-1-endpoint").iter_mut().for_each(causes_in_the_node);
}

fn causes_in_the_node(node: &mut Node) {
    let service = "default/local";
    node.sysctl("net/ipv4/ip_forward", 0);
    assert_eq!(causes(node, service), ["ip-forward-off"]);
    node.sysctl("net/ipv4/ip_forward", 1);
    node.sysctl("net/ipv4/conf/all/rp_filter", 1);
    for line in [
        "ip link add eth8 type veth peer name eth9",
        "ip addr add 192.0.2.9/24 dev eth9",
        "ip link set eth9 up",
        "ip link set eth8 up",
    ] {
        node.lab.node().run(line);
    }
    assert_eq!(causes(node, service), ["reverse-path-filter?"]);
    let wrong_way = "10.96.10.12:80 --from 198.51.100.7 --in-interface eth9";
    assert_eq!(causes(node, wrong_way)[0], "reverse-path-filter");
    node.lab.node().run("ip link del eth9");
    node.sysctl("net/ipv4/conf/all/rp_filter", 0);
    assert_eq!(causes(node, service), [""; 0]);
    // A bridge with a pod on it, as the endpoint is on this node.
    node.lab.remove_pods();
    let pod = Netns::new();
    node.lab.node().run("ip link add cbr0 type bridge");
    golden::netns::veth(node.lab.node(), "pod5", &pod, "eth0");
    node.lab.node().run("ip link set pod5 master cbr0");
    node.lab.node().run("ip link set cbr0 up");
    node.lab.node().run("ip addr add 10.244.1.1/24 dev cbr0");
    node.lab.node().run("ip addr add fd00:10:244:1::1/64 dev cbr0 nodad");
    node.sysctl("net/bridge/bridge-nf-call-iptables", 0);
    assert_eq!(causes(node, service), ["bridge-netfilter-off", "hairpin?"]);
    node.sysctl("net/bridge/bridge-nf-call-iptables", 1);
    assert_eq!(causes(node, service), ["hairpin?"]);
    node.lab.node().run("ip link set pod5 type bridge_slave hairpin on");
    assert_eq!(causes(node, service), [""; 0]);
    node.lab.node().run("ip link add vxlan0 type vxlan id 1 dev eth0 dstport 4789");
    node.lab.node().run("ip link set vxlan0 up");
    assert_eq!(causes(node, service), [""; 0]);
    node.lab.node().run("ip link set eth0 mtu 1400");
    assert_eq!(causes(node, service), ["mtu?"]);
}

#[test]
fn an_address_that_works_has_no_cause_though_another_of_its_service_fails() {
    let node = Node::recorded(LOCAL, Flavour::Nft);
    assert_eq!(causes(&node, "10.96.10.11:80 --from node"), [""; 0]);
    // The cluster IP of a Service whose load balancer address fails from outside.
    assert_eq!(causes(&node, "default/no-local"), ["no-local-endpoints"]);
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    node.iptables("-t nat -A KUBE-SERVICES -d 10.96.10.12/32 -p tcp --dport 80 -j RETURN");
    assert_eq!(causes(&node, "10.96.10.12:80"), ["rules-altered?"], "what is altered is not what fails");
}

#[test]
fn another_port_of_a_service_is_named_with_the_ones_it_has() {
    let case = "003-clusterip-1-endpoint";
    for node in of_each_mode(case).into_iter().chain([Node::recorded(case, Flavour::Legacy)]) {
        assert_eq!(causes(&node, "10.96.10.12:443"), ["no-such-port"]);
        let said = node.run("diagnose 10.96.10.12:443 --from host");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("is the cluster IP of default/local, which has port 80/tcp"), "{said}");
    }
}

#[test]
fn a_policy_of_the_flavour_that_is_not_in_use_is_named() {
    for flavour in Flavour::ALL {
        let node = Node::recorded("003-clusterip-1-endpoint", flavour);
        let other = if flavour == Flavour::Nft { Flavour::Legacy } else { Flavour::Nft };
        node.lab.node().run(&format!("iptables-{other} -P FORWARD DROP"));
        assert_eq!(causes(&node, "10.96.10.12:80 --from outside")[0], "refused-by-others", "{flavour}");
        let said = node.run("diagnose 10.96.10.12:80 --from outside");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("filter FORWARD"), "{said}");
    }
}

#[test]
fn missing_routes_and_links_that_are_down_are_named() {
    of_each_mode("003-clusterip-1-endpoint").iter_mut().for_each(routes_and_links);
}

fn routes_and_links(node: &mut Node) {
    node.lab.node().run("ip route del 10.244.1.5");
    let route = |words: &str| node.lab.node().run(&format!("ip route {words}"));
    for (kind, words) in [("blackhole", "blackhole"), ("unreachable", "unreachable"), ("prohibit", "prohibit")] {
        route(&format!("replace {kind} 10.244.1.5"));
        assert_eq!(causes(node, "10.96.10.12:80 --from host"), ["no-route"], "{kind}");
        let said = node.run("diagnose 10.96.10.12:80 --from host");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(words) && said.contains("10.244.1.5:8080"), "{said}");
    }
    route("del prohibit 10.244.1.5");
    for line in
        ["ip link add pod5 type veth peer name pod5b", "ip link set pod5 up", "ip route add 10.244.1.5 dev pod5"]
    {
        node.lab.node().run(line);
    }
    assert_eq!(causes(node, "10.96.10.12:80 --from host"), ["link-down"], "the other end is down");
    let traced = json(&node.run("trace --from host --to 10.96.10.12:80 -o json"));
    assert_eq!(
        (&traced["branches"][0]["verdict"], &traced["certain"]),
        (&"dropped".into(), &true.into()),
        "{traced:#}"
    );
    assert!(traced.to_string().contains("pod5: the interface has no carrier"), "{traced:#}");
    node.lab.node().run("ip link set pod5b up");
    assert_eq!(causes(node, "10.96.10.12:80 --from host"), [""; 0]);
    // The route goes with the link.
    node.lab.node().run("ip link set pod5 down");
    assert_eq!(causes(node, "10.96.10.12:80 --from host"), ["link-down?"]);
}

#[test]
fn a_tool_that_hangs_costs_ten_seconds_and_is_named() {
    let node = Node::recorded("003-clusterip-1-endpoint", Flavour::Nft);
    let folder = node.lab.dir().join("hanging");
    std::fs::create_dir(&folder).expect("a folder");
    for name in ["iptables-nft", "iptables-nft-save", "ip6tables-nft", "ip6tables-nft-save", "iptables", "ip6tables"] {
        let path = folder.join(name);
        std::fs::write(&path, "#!/bin/sh\nsleep 100\n").expect("a script");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it may be run");
    }
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let diagnose = || {
        let mut command = node.lab.node().command(env!("CARGO_BIN_EXE_kube-proxy"));
        let output = command.args(["diagnose", "default/local"]).env("PATH", &path).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).replace('\n', " "))
    };
    let (status, said) = diagnose();
    assert_eq!(status, Some(0), "the tool is not needed for these rules: {said}");
    node.iptables("-I FORWARD -p tcp -m length --length 1:9 -j DROP");
    let started = std::time::Instant::now();
    let (status, said) = diagnose();
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("timed out after") && said.contains("iptables") && !said.contains("CAUSE"), "{said}");
    assert!(started.elapsed() < std::time::Duration::from_secs(30), "{:?}", started.elapsed());
}
