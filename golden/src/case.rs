//! The conformance cases: objects for each step, and the recorded kernel states.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::canonical;

/// A proxy mode, named as in the configuration and the folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// iptables rules.
    Iptables,
    /// IPVS virtual servers.
    Ipvs,
    /// An nf_tables table. Its layout differs from upstream's, so packets are compared instead of text.
    Nftables,
}

impl Mode {
    /// The modes whose recordings the kernel state must equal.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Ipvs];

    /// The parts of a recording in this mode, in the order of reports.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        use Kind::{Addr, Http, Ip6tables, Ipset, Iptables, Ipvs, Sysctl};
        match self {
            Self::Iptables => &[Iptables, Ip6tables, Sysctl, Http],
            Self::Ipvs => &[Ipvs, Ipset, Addr, Iptables, Ip6tables, Sysctl, Http],
            Self::Nftables => &[],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
        })
    }
}

/// A part of the kernel state: one file of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `iptables-save`
    Iptables,
    /// `ip6tables-save`
    Ip6tables,
    /// The sysctls that the proxy sets, as `key = value` lines.
    Sysctl,
    /// `ipvsadm -S -n`
    Ipvs,
    /// `ipset save`
    Ipset,
    /// The addresses of `kube-ipvs0`.
    Addr,
    /// The sockets that answer health checks of Services, with their answers.
    Http,
}

impl Kind {
    /// The name, which is also the extension of its file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Iptables => "iptables",
            Kind::Ip6tables => "ip6tables",
            Kind::Sysctl => "sysctl",
            Kind::Ipvs => "ipvs",
            Kind::Ipset => "ipset",
            Kind::Addr => "addr",
            Kind::Http => "http",
        }
    }

    /// The canonical form of its text.
    #[must_use]
    pub fn canonical(self, text: &str) -> String {
        match self {
            Kind::Iptables | Kind::Ip6tables => canonical::save(text),
            Kind::Sysctl | Kind::Ipvs | Kind::Addr => canonical::lines(text),
            Kind::Ipset => canonical::sets(text),
            Kind::Http => canonical::http(text),
        }
    }
}

/// A kernel state in canonical form.
pub type KernelState = BTreeMap<Kind, String>;

/// A case: a cluster, its changes, and the recorded kernel state after each.
#[derive(Debug, Clone)]
pub struct Case {
    /// The name of its folder.
    pub name: String,
    /// The behaviour that it tests.
    pub why: String,
    /// The fields of `KubeProxyConfiguration` that differ from the runner's, as YAML.
    pub config: String,
    /// The objects before the first step and after each step.
    pub stored: Vec<PathBuf>,
    folder: PathBuf,
}

impl Case {
    /// The case in `folder`; `None` if the folder has no objects.
    fn read(folder: &Path) -> Option<Self> {
        let stored = entries(&folder.join("stored"));
        if stored.is_empty() {
            return None;
        }
        let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        Some(Self {
            name: folder.file_name()?.to_str()?.to_owned(),
            why: text("why.txt").trim().to_owned(),
            config: text("config.yaml"),
            stored,
            folder: folder.to_owned(),
        })
    }

    /// Whether the case was recorded in `mode`.
    #[must_use]
    pub fn has(&self, mode: Mode) -> bool {
        self.folder.join("expected").join(mode.to_string()).is_dir()
    }

    /// The total size of its objects in bytes, which predicts the run time.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stored.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum()
    }

    /// The recorded text after a step (0: before the first).
    ///
    /// # Panics
    /// If it was not recorded.
    #[must_use]
    pub fn expected(&self, mode: Mode, step: usize, kind: Kind) -> String {
        let file = self.folder.join(format!("expected/{mode}/{step:02}.{}", kind.name()));
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }

    /// The tables of kube-proxy's nftables mode after a step, as printed by `nft list table` for both families.
    ///
    /// # Panics
    /// If they were not recorded.
    #[must_use]
    pub fn recorded_tables(&self, step: usize) -> String {
        let file = self.folder.join(format!("expected/nftables/{step:02}.nft"));
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }

    /// The recorded state after a step, in canonical form.
    #[must_use]
    pub fn expected_state(&self, mode: Mode, step: usize) -> KernelState {
        mode.kinds().iter().map(|&kind| (kind, kind.canonical(&self.expected(mode, step, kind)))).collect()
    }
}

/// The cases of this crate.
#[must_use]
pub fn cases() -> Vec<Case> {
    cases_in(&folder())
}

/// The folder of this crate's cases.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// The cases of a folder, sorted by name.
#[must_use]
pub fn cases_in(folder: &Path) -> Vec<Case> {
    entries(folder).iter().filter_map(|entry| Case::read(entry)).collect()
}

/// Known defects of kube-proxy that this proxy must not have: `CASE/MODE` and the reason.
///
/// Read from `differences.txt`, in the folder of cases or next to it.
#[must_use]
pub fn differences(folder: &Path) -> BTreeMap<String, String> {
    let beside = folder.parent().unwrap_or(folder).join("differences.txt");
    let text = fs::read_to_string(folder.join("differences.txt")).or_else(|_| fs::read_to_string(beside));
    text.unwrap_or_default()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(case, reason)| (case.to_owned(), reason.trim().to_owned()))
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_whole() {
        let cases = cases();
        assert!(cases.len() > 90, "{} cases", cases.len());
        for case in &cases {
            assert!(!case.why.is_empty() && !case.config.is_empty(), "{}", case.name);
            let modes: Vec<Mode> = Mode::ALL.into_iter().filter(|mode| case.has(*mode)).collect();
            assert!(!modes.is_empty(), "{}", case.name);
            for (mode, step) in modes.iter().flat_map(|mode| (0..case.stored.len()).map(move |step| (*mode, step))) {
                let state = case.expected_state(mode, step);
                assert!(state[&Kind::Iptables].contains("KUBE-"), "{} {mode} {step}", case.name);
                assert!(state[&Kind::Sysctl].contains("route_localnet"), "{} {mode} {step}", case.name);
            }
        }
    }

    #[test]
    fn differences_name_cases() {
        let differences = differences(&folder());
        assert!(differences["817-step-slice-relabelled/iptables"].contains("relabelled"));
        let names: Vec<String> = cases().into_iter().map(|case| case.name).collect();
        for key in differences.keys() {
            assert!(names.iter().any(|name| key.starts_with(&format!("{name}/"))), "{key}");
        }
    }
}
