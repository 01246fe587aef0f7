//! Decodes the text of a configuration file.
//!
//! As in kube-proxy, unknown fields and duplicate keys are reported and accepted; a value of the wrong type is an
//! error.

use std::path::Path;

use proxier::track::plain_words;
use serde_json::Value;

use super::duration::GoDuration;
use super::logging::FlushFrequency;
use super::{ConfigError, KubeProxyConfiguration};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// A decoded file.
#[derive(Debug)]
pub struct Decoded {
    /// Its fields.
    pub file: KubeProxyConfiguration,
    /// What strict decoding rejects and was ignored.
    pub strict_errors: Vec<String>,
    /// The text itself.
    pub text: String,
}

/// Reads a configuration file.
///
/// # Errors
/// An unreadable file, neither YAML nor JSON, another kind, or a value of the wrong type.
pub fn read(path: &Path) -> Result<Decoded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    decode(&text).map_err(|reason| ConfigError::Decode { path: path.to_owned(), reason })
}

/// Decodes the text of a configuration file.
///
/// # Errors
/// See [`read`].
pub fn decode(text: &str) -> Result<Decoded, String> {
    let mut strict_errors = Vec::new();
    // As in kube-proxy, only the first document counts, and the last of duplicate keys.
    let first = first_document(text);
    let strict: Result<Value, _> = serde_saphyr::from_str(first);
    let mut value = match strict {
        Ok(value) => value,
        Err(strict) => {
            let options = serde_saphyr::options! {
                duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            };
            let value = serde_saphyr::from_str_with_options(first, options)
                .map_err(|_| plain_words(&strict.without_snippet().to_string()))?;
            strict_errors.push(strict_error(&strict));
            value
        }
    };
    check_type(&value)?;
    drop_nulls(&mut value);
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let file = serde_ignored::deserialize(deserializer, |path| ignored.push(path.to_string()));
    let mut file: KubeProxyConfiguration =
        file.map_err(|error| format!("{}: {}", track.path(), plain_words(&error.to_string())))?;
    strict_errors.extend(ignored.iter().map(|path| format!("unknown field {path:?}")));
    drop_zeros(&mut file);
    Ok(Decoded { file, strict_errors, text: text.to_owned() })
}

/// An error of strict decoding in the words of Go's library.
fn strict_error(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), location } => {
            format!("yaml: unmarshal errors:\n  line {}: key {key:?} already set in map", location.line())
        }
        other => other.to_string(),
    }
}

/// The first document with more than comments.
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
        ("", _) => Err(format!("Object 'Kind' is missing: must be {KIND} of apiVersion {API_VERSION}")),
        (KIND, API_VERSION) => Ok(()),
        (kind, version) => {
            Err(format!("no kind {kind:?} is registered for version {version:?}: must be {KIND} of {API_VERSION}"))
        }
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

/// Removes zero durations of fields with a default: in a file, zero means unset.
fn drop_zeros(file: &mut KubeProxyConfiguration) {
    for duration in [
        &mut file.iptables.sync_period,
        &mut file.iptables.min_sync_period,
        &mut file.ipvs.sync_period,
        &mut file.ipvs.min_sync_period,
        &mut file.nftables.sync_period,
        &mut file.nftables.min_sync_period,
        &mut file.config_sync_period,
    ] {
        *duration = duration.filter(|duration| *duration != GoDuration::ZERO);
    }
    let flush: &mut Option<FlushFrequency> = &mut file.logging.flush_frequency;
    *flush = flush.filter(|frequency| frequency.duration != GoDuration::ZERO);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn decoded(text: &str) -> Decoded {
        decode(&format!("{HEAD}{text}")).expect("a configuration")
    }

    #[test]
    fn null_and_most_zero_durations_mean_unset() {
        let text = "mode: \"\"\nclusterCIDR: 10.244.0.0/16\nnodePortAddresses: null\nconntrack:\n  maxPerCore: null\n  \
                    tcpEstablishedTimeout: 0s\niptables:\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  syncPeriod: 45s\n\
                    logging: {flushFrequency: 0}\n";
        let Decoded { file, strict_errors, .. } = decoded(text);
        assert_eq!(file.cluster_cidr, "10.244.0.0/16");
        assert_eq!(file.iptables.min_sync_period, None);
        assert_eq!(file.iptables.sync_period, Some(GoDuration::from_secs(45)));
        assert_eq!(file.conntrack.tcp_established_timeout, Some(GoDuration::ZERO));
        assert_eq!(file.logging.flush_frequency, None);
        assert_eq!(strict_errors, Vec::<String>::new());
    }

    #[test]
    fn comments_are_no_document_and_only_the_first_counts() {
        for text in [format!("# ours\n---\n{HEAD}mode: x\n---\nkind: Pod\n"), format!("---\r\n{HEAD}mode: x\n")] {
            assert_eq!(decode(&text).expect("a configuration").file.mode, "x", "{text}");
        }
        let json = r#"{"kind":"KubeProxyConfiguration","apiVersion":"kubeproxy.config.k8s.io/v1alpha1","mode":"y"}"#;
        assert_eq!(decode(json).expect("a configuration").file.mode, "y");
    }

    #[test]
    fn unknown_fields_and_duplicate_keys_are_reported_and_accepted() {
        let Decoded { file, strict_errors, .. } = decoded("iptables:\n  syncperiod: 5s\nMode: c\nmode: a\nmode: b\n");
        assert_eq!((&*file.mode, file.iptables.sync_period), ("b", None));
        let text = strict_errors.join("\n");
        for part in [
            "unknown field \"iptables.syncperiod\"",
            "unknown field \"Mode\"",
            "line 7: key \"mode\" already set in map",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_flush_frequency_may_be_a_number_and_is_written_so_again() {
        let file = decoded("logging: {flushFrequency: 5000000000, options: {json: {infoBufferSize: 64Ki}}}\n").file;
        assert_eq!(file.logging.options.json.info_buffer_size.bytes(), 65536);
        let json = serde_json::to_string(&file.logging).expect("JSON");
        assert!(json.contains("\"flushFrequency\":5000000000,"), "{json}");
        assert_eq!(
            decoded("logging: {flushFrequency: 1s}\n").file.logging.flush_frequency.map(|f| f.number),
            Some(false)
        );
    }

    #[test]
    fn text_that_is_no_configuration_is_refused() {
        let wrong =
            ["mode: [1]", "mode: 5", "oomScoreAdj: abc", "iptables: {syncPeriod: 5}", "oomScoreAdj: 3000000000"];
        let wrong = wrong.map(|line| format!("{HEAD}{line}\n"));
        for text in ["", "kind: Pod\napiVersion: v1\n", "{"].into_iter().chain(wrong.iter().map(|text| &**text)) {
            let error = decode(text).expect_err(text);
            assert!(!error.contains('\n'), "of one line: {error}");
        }
        let error = decode(&wrong[3]).expect_err("no duration");
        assert!(error.contains("iptables.syncPeriod"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_decoded_or_refused_without_a_panic(text in r#"([a-zA-Z]{1,12}|iptables|mode|syncPeriod|kind|[0-9]|[-:{}\[\],&*!|>'"%@~]|\n| |\PC){0,30}"#) {
            let _ = decode(&text);
            let _ = decode(&format!("{HEAD}{text}"));
            let _ = text.parse::<GoDuration>();
        }
    }
}
