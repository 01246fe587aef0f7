//! Compares every field with golden/surface/config.yaml, the list of kube-proxy's fields.

use std::collections::BTreeSet;
use std::time::Duration;

use proxier::model::{LocalDetector, NodePortAddresses};
use serde::Deserialize;
use serde_json::Value;

use super::decode::decode;
use super::{KubeProxyConfiguration, ValidatedConfig, validate};
use crate::tests_named::check_words;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    field: String,
    /// `None`: the field is not shown.
    default: Option<String>,
    sample: String,
    becomes: Option<String>,
    #[serde(default)]
    with: String,
    #[serde(default)]
    wrong: Option<String>,
    #[serde(default)]
    error: String,
    #[serde(rename = "where")]
    covered_by: String,
}

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn rows() -> Vec<Row> {
    serde_saphyr::from_str(include_str!("../../golden/surface/config.yaml")).expect("config.yaml")
}

/// A configuration with one field set.
fn document(field: &str, value: &str, with: &str) -> String {
    let parts: Vec<&str> = field.split('.').collect();
    let (last, sections) = parts.split_last().expect("a name");
    let mut text = format!("{HEAD}{with}\n");
    for (depth, section) in sections.iter().enumerate() {
        text += &format!("{}{section}:\n", "  ".repeat(depth));
    }
    text + &format!("{}{last}: {value}\n", "  ".repeat(sections.len()))
}

fn load(text: &str) -> Result<ValidatedConfig, String> {
    let decoded = decode(text).map_err(|reason| format!("failed complete: {reason}"))?;
    assert_eq!(decoded.strict_errors, Vec::<String>::new(), "{text}");
    validate(decoded.file.with_defaults(), "host").map_err(|error| error.to_string())
}

