//! Tests that kubeadm's configuration in golden/kubeadm is accepted in full and without warnings.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use proxier::model::{LocalDetector, Mode, NodePortAddresses};

use super::*;
use crate::config::{ValidatedConfig, consistency, to_yaml, validate};
use crate::version::{FIRST_MINOR, LAST_MINOR};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kubeadm")
}

/// The text that kubeadm of a minor release (1.x) writes. Since 1.37 it writes the mode (kubernetes/kubernetes 139777).
fn text(kind: &str, minor: u8) -> String {
    let text = std::fs::read_to_string(folder().join(format!("{kind}.conf"))).expect("a configuration");
    if minor >= 37 { text.replace("mode: \"\"", "mode: iptables") } else { text }
}

/// The settings of a node of such a cluster, and the warnings about flags and the mode.
fn of_release(kind: &str, minor: u8) -> (ValidatedConfig, Vec<String>) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let config = std::env::temp_dir().join(format!("kubeadm-{}-{number}.conf", std::process::id()));
    std::fs::write(&config, text(kind, minor)).expect("written");
    let arguments = std::fs::read_to_string(folder().join("arguments.txt")).expect("arguments");
    let arguments = arguments.replace("/var/lib/kube-proxy/config.conf", &config.to_string_lossy());
    let arguments = arguments.replace("$(NODE_NAME)", "Node-A");
    let line = parse(arguments.lines().map(str::to_owned)).unwrap_or_else(|stop| panic!("{}", stop.text));
    assert_eq!(line.deprecations(), Vec::<String>::new());
    let complete = line.complete();
    std::fs::remove_file(&config).expect("removed");
    let complete = complete.expect("a configuration");
    assert_eq!(complete.strict_errors, Vec::<String>::new(), "{kind}");
    let settings = validate(complete.file, "host").unwrap_or_else(|error| panic!("{kind}: {error}"));
    assert_eq!(settings.warnings, Vec::<String>::new(), "{kind}");
    (settings, complete.warnings)
}

/// The settings of a node of a cluster of the newest release, of which no warning is due.
fn of_cluster(kind: &str) -> ValidatedConfig {
    let (settings, warnings) = of_release(kind, LAST_MINOR);
    assert_eq!(warnings, Vec::<String>::new(), "{kind}");
    settings
}

/// The kinds of clusters in golden/kubeadm.
fn kinds() -> Vec<String> {
    let paths = std::fs::read_dir(folder()).expect("golden/kubeadm").map(|entry| entry.expect("an entry").path());
    let configs = paths.filter(|path| path.extension().is_some_and(|end| end == "conf"));
    let kinds: Vec<String> =
        configs.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(kinds.len(), 6);
    kinds
}

/// golden/kubeadm/written has what `--write-config-to` makes of each kind, the same for every release.
#[test]
fn configurations_of_kubeadm_of_every_release_are_written_as_documented() {
    for minor in FIRST_MINOR..=LAST_MINOR {
        for kind in kinds() {
            let (settings, warnings) = of_release(&kind, minor);
            let unset = text(&kind, minor).contains("mode: \"\"");
            assert_eq!(unset, minor < 37 && !["ipvs", "nftables"].contains(&&*kind), "{kind} of 1.{minor}");
            let expected = if unset { vec![file::NO_MODE.to_owned()] } else { Vec::new() };
            assert_eq!(warnings, expected, "{kind} of 1.{minor}");
            let written = to_yaml(&settings.file).expect("YAML");
            let path = folder().join(format!("written/{kind}.yaml"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &written).expect("written");
            }
            assert_eq!(written, std::fs::read_to_string(&path).expect("a file"), "{kind} of 1.{minor}");
        }
    }
}

#[test]
fn kubeadm_configuration_is_decoded_without_warnings() {
    for kind in kinds() {
        let settings = of_cluster(&kind);
        assert_eq!(settings.proxier.node_name, "node-a");
        assert_eq!(settings.client.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    }
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
fn each_kind_of_cluster_gets_its_settings() {
    let (ipvs, nftables, ipv6) = (of_cluster("ipvs"), of_cluster("nftables"), of_cluster("ipv6"));
    assert_eq!((ipvs.mode, &*ipvs.ipvs.scheduler, ipvs.ipvs.strict_arp), (Mode::Ipvs, "rr", true));
    assert_eq!((nftables.mode, &nftables.proxier.node_port_addresses), (Mode::Nftables, &NodePortAddresses::primary()));
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
