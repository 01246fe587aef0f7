//! Validation and translation of configurations.

use super::super::file::{Iptables, Ipvs};
use super::*;

fn settings_of(file: KubeProxyConfiguration) -> Result<ValidatedConfig, String> {
    validate(file.with_defaults(), " Host-A ").map_err(|error| error.to_string())
}

#[test]
fn defaults_are_kube_proxys() {
    let settings = settings_of(KubeProxyConfiguration::default()).expect("defaults are valid");
    assert_eq!(settings.proxier.node_name, "host-a");
    assert_eq!(settings.healthz.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10256"));
    assert_eq!(settings.metrics.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:10249"));
    assert_eq!(settings.proxier.masquerade_mark(), 0x4000);
}

#[test]
fn every_invalid_field_is_reported_at_once_with_its_value() {
    let file = KubeProxyConfiguration {
        mode: "userspace".to_owned(),
        cluster_cidr: "10.0.0.0/8,x".to_owned(),
        bind_address: "here".to_owned(),
        node_port_addresses: vec!["10.0.0.1".to_owned()],
        iptables: Iptables { masquerade_bit: Some(32), ..Default::default() },
        ..KubeProxyConfiguration::default()
    };
    let errors = settings_of(file).expect_err("all of it is wrong");
    for part in [
        "failed validate: [KubeProxyConfiguration.",
        "Mode.ProxyMode: Invalid value: \"userspace\": must be iptables, ipvs, nftables",
        "ClusterCIDRs[1]: Invalid value: \"x\"",
        "BindAddress: Invalid value: \"here\"",
        "NodePortAddresses[0]: Invalid value: \"10.0.0.1\"",
        "KubeProxyIPTablesConfiguration.MasqueradeBit: Invalid value: 32: must be within the range [0, 31]",
    ] {
        assert!(errors.contains(part), "{part} in {errors}");
    }
}

#[test]
fn blanks_in_cluster_cidr_are_ignored() {
    let file = KubeProxyConfiguration { cluster_cidr: "10.0.0.0/8, ".to_owned(), ..KubeProxyConfiguration::default() };
    let expected = LocalDetector::ClusterCidr(vec!["10.0.0.0/8".parse().expect("a network")]);
    assert_eq!(settings_of(file).expect("valid").proxier.local_detector, expected);
}

#[test]
fn every_mode_is_valid_and_has_its_own_periods() {
    for mode in Mode::ALL {
        let file = KubeProxyConfiguration {
            mode: mode.to_string(),
            ipvs: Ipvs { sync_period: Some(GoDuration::from_secs(7)), ..Ipvs::default() },
            ..KubeProxyConfiguration::default()
        };
        let settings = settings_of(file).expect("valid");
        assert_eq!(settings.mode, mode);
        let sync = if mode == Mode::Ipvs { 7 } else { 30 };
        let periods = settings.proxier.periods;
        assert_eq!((periods.sync.as_secs(), periods.min.as_secs()), (sync, 1), "{mode}");
    }
}
