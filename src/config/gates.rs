//! Feature gates of the releases 1.31 to 1.38, with the defaults of 1.37: which exist, and which are set.

use std::collections::BTreeMap;

/// The maturity of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default.
    Alpha,
    /// Mostly on by default.
    Beta,
    /// Generally available.
    Ga,
    /// Deprecated: can still be enabled for a few releases.
    Deprecated,
}

impl Stage {
    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Ga => "",
            Self::Deprecated => "DEPRECATED",
        }
    }
}

/// A feature gate of the release.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Its maturity.
    pub stage: Stage,
    /// Its default value.
    pub default: bool,
    /// The minor release (1.x) since which it cannot be changed; `None`: it can.
    pub locked_since: Option<u8>,
    /// Whether this program implements it.
    pub built: bool,
}

const fn gate(name: &'static str, stage: Stage, default: bool) -> Gate {
    Gate { name, stage, default, locked_since: None, built: false }
}

const fn locked(name: &'static str, since: u8) -> Gate {
    Gate { name, stage: Stage::Ga, default: true, locked_since: Some(since), built: false }
}

const fn built(gate: Gate) -> Gate {
    Gate { built: true, ..gate }
}

/// Localhost node ports in nftables mode (KEP-6032): alpha in 1.37, beta and on in 1.38.
pub const LOCALHOST_NODE_PORTS: &str = "KubeProxyNFTablesLocalhostNodePorts";
/// IPVS mode (KEP-5495): off by default in 1.40, gone in 1.43.
pub const IPVS: &str = "KubeProxyIPVS";
const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";

/// The gates that kube-proxy reads.
pub const KNOWN: &[Gate] = &[
    gate(ALL_ALPHA, Stage::Alpha, false),
    gate(ALL_BETA, Stage::Beta, false),
    built(gate("AllowServiceExternalIPs", Stage::Ga, true)),
    gate("AtomicFIFO", Stage::Beta, true),
    gate("ClientsAllowCARotation", Stage::Beta, true),
    gate("ClientsAllowCBOR", Stage::Alpha, false),
    gate("ClientsAllowTLSCacheGC", Stage::Beta, true),
    gate("ClientsPreferCBOR", Stage::Alpha, false),
    built(gate("ComponentFlagz", Stage::Beta, true)),
    built(gate("ComponentStatusz", Stage::Beta, true)),
    gate("ContextualLogging", Stage::Beta, true),
    locked("InOrderInformers", 36),
    gate("InOrderInformersBatchProcess", Stage::Beta, true),
    gate("InformerResourceVersion", Stage::Ga, true),
    built(gate(IPVS, Stage::Deprecated, true)),
    built(gate(LOCALHOST_NODE_PORTS, Stage::Alpha, false)),
    built(gate("LoggingAlphaOptions", Stage::Alpha, false)),
    built(gate("LoggingBetaOptions", Stage::Beta, true)),
    locked("MultiCIDRServiceAllocator", 34),
    gate("NFTablesNetlink", Stage::Beta, true),
    locked("NFTablesProxyMode", 33),
    gate("NativeHistograms", Stage::Beta, true),
    locked("PreferSameTrafficDistribution", 35),
    gate("UnlockWhileProcessingFIFO", Stage::Beta, true),
    gate("WatchListClient", Stage::Beta, true),
    locked("WinDSR", 34),
    locked("WinOverlay", 34),
];

/// The gates of other components, one per line. kube-proxy accepts them because Kubernetes has one list.
const OTHER_COMPONENTS: &str = include_str!("gates_elsewhere.txt");

/// The gates that are set, with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates(BTreeMap<String, bool>);

impl FeatureGates {
    /// Takes gates as requested. Returns them with warnings.
    ///
    /// None is refused, because a configuration may be of any release from 1.31 to 1.38: a gate that is unknown or locked
    /// now was legal in one of them. Of a locked gate the warning says since when it has no effect; kube-proxy of those
    /// releases exits.
    #[must_use]
    pub fn new(requested: &BTreeMap<String, bool>) -> (Self, Vec<String>) {
        (Self(requested.clone()), requested.iter().filter_map(|(name, on)| warning(name, *on)).collect())
    }

    /// Whether a gate is on.
    #[must_use]
    pub fn enabled(&self, name: &str) -> bool {
        let set = |name: &str| self.0.get(name).copied();
        let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else { return false };
        let group = match gate.stage {
            _ if gate.locked_since.is_some() => return gate.default,
            Stage::Alpha => set(ALL_ALPHA),
            Stage::Beta => set(ALL_BETA),
            Stage::Ga | Stage::Deprecated => None,
        };
        set(name).or(group).unwrap_or(gate.default)
    }
}

