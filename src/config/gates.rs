//! Feature gates: which there are in release 1.36, and which are on.
//!
//! In: names and values. Out: [`FeatureGates`], what is wrong, what is odd. Must not know: what a gate does.

use std::collections::BTreeMap;

/// How far a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// Mostly on.
    Beta,
    /// Here to stay.
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

/// A gate of the release.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// How far it is.
    pub stage: Stage,
    /// Whether it is on if nothing is said.
    pub default: bool,
    /// Whether it can be nothing else.
    pub locked: bool,
    /// Whether something here depends on it.
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

/// Those that say something about a kube-proxy.
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

/// The gates of other components, which kube-proxy takes because all of Kubernetes has one list: one a line.
const ELSEWHERE: &str = include_str!("gates_elsewhere.txt");

/// Which gates are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates(BTreeMap<String, bool>);

impl FeatureGates {
    /// Checks gates that are set. Returns them and warnings, or all errors.
    ///
    /// A name that no gate has is a warning: a configuration may come from any release, and the kube-proxy 1.36.2 that
    /// we compare with (MicroShift's build) ignores it too, in these words. Upstream's own build exits.
    ///
    /// # Errors
    /// If a gate is locked to the other value.
    pub fn new(asked: &BTreeMap<String, bool>) -> Result<(Self, Vec<String>), Vec<String>> {
        let (mut odd, mut errors) = (Vec::new(), Vec::new());
        for (name, on) in asked {
            let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else {
                if ELSEWHERE.lines().any(|elsewhere| elsewhere == name) {
                    odd.push(format!("feature gate {name}={on} is of another component and has no effect here"));
                } else {
                    odd.push(format!("unrecognized feature gate: {name}"));
                }
                continue;
            };
            if gate.locked && *on != gate.default {
                let locked = gate.default;
                errors.push(format!("cannot set feature gate {name} to {on}, feature is locked to {locked}"));
            } else if gate.stage == Stage::Ga {
                odd.push(format!("Setting GA feature gate {name}={on}. It will be removed in a future release."));
            } else if !gate.built && *on != gate.default && ![ALL_ALPHA, ALL_BETA].contains(&gate.name) {
                odd.push(format!("feature gate {name}={on} has no effect here"));
            }
        }
        if errors.is_empty() { Ok((Self(asked.clone()), odd)) } else { Err(errors) }
    }

    /// Whether a gate is on.
    #[must_use]
    pub fn enabled(&self, name: &str) -> bool {
        let said = |name: &str| self.0.get(name).copied();
        let Some(gate) = KNOWN.iter().find(|gate| gate.name == name) else { return false };
        let group = match gate.stage {
            _ if gate.locked => None,
            Stage::Alpha => said(ALL_ALPHA),
            Stage::Beta => said(ALL_BETA),
            Stage::Ga => None,
        };
        said(name).or(group).unwrap_or(gate.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(asked: &[(&str, bool)]) -> Result<(FeatureGates, Vec<String>), Vec<String>> {
        FeatureGates::new(&asked.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
    }

    #[test]
    fn what_is_said_counts_before_groups_and_groups_before_defaults() {
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
        let (set, odd) = gates(&[("NoSuchGate", true)]).expect("valid");
        assert_eq!(odd, ["unrecognized feature gate: NoSuchGate"]);
        assert!(!set.enabled("NoSuchGate"));
        let (_, odd) = gates(&[("AllowServiceExternalIPs", false), ("NFTablesProxyMode", true)]).expect("valid");
        assert_eq!(odd.len(), 2);
        assert!(odd[0].starts_with("Setting GA feature gate AllowServiceExternalIPs=false."), "{odd:?}");
        let (_, odd) = gates(&[("AllBeta", true), ("ContextualLogging", true)]).expect("valid");
        assert_eq!(odd, Vec::<String>::new(), "what is on anyway");
        let (_, odd) = gates(&[("NativeHistograms", true)]).expect("valid");
        assert_eq!(odd, ["feature gate NativeHistograms=true has no effect here"]);
    }

    #[test]
    fn gates_of_other_components_are_taken_and_said_to_mean_nothing() {
        let (set, odd) = gates(&[("KubeletTracing", false)]).expect("valid");
        assert_eq!(odd, ["feature gate KubeletTracing=false is of another component and has no effect here"]);
        assert!(!set.enabled("KubeletTracing"));
        let mut names: Vec<&str> = ELSEWHERE.lines().chain(KNOWN.iter().map(|gate| gate.name)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a gate is there twice");
    }
}
