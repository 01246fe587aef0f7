//! The iptables flavour of a host: nf_tables or legacy.
//!
//! Rules of two flavours both take effect, in an undefined order, so a program should use the flavour of the host's
//! other programs. A program that started first can leave a chain in the mangle table as a hint.

use std::fmt;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::process::Command;

use super::command;
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
/// of `iptables` in PATH is used. Unreadable tables are retried for up to 0.6 s, because callers keep the result for
/// long.
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

/// The flavour of `iptables` in PATH.
fn default(mut unread: Vec<String>) -> FlavourChoice {
    let name = IpFamily::V4.iptables();
    let Ok(path) = which::which(name) else {
        let reason = format!("no hint chain, and no {name} in PATH");
        return FlavourChoice { flavour: None, infix: "", reason, unread };
    };
    let version = command::run(Command::new(&path).arg("--version"), []).unwrap_or_else(|error| {
        unread.push(error.to_string());
        Vec::new()
    });
    let version = String::from_utf8_lossy(&version).trim().to_owned();
    let flavour = named(&version);
    let reason = format!("no hint chain, and {} says {version:?}", path.display());
    FlavourChoice { flavour, infix: "", reason, unread }
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
        let choice = default(Vec::new());
        match choice.unread.first() {
            Some(cause) => Err(cause.clone()),
            None => Ok(Some(choice).filter(|choice| choice.flavour == Some(flavour))),
        }
    }
}

/// The hint in the mangle table of one flavour and family; `None` if its programs are not in PATH.
fn hint(hints: &[&str], flavour: Flavour, family: IpFamily) -> Result<Option<String>, String> {
    let Ok(save) = which::which(format!("{}{}-save", family.iptables(), flavour.infix())) else { return Ok(None) };
    match flavour {
        // The programs would read the whole table, which takes seconds on a node of a large cluster.
        Flavour::Nft => {
            for chain in hints {
                if has_chain(family, "mangle", chain).map_err(|error| error.to_string())? {
                    return Ok(Some((*chain).to_owned()));
                }
            }
            Ok(None)
        }
        Flavour::Legacy => legacy_hint(hints, family, save),
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
    fn choice_without_hint_reports_unreadable_tables() {
        let choice = detect_once(&|_, _| Err("Too many open files".to_owned()));
        assert!(choice.unread.len() >= 4, "{choice:?}");
        assert_eq!(choice.infix, "");
    }
}
