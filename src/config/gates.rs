//! Feature gates of release 1.36: which exist, their defaults, and which are set.

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
}

impl Stage {
    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Ga => "",
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
    /// Whether it cannot be changed.
    pub locked: bool,
    /// Whether this program implements it.
    pub built: bool,
}

const fn gate(name: &'static str, stage: Stage, default: bool) -> Gate {
    Gate { name, stage, default, locked: false, built: false }
}

const fn locked(name: &'static str) -> Gate {
    Gate { name, stage: Stage::Ga, default: true, locked: true, built: false }
}

const fn built(gate: Gate) -> Gate {
    Gate { built: true, ..gate }
}

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
    locked("InOrderInformers"),
    gate("InOrderInformersBatchProcess", Stage::Beta, true),
    gate("InformerResourceVersion", Stage::Ga, true),
    built(gate("LoggingAlphaOptions", Stage::Alpha, false)),
    built(gate("LoggingBetaOptions", Stage::Beta, true)),
    locked("MultiCIDRServiceAllocator"),
    locked("NFTablesProxyMode"),
    gate("NativeHistograms", Stage::Alpha, false),
    locked("PreferSameTrafficDistribution"),
    gate("UnlockWhileProcessingFIFO", Stage::Beta, true),
    gate("WatchListClient", Stage::Beta, true),
    locked("WinDSR"),
    locked("WinOverlay"),
];

/// The gates of other components, one per line. kube-proxy accepts them because Kubernetes has one list.
const OTHER_COMPONENTS: &str = include_str!("gates_elsewhere.txt");

/// The gates that are set, with their values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates(BTreeMap<String, bool>);

impl FeatureGates {
    /// Checks gates. Returns them with warnings, or all errors.
    ///
    /// An unknown name is only a warning: a configuration may be for any release, and the kube-proxy 1.36.2 used for
    /// comparison (MicroShift's build) ignores it with the same message. Upstream's own build exits.
    ///
    /// # Errors
    /// A gate is locked to the other value.
    pub fn new(requested: &BTreeMap<String, bool>) -> Result<(Self, Vec<String>), Vec<String>> {
        let (mut warnings, mut errors) = (Vec::new(), Vec::new());
        for (name, on) in requested {
            let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else {
                if OTHER_COMPONENTS.lines().any(|other| other == name) {
                    warnings
                        .push(format!("feature gate {name}={on} belongs to another component and has no effect here"));
                } else {
                    warnings.push(format!("unrecognized feature gate: {name}"));
                }
                continue;
            };
            if gate.locked && *on != gate.default {
                let locked = gate.default;
                errors.push(format!("cannot set feature gate {name} to {on}, feature is locked to {locked}"));
            } else if gate.stage == Stage::Ga {
                warnings.push(format!("Setting GA feature gate {name}={on}. It will be removed in a future release."));
            } else if !gate.built && *on != gate.default && ![ALL_ALPHA, ALL_BETA].contains(&gate.name) {
                warnings.push(format!("feature gate {name}={on} has no effect here"));
            }
        }
        if errors.is_empty() { Ok((Self(requested.clone()), warnings)) } else { Err(errors) }
    }

    /// Whether a gate is on.
    #[must_use]
    pub fn enabled(&self, name: &str) -> bool {
        let set = |name: &str| self.0.get(name).copied();
        let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else { return false };
        let group = match gate.stage {
            _ if gate.locked => None,
            Stage::Alpha => set(ALL_ALPHA),
            Stage::Beta => set(ALL_BETA),
            Stage::Ga => None,
        };
        set(name).or(group).unwrap_or(gate.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(requested: &[(&str, bool)]) -> Result<(FeatureGates, Vec<String>), Vec<String>> {
        FeatureGates::new(&requested.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
    }

    #[test]
    fn a_gates_own_value_takes_precedence_over_its_group_and_the_group_over_its_default() {
        let (set, _) = gates(&[("AllBeta", false), ("ComponentFlagz", true)]).expect("valid");
        assert!(set.enabled("ComponentFlagz") && !set.enabled("ComponentStatusz"));
        let (set, _) = gates(&[("AllAlpha", true)]).expect("valid");
        assert!(set.enabled("LoggingAlphaOptions") && set.enabled("ComponentStatusz") && set.enabled("WinDSR"));
        assert!(!FeatureGates::default().enabled("LoggingAlphaOptions"));
    }

    #[test]
    fn unknown_and_ga_gates_are_warned_about_and_locked_ones_are_errors() {
        let errors = gates(&[("NoSuchGate", true), ("NFTablesProxyMode", false)]).expect_err("one is locked");
        assert_eq!(errors, ["cannot set feature gate NFTablesProxyMode to false, feature is locked to true"]);
        let (set, warnings) = gates(&[("NoSuchGate", true)]).expect("valid");
        assert_eq!(warnings, ["unrecognized feature gate: NoSuchGate"]);
        assert!(!set.enabled("NoSuchGate"));
        let (_, warnings) = gates(&[("AllowServiceExternalIPs", false), ("NFTablesProxyMode", true)]).expect("valid");
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("Setting GA feature gate AllowServiceExternalIPs=false."), "{warnings:?}");
        let (_, warnings) = gates(&[("AllBeta", true), ("ContextualLogging", true)]).expect("valid");
        assert_eq!(warnings, Vec::<String>::new(), "what is on anyway");
        let (_, warnings) = gates(&[("NativeHistograms", true)]).expect("valid");
        assert_eq!(warnings, ["feature gate NativeHistograms=true has no effect here"]);
    }

    #[test]
    fn gates_of_other_components_are_accepted_with_a_warning() {
        let (set, warnings) = gates(&[("KubeletTracing", false)]).expect("valid");
        assert_eq!(warnings, ["feature gate KubeletTracing=false belongs to another component and has no effect here"]);
        assert!(!set.enabled("KubeletTracing"));
        let mut names: Vec<&str> = OTHER_COMPONENTS.lines().chain(KNOWN.iter().map(|gate| gate.name)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a gate is there twice");
    }
}
