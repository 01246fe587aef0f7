//! Invalid settings, and settings without effect.

use golden::node::Node;

use super::World;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Runs the program with a configuration file and returns its exit code and log.
fn with_config(text: &str) -> (Option<i32>, String) {
    let World { mut node, folder } = World::new();
    let config = node.dir().join("config.yaml");
    std::fs::write(&config, text).expect("written");
    node.start(&["--config", &config.to_string_lossy(), "--objects", &folder.to_string_lossy()]);
    let status = node.wait();
    assert!(!node.rules().contains("KUBE-"), "nothing is done with a bad configuration");
    (status.code(), node.log())
}

#[test]
fn invalid_value_exits_with_1_and_names_its_field() {
    let cases = [
        ("mode: userspace\n", ["Mode", "userspace"]),
        ("mode: 5\n", ["mode", "5"]),
        ("iptables: {masqueradeBit: 32}\n", ["MasqueradeBit", "32"]),
        ("iptables: {masqueradeBit: many}\n", ["iptables.masqueradeBit", "many"]),
        ("iptables: {syncPeriod: 5}\n", ["iptables.syncPeriod", "5"]),
        ("iptables: {syncPeriod: -5s}\n", ["SyncPeriod", "-5s"]),
        ("iptables: {syncPeriod: 1s, minSyncPeriod: 5s}\n", ["SyncPeriod", "5s"]),
        ("iptables: {syncPeriod: 1y}\n", ["iptables.syncPeriod", "1y"]),
        ("clusterCIDR: 10.0.0.0/8,10.1.0.0/33\n", ["ClusterCIDRs[1]", "10.1.0.0/33"]),
        ("clusterCIDR: 10.0.0.0/8,10.1.0.0/16\n", ["ClusterCIDRs", "10.1.0.0/16"]),
        ("nodePortAddresses: [10.0.0.0/8, here]\n", ["NodePortAddresses[1]", "here"]),
        ("nodePortAddresses: primary\n", ["nodePortAddresses", "primary"]),
        ("bindAddress: localhost\n", ["BindAddress", "localhost"]),
        ("healthzBindAddress: 0.0.0.0:70000\n", ["HealthzBindAddress", "70000"]),
        ("metricsBindAddress: :10249\n", ["MetricsBindAddress", "must be a valid IP"]),
        ("detectLocalMode: Guess\n", ["DetectLocalMode", "Guess"]),
        ("detectLocalMode: BridgeInterface\n", ["InterfaceName", "must not be empty"]),
        ("featureGates: {AllowServiceExternalIPs: maybe}\n", ["featureGates.AllowServiceExternalIPs", "maybe"]),
        ("clientConnection: {kubeconfig: [1]}\n", ["clientConnection.kubeconfig", "sequence"]),
    ];
    for (text, parts) in cases {
        let (code, log) = with_config(&format!("{HEAD}{text}"));
        assert_eq!(code, Some(1), "{text}{log}");
        assert!(parts.iter().all(|part| log.contains(part)), "{parts:?} in the answer to {text}{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn text_without_a_configuration_exits_with_1() {
    let cases = [
        ("", "Kind"),
        ("kind: KubeProxyConfiguration\n", "version"),
        ("apiVersion: v1\nkind: Pod\n", "Pod"),
        ("apiVersion: [\n", "config.yaml"),
        (&format!("{HEAD}mode: \"iptables\n"), "config.yaml"),
        (&format!("{HEAD}iptables:\n  syncPeriod: 1s\n syncPeriod: 2s\n"), "config.yaml"),
    ];
    for (text, part) in cases {
        let (code, log) = with_config(text);
        assert_eq!(code, Some(1), "{text}{log}");
        assert!(log.contains(part), "{part:?} in the answer to {text}{log}");
    }
    let mut node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
    node.start(&["--config", "/no/such/file"]);
    assert_eq!(node.wait().code(), Some(1));
    assert!(node.log().contains("/no/such/file"), "{}", node.log());
}

#[test]
fn fields_that_are_unknown_or_without_effect_are_warned_about() {
    let World { mut node, folder } = World::new();
    let config = node.dir().join("config.yaml");
    let text = "mode: iptables\nmode: iptables\nfancy: true\niptables:\n  syncperiod: 1s\nwinkernel: {enableDSR: true}\n\
                featureGates: {NFTablesProxyMode: true, PreferSameTrafficDistribution: false}\n";
    std::fs::write(&config, format!("{HEAD}{text}")).expect("written");
    node.start(&["--config", &config.to_string_lossy(), "--objects", &folder.to_string_lossy()]);
    node.until_endpoints("default/web:http", &["10.244.2.5:8080"]);
    for parts in [
        ["lenient", "unknown field \\\"fancy\\\""],
        ["lenient", "unknown field \\\"iptables.syncperiod\\\""],
        ["lenient", "mode"],
        ["winkernel", "has no effect here"],
        ["Setting GA feature gate", "NFTablesProxyMode=true"],
        ["PreferSameTrafficDistribution=false has no effect", "locked to true since Kubernetes 1.35"],
    ] {
        node.until_logged(&parts);
    }
}

#[test]
fn invalid_command_lines_exit_with_1() {
    let cases: [(&[&str], &str); 8] = [
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--objects"], "--objects"),
        (&["--masquerade-all=maybe"], "maybe"),
        (&["--iptables-sync-period=-5s"], "-5s"),
        (&["--iptables-masquerade-bit=-1"], "-1"),
        (&["--proxy-mode=ebpf"], "ebpf"),
        (&["--objects", "/no/such/folder"], "/no/such/folder"),
        (&["surprise"], "surprise"),
    ];
    for (arguments, part) in cases {
        let mut node = Node::new(env!("CARGO_BIN_EXE_kube-proxy"));
        node.start(arguments);
        let status = node.wait();
        assert_eq!(status.code(), Some(1), "{arguments:?}\n{}", node.log());
        assert!(node.log().contains(part), "{part:?} in the answer to {arguments:?}\n{}", node.log());
        assert!(!node.rules().contains("KUBE-SERVICES"), "nothing is done");
    }
}
