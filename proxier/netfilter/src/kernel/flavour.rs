//! The iptables flavour of a host: nf_tables or legacy.
//!
//! Rules of two flavours both take effect, in an undefined order, so a program should use the flavour of the host's
//! other programs. A program that started first can leave a chain in the mangle table as a hint.

use std::fmt;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::Command;

use super::command;
use super::flavour_kernel::RuleCounts;
use super::iptables::legacy_tables;
use super::nftables::has_chain;
use super::retry::retry;
use crate::IpFamily;

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

    /// As `iptables --version` names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nf_tables",
            Self::Legacy => "legacy",
        }
    }

    pub(super) fn infix(self) -> &'static str {
        match self {
            Self::Nft => "-nft",
            Self::Legacy => "-legacy",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A flavour with the reason for choosing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlavourChoice {
    /// The flavour; `None` if it could not be determined.
    pub flavour: Option<Flavour>,
    /// The infix of the program names, between `iptables` and `-restore`.
    pub infix: &'static str,
    /// The reason, for the log.
    pub reason: String,
    /// Tables that could not be read. If there are any, the choice may be wrong.
    pub unread: Vec<String>,
}

/// Detects the flavour of the host.
///
/// Looks for a chain named in `hints` in the four mangle tables, those of nf_tables first. Without a hint, the flavour
/// of `iptables` in PATH is used; without that program, the flavour with more rules in the kernel. Unreadable tables are
/// retried for up to 0.6 s, because callers keep the result for long.
#[must_use]
pub fn detect(hints: &[&str]) -> FlavourChoice {
    let attempt = || {
        let choice = detect_once(&|flavour, family| hint(hints, flavour, family));
        if choice.unread.is_empty() { Ok(choice) } else { Err(choice) }
    };
    retry(attempt, |_| true).unwrap_or_else(|choice| choice)
}

fn detect_once(hint: &dyn Fn(Flavour, IpFamily) -> Result<Option<String>, String>) -> FlavourChoice {
    let mut unread = Vec::new();
    for flavour in Flavour::ALL {
        for family in IpFamily::ALL {
            let name = format!("{}{}-save", family.iptables(), flavour.infix());
            match hint(flavour, family) {
                Ok(Some(chain)) => {
                    let reason = format!("chain {chain} is in the mangle table of {name}");
                    return FlavourChoice { flavour: Some(flavour), infix: flavour.infix(), reason, unread };
                }
                Ok(None) => {}
                Err(cause) => unread.push(format!("the mangle table of {name}: {cause}")),
            }
        }
    }
    default(unread)
}

/// The flavour without a hint.
fn default(unread: Vec<String>) -> FlavourChoice {
    match installed(unread) {
        Ok(choice) => choice,
        Err(unread) => by_rules(unread, RuleCounts::read()),
    }
}

/// The flavour of `iptables` in PATH; `unread` again if there is none.
fn installed(mut unread: Vec<String>) -> Result<FlavourChoice, Vec<String>> {
    let Ok(path) = which::which(IpFamily::V4.iptables()) else { return Err(unread) };
    let version = command::run(Command::new(&path).arg("--version"), []).unwrap_or_else(|error| {
        unread.push(error.to_string());
        Vec::new()
    });
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    let flavour = named(&version);
    let reason = format!("no hint chain, and {} says {version:?}", path.display());
    Ok(FlavourChoice { flavour, infix: "", reason, unread })
}

/// The flavour of a host without `iptables`. Tables that cannot be read may have a hint, so without them there is none.
fn by_rules(mut unread: Vec<String>, counts: Result<RuleCounts, Vec<String>>) -> FlavourChoice {
    let intro = format!("no hint chain, no {} in PATH", IpFamily::V4.iptables());
    let counts = counts.map_err(|causes| unread.extend(causes)).ok().filter(|_| unread.is_empty());
    let Some(counts) = counts else {
        let reason = format!("{intro}, and the kernel's tables cannot be read");
        return FlavourChoice { flavour: None, infix: "", reason, unread };
    };
    let flavour = counts.flavour();
    let reason = format!("{intro}, and {}", counts.reason());
    FlavourChoice { flavour: Some(flavour), infix: flavour.infix(), reason, unread }
}

impl FlavourChoice {
    /// The programs of a flavour, whatever their names; `None` if they are not installed.
    ///
    /// # Errors
    /// If the flavour of `iptables` in PATH cannot be determined.
    pub fn of(flavour: Flavour) -> Result<Option<Self>, String> {
        if which::which(format!("{}{}", IpFamily::V4.iptables(), flavour.infix())).is_ok() {
            let reason = format!("{flavour} was requested");
            return Ok(Some(Self { flavour: Some(flavour), infix: flavour.infix(), reason, unread: Vec::new() }));
        }
        let Ok(choice) = installed(Vec::new()) else { return Ok(None) };
        match choice.unread.first() {
            Some(cause) => Err(cause.clone()),
            None => Ok(Some(choice).filter(|choice| choice.flavour == Some(flavour))),
        }
    }

    /// Whether the programs of the flavour are in PATH, of at least one family.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        let names = IpFamily::ALL.map(|family| format!("{}{}-restore", family.iptables(), self.infix));
        names.iter().any(|name| which::which(name).is_ok())
    }
}

