//! Turns the part of a [`Restore`](crate::Restore) about one table into one batch of requests.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::base;
use super::kept::kept;
use super::read::{NFNL_SUBSYS_NFTABLES, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NftRules};
use super::rule::encode;
use super::tables::text;
use crate::IpFamily;
use crate::iptables::{Rule, Table};
use crate::kernel::netlink::{self, NLM_F_APPEND, NLM_F_CREATE, NetlinkError, Request, nfgenmsg, nfnetlink};
use crate::kernel::nftables::NftError;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_DELRULE: u8 = 8;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_POSITION: u16 = 6;
/// Do not delete a chain with rules or references.
const NLM_F_NONREC: u16 = 0x100;

/// The most chains of a transaction whose rules are compared with the kernel's one by one. Of larger transactions,
/// such as that of a start, only long chains are compared.
const COMPARED_MAX: usize = 64;
/// The number of rules of a chain that is always compared.
const LONG: usize = 256;
/// The most rules that are inserted and deleted one by one; the kernel searches the chain for each.
const SINGLE_MAX: usize = 1000;

/// A batch of requests, each with the line that it is about.
pub(super) struct Batch {
    pub requests: netlink::Batch,
    lines: Vec<usize>,
    /// Lines that cannot be sent, with the reason.
    pub refused: Vec<(usize, String)>,
}

impl Batch {
    /// A batch with its begin message only. The kernel refuses it with `ERESTART` after the generation.
    pub fn new(generation: Option<u32>) -> Result<Self, NetlinkError> {
        let mut begin = marker(NFNL_MSG_BATCH_BEGIN);
        if let Some(generation) = generation {
            begin.attribute(NFNL_BATCH_GENID, &generation.to_be_bytes());
        }
        let mut requests = netlink::Batch::default();
        requests.push(&begin)?;
        Ok(Self { requests, lines: Vec::new(), refused: Vec::new() })
    }

    /// Completes the batch; without it, the kernel only validates.
    pub fn end(&mut self) -> Result<(), NetlinkError> {
        self.requests.push(&marker(NFNL_MSG_BATCH_END))
    }

    /// The line that a request is about; `None` for the batch itself.
    pub fn line(&self, request: usize) -> Option<usize> {
        self.lines.get(request.checked_sub(1)?).copied()
    }

    fn push(&mut self, request: &Request, line: usize) -> Result<(), NetlinkError> {
        self.lines.push(line);
        self.requests.push(request)
    }
}

fn marker(kind: u16) -> Request {
    Request::new(kind, 0, &[0, 0, 0, NFNL_SUBSYS_NFTABLES])
}

/// The requests for one table.
pub(super) struct Writer<'a> {
    pub rules: &'a mut NftRules,
    pub name: &'a str,
    pub batch: Batch,
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
    fn delete_rules(&mut self, chain: &str, handle: Option<u64>, line: usize) -> Result<(), NetlinkError> {
        let mut request = self.request(NFT_MSG_DELRULE, 0);
        request.text(NFTA_RULE_CHAIN, chain);
        if let Some(handle) = handle {
            request.attribute(NFTA_RULE_HANDLE, &handle.to_be_bytes());
        }
        self.batch.push(&request, line)
    }

    /// Adds a rule at the end of a chain, at its head, or before another rule.
    pub fn add_rule(&mut self, chain: &str, options: &str, at: Place, line: usize) -> Result<(), NetlinkError> {
        let Some(rule) = Rule::parse(self.family(), options) else {
            self.batch
                .refused
                .push((line, "this version cannot write such a rule without the iptables programs".into()));
            return Ok(());
        };
        let flags = if at == Place::End { NLM_F_CREATE | NLM_F_APPEND } else { NLM_F_CREATE };
        let mut request = self.request(NFT_MSG_NEWRULE, flags);
        request.text(NFTA_RULE_CHAIN, chain);
        if let Place::Before(handle) = at {
            request.attribute(NFTA_RULE_POSITION, &handle.to_be_bytes());
        }
        match encode(self.family(), &rule, &mut self.rules.sets, &mut request) {
            Ok(()) => self.batch.push(&request, line),
            Err(why) => {
                self.batch.refused.push((line, why));
                Ok(())
            }
        }
    }
}

/// Where a rule is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Head,
    End,
    /// Before the rule with this handle.
    Before(u64),
}

/// The lines about one table, with the number of the first.
pub(super) struct Lines<'a> {
    pub table: Table,
    pub texts: [&'a str; 3],
    pub first: usize,
}

impl<'a> Lines<'a> {
    /// The number of lines, head and COMMIT included.
    pub fn count(&self) -> usize {
        2 + self.texts.iter().map(|text| text.lines().count()).sum::<usize>()
    }

    /// Whether a batch for these lines depends on what the table contains.
    pub fn depend(&self) -> bool {
        !self.compared().is_empty() || self.texts[1].lines().any(|line| line.starts_with("-D "))
    }

    fn numbered(&self, part: usize) -> impl Iterator<Item = (usize, &'a str)> {
        let before: usize = self.texts[..part].iter().map(|text| text.lines().count()).sum();
        (self.first + 1 + before..).zip(self.texts[part].lines())
    }

