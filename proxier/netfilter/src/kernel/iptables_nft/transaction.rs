//! Turns the part of a [`Restore`](crate::Restore) about one table into one batch of requests.

use std::collections::{BTreeMap, HashSet};

use super::base;
use super::batch::Batch;
use super::kept::kept;
use super::known::{EditLine, KnownChains};
use super::lines::{Chains, Lines, command, declared, leaves_first};
use super::read::{NftRules, ReadRule};
use super::rule::encode;
use super::tables::text;
use crate::IpFamily;
use crate::iptables::{Rule, Table};
use crate::kernel::netlink::{
    Dump, NLM_F_APPEND, NLM_F_CREATE, NLM_F_ECHO, NetlinkError, Request, nfgenmsg, nfnetlink,
};
use crate::kernel::nftables::NftError;
use crate::kernel::nftables::uapi::*;

/// Do not delete a chain with rules or references.
const NLM_F_NONREC: u16 = 0x100;

/// The most rules that are inserted and deleted one by one; the kernel searches the chain for each.
const SINGLE_MAX: usize = 1000;

/// Chains that are emptied in the last batch, with their lines.
type Emptied<'a> = Vec<(usize, &'a str)>;

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// In one batch.
    Atomic,
    /// In several: all chains are compared, targets of jumps first, and the new rules of a chain come before
    /// the old ones go. So packets meet each chain in its old state, its new one, or one with the rules of both. Verdicts
    /// of built-in chains and deletions of chains are the last batch.
    Parts,
}

/// The requests for one table.
pub(super) struct Writer<'a> {
    pub rules: &'a mut NftRules,
    pub name: &'a str,
    pub batch: Batch,
    pub shape: Shape,
}

impl Writer<'_> {
    fn family(&self) -> IpFamily {
        self.rules.family()
    }

    fn request(&self, message: u8, flags: u16) -> Request {
        let mut request =
            Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, message), flags, &nfgenmsg(self.family().nfproto()));
        request.text(NFTA_RULE_TABLE, self.name);
        request
    }

    /// Creates the table if it does not exist.
    pub fn table(&mut self, line: usize) -> Result<(), NetlinkError> {
        let request = self.request(NFT_MSG_NEWTABLE, NLM_F_CREATE);
        self.batch.push(&request, line)
    }

    /// Creates a chain if it does not exist.
    fn chain(&mut self, name: &str, line: usize) -> Result<(), NetlinkError> {
        let mut request = self.request(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
        request.text(NFTA_CHAIN_NAME, name);
        self.batch.push(&request, line)
    }

    /// Creates a chain like a built-in one.
    pub fn builtin(&mut self, table: Table, (name, builtin): (&str, &str), line: usize) -> Result<(), NetlinkError> {
        let mut request = self.request(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
        request.text(NFTA_CHAIN_NAME, name);
        match base::describe(table, builtin, &mut request) {
            true => self.batch.push(&request, line),
            false => {
                self.batch.refused.push((line, format!("table {} has no chain {name}", table.name())));
                Ok(())
            }
        }
    }

    fn delete_chain(&mut self, name: &str, line: usize) -> Result<(), NetlinkError> {
        let mut request = self.request(NFT_MSG_DELCHAIN, NLM_F_NONREC);
        request.text(NFTA_CHAIN_NAME, name);
        self.batch.push(&request, line)
    }

    /// Deletes a rule, or all of a chain.
    pub fn delete_rules(&mut self, chain: &str, handle: Option<u64>, line: usize) -> Result<(), NetlinkError> {
        let mut request = self.request(NFT_MSG_DELRULE, 0);
        request.text(NFTA_RULE_CHAIN, chain);
        if let Some(handle) = handle {
            request.attribute(NFTA_RULE_HANDLE, &handle.to_be_bytes());
            self.batch.uses_handles = true;
        }
        self.batch.push(&request, line)
    }

    /// Adds a rule at the end of a chain, at its head, or before another rule.
    pub fn add_rule(&mut self, chain: &str, options: &str, at: RulePosition, line: usize) -> Result<(), NetlinkError> {
        self.add(chain, options, (at, 0), line)
    }

    /// As [`Writer::add_rule`]; the kernel answers with the rule.
    pub fn add_echoed_rule(
        &mut self,
        chain: &str,
        options: &str,
        at: RulePosition,
        line: usize,
    ) -> Result<(), NetlinkError> {
        self.add(chain, options, (at, NLM_F_ECHO), line)
    }

    /// Adds a rule that the same batch deletes, so that the kernel validates it.
    fn add_and_delete_rule(&mut self, chain: &str, options: &str, id: u32, line: usize) -> Result<(), NetlinkError> {
        let Some(mut request) = self.rule(chain, options, (RulePosition::Head, 0), line) else { return Ok(()) };
        request.attribute(NFTA_RULE_ID, &id.to_be_bytes());
        self.batch.push(&request, line)?;
        let mut request = self.request(NFT_MSG_DELRULE, 0);
        request.text(NFTA_RULE_CHAIN, chain).attribute(NFTA_RULE_ID, &id.to_be_bytes());
        self.batch.push(&request, line)
    }

    fn add(&mut self, chain: &str, options: &str, at: (RulePosition, u16), line: usize) -> Result<(), NetlinkError> {
        match self.rule(chain, options, at, line) {
            Some(request) => self.batch.push(&request, line),
            None => Ok(()),
        }
    }

    /// The request that adds a rule; `None` if it is refused.
    fn rule(&mut self, chain: &str, options: &str, (at, echo): (RulePosition, u16), line: usize) -> Option<Request> {
        let Some(rule) = Rule::parse(self.family(), options) else {
            self.batch
                .refused
                .push((line, "this version cannot write such a rule without the iptables programs".into()));
            return None;
        };
        let flags = if at == RulePosition::End { NLM_F_CREATE | NLM_F_APPEND } else { NLM_F_CREATE };
        let mut request = self.request(NFT_MSG_NEWRULE, flags | echo);
        request.text(NFTA_RULE_CHAIN, chain);
        if let RulePosition::Before(handle) = at {
            request.attribute(NFTA_RULE_POSITION, &handle.to_be_bytes());
            self.batch.uses_handles = true;
        }
        encode(self.family(), &rule, &mut self.rules.sets, &mut request)
            .map_err(|why| self.batch.refused.push((line, why)))
            .ok()?;
        Some(request)
    }
}

/// Where a rule is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RulePosition {
    Head,
    End,
    /// Before the rule with this handle.
    Before(u64),
}

