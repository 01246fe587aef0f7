//! `--write-config-to`.

use super::*;

/// Writes a configuration and returns it.
fn written(name: &str, arguments: &[&str]) -> String {
    let path = std::env::temp_dir().join(format!("kube-proxy-written-{name}-{}", std::process::id()));
    let to = format!("--write-config-to={}", path.display());
    let mut all = vec![&*to];
    all.extend(arguments);
    let output = output(&all);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("\"Wrote configuration\" file="), "{}", text(&output.stderr));
    let written = std::fs::read_to_string(&path).expect("a file");
    std::fs::remove_file(path).expect("it can go");
    written
}

/// Writes the effective configuration of a file.
fn migrated(name: &str, config: &str) -> String {
    let path = std::env::temp_dir().join(format!("kube-proxy-old-{name}-{}", std::process::id()));
    std::fs::write(&path, config).expect("a file");
    let new = written(name, &["--config", &path.to_string_lossy()]);
    std::fs::remove_file(path).expect("it can go");
    new
}

#[test]
fn defaults_are_written_as_kube_proxy_writes_them() {
    assert_eq!(written("defaults", &[]), include_str!("../../config/write-config.yaml"));
}

#[test]
fn written_configuration_is_written_again_unchanged() {
    let flags =
        ["--proxy-mode=nftables", "--masquerade-all", "--healthz-bind-address=", "--cluster-cidr=10.0.0.0/8", "-v3"];
    let first = written("flags", &flags);
    for line in [
        "mode: nftables",
        "healthzBindAddress: \"0\"",
        "clusterCIDR: 10.0.0.0/8",
        "  verbosity: 3",
        "nodePortAddresses:\n- primary",
        "nftables:\n  masqueradeAll: true\n  masqueradeBit: 14\n  minSyncPeriod: 1s\n  syncPeriod: 30s",
        "iptables:\n  localhostNodePorts: true\n  masqueradeAll: false\n  masqueradeBit: 14\n  minSyncPeriod: 0s\n  syncPeriod: 0s",
    ] {
        assert!(first.contains(line), "{line} in {first}");
    }
    assert_eq!(migrated("again", &first), first);
}

#[test]
fn an_old_file_is_brought_up_to_date() {
    let old = format!("{HEAD}mode: iptables\nudpIdleTimeout: 250ms\nresourceContainer: /kube-proxy\nportRange: 1-2\n");
    assert_eq!(migrated("old", &old), include_str!("../../config/write-config.yaml"));
}

#[test]
fn invalid_configuration_is_not_written() {
    let path = std::env::temp_dir().join(format!("kube-proxy-never-{}", std::process::id()));
    let output = output(&["--write-config-to", &path.to_string_lossy(), "--oom-score-adj=1001"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("OOMScoreAdj: Invalid value: 1001"), "{}", text(&output.stderr));
    assert!(!path.exists());
}

#[test]
fn unknown_feature_gates_when_set_are_warned_about_and_ignored() {
    let flag = ["--feature-gates=NoSuchGate=true,ComponentFlagz=false", "--write-config-to=/dev/null"];
    let output = output(&flag);
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    let warned = |line: &str| line.starts_with('W') && line.contains("unrecognized feature gate: NoSuchGate");
    assert!(log.lines().any(warned), "{log}");
    let file = migrated("gate", &format!("{HEAD}featureGates: {{NoSuchGate: true}}\n"));
    assert!(file.contains("featureGates:\n  NoSuchGate: true\n"), "{file}");
}