    fn deleted(&self) -> HashSet<&'a str> {
        self.texts[2].lines().filter_map(|line| line.strip_prefix("-X ")).collect()
    }

    /// The chains whose rules are compared one by one.
    fn compared(&self) -> BTreeSet<&'a str> {
        let deleted = self.deleted();
        let declared = self.texts[0].lines().filter_map(declared).filter(|chain| !deleted.contains(chain));
        let declared: Vec<&str> = declared.collect();
        if declared.len() <= COMPARED_MAX {
            return declared.into_iter().collect();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (verb, chain, _) in self.texts[1].lines().filter_map(command) {
            *counts.entry(chain).or_default() += usize::from(verb == "-A");
        }
        let long: BTreeSet<&str> = declared.into_iter().collect();
        counts
            .into_iter()
            .filter(|(chain, count)| *count >= LONG && long.contains(chain))
            .map(|(chain, _)| chain)
            .collect()
    }
}

/// The chain of `:CHAIN - [0:0]`.
fn declared(line: &str) -> Option<&str> {
    line.strip_prefix(':')?.split(' ').next()
}

/// The verb, the chain and the options of a rule's line.
fn command(line: &str) -> Option<(&str, &str, &str)> {
    let (verb, rest) = line.split_once(' ')?;
    let end = rest.find(' ').unwrap_or(rest.len());
    Some((verb, &rest[..end], &rest[end..]))
}

impl Writer<'_> {
    /// Writes the lines of one table, except the verdicts on built-in chains that do not exist.
    pub fn write(&mut self, lines: &Lines<'_>, missing: &[&str]) -> Result<(), NftError> {
        self.table(lines.first)?;
        for name in missing {
            let inserts = |line: &str| command(line).is_some_and(|(verb, chain, _)| verb == "-I" && chain == *name);
            if let Some((line, _)) = lines.numbered(1).find(|(_, line)| inserts(line)) {
                self.builtin(lines.table, (name, name), line)?;
            }
        }
        let compared = lines.compared();
        let mut wanted: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
        for (line, text) in lines.numbered(0) {
            let Some(chain) = declared(text) else { continue };
            self.chain(chain, line)?;
            match compared.contains(chain) {
                true => _ = wanted.insert(chain, vec![(line, "")]),
                false => self.delete_rules(chain, None, line)?,
            }
        }
        let mut builtin = Builtin::default();
        for (line, text) in lines.numbered(1) {
            let Some((verb, chain, options)) = command(text) else { continue };
            match (verb, wanted.get_mut(chain)) {
                ("-A", Some(rules)) => rules.push((line, options)),
                ("-A", None) => self.add_rule(chain, options, Place::End, line)?,
                ("-I", _) => builtin.insert(chain, options, line),
                ("-D", _) => builtin.remove(self, chain, options, line)?,
                _ => self.batch.refused.push((line, format!("unknown command {verb}"))),
            }
        }
        for (chain, rules) in wanted {
            self.compare(chain, &rules)?;
        }
        for (chain, options, line) in builtin.inserted {
            self.add_rule(chain, options, Place::Head, line)?;
        }
        for (line, text) in lines.numbered(2) {
            self.delete_chain(text.trim_start_matches("-X "), line)?;
        }
        Ok(())
    }

    /// Inserts and deletes the rules that differ, or all of them if they are many. The first of `rules` is the
    /// declaration.
    fn compare(&mut self, chain: &str, rules: &[(usize, &str)]) -> Result<(), NftError> {
        let [(declaration, _), rules @ ..] = rules else { return Ok(()) };
        let present = self.rules.chain(self.name, chain)?;
        let handles: Vec<u64> = present.iter().map(|rule| rule.handle).collect();
        let old: Vec<String> = present.iter().map(|rule| printed(&rule.rule)).collect();
        let old: Vec<&str> = old.iter().map(String::as_str).collect();
        let new: Vec<&str> = rules.iter().map(|(_, options)| *options).collect();
        let kept = kept(&old, &new);
        let stay: HashSet<usize> = kept.iter().flatten().copied().collect();
        let rewritten = old.len() + new.len() - 2 * stay.len() > SINGLE_MAX;
        if rewritten || stay.is_empty() {
            if !old.is_empty() {
                self.delete_rules(chain, None, *declaration)?;
            }
            for (line, options) in rules {
                self.add_rule(chain, options, Place::End, *line)?;
            }
            return Ok(());
        }
        for (_, handle) in handles.iter().enumerate().filter(|(at, _)| !stay.contains(at)) {
            self.delete_rules(chain, Some(*handle), *declaration)?;
        }
        let mut places = vec![Place::End; rules.len()];
        let mut next = Place::End;
        for (at, kept) in kept.iter().enumerate().rev() {
            next = kept.map_or(next, |old| Place::Before(handles[old]));
            places[at] = next;
        }
        for (at, (line, options)) in rules.iter().enumerate().filter(|(at, _)| kept[*at].is_none()) {
            self.add_rule(chain, options, places[at], *line)?;
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
    /// The rules of chains that rules are removed from, without those already removed.
    present: BTreeMap<&'a str, Vec<(u64, String)>>,
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
            self.inserted.remove(at);
            return Ok(());
        }
        if !self.present.contains_key(chain) {
            let rules = writer.rules.chain(writer.name, chain)?;
            self.present.insert(chain, rules.iter().map(|rule| (rule.handle, printed(&rule.rule))).collect());
        }
        let rules = self.present.get_mut(chain).and_then(|rules| {
            let at = rules.iter().position(|(_, rule)| rule == options)?;
            Some(rules.remove(at))
        });
        match rules {
            Some((handle, _)) => writer.delete_rules(chain, Some(handle), line)?,
            None => writer.batch.refused.push((line, format!("chain {chain} has no such rule"))),
        }
        Ok(())
    }
}