/// The value of a field as shown.
fn shown(file: &KubeProxyConfiguration, field: &str) -> Option<String> {
    let json = serde_json::to_value(file).expect("JSON");
    match json.pointer(&format!("/{}", field.replace('.', "/")))? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[test]
fn every_field_has_its_default_is_taken_and_is_checked() {
    let defaults = load(HEAD).expect("valid").file;
    for row in rows() {
        let Row { field, sample, with, .. } = &row;
        let default = if field == "featureGates" { Some("{}".to_owned()) } else { shown(&defaults, field) };
        assert_eq!(default, row.default, "the default of {field}");
        let null = load(&document(field, "null", "")).expect("null is nothing").file;
        assert_eq!(null, defaults, "{field}: null");

        let set = load(&document(field, sample, with)).unwrap_or_else(|error| panic!("{field}: {sample}: {error}"));
        let becomes = row.becomes.as_ref().unwrap_or(sample);
        let found = shown(&set.file, field).unwrap_or_default();
        assert_eq!(&found, becomes, "{field}: {sample}");
        assert!(*becomes != row.default.clone().unwrap_or_default() || field == "portRange", "{field}: no sample");

        if let Some(wrong) = &row.wrong {
            let with = if row.error == "failed" { "" } else { with };
            let error = load(&document(field, wrong, with)).expect_err(&format!("{field}: {wrong}"));
            let path = format!("KubeProxyConfiguration.{}", row.error);
            assert!(error.starts_with(&row.error) || error.contains(&path), "{field}: {wrong}: {error}");
        }
    }
}

#[test]
fn every_field_has_a_row_and_every_row_says_where_it_goes() {
    let hidden = "windowsRunAsService: true\nserviceMetrics: {level: Services, selector: a}";
    let mut full = load(&document("logging.vmodule", "[{filePattern: a, verbosity: 1}]", hidden)).expect("valid").file;
    full.feature_gates.insert("ComponentFlagz".to_owned(), true);
    full.logging.options.text.split_stream = true;
    full.logging.options.json.split_stream = true;
    let json = serde_json::to_value(&full).expect("JSON");
    let mut fields = BTreeSet::new();
    leaves(&json, "", &mut fields);
    fields.remove("kind");
    fields.remove("apiVersion");
    let listed: BTreeSet<String> = rows().into_iter().map(|row| row.field).collect();
    assert_eq!(listed, fields);
    assert!(listed.len() > 55, "only {} fields", listed.len());
    for row in rows() {
        check_words(&row.field, &row.covered_by, &["settings"]);
    }
}

fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if path != "featureGates" => {
            for (name, value) in fields {
                leaves(value, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
            }
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

/// Every value differs from the default and from every other field's.
const ALL: &str = "
hostnameOverride: ' Node-B '
bindAddress: 10.0.0.1
bindAddressHardFail: true
enableProfiling: true
clientConnection: {kubeconfig: /k, qps: 1.5, burst: 2}
logging: {verbosity: 3}
mode: ipvs
iptables: {masqueradeBit: 4, masqueradeAll: true, localhostNodePorts: false}
ipvs: {syncPeriod: 5s, minSyncPeriod: 6ms, scheduler: sh, strictARP: true, tcpTimeout: 7s, tcpFinTimeout: 8s, udpTimeout: 9s,
  excludeCIDRs: [10.10.0.0/16]}
nftables: {masqueradeBit: 11}
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
nodePortAddresses: [10.12.0.0/16]
oomScoreAdj: 13
conntrack: {maxPerCore: 14, min: 15, tcpEstablishedTimeout: 16s, tcpCloseWaitTimeout: 17s, tcpBeLiberal: true,
  udpTimeout: 18s, udpStreamTimeout: 19s}
";

#[test]
fn logged_settings_are_the_effective_ones() {
    let s = Duration::from_secs;
    let set = load(&format!("{HEAD}{ALL}")).expect("valid");
    let proxier = &set.proxier;
    assert_eq!((&*proxier.node_name, proxier.masquerade_bit, proxier.masquerade_all), ("node-b", 4, true));
    assert_eq!((proxier.localhost_node_ports, proxier.bind_address), (false, "10.0.0.1".parse().ok()));
    assert_eq!((proxier.periods.sync, proxier.periods.min), (s(5), Duration::from_millis(6)));
    assert_eq!(proxier.local_detector, LocalDetector::BridgeInterface("cni0".to_owned()));
    let nets = vec!["10.12.0.0/16".parse().expect("a network")];
    assert_eq!(proxier.node_port_addresses, NodePortAddresses::within(nets));
    let ipvs = &set.ipvs;
    assert_eq!((&*ipvs.scheduler, ipvs.strict_arp, ipvs.exclude_cidrs.len()), ("sh", true, 1));
    assert_eq!((ipvs.tcp_timeout, ipvs.tcp_fin_timeout, ipvs.udp_timeout), (s(7), s(8), s(9)));
    let conntrack = &set.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min, conntrack.tcp_be_liberal), (14, 15, true));
    assert_eq!((conntrack.tcp_established_timeout, conntrack.tcp_close_wait_timeout), (s(16), s(17)));
    assert_eq!((conntrack.udp_timeout, conntrack.udp_stream_timeout), (s(18), s(19)));
    assert_eq!((set.oom_score_adj, set.bind_address_hard_fail, set.enable_profiling), (13, true, true));
    assert_eq!((set.client.qps, set.client.burst, set.logging.verbosity), (Some(1.5), 2, 3));
    assert_eq!(set.client.kubeconfig, Some("/k".into()));
}

#[test]
fn each_mode_goes_by_its_own_section() {
    let of = |mode: &str| {
        let text = "featureGates: {KubeProxyNFTablesLocalhostNodePorts: true}\nnftables: {masqueradeBit: 11, masqueradeAll: true, syncPeriod: 5s, minSyncPeriod: 2s}\n\
                    detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n";
        load(&format!("{HEAD}mode: {mode}\n{text}")).expect("valid").proxier
    };
    let (nftables, iptables) = (of("nftables"), of("iptables"));
    assert_eq!((nftables.masquerade_bit, nftables.masquerade_all, nftables.periods.sync.as_secs()), (11, true, 5));
    assert_eq!(nftables.node_port_addresses, NodePortAddresses::primary());
    let localhost = [&nftables, &iptables].map(|config| config.nftables_localhost_node_ports);
    assert_eq!(localhost, [true, false], "the gate is about nftables mode");
    assert_eq!((iptables.masquerade_bit, iptables.masquerade_all, iptables.periods.sync.as_secs()), (14, false, 30));
    assert_eq!(iptables.node_port_addresses, NodePortAddresses::default());
    assert_eq!(iptables.local_detector, LocalDetector::InterfaceNamePrefix("veth".to_owned()));
}

/// behaviour.yaml I16: kube-proxy takes 0 s in a file and 1 s from flags, and dies of more than an hour.
#[test]
fn the_least_period_is_the_same_in_every_mode_and_may_be_long() {
    for mode in ["iptables", "ipvs", "nftables"] {
        let periods =
            |section: &str| load(&format!("{HEAD}mode: {mode}\n{mode}: {section}\n")).expect("valid").proxier.periods;
        assert_eq!(periods("{minSyncPeriod: 0s}").min, Duration::from_secs(1), "{mode}");
        let long = periods("{syncPeriod: 3h, minSyncPeriod: 2h}");
        assert_eq!(long.min, Duration::from_secs(7200), "{mode}");
    }
}
