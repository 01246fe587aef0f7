//! `--write-config-to`: writes a configuration byte by byte as kube-proxy does.
//!
//! No YAML library quotes scalars as Go's does: `0.0.0.0` plain, `"0"`, `'[::]:10256'`.

use serde_json::Value;

use super::KubeProxyConfiguration;

/// The YAML text of a complete configuration, keys in alphabetical order.
///
/// # Errors
/// `qps` is not finite, which only a flag can set.
pub fn to_yaml(file: &KubeProxyConfiguration) -> Result<String, String> {
    let qps = file.client_connection.qps;
    if !qps.is_finite() {
        return Err(format!("clientConnection.qps is {qps}, which a file cannot express"));
    }
    // The keys of a JSON value are sorted.
    let value = serde_json::to_value(file).map_err(|error| error.to_string())?;
    let mut text = String::new();
    if let Value::Object(fields) = &value {
        put_fields(&mut text, fields, 0, "");
    }
    Ok(text)
}

type Fields = serde_json::Map<String, Value>;

/// Writes fields. `first` precedes the first key where it begins a list item.
fn put_fields(text: &mut String, fields: &Fields, depth: usize, first: &str) {
    for (index, (key, value)) in fields.iter().enumerate() {
        if index > 0 || first.is_empty() {
            text.push_str(&"  ".repeat(depth));
        } else {
            text.push_str(first);
        }
        text.push_str(&scalar(key));
        text.push(':');
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                text.push('\n');
                put_fields(text, fields, depth + 1, "");
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                items.iter().for_each(|item| put_item(text, item, depth));
            }
            value => {
                text.push(' ');
                text.push_str(&one_line(value));
                text.push('\n');
            }
        }
    }
}

/// Writes a list item, indented like its key.
fn put_item(text: &mut String, item: &Value, depth: usize) {
    let dash = "  ".repeat(depth) + "- ";
    match item {
        Value::Object(fields) if !fields.is_empty() => put_fields(text, fields, depth + 1, &dash),
        item => {
            text.push_str(&dash);
            text.push_str(&one_line(item));
            text.push('\n');
        }
    }
}

fn one_line(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // JSON is YAML.
        other => other.to_string(),
    }
}

/// Plain where possible, double-quoted where it would be another type, single-quoted where YAML syntax requires it.
fn scalar(text: &str) -> String {
    if is_typed(text) || text.contains(char::is_control) {
        return Value::from(text).to_string();
    }
    let begins =
        text.starts_with(['#', ',', '[', ']', '{', '}', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`', ' ']);
    let lone = |sign: char| text == sign.to_string() || text.starts_with(&format!("{sign} "));
    let means = text.contains(": ") || text.contains(" #") || text.ends_with([':', ' ']);
    if begins || means || ['-', '?', ':'].into_iter().any(lone) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        text.to_owned()
    }
}

/// Whether a plain scalar of this text would be a number, a date, a boolean or null.
fn is_typed(text: &str) -> bool {
    const WORDS: [&str; 15] =
        ["", "~", "null", "y", "n", "yes", "no", "on", "off", "true", "false", ".inf", ".nan", "-.inf", "+.inf"];
    let lower = text.to_ascii_lowercase();
    if WORDS.contains(&&*lower) || lower == "<<" || lower == "=" {
        return true;
    }
    let digits = lower.trim_start_matches(['-', '+']).replace('_', "");
    let Some(first) = digits.chars().next().filter(|c| c.is_ascii_digit() || *c == '.') else { return false };
    let radix =
        |prefix: &str, radix| digits.strip_prefix(prefix).is_some_and(|rest| u64::from_str_radix(rest, radix).is_ok());
    let number = digits.parse::<f64>().is_ok() && (first != '.' || digits.len() > 1);
    // Base-60 numbers and dates of YAML 1.1.
    let parts =
        |by: char| digits.split(by).filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())).count();
    let base_60 = digits.contains(':') && parts(':') == digits.split(':').count();
    let date = digits.split('-').count() == 3 && digits.as_bytes().get(4) == Some(&b'-') && digits.len() >= 8;
    number || radix("0x", 16) || radix("0o", 8) || radix("0b", 2) || base_60 || date
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::super::file::{Iptables, Nftables};
    use super::super::logging::VmoduleItem;
    use super::*;

    #[test]
    fn defaults_are_written_byte_by_byte_as_kube_proxy_writes_them() {
        let written = to_yaml(&KubeProxyConfiguration::default().with_defaults()).expect("YAML");
        assert_eq!(written, include_str!("../../golden/config/write-config.yaml"));
    }

    #[test]
    fn lists_and_quotes_are_gos() {
        let file = KubeProxyConfiguration {
            bind_address: "::".to_owned(),
            node_port_addresses: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
            hostname_override: "12".to_owned(),
            show_hidden_metrics_for_version: "1.36".to_owned(),
            ..KubeProxyConfiguration::default()
        };
        let mut file = file.with_defaults();
        file.logging.vmodule = vec![VmoduleItem { file_pattern: "*".to_owned(), verbosity: 2 }];
        file.feature_gates.insert("A".to_owned(), true);
        let text = to_yaml(&file).expect("YAML");
        for part in [
            "bindAddress: '::'\n",
            "healthzBindAddress: '[::]:10256'\n",
            "hostnameOverride: \"12\"\n",
            "nodePortAddresses:\n- 10.0.0.0/8\n- fd00::/8\n",
            "showHiddenMetricsForVersion: \"1.36\"\n",
            "  vmodule:\n  - filePattern: '*'\n    verbosity: 2\n",
            "featureGates:\n  A: true\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(decode(&text).expect("a configuration").file.with_defaults(), file);
    }

    proptest::proptest! {
        #[test]
        fn a_written_configuration_is_decoded_to_the_same_values(
            name in r##"([a-z0-9_.:'"#\[\]{}*&!|>%@`~ -]|\PC|yes|0x|null|2001-01-01){0,8}"##,
            mode in "iptables|ipvs|nftables",
            bit in 0..32,
            all: bool,
        ) {
            let file = KubeProxyConfiguration {
                hostname_override: name.clone(),
                cluster_cidr: name.clone(),
                mode,
                iptables: Iptables { masquerade_bit: Some(bit), masquerade_all: all, ..Iptables::default() },
                nftables: Nftables { masquerade_bit: Some(31 - bit), masquerade_all: all, ..Nftables::default() },
                node_port_addresses: vec![name],
                ..KubeProxyConfiguration::default()
            };
            let file = file.with_defaults();
            let text = to_yaml(&file).expect("YAML");
            let decoded = decode(&text).expect("a configuration");
            proptest::prop_assert_eq!(decoded.strict_errors, Vec::<String>::new());
            proptest::prop_assert_eq!(decoded.file.with_defaults(), file);
        }
    }
}
