//! The conformance cases, as the folders under `cases/` hold them.
//!
//! In: a folder of cases. Out: for each case its objects per step and the kernel state expected after each.
//! It must not know how a proxy is run or the kernel is read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::canonical;

/// A proxy mode, as the configuration and the folders name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Rules by iptables.
    Iptables,
    /// Virtual servers of IPVS.
    Ipvs,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Iptables, Self::Ipvs];

    /// What a recording in this mode has, in the order in which differences are shown.
    #[must_use]
    pub fn kinds(self) -> &'static [Kind] {
        use Kind::{Addr, Http, Ip6tables, Ipset, Iptables, Ipvs, Sysctl};
        match self {
            Self::Iptables => &[Iptables, Ip6tables, Sysctl, Http],
            Self::Ipvs => &[Ipvs, Ipset, Addr, Iptables, Ip6tables, Sysctl, Http],
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
        })
    }
}

/// A part of the kernel's state: one file of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `iptables-save`
    Iptables,
    /// `ip6tables-save`
    Ip6tables,
    /// the sysctls the proxy sets, a `key = value` line each
    Sysctl,
    /// `ipvsadm -S -n`
    Ipvs,
    /// `ipset save`
    Ipset,
    /// the addresses of `kube-ipvs0`
    Addr,
    /// the sockets that answer health checks of Services, and what they answer
    Http,
}

impl Kind {
    /// What it is called, which is also its file's extension.
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

    /// The form in which it is compared.
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

/// A kernel state: every kind in its canonical form.
pub type State = BTreeMap<Kind, String>;

/// One case: a cluster, the changes to it, and what the kernel holds after each.
#[derive(Debug, Clone)]
pub struct Case {
    /// its folder's name
    pub name: String,
    /// the behaviour it pins down
    pub why: String,
    /// fields of `KubeProxyConfiguration` that differ from the runner's, as YAML
    pub config: String,
    /// all objects before the first step, then after each step
    pub stored: Vec<PathBuf>,
    folder: PathBuf,
}

impl Case {
    /// The case in `folder`, none if that holds no objects.
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

    /// Whether there is a recording of this case in `mode`.
    #[must_use]
    pub fn has(&self, mode: Mode) -> bool {
        self.folder.join("expected").join(mode.to_string()).is_dir()
    }

    /// How large it is, all steps together, in bytes of its objects: about how long it takes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.stored.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum()
    }

    /// What was recorded after a step (0: before the first), as it was recorded.
    ///
    /// # Panics
    /// When the recording lacks it.
    #[must_use]
    pub fn expected(&self, mode: Mode, step: usize, kind: Kind) -> String {
        let file = self.folder.join(format!("expected/{mode}/{step:02}.{}", kind.name()));
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    }

    /// All that was recorded after a step, in canonical form.
    #[must_use]
    pub fn expected_state(&self, mode: Mode, step: usize) -> State {
        mode.kinds().iter().map(|&kind| (kind, kind.canonical(&self.expected(mode, step, kind)))).collect()
    }
}

/// This crate's own cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    cases_in(&folder())
}

/// Where this crate's own cases are.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

/// The cases of a folder, in name order.
#[must_use]
pub fn cases_in(folder: &Path) -> Vec<Case> {
    entries(folder).iter().filter_map(|entry| Case::read(entry)).collect()
}

/// Where the real kube-proxy shows a defect that ours must not have: `CASE/MODE` and the reason.
///
/// They stand in `differences.txt`, in the folder of cases or next to it.
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
