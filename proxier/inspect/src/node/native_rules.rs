//! Reads the rules of iptables in nf_tables over netlink, by chain or by table.
//!
//! Rules that this program cannot express as text of iptables get their text from the iptables program. Where that
//! prints none, as for a table that it calls incompatible, they keep the kernel's expressions alone.

use std::collections::{BTreeMap, HashMap};
use std::io;

use netfilter::IpFamily;
use netfilter::kernel::iptables_nft::{InspectedRule, RuleContent};
use netfilter::kernel::nftables::NftError;
use netfilter::kernel::{Flavour, NftReader, NftRules, NftTables, RuleReader, SystemNftables, ToolError};
use netfilter::nft::ruleset::{self as nft, TableId};

use super::chain_readers::{ChainHead, ReadChain, policy_counters, read_chains};
use super::progress;
use crate::rules::{Chain, Policy, Rule, Ruleset};

/// The table with chains of Service ports, which a listing may leave out.
const LARGE: &str = "nat";

/// The most chains that the iptables program prints one by one; of more it prints the whole table.
const SINGLE_MAX: usize = 8;

/// A table with more chains is read by chain.
///
/// The kernel goes through a dump from its first rule again for each answer of 32 KiB: the 330,000 rules of 10,000 Services
/// take 39 s of CPU time so, and a chain is found at once.
const DUMP_MAX: usize = 256;

/// The rules of one family, as iptables-nft keeps them.
pub struct NativeRules {
    family: IpFamily,
    rules: NftRules,
    reader: NftReader,
    printer: Printer,
    /// The chains of each table of iptables; those of [`LARGE`] may lack user-defined ones.
    listed: BTreeMap<String, Vec<ChainHead>>,
    is_complete: bool,
    /// nf_tables' generation ID before the first read, or why the kernel does not tell it.
    generation: Result<u32, String>,
}

/// The iptables program.
enum Printer {
    /// It was not needed yet.
    Unused,
    Ready(RuleReader),
    /// It is missing or failed: it is not run again.
    Unusable,
}

impl NativeRules {
    /// A reader that knows an outline of the tables. `is_complete`: the outline has all chains.
    #[must_use]
    pub fn new(outline: &nft::Ruleset, is_complete: bool) -> Self {
        let family = outline.family;
        Self {
            family,
            rules: NftRules::new(family),
            reader: NftReader::new(family),
            printer: Printer::Unused,
            listed: listed(outline),
            is_complete,
            generation: generation(),
        }
    }

    /// Why the rules may not be of one moment: nf_tables has changed since this reader was made, or that is not known.
    #[must_use]
    pub fn unsteady(&self) -> Option<String> {
        match (&self.generation, generation()) {
            (Ok(before), Ok(now)) if *before == now => None,
            (Ok(_), Ok(_)) => Some("nf_tables changed while they were read: the answer may mix two moments".to_owned()),
            (Err(why), _) => Some(why.clone()),
            (_, Err(why)) => Some(why),
        }
    }

