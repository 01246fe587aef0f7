//! Which iptables this host uses: the nf_tables one or the legacy one.
//!
//! In: the mangle tables of both, and PATH. Out: a [`Choice`] with its reason. Must not know: rules.
//!
//! Rules in the other flavour than the host's other agents use are in the kernel all the same, in an order nobody
//! expects. kubelet leaves a chain as a hint of the flavour it found; kube-proxy's image follows it by a wrapper.

use std::fmt;
use std::io::BufRead;
use std::path::PathBuf;
use std::process::Command;

use super::command;
use super::nftables::has_chain;
use crate::family::IpFamily;

const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// A flavour of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`
    Nft,
    /// `iptables-legacy`
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(super) fn infix(self) -> &'static str {
        match self {
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nf_tables",
            Self::Legacy => "legacy",
        })
    }
}

/// A flavour and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The flavour, as far as it can be told.
    pub flavour: Option<Flavour>,
    /// What the programs' names have between `iptables` and `-restore`.
    pub infix: &'static str,
    /// Why, for the log.
    pub reason: String,
}

/// Looks for the hint in all four mangle tables, the nf_tables ones first; without one, takes what `iptables` is.
#[must_use]
pub fn choose() -> Choice {
    for flavour in Flavour::ALL {
        for family in IpFamily::ALL {
            let name = format!("{}{}-save", family.iptables(), flavour.infix());
            if let Some(chain) = which::which(&name).ok().and_then(|path| hint(flavour, family, path)) {
                let reason = format!("chain {chain} is in the mangle table of {name}");
                return Choice { flavour: Some(flavour), infix: flavour.infix(), reason };
            }
        }
    }
    default()
}

/// What `iptables` in PATH is.
fn default() -> Choice {
    let name = IpFamily::V4.iptables();
    let Ok(path) = which::which(name) else {
        return Choice { flavour: None, infix: "", reason: format!("no hint of the kubelet, and no {name} in PATH") };
    };
    let version = command::run(Command::new(&path).arg("--version"), []).unwrap_or_default();
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    let flavour = Flavour::ALL.into_iter().find(|flavour| version.contains(&format!("({flavour})")));
    let reason = format!("no hint of the kubelet, and {} says {version:?}", path.display());
    Choice { flavour, infix: "", reason }
}

impl Choice {
    /// The programs of a flavour, by whatever name they go here; `None` if there are none.
    #[must_use]
    pub fn of(flavour: Flavour) -> Option<Self> {
        let named = which::which(format!("{}{}", IpFamily::V4.iptables(), flavour.infix())).is_ok();
        let reason = format!("{flavour} was asked for");
        let named = named.then_some(Self { flavour: Some(flavour), infix: flavour.infix(), reason });
        named.or_else(|| Some(default()).filter(|choice| choice.flavour == Some(flavour)))
    }
}

fn hint(flavour: Flavour, family: IpFamily, save: PathBuf) -> Option<&'static str> {
    if flavour == Flavour::Nft {
        // Its tools read much to tell little, which takes seconds on a node of a big cluster.
        let has = |chain: &&str| has_chain(family, "mangle", chain).unwrap_or(false);
        return HINTS.into_iter().find(|chain| has(chain));
    }
    if flavour == Flavour::Legacy {
        // Asking the legacy tool would make the table that is asked for.
        let tables = std::fs::read_to_string(family.legacy_table_names()).unwrap_or_default();
        if !tables.lines().any(|table| table == "mangle") {
            return None;
        }
    }
    let find = |output: std::io::BufReader<std::process::ChildStdout>| {
        let mut found = None;
        for line in output.lines() {
            let line = line?;
            let name = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
            found = found.or_else(|| HINTS.into_iter().find(|hint| name == Some(hint)));
        }
        Ok(found)
    };
    command::stream(Command::new(save).args(["-t", "mangle"]), find).ok().flatten()
}
