//! Constant metrics: the build and the feature gates.

use prometheus::{IntGaugeVec, Opts, Registry, Result};

use crate::version;

/// A feature gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature<'a> {
    /// Its name.
    pub name: &'a str,
    /// `ALPHA`, `BETA`, `DEPRECATED`, or empty for generally available.
    pub stage: &'a str,
    /// Whether it is on.
    pub enabled: bool,
}

/// `kubernetes_build_info`, whose labels dashboards use, and `kubeproxy_build_info` of this program.
pub fn build(registry: &Registry) -> Result<()> {
    let ((major, minor), version, platform) = (version::major_minor(), version::KUBERNETES, version::platform());
    let labels = [
        ("build_date", ""),
        ("compiler", "rustc"),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("git_version", version),
        ("go_version", ""),
        ("major", major),
        ("minor", minor),
        ("platform", &platform),
    ];
    let help = "[ALPHA] A metric with a constant '1' value labeled by the Kubernetes version whose behaviour this has, \
                compiler and platform.";
    constant(registry, "kubernetes_build_info", help, &labels)?;
    let labels = [("language", "rust"), ("kubernetes", version), ("version", env!("CARGO_PKG_VERSION"))];
    constant(
        registry,
        "kubeproxy_build_info",
        "[ALPHA] The version of this kube-proxy, which is not the Go one.",
        &labels,
    )
}

/// `kubernetes_feature_enabled`
pub fn features(registry: &Registry, features: &[Feature<'_>]) -> Result<()> {
    let help = "[BETA] This metric records the data about the stage and enablement of a k8s feature.";
    let gauges = IntGaugeVec::new(Opts::new("kubernetes_feature_enabled", help), &["name", "stage"])?;
    for feature in features {
        gauges.with_label_values(&[feature.name, feature.stage]).set(feature.enabled.into());
    }
    registry.register(Box::new(gauges))
}

fn constant(registry: &Registry, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<()> {
    let (names, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
    let gauge = IntGaugeVec::new(Opts::new(name, help), &names)?;
    gauge.with_label_values(&values).set(1);
    registry.register(Box::new(gauge))
}
