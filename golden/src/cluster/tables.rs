//! Reads and writes the iptables rules of node-a.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use super::address::Family;
use crate::flavour::Flavour;
use crate::netns::Netns;

/// The iptables programs of one flavour with a lock file of their own; the default one is shared by all namespaces.
#[derive(Debug)]
pub(super) struct Iptables {
    pub(super) flavour: Flavour,
    pub(super) lock: PathBuf,
}

impl Iptables {
    /// Runs `iptables ARGUMENTS`, split at spaces.
    #[track_caller]
    pub(super) fn run(&self, netns: &Netns, family: Family, arguments: &str) {
        self.output(netns, &self.tool(family), &format!("-w 30 {arguments}"));
    }

    /// The rules of a table.
    #[track_caller]
    pub(super) fn rules(&self, netns: &Netns, family: Family, table: &str) -> SavedRules {
        SavedRules::parse(&self.output(netns, &format!("{}-save", self.tool(family)), &format!("-t {table}")))
    }

    /// The rules of all tables.
    #[track_caller]
    pub(super) fn saved(&self, netns: &Netns, family: Family) -> String {
        self.flavour.normalise(&self.output(netns, &format!("{}-save", self.tool(family)), ""))
    }

    /// Applies a transaction.
    #[track_caller]
    pub(super) fn restore(&self, netns: &Netns, family: Family, input: &str) {
        let tool = format!("{}-restore", self.tool(family));
        let mut command = netns.command(&tool);
        command.args(["-w", "30", "--noflush", "--counters"]).env("XTABLES_LOCKFILE", &self.lock);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{tool}: {e}"));
        let written = child.stdin.take().expect("it was piped").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("it ends");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && written.is_ok(), "{tool}: {}: {complaint}\n{input}", output.status);
    }

    fn tool(&self, family: Family) -> String {
        let stem = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{stem}-{}", self.flavour)
    }

    #[track_caller]
    fn output(&self, netns: &Netns, tool: &str, arguments: &str) -> String {
        let mut command = netns.command(tool);
        command.args(arguments.split_whitespace()).env("XTABLES_LOCKFILE", &self.lock).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments}: {}: {complaint}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// The rules of one table, by chain and in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedRules(BTreeMap<String, Vec<String>>);

impl SavedRules {
    fn parse(save: &str) -> Self {
        let mut chains = BTreeMap::<String, Vec<String>>::new();
        for line in save.lines() {
            if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) {
                chains.entry(chain.to_owned()).or_default();
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
                chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
            }
        }
        Self(chains)
    }

    /// Whether a chain exists.
    #[must_use]
    pub fn has_chain(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The names of all chains.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The rules of a chain; empty if it does not exist.
    #[must_use]
    pub fn of(&self, chain: &str) -> &[String] {
        self.0.get(chain).map_or(&[], Vec::as_slice)
    }

    /// The chains with this prefix that have a rule with this text.
    #[must_use]
    pub fn chains_with(&self, prefix: &str, text: &str) -> Vec<&str> {
        let matching = self
            .0
            .iter()
            .filter(|(name, rules)| name.starts_with(prefix) && rules.iter().any(|rule| rule.contains(text)));
        matching.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether any rule contains the text.
    #[must_use]
    pub fn mention(&self, text: &str) -> bool {
        self.0.values().flatten().any(|rule| rule.contains(text))
    }

    /// All rules, for messages.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines().map(|line| line + "\n").collect()
    }

    /// The lines that the others lack.
    #[must_use]
    pub fn missing_from(&self, others: &Self) -> Vec<String> {
        let theirs: BTreeSet<String> = others.lines().collect();
        self.lines().filter(|line| !theirs.contains(line)).collect()
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().flat_map(|(chain, rules)| {
            std::iter::once(format!(":{chain}")).chain(rules.iter().map(move |rule| format!("-A {chain} {rule}")))
        })
    }
}