impl Writer<'_> {
    /// Writes the lines of one table. The built-in chains `missing` are created.
    ///
    /// Returns the reason if a chain that is edited is not as expected.
    pub fn write(
        &mut self,
        lines: &Lines<'_>,
        missing: &[&str],
        known: &mut KnownChains,
    ) -> Result<Option<String>, NftError> {
        self.table(lines.first)?;
        for name in missing {
            let inserts = |line: &str| command(line).is_some_and(|(verb, chain, _)| verb == "-I" && chain == *name);
            if let Some((line, _)) = lines.numbered(1).find(|(_, line)| inserts(line)) {
                self.builtin(lines.table, (name, name), line)?;
            }
        }
        let (mut chains, emptied) = self.declare(lines)?;
        let (mut builtin, mut edits) = (Builtin::default(), BTreeMap::<&str, Vec<EditLine<'_>>>::new());
        for (line, text) in lines.numbered(1) {
            let Some((verb, chain, options)) = command(text) else { continue };
            match (verb, chains.get_mut(chain)) {
                ("-I" | "-D", _) if lines.edits(chain) => edits.entry(chain).or_default().push((line, verb, options)),
                ("-A", Some(rules)) => rules.push((line, options)),
                ("-A", None) => self.add_rule(chain, options, RulePosition::End, line)?,
                ("-I", _) => builtin.insert(chain, options, line),
                ("-D", _) => builtin.remove(self, chain, options, line)?,
                _ => self.batch.refused.push((line, format!("unknown command {verb}"))),
            }
        }
        let order = if self.shape == Shape::Parts { leaves_first(&chains) } else { chains.keys().copied().collect() };
        for chain in order {
            self.compare(chain, &chains[chain])?;
        }
        for edited in lines.edited {
            let of_chain = edits.remove(edited.chain.as_str()).unwrap_or_default();
            if let Some(why) = self.edit((lines.table, edited), &of_chain, known)? {
                return Ok(Some(why));
            }
        }
        self.finish(lines, builtin, &emptied)?;
        Ok(None)
    }

    /// Creates the declared chains. Returns those to compare, and those to empty in the last batch.
    fn declare<'a>(&mut self, lines: &Lines<'a>) -> Result<(Chains<'a>, Emptied<'a>), NetlinkError> {
        let in_parts = self.shape == Shape::Parts;
        let compared = if in_parts { lines.written() } else { lines.compared() };
        let (mut chains, mut emptied) = (Chains::new(), Vec::new());
        for (line, text) in lines.numbered(0) {
            let Some(chain) = declared(text) else { continue };
            self.chain(chain, line)?;
            if compared.contains(chain) {
                chains.insert(chain, vec![(line, "")]);
            } else if in_parts {
                emptied.push((line, chain));
            } else {
                self.delete_rules(chain, None, line)?;
            }
        }
        Ok((chains, emptied))
    }

    /// Writes what must not be done twice, or before everything else.
    fn finish(
        &mut self,
        lines: &Lines<'_>,
        builtin: Builtin<'_>,
        emptied: &[(usize, &str)],
    ) -> Result<(), NetlinkError> {
        self.batch.keep_whole();
        for (chain, handle, line) in builtin.removed {
            self.delete_rules(chain, Some(handle), line)?;
        }
        for (chain, options, line) in builtin.inserted {
            self.add_rule(chain, options, RulePosition::Head, line)?;
        }
        for (id, (chain, options, line)) in (1..).zip(builtin.cancelled) {
            self.add_and_delete_rule(chain, options, id, line)?;
        }
        for (line, chain) in emptied {
            self.delete_rules(chain, None, *line)?;
        }
        for (line, text) in lines.numbered(2) {
            self.delete_chain(text.trim_start_matches("-X "), line)?;
        }
        Ok(())
    }

    /// The rules of a chain that is to be compared; `None` if they cannot be read because others write all the time,
    /// and the batch is not for a generation anyway.
    fn present(&mut self, chain: &str) -> Result<Option<Vec<ReadRule>>, NftError> {
        match self.rules.chain(self.name, chain) {
            Err(NftError::Interrupted) if self.batch.generation.is_none() => Ok(None),
            read => read.map(Some),
        }
    }

    /// Inserts and deletes the rules that differ, or all of them if they are many. The first of `rules` is the
    /// declaration.
    fn compare(&mut self, chain: &str, rules: &[(usize, &str)]) -> Result<(), NftError> {
        let [(declaration, _), rules @ ..] = rules else { return Ok(()) };
        let present = self.present(chain)?;
        let is_known_empty = present.as_ref().is_some_and(Vec::is_empty);
        let old: Vec<String> = present.iter().flatten().map(|rule| printed(&rule.rule)).collect();
        let old: Vec<&str> = old.iter().map(String::as_str).collect();
        let new: Vec<&str> = rules.iter().map(|(_, options)| *options).collect();
        let kept = kept(&old, &new);
        let stay: HashSet<usize> = kept.iter().flatten().copied().collect();
        let many = stay.is_empty() || old.len() + new.len() - 2 * stay.len() > SINGLE_MAX;
        let present = match present {
            Some(present) if self.shape == Shape::Parts || !many => present,
            _ => {
                if !is_known_empty {
                    self.delete_rules(chain, None, *declaration)?;
                }
                return self.append_all(chain, rules);
            }
        };
        let mut places = vec![RulePosition::End; rules.len()];
        let mut next = RulePosition::End;
        for (at, kept) in kept.iter().enumerate().rev() {
            next = kept.map_or(next, |old| RulePosition::Before(present[old].handle));
            places[at] = next;
        }
        // Additions first, in case that the batch is cut.
        for (at, (line, options)) in rules.iter().enumerate().filter(|(at, _)| kept[*at].is_none()) {
            self.add_rule(chain, options, places[at], *line)?;
        }
        for (_, rule) in present.iter().enumerate().filter(|(at, _)| !stay.contains(at)) {
            self.delete_rules(chain, Some(rule.handle), *declaration)?;
        }
        Ok(())
    }

    fn append_all(&mut self, chain: &str, rules: &[(usize, &str)]) -> Result<(), NftError> {
        for (line, options) in rules {
            self.add_rule(chain, options, RulePosition::End, *line)?;
        }
        Ok(())
    }
}

