//! Tests the flags against golden/surface/flags.yaml: none is missing, added or different.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::config::KubeProxyConfiguration;
use crate::tests_named::check_words;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    default: String,
    #[serde(default)]
    deprecated: bool,
    beside: Beside,
    #[serde(default)]
    field: String,
    #[serde(default)]
    sample: String,
    becomes: Option<String>,
    #[serde(default)]
    with: String,
    #[serde(default)]
    test: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Beside {
    Kept,
    Replaced,
}

fn rows() -> Vec<Row> {
    serde_saphyr::from_str(include_str!("../../golden/surface/flags.yaml")).expect("flags.yaml")
}

fn line(flags: &[&str]) -> CommandLine {
    let flags = flags.iter().filter(|flag| !flag.is_empty()).map(|flag| (*flag).to_owned());
    parse(std::iter::once("kube-proxy".to_owned()).chain(flags)).unwrap_or_else(|stop| panic!("{}", stop.text))
}

fn value(file: &KubeProxyConfiguration, field: &str) -> String {
    let json = serde_json::to_value(file).expect("JSON");
    match json.pointer(field) {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[test]
fn every_flag_has_a_row_and_every_row_a_flag_with_its_default() {
    let plain = line(&[]);
    let listed: Vec<(String, String)> = rows().into_iter().map(|row| (row.name, row.default)).collect();
    let (listed, shown): (BTreeSet<_>, BTreeSet<_>) = (listed.into_iter().collect(), plain.shown.into_iter().collect());
    assert_eq!(listed, shown);
    assert!(listed.len() > 65, "only {} flags", listed.len());
}

#[test]
fn every_flag_sets_its_field_alone_and_beside_a_file_where_it_is_kept() {
    let path = std::env::temp_dir().join(format!("kube-proxy-flags-{}", std::process::id()));
    std::fs::write(&path, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n")
        .expect("a file");
    let config = format!("--config={}", path.display());
    let complete = |flags: &[&str]| line(flags).complete().expect("a configuration");
    for row in rows() {
        let Row { name, field, sample, with, .. } = &row;
        if field.is_empty() {
            check_words(name, &row.test, &[]);
            continue;
        }
        let flag = format!("--{name}={sample}");
        let becomes = row.becomes.as_ref().unwrap_or(sample);
        let before = value(&complete(&[with]).file, field);
        assert_ne!(&before, becomes, "--{name}: the sample shows nothing");
        assert_eq!(&value(&complete(&[with, &flag]).file, field), becomes, "{flag}");
        let beside = complete(&[&config, &flag]);
        let default = value(&complete(&[&config]).file, field);
        let expected = if row.beside == Beside::Kept { becomes } else { &default };
        assert_eq!(&value(&beside.file, field), expected, "{flag} beside --config");
        let warned = beside.warnings.iter().any(|warning| warning.contains(&format!("--{name} is ignored")));
        assert_eq!(warned, row.beside == Beside::Replaced, "{flag} beside --config: {:?}", beside.warnings);
    }
    std::fs::remove_file(path).expect("it can go");
}

#[test]
fn deprecated_flags_are_said_to_be_and_hidden() {
    let command = command();
    for row in rows().iter().filter(|row| row.name != "help") {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&row.name)).expect("a flag");
        let sample = match (&*row.sample, &*row.default) {
            ("", "") => "x",
            ("", default) => default,
            (sample, _) => sample,
        };
        let notes = line(&[&format!("--{}={sample}", row.name)]).deprecations();
        assert_eq!(!notes.is_empty(), row.deprecated, "--{}: {notes:?}", row.name);
        assert!(!row.deprecated || arg.is_hide_set(), "--{}", row.name);
        assert!(arg.get_help().is_some() && arg.get_help_heading().is_some(), "--{} has no help", row.name);
    }
}