    /// Reads one chain into `ruleset`; returns whether it exists. What is wrong with its text is added to `problems`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_chain(
        &mut self,
        ruleset: &mut Ruleset,
        (table, name): (&str, &str),
        problems: &mut Vec<String>,
    ) -> Result<bool, String> {
        let failed = |error: &dyn std::fmt::Display| format!("chain {name} of table {table}: {error}");
        let head = self.reader.chain(&TableId::of(self.family, table), name).map_err(|error| failed(&error))?;
        // Base chains of other programs are no part of iptables.
        let Some((head, counters)) = head.filter(|(head, _)| head.base.is_none() || head.is_of_iptables(name)) else {
            return Ok(false);
        };
        let (rules, changed) = self.rules.inspect_chain(table, name).map_err(|error| failed(&error))?;
        if changed {
            problems.push(failed(&"it changed during each attempt to read it"));
        }
        let chain = ReadChain { head: (name.to_owned(), policy(&head)), counters, rules };
        match lacks_text(&chain) {
            true => self.put_untold(ruleset, table, vec![chain], problems),
            false => put(ruleset, table, chain, None),
        }
        Ok(true)
    }

    /// Reads all chains of one table into `ruleset`; none if iptables has no such table.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read_table(&mut self, ruleset: &mut Ruleset, table: &str, problems: &mut Vec<String>) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| format!("rules of table {table}: {error}");
        if table == LARGE {
            self.list_all().map_err(|error| failed(&error))?;
        }
        let Some(heads) = self.listed.get(table) else { return Ok(()) };
        let mut step = progress::start(&format!("reading rules of {}", self.family));
        // Those that the iptables program has to print, all at once.
        let mut untold = Vec::new();
        let mut take = |chain: ReadChain| {
            step();
            match lacks_text(&chain) {
                true => untold.push(chain),
                false => put(ruleset, table, chain, None),
            }
        };
        let changed = match heads.len() <= DUMP_MAX {
            true => read_small(self.family, table, heads, (&mut self.rules, &mut self.reader), &mut take),
            false => read_chains(self.family, table, heads, &mut take),
        };
        if changed.map_err(|error| failed(&error))? {
            problems.push(failed(&"it changed during each attempt to read it"));
        }
        self.put_untold(ruleset, table, untold, problems);
        Ok(())
    }

    /// Reads all tables into `ruleset`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read_all(&mut self, ruleset: &mut Ruleset, problems: &mut Vec<String>) -> Result<(), String> {
        self.list_all().map_err(|error| format!("tables of nf_tables: {error}"))?;
        if self.reader.take_interrupted() {
            problems.push("chains of nf_tables changed during each attempt to list them".to_owned());
        }
        let tables: Vec<String> = self.listed.keys().cloned().collect();
        tables.iter().try_for_each(|table| self.read_table(ruleset, table, problems))
    }

    /// Lists all chains, if that was not done yet.
    fn list_all(&mut self) -> Result<(), NftError> {
        if !self.is_complete && self.listed.contains_key(LARGE) {
            self.listed = listed(&self.reader.read_outline()?);
            self.is_complete = true;
        }
        Ok(())
    }

    /// Puts chains into `ruleset` with the texts that the iptables program has for rules without one.
    fn put_untold(&mut self, ruleset: &mut Ruleset, table: &str, chains: Vec<ReadChain>, problems: &mut Vec<String>) {
        let names: Vec<&str> = chains.iter().map(|chain| chain.head.0.as_str()).collect();
        let printed = self.print(table, &names, problems);
        for chain in chains {
            let texts = printed.chain(table, &chain.head.0).map(|chain| chain.rules.as_slice());
            // If iptables shows more rules or less than there are, it is not known which text belongs to which.
            let texts = texts.filter(|texts| texts.len() == chain.rules.len());
            put(ruleset, table, chain, texts);
        }
    }

    /// What the iptables program prints of chains of a table; nothing if it refuses to.
    fn print(&mut self, table: &str, chains: &[&str], problems: &mut Vec<String>) -> Ruleset {
        let mut printed = Ruleset::new(self.family);
        if chains.is_empty() {
            return printed;
        }
        if matches!(self.printer, Printer::Unused) {
            let found = RuleReader::find(self.family, Flavour::Nft);
            self.printer = found.map_or(Printer::Unusable, Printer::Ready);
        }
        let Printer::Ready(tool) = &self.printer else { return printed };
        let texts: Result<Vec<String>, ToolError> = if chains.len() > SINGLE_MAX {
            tool.table(table).map(|text| vec![text])
        } else {
            chains.iter().map(|chain| Ok(tool.chain(table, chain)?.unwrap_or_default())).collect()
        };
        match texts {
            Ok(texts) => {
                let found = texts.iter().flat_map(|text| printed.read_chains(table, text));
                problems.extend(found.map(|problem| problem.to_string()));
            }
            // It calls the table incompatible.
            Err(ToolError::Failed { .. }) => {}
            Err(error) => {
                problems.push(error.to_string());
                self.printer = Printer::Unusable;
            }
        }
        printed
    }
}

