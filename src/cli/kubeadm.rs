//! Tests that kubeadm's configuration in golden/kubeadm is accepted in full and without warnings.

use std::path::{Path, PathBuf};

use proxier::model::{LocalDetector, Mode, NodePortAddresses};

use super::*;
use crate::config::{ValidatedConfig, consistency, validate};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kubeadm")
}

/// The settings that a node of such a cluster has; there is nothing to say about them.
fn of_cluster(kind: &str) -> ValidatedConfig {
    let config = folder().join(format!("{kind}.conf"));
    let arguments = std::fs::read_to_string(folder().join("arguments.txt")).expect("arguments");
    let arguments = arguments.replace("/var/lib/kube-proxy/config.conf", &config.to_string_lossy());
    let arguments = arguments.replace("$(NODE_NAME)", "Node-A");
    let line = parse(arguments.lines().map(str::to_owned)).unwrap_or_else(|stop| panic!("{}", stop.text));
    assert_eq!(line.deprecations(), Vec::<String>::new());
    let complete = line.complete().expect("a configuration");
    assert_eq!((complete.strict_errors, complete.warnings), (Vec::new(), Vec::new()), "{kind}");
    let settings = validate(complete.file, "host").unwrap_or_else(|error| panic!("{kind}: {error}"));
    assert_eq!(settings.warnings, Vec::<String>::new(), "{kind}");
    settings
}

#[test]
fn what_kubeadm_writes_is_understood_without_a_word() {
    let mut kinds = 0;
    for entry in std::fs::read_dir(folder()).expect("golden/kubeadm") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|end| end == "conf") {
            let settings = of_cluster(&path.file_stem().expect("a name").to_string_lossy());
            assert_eq!(settings.proxier.node_name, "node-a");
            assert_eq!(settings.client.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
            kinds += 1;
        }
    }
    assert_eq!(kinds, 6);
}

/// All that kubeadm leaves to kube-proxy is what kube-proxy has without a file.
#[test]
fn a_plain_cluster_is_one_of_defaults() {
    let mut file = of_cluster("plain").file;
    assert_eq!(std::mem::take(&mut file.cluster_cidr), "10.244.0.0/16");
    assert_eq!(std::mem::take(&mut file.client_connection.kubeconfig), "/var/lib/kube-proxy/kubeconfig.conf");
    assert_eq!(std::mem::take(&mut file.hostname_override), "node-a");
    assert_eq!(file, crate::config::KubeProxyConfiguration::default().with_defaults());
}

#[test]
fn each_kind_of_cluster_has_what_it_asked_for() {
    let (ipvs, nftables, ipv6) = (of_cluster("ipvs"), of_cluster("nftables"), of_cluster("ipv6"));
    assert_eq!((ipvs.mode, &*ipvs.ipvs.scheduler, ipvs.ipvs.strict_arp), (Mode::Ipvs, "rr", true));
    assert_eq!((nftables.mode, &nftables.proxier.node_port_addresses), (Mode::Nftables, &NodePortAddresses::Primary));
    assert_eq!(ipv6.healthz.map(|address| address.to_string()).as_deref(), Some("[::]:10256"));
    assert_eq!(ipv6.metrics.map(|address| address.to_string()).as_deref(), Some("[::1]:10249"));
    let LocalDetector::ClusterCidr(nets) = of_cluster("dual-stack").proxier.local_detector else {
        panic!("by network")
    };
    assert_eq!(nets.len(), 2);
    // The one thing to be said, as kube-proxy says it.
    assert_eq!(consistency::check_config(&of_cluster("plain")).len(), 1);
    assert_eq!(consistency::check_config(&nftables).len(), 0);
}
