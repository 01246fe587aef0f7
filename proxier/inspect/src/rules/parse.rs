//! Parses the text of `iptables-save`, `iptables -S` and `iptables-restore` into a [`Ruleset`].
//!
//! Accepts the output of `iptables-save [-c]` and `iptables -v -S`, and the input of `iptables-restore --noflush`. The
//! arguments of a rule are parsed by `args`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use netfilter::Counters;
use netfilter::IpFamily;

use super::values::{Chain, Policy, Rule, Ruleset, Table};

/// A line that iptables would refuse, or that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line number, from 1.
    pub line: usize,
    /// The line itself.
    pub text: String,
    /// The reason.
    pub problem: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.problem, self.text)
    }
}

impl std::error::Error for ParseError {}

fn builtin_chains(table: &str) -> Option<&'static [&'static str]> {
    match table {
        "filter" | "security" => Some(&["INPUT", "FORWARD", "OUTPUT"]),
        "nat" => Some(&["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        "mangle" => Some(&["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
        "raw" => Some(&["PREROUTING", "OUTPUT"]),
        _ => None,
    }
}

/// The built-in chains of a table, which accept; none for an unknown table.
fn builtin(table: &str) -> Table {
    let names = builtin_chains(table).unwrap_or_default().iter();
    names.map(|name| ((*name).into(), Chain { policy: Some(Policy::Accept), ..Chain::default() })).collect()
}

impl Ruleset {
    /// A ruleset of the nf_tables flavour without tables.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, tables: BTreeMap::new(), is_legacy: false }
    }

    /// A ruleset of the legacy flavour without tables.
    #[must_use]
    pub fn new_legacy(family: IpFamily) -> Self {
        Self { is_legacy: true, ..Self::new(family) }
    }

    /// Whether the rules are of the legacy flavour, whose chains nf_tables does not know.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.is_legacy
    }

    /// Parses text strictly: every rule has to be understood.
    ///
    /// # Errors
    /// The first line with an unknown match, target or option, or that iptables would refuse.
    pub fn parse(family: IpFamily, text: &str) -> Result<Self, ParseError> {
        let mut ruleset = Self::new(family);
        ruleset.apply(text)?;
        Ok(ruleset)
    }

    /// Applies text as `iptables-restore --noflush` does: a declared chain starts empty, other chains stay.
    ///
    /// # Errors
    /// As [`Ruleset::parse`].
    pub fn apply(&mut self, text: &str) -> Result<(), ParseError> {
        match self.read(text).into_iter().next() {
            Some(problem) => Err(problem),
            None => self.check(),
        }
    }

    /// Adds text to the ruleset. Returns the lines that were skipped as invalid; [`super::Meaning`] has the parts of a rule
    /// that are not understood.
    pub fn read(&mut self, text: &str) -> Vec<ParseError> {
        let mut reader = Reader::new(self);
        text.lines().for_each(|line| reader.line(line));
        reader.finish()
    }

    /// Adds text line by line: large tables have tens of megabytes.
    #[must_use]
    pub fn reader(&mut self) -> Reader<'_> {
        Reader::new(self)
    }

    /// Adds some chains of one table, as `iptables -v -S` prints them. Returns the invalid lines.
    pub fn read_chains(&mut self, table: &str, text: &str) -> Vec<ParseError> {
        let mut reader = Reader::new(self);
        reader.line(&format!("*{table}"));
        text.lines().for_each(|line| reader.line(line));
        reader.line("COMMIT");
        reader.finish()
    }

    /// Puts a chain in the place of what was known of it. A table that is not there yet gets its built-in chains.
    pub fn put_chain(&mut self, table: &str, name: &str, chain: Chain) {
        let chains = self.tables.entry(table.to_owned()).or_insert_with(|| builtin(table));
        chains.insert(name.into(), chain);
    }

    fn check(&self) -> Result<(), ParseError> {
        let family = self.family;
        for table in self.tables.values() {
            let mut rules: Vec<&Rule> = table.values().flat_map(|chain| &chain.rules).collect();
            rules.sort_by_key(|rule| rule.line);
            for rule in rules {
                let problem = |problem| ParseError { line: rule.line, text: rule.text.to_string(), problem };
                if let Some(text) = &rule.meaning(family).problem {
                    return Err(problem(text.clone()));
                }
                let Some(to) = rule.jump_target() else { continue };
                if table.get(to).is_none_or(|chain| chain.policy.is_some()) {
                    return Err(problem(format!("no chain and no known target {to}")));
                }
            }
        }
        Ok(())
    }
}

/// Reads a ruleset line by line.
#[derive(Debug)]
pub struct Reader<'a> {
    ruleset: &'a mut Ruleset,
    table: Option<String>,
    number: usize,
    problems: Vec<ParseError>,
}

impl<'a> Reader<'a> {
    fn new(ruleset: &'a mut Ruleset) -> Self {
        Self { ruleset, table: None, number: 0, problems: Vec::new() }
    }

    /// Parses the next line.
    pub fn line(&mut self, line: &str) {
        self.number += 1;
        let line = line.trim();
        if let Err(problem) = self.take(line) {
            self.problems.push(ParseError { line: self.number, text: line.to_owned(), problem });
        }
    }

