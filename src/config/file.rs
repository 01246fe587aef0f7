//! KubeProxyConfiguration v1alpha1, as far as it is built.
//!
//! In: YAML or JSON. Out: [`File`], with absent, null and zero values left to their defaults; warnings about fields
//! that mean nothing here. Must not know: what values are allowed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{ConfigError, duration};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// Fields of the real one that are not built yet: they are named in a warning when they are set.
const NOT_BUILT: &[&str] = &[
    "bindAddressHardFail",
    "clientConnection.acceptContentTypes",
    "clientConnection.burst",
    "clientConnection.contentType",
    "clientConnection.qps",
    "configSyncPeriod",
    "conntrack.max",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "enableProfiling",
    "ipvs",
    "logging",
    "nftables",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "windowsRunAsService",
    "winkernel",
];

/// The fields that are built. `None` and empty: not set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct File {
    /// `iptables` is the only one that is built.
    pub mode: String,
    /// Feature gates, of which `AllowServiceExternalIPs` means something here.
    pub feature_gates: BTreeMap<String, bool>,
    /// How to reach the API server.
    pub client_connection: ClientConnection,
    /// The name of this node, if not the host's.
    pub hostname_override: String,
    /// The node's address, if not a wildcard.
    pub bind_address: String,
    /// Where `/healthz` is served.
    pub healthz_bind_address: String,
    /// Where `/metrics` is served.
    pub metrics_bind_address: String,
    /// Pod networks, with a comma between.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// How to tell local traffic.
    pub detect_local_mode: String,
    /// Details of that.
    pub detect_local: DetectLocal,
    /// Where node ports are served.
    pub node_port_addresses: Vec<String>,
    /// Settings of iptables mode.
    pub iptables: Iptables,
    /// Settings of conntrack.
    pub conntrack: Conntrack,
}

/// `clientConnection`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClientConnection {
    /// A kubeconfig file; without one, the Pod's service account.
    pub kubeconfig: String,
}

/// `detectLocal`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocal {
    /// For mode `BridgeInterface`.
    pub bridge_interface: String,
    /// For mode `InterfaceNamePrefix`.
    pub interface_name_prefix: String,
}

/// `iptables`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Iptables {
    /// Which bit of the mark asks for masquerading.
    pub masquerade_bit: Option<i64>,
    /// Masquerade all traffic to cluster IPs.
    pub masquerade_all: bool,
    /// Serve node ports on loopback addresses too.
    pub localhost_node_ports: Option<bool>,
    /// How soon failures are retried and the rules checked.
    #[serde(deserialize_with = "go_duration")]
    pub sync_period: Option<Duration>,
    /// How long to wait at least between two syncs.
    #[serde(deserialize_with = "go_duration")]
    pub min_sync_period: Option<Duration>,
}

/// `conntrack`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    /// Do not hold packets out of the window against a TCP connection.
    pub tcp_be_liberal: bool,
}

fn go_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let duration = duration::parse(&text).map_err(serde::de::Error::custom)?;
    // In a file, zero is as good as nothing.
    Ok((!duration.is_zero()).then_some(duration))
}

/// Reads a configuration file. Warnings are for the log.
///
/// # Errors
/// If it cannot be read, is neither YAML nor JSON, is of another kind, or has a value of the wrong type.
pub fn read(path: &Path) -> Result<(File, Vec<String>), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    decode(&text).map_err(|reason| ConfigError::Decode { path: path.to_owned(), reason })
}

fn decode(text: &str) -> Result<(File, Vec<String>), String> {
    let mut warnings = Vec::new();
    // Like kube-proxy: only the first document counts, and the last of duplicate keys.
    let first = first_document(text);
    let strict: Result<Value, _> = serde_saphyr::from_str(first);
    let mut value = match strict {
        Ok(value) => value,
        Err(strict) => {
            let options = serde_saphyr::options! {
                duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            };
            let value = serde_saphyr::from_str_with_options(first, options).map_err(|_| strict.to_string())?;
            warnings.push(format!("using lenient decoding as strict decoding failed: {strict}"));
            value
        }
    };
    check_type(&value)?;
    drop_nulls(&mut value);
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let file = serde_ignored::deserialize(deserializer, |path| ignored.push(path.to_string()));
    let file: File = file.map_err(|error| format!("{}: {error}", track.path()))?;
    for path in ignored.iter().filter(|path| !matches!(&***path, "apiVersion" | "kind")) {
        let built_later = NOT_BUILT.iter().any(|known| path == known);
        let what = if built_later { "is not built yet and has no effect" } else { "is unknown and ignored" };
        warnings.push(format!("configuration field {path:?} {what}"));
    }
    Ok((file, warnings))
}

/// The first document that is more than comments.
fn first_document(text: &str) -> &str {
    let (mut start, mut at, mut content) = (0, 0, false);
    for line in text.split_inclusive('\n') {
        let trimmed = line.trim_end();
        if trimmed == "---" || line.starts_with("--- ") {
            if content {
                return &text[start..at];
            }
            start = at + if trimmed == "---" { line.len() } else { "---".len() };
            content = trimmed != "---";
        } else if !trimmed.is_empty() && !trimmed.trim_start().starts_with(['#', '%']) {
            content = true;
        }
        at += line.len();
    }
    &text[start..]
}

fn check_type(value: &Value) -> Result<(), String> {
    let field = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    match (field("kind"), field("apiVersion")) {
        ("", _) => Err("field \"kind\" is missing".to_owned()),
        (KIND, API_VERSION) => Ok(()),
        (kind, version) => Err(format!("kind {kind:?} of apiVersion {version:?} is not {KIND} of {API_VERSION}")),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn what_kubeadm_writes_is_understood() {
        let text = "mode: \"\"\nclusterCIDR: 10.244.0.0/16\nnodePortAddresses: null\nconntrack:\n  maxPerCore: null\n\
                    iptables:\n  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  syncPeriod: 45s\n";
        let (file, warnings) = decode(&format!("{HEAD}{text}")).expect("a configuration");
        assert_eq!(file.cluster_cidr, "10.244.0.0/16");
        assert_eq!(file.iptables.min_sync_period, None);
        assert_eq!(file.iptables.sync_period, Some(Duration::from_secs(45)));
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn comments_are_no_document() {
        for text in [format!("# ours\n---\n{HEAD}mode: x\n---\nkind: Pod\n"), format!("---\r\n{HEAD}mode: x\n")] {
            assert_eq!(decode(&text).expect("a configuration").0.mode, "x", "{text}");
        }
    }

    #[test]
    fn fields_without_effect_are_named() {
        let (_, warnings) =
            decode(&format!("{HEAD}oomScoreAdj: 5\niptables:\n  syncperiod: 5s\nmode: a\nmode: b\n")).expect("lenient");
        let text = warnings.join("\n");
        assert!(text.contains("\"oomScoreAdj\" is not built yet"), "{text}");
        assert!(text.contains("\"iptables.syncperiod\" is unknown"), "{text}");
        assert!(text.contains("lenient"), "{text}");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for text in [
            "",
            "kind: Pod\napiVersion: v1\n",
            &format!("{HEAD}mode: [1]\n"),
            &format!("{HEAD}iptables: {{syncPeriod: 5}}\n"),
            "{",
        ] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_file_holds_is_borne(text in r#"([a-zA-Z]{1,12}|iptables|mode|syncPeriod|kind|[0-9]|[-:{}\[\],&*!|>'"%@~]|\n| |\PC){0,30}"#) {
            let _ = decode(&text);
            let _ = decode(&format!("{HEAD}{text}"));
            let _ = duration::parse(&text);
        }
    }
}