/// Reads the chains of a small table by one dump of its rules; returns whether it changed during each attempt.
fn read_small(
    family: IpFamily,
    table: &str,
    heads: &[ChainHead],
    (rules, reader): (&mut NftRules, &mut NftReader),
    each: &mut dyn FnMut(ReadChain),
) -> Result<bool, NftError> {
    let collect = |known: &mut HashMap<String, Vec<InspectedRule>>, chain: &str, rule| match known.get_mut(chain) {
        Some(rules) => rules.push(rule),
        None => _ = known.insert(chain.to_owned(), vec![rule]),
    };
    let (mut rules, changed) = rules.inspect_table(table, collect)?;
    for head in heads {
        let counters = policy_counters(reader, &TableId::of(family, table), head)?;
        each(ReadChain { head: head.clone(), counters, rules: rules.remove(&head.0).unwrap_or_default() });
    }
    Ok(changed)
}

/// Whether a chain has a rule that this program has no text for.
fn lacks_text(chain: &ReadChain) -> bool {
    chain.rules.iter().any(|rule| matches!(rule.content, RuleContent::Expressions(_)))
}

/// Puts a chain into `ruleset`. `texts`: what iptables prints of each rule.
fn put(ruleset: &mut Ruleset, table: &str, chain: ReadChain, texts: Option<&[Rule]>) {
    let ReadChain { head: (name, policy), counters, rules } = chain;
    let family = ruleset.family();
    let rule = |(at, read): (usize, _)| rule(family, &name, read, texts.map(|texts| &*texts[at].text));
    let rules = rules.into_iter().enumerate().map(rule).collect();
    ruleset.put_chain(table, &name, Chain { policy, counters, rules });
}

/// A rule with its text: that of iptables, where it has one.
fn rule(family: IpFamily, chain: &str, rule: InspectedRule, printed: Option<&str>) -> Rule {
    let InspectedRule { counters, content } = rule;
    match (content, printed) {
        (RuleContent::Text(text), _) => Rule::of_kernel(text, counters, None),
        (RuleContent::Expressions(held), Some(text)) => {
            let kernel = Some(held).filter(|held| !held.has_iptables_text());
            Rule::of_kernel(text.into(), counters, kernel)
        }
        (RuleContent::Expressions(held), None) => {
            let text = held.text(&TableId::of(family, ""), &nft::Table::default());
            Rule::of_kernel(format!("-A {chain} {text}").into(), counters, Some(held))
        }
    }
}

/// The chains of iptables' tables. Base chains that other programs put there are left out.
fn listed(outline: &nft::Ruleset) -> BTreeMap<String, Vec<ChainHead>> {
    // A proxy may have made a table for chains that no packet meets.
    let is_iptables = |(id, table): &(&TableId, &nft::Table)| {
        table.is_iptables(id) || (id.is_of_iptables() && table.chains.values().all(|chain| chain.base.is_none()))
    };
    let chains = |table: &nft::Table| {
        let own = table.chains.iter().filter(|(name, chain)| chain.base.is_none() || chain.is_of_iptables(name));
        own.map(|(name, chain)| (name.to_string(), policy(chain))).collect()
    };
    let tables = outline.tables.iter().filter(is_iptables);
    tables.map(|(id, table)| (id.name.to_string(), chains(table))).collect()
}

/// The policy of a base chain.
fn policy(chain: &nft::Chain) -> Option<Policy> {
    chain.base.as_ref().map(|base| if base.drop { Policy::Drop } else { Policy::Accept })
}

/// nf_tables' generation ID, or why the kernel does not tell it.
fn generation() -> Result<u32, String> {
    let read = SystemNftables::default().generation().map_err(io::Error::from);
    read.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("no permission to read nf_tables (CAP_NET_ADMIN; run it as root): {error}")
        }
        _ => error.to_string(),
    })
}