    /// Returns the lines that were skipped as invalid.
    #[must_use]
    pub fn finish(mut self) -> Vec<ParseError> {
        if let Some(table) = self.table.take() {
            let problem = format!("table {table} has no COMMIT");
            self.problems.push(ParseError { line: self.number, text: String::new(), problem });
        }
        self.problems
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('*') {
            return self.begin(name);
        }
        let name = self.table.as_deref().ok_or("a line outside of any table")?;
        let table = self.ruleset.tables.get_mut(name).ok_or("a line outside of any table")?;
        if line == "COMMIT" {
            self.table = None;
            return Ok(());
        }
        match line.strip_prefix(':') {
            Some(declaration) => declare(table, declaration),
            None => command(table, self.number, line),
        }
    }

    fn begin(&mut self, name: &str) -> Result<(), String> {
        if let Some(open) = self.table.take() {
            return Err(format!("table {open} has no COMMIT"));
        }
        builtin_chains(name).ok_or_else(|| format!("unknown table {name}"))?;
        let table = self.ruleset.tables.entry(name.to_owned()).or_default();
        for (name, chain) in builtin(name) {
            table.entry(name).or_insert(chain);
        }
        self.table = Some(name.to_owned());
        Ok(())
    }
}

fn command(chains: &mut Table, number: usize, line: &str) -> Result<(), String> {
    let (line, counters) = counted(line)?;
    let line = line.as_ref();
    let mut words = line.splitn(3, ' ');
    let (Some(verb), Some(name)) = (words.next(), words.next()) else { return Err("unknown line".to_owned()) };
    let mut rest = words.next().unwrap_or_default();
    if verb == "-N" && rest.is_empty() {
        chains.insert(name.into(), Chain::default());
        return Ok(());
    }
    let chain = chains.get_mut(name).ok_or_else(|| format!("no chain {name}"))?;
    let mut position = chain.rules.len();
    match verb {
        "-P" => {
            chain.policy = Some(policy(rest.split(' ').next().unwrap_or_default(), name)?);
            chain.counters = counters;
            chain.rules.clear();
            return Ok(());
        }
        "-X" if rest.is_empty() => {
            if chain.policy.is_some() || !chain.rules.is_empty() {
                return Err(format!("chain {name} is built in or not empty"));
            }
            chains.remove(name);
            return Ok(());
        }
        "-F" if rest.is_empty() => {
            chain.rules.clear();
            return Ok(());
        }
        "-I" => {
            let (first, others) = rest.split_once(' ').unwrap_or((rest, ""));
            let given = first.parse::<usize>().ok();
            position = given.map_or(0, |n| n.saturating_sub(1));
            rest = if given.is_some() { others } else { rest };
        }
        "-A" => {}
        _ => return Err(format!("unknown command {verb}")),
    }
    if position > chain.rules.len() {
        return Err(format!("chain {name} has no position {}", position + 1));
    }
    let text = if verb == "-A" { line.into() } else { format!("-A {name} {rest}").into() };
    chain.rules.insert(position, Rule { line: number, text, counters, kernel: None, meaning: OnceLock::new() });
    Ok(())
}

/// Separates the counters from `[1:2] -A …` or `-A … -c 1 2 -j …`.
fn counted(line: &str) -> Result<(std::borrow::Cow<'_, str>, Counters), String> {
    if let Some((counters, rest)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
        return Ok((rest.into(), self::counters(counters)?));
    }
    // A comment may have those letters in it.
    let quoted = |at: usize| line[..at].matches('"').count() % 2 == 1;
    let Some((at, option)) = line.match_indices(" -c ").find(|(at, _)| !quoted(*at)) else {
        return Ok((line.into(), Counters::default()));
    };
    let mut words = line[at + option.len()..].splitn(3, ' ');
    let (Some(packets), Some(bytes)) = (words.next(), words.next()) else {
        return Err("-c takes two numbers".to_owned());
    };
    let counters = self::counters(&format!("{packets}:{bytes}"))?;
    let rest = words.next().map(|rest| format!(" {rest}")).unwrap_or_default();
    Ok((format!("{}{rest}", &line[..at]).into(), counters))
}

fn counters(text: &str) -> Result<Counters, String> {
    let numbers = text.split_once(':').and_then(|(p, b)| Some((p.parse().ok()?, b.parse().ok()?)));
    let (packets, bytes) = numbers.ok_or_else(|| format!("{text} are no counters"))?;
    Ok(Counters { packets, bytes })
}

fn policy(word: &str, chain: &str) -> Result<Policy, String> {
    match word {
        "ACCEPT" => Ok(Policy::Accept),
        "DROP" => Ok(Policy::Drop),
        other => Err(format!("policy {other} of chain {chain}")),
    }
}

/// Parses `:NAME POLICY [packets:bytes]`. A user-defined chain starts empty; a built-in one only gets the policy.
fn declare(table: &mut Table, declaration: &str) -> Result<(), String> {
    let mut words = declaration.split_whitespace();
    let (Some(name), Some(word)) = (words.next(), words.next()) else {
        return Err("a chain's declaration needs a name and a policy".to_owned());
    };
    let counters = words.next().map(|text| counters(text.trim_matches(['[', ']']))).transpose()?.unwrap_or_default();
    let builtin = table.get(name).is_some_and(|chain| chain.policy.is_some());
    if word == "-" {
        if !builtin {
            table.insert(name.into(), Chain::default());
        }
        return Ok(());
    }
    if !builtin {
        return Err(format!("policy {word} of chain {name}"));
    }
    let policy = Some(policy(word, name)?);
    let chain = table.entry(name.into()).or_default();
    (chain.policy, chain.counters) = (policy, counters);
    Ok(())
}