fn printed(rule: &super::rule::DecodedRule) -> String {
    let mut out = String::with_capacity(160);
    text(rule, &mut out);
    out
}

/// The changes of built-in chains.
#[derive(Default)]
struct Builtin<'a> {
    inserted: Vec<(&'a str, &'a str, usize)>,
    /// Rules that are inserted and removed again, by the line of the insertion, which alone can be refused.
    cancelled: Vec<(&'a str, &'a str, usize)>,
    /// Chain, handle and line.
    removed: Vec<(&'a str, u64, usize)>,
    /// The rules of chains that rules are removed from, without those already removed.
    present: BTreeMap<&'a str, Present>,
}

/// The rules of a chain that were not yet removed, by handle.
struct Present {
    rules: Vec<(u64, String)>,
    end: Dump,
}

impl Present {
    /// Takes the handle of the first rule with these options.
    ///
    /// What else an interrupted dump lacks does not matter to the rule that it has: the kernel never reuses a handle.
    fn take(&mut self, options: &str) -> Result<Option<u64>, NftError> {
        match self.rules.iter().position(|(_, rule)| rule == options) {
            Some(at) => Ok(Some(self.rules.remove(at).0)),
            None if self.end == Dump::Interrupted => Err(NftError::Interrupted),
            None => Ok(None),
        }
    }
}

impl<'a> Builtin<'a> {
    fn insert(&mut self, chain: &'a str, options: &'a str, line: usize) {
        self.inserted.push((chain, options, line));
    }

    fn remove(
        &mut self,
        writer: &mut Writer<'_>,
        chain: &'a str,
        options: &'a str,
        line: usize,
    ) -> Result<(), NftError> {
        // The last insertion is the first rule of the chain.
        if let Some(at) = self.inserted.iter().rposition(|(of, rule, _)| *of == chain && *rule == options) {
            self.cancelled.push(self.inserted.remove(at));
            return Ok(());
        }
        if !self.present.contains_key(chain) {
            let (rules, end) = writer.rules.chain_or_part(writer.name, chain)?;
            let rules = rules.iter().map(|rule| (rule.handle, printed(&rule.rule))).collect();
            self.present.insert(chain, Present { rules, end });
        }
        let found = self.present.get_mut(chain).map(|present| present.take(options));
        match found.transpose()?.flatten() {
            Some(handle) => self.removed.push((chain, handle, line)),
            None => writer.batch.refused.push((line, format!("chain {chain} has no such rule"))),
        }
        Ok(())
    }
}