/// The hint in the mangle table of one flavour and family.
///
/// `None` without the programs to write rules of that flavour, of which nf_tables needs none if there are none at all.
fn hint(hints: &[&str], flavour: Flavour, family: IpFamily) -> Result<Option<String>, String> {
    let save = which::which(format!("{}{}-save", family.iptables(), flavour.infix()));
    match (flavour, save) {
        // The programs would read the whole table, which takes seconds on a node of a large cluster.
        (Flavour::Nft, save) if save.is_ok() || which::which(family.iptables()).is_err() => {
            for chain in hints {
                if has_chain(family, "mangle", chain).map_err(|error| error.to_string())? {
                    return Ok(Some((*chain).to_owned()));
                }
            }
            Ok(None)
        }
        (Flavour::Legacy, Ok(save)) => legacy_hint(hints, family, save),
        (Flavour::Nft | Flavour::Legacy, _) => Ok(None),
    }
}

/// The hint in a legacy mangle table, if the table exists: listing it with the program would create it.
fn legacy_hint(hints: &[&str], family: IpFamily, save: PathBuf) -> Result<Option<String>, String> {
    let tables = legacy_tables(family).map_err(|error| error.to_string())?;
    if !tables.lines().any(|table| table == "mangle") {
        return Ok(None);
    }
    let tool = &mut Command::new(save);
    command::stream(tool.args(["-t", "mangle"]), |output| declared_hint(hints, output))
        .map_err(|error| error.to_string())
}

/// The hint that a saved table declares. Reads all output, because the program fails on a closed pipe.
pub(super) fn declared_hint(hints: &[&str], output: impl BufRead) -> io::Result<Option<String>> {
    let mut found = None;
    for line in output.lines() {
        let line = line?;
        let name = line.strip_prefix(':').and_then(|rest| rest.split(' ').next());
        found = found.or_else(|| hints.iter().find(|hint| name == Some(hint)));
    }
    Ok(found.map(|hint| (*hint).to_owned()))
}

/// The flavour named in the output of `--version`.
pub(super) fn named(version: &str) -> Option<Flavour> {
    Flavour::ALL.into_iter().find(|flavour| version.contains(&format!("({flavour})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(flavour: Flavour, family: IpFamily) -> Result<Option<String>, String> {
        match (flavour, family) {
            (Flavour::Nft, IpFamily::V4) => Err("No buffer space available".to_owned()),
            (Flavour::Legacy, IpFamily::V6) => Ok(Some("HINT".to_owned())),
            _ => Ok(None),
        }
    }

    #[test]
    fn unreadable_table_is_reported_beside_a_found_hint() {
        let choice = detect_once(&unreadable);
        assert_eq!(choice.flavour, Some(Flavour::Legacy));
        assert_eq!(choice.unread, ["the mangle table of iptables-nft-save: No buffer space available"]);
    }

    #[test]
    fn without_programs_the_kernel_decides_or_nobody() {
        let counts = RuleCounts { legacy: 0, nft: 0 };
        let choice = by_rules(Vec::new(), Ok(counts));
        assert_eq!((choice.flavour, choice.infix), (Some(Flavour::Nft), "-nft"));
        assert_eq!(choice.reason, "no hint chain, no iptables in PATH, and the kernel has no legacy iptables rule");
        // A table that cannot be read may have the hint.
        for (unread, counts) in [(vec!["mangle".to_owned()], Ok(counts)), (Vec::new(), Err(vec!["legacy".to_owned()]))]
        {
            let choice = by_rules(unread, counts);
            assert_eq!((choice.flavour, choice.unread.len()), (None, 1), "{choice:?}");
        }
    }

    #[test]
    fn choice_without_hint_reports_unreadable_tables() {
        let choice = detect_once(&|_, _| Err("Too many open files".to_owned()));
        assert!(choice.unread.len() >= 4, "{choice:?}");
        assert_eq!(choice.infix, "");
    }
}