/// What to say about a gate that is set.
fn warning(name: &str, on: bool) -> Option<String> {
    let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else {
        let elsewhere = OTHER_COMPONENTS.lines().any(|other| other == name);
        return Some(if elsewhere {
            format!("feature gate {name}={on} belongs to another component and has no effect here")
        } else {
            format!("unrecognized feature gate: {name}")
        });
    };
    let kind = match gate.stage {
        _ if on != gate.default && gate.locked_since.is_some() => {
            let (locked, since) = (gate.default, gate.locked_since.unwrap_or_default());
            return Some(format!(
                "feature gate {name}={on} has no effect: it is locked to {locked} since Kubernetes 1.{since}"
            ));
        }
        Stage::Ga => "GA",
        Stage::Deprecated => "deprecated",
        _ if !gate.built && on != gate.default && ![ALL_ALPHA, ALL_BETA].contains(&gate.name) => {
            return Some(format!("feature gate {name}={on} has no effect here"));
        }
        _ => return None,
    };
    Some(format!("Setting {kind} feature gate {name}={on}. It will be removed in a future release."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(requested: &[(&str, bool)]) -> (FeatureGates, Vec<String>) {
        FeatureGates::new(&requested.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
    }

    #[test]
    fn a_gates_own_value_takes_precedence_over_its_group_and_the_group_over_its_default() {
        let (set, _) = gates(&[("AllBeta", false), ("ComponentFlagz", true)]);
        assert!(set.enabled("ComponentFlagz") && !set.enabled("ComponentStatusz"));
        let (set, _) = gates(&[("AllAlpha", true)]);
        assert!(set.enabled("LoggingAlphaOptions") && set.enabled("ComponentStatusz") && set.enabled("WinDSR"));
        assert!(!FeatureGates::default().enabled("LoggingAlphaOptions"));
    }

    #[test]
    fn unknown_ga_deprecated_and_locked_gates_are_warned_about() {
        let (set, warnings) = gates(&[("NFTablesProxyMode", false)]);
        let locked = "feature gate NFTablesProxyMode=false has no effect: it is locked to true since Kubernetes 1.33";
        assert_eq!(warnings, [locked]);
        assert!(set.enabled("NFTablesProxyMode"));
        let (set, warnings) = gates(&[("KubeProxyIPVS", false)]);
        assert!(warnings[0].starts_with("Setting deprecated feature gate KubeProxyIPVS=false."), "{warnings:?}");
        assert!(!set.enabled("KubeProxyIPVS"));
        let (set, warnings) = gates(&[("NoSuchGate", true)]);
        assert_eq!(warnings, ["unrecognized feature gate: NoSuchGate"]);
        assert!(!set.enabled("NoSuchGate"));
        let (_, warnings) = gates(&[("AllowServiceExternalIPs", false), ("NFTablesProxyMode", true)]);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("Setting GA feature gate AllowServiceExternalIPs=false."), "{warnings:?}");
        let (_, warnings) = gates(&[("AllBeta", true), ("ContextualLogging", true)]);
        assert_eq!(warnings, Vec::<String>::new(), "what is on anyway");
        let (_, warnings) = gates(&[("ClientsPreferCBOR", true)]);
        assert_eq!(warnings, ["feature gate ClientsPreferCBOR=true has no effect here"]);
    }

    #[test]
    fn localhost_node_ports_are_off_unless_they_or_all_alpha_gates_are_on() {
        assert!(!FeatureGates::default().enabled(LOCALHOST_NODE_PORTS));
        assert!(gates(&[(LOCALHOST_NODE_PORTS, true)]).0.enabled(LOCALHOST_NODE_PORTS));
        assert!(gates(&[("AllAlpha", true)]).0.enabled(LOCALHOST_NODE_PORTS));
    }

    /// One gate of each release that came or went with it, of all components.
    #[test]
    fn gates_of_every_release_are_known() {
        for name in [
            "AppArmor",
            "KubeProxyDrainingTerminatingNodes",
            "DRAControlPlaneController",
            "SidecarContainers",
            "GangScheduling",
            "HPAGeneration",
            "WatchListCompression",
            "CertificateSigningRequestMLDSA",
        ] {
            let (_, warnings) = gates(&[(name, true)]);
            assert!(warnings[0].contains("belongs to another component"), "{warnings:?}");
        }
    }

    #[test]
    fn gates_of_other_components_are_accepted_with_a_warning() {
        let (set, warnings) = gates(&[("KubeletTracing", false)]);
        assert_eq!(warnings, ["feature gate KubeletTracing=false belongs to another component and has no effect here"]);
        assert!(!set.enabled("KubeletTracing"));
        let mut names: Vec<&str> = OTHER_COMPONENTS.lines().chain(KNOWN.iter().map(|gate| gate.name)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a gate is there twice");
    }
}
