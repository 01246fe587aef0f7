//! Reads iptables-nft rules for people and for tracing: with the kernel's expressions where a text does not tell all.

use super::read::NftRules;
use super::rule::{DecodedRule, decode};
use super::sets::SetIndex;
use crate::iptables::Rule;
use crate::kernel::netlink::{Attributes, Dump};
use crate::kernel::nftables::uapi::*;
use crate::kernel::nftables::{NftError, decode_rule};
use crate::nft::ruleset;
use crate::{Counters, IpFamily};

/// Room for the text of most rules, in bytes.
const LINE: usize = 256;

/// A rule of an iptables-nft table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedRule {
    /// Its counters; zero if it does not count.
    pub counters: Counters,
    /// What it matches and does.
    pub content: RuleContent,
}

/// What a rule matches and does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleContent {
    /// The rule's text, `-A CHAIN` and its options. It tells all of the rule.
    Text(Box<str>),
    /// The expressions of a rule that this crate cannot express as text of iptables.
    Expressions(Box<ruleset::Rule>),
}

impl NftRules {
    /// Reads the rules of one chain, in order; also returns whether nf_tables changed during each attempt.
    ///
    /// A chain or table that does not exist has no rules.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn inspect_chain(&mut self, table: &str, chain: &str) -> Result<(Vec<InspectedRule>, bool), NftError> {
        let (rules, end) = self.read(table, Some(chain), inspect, |rules: &mut Vec<_>, _, rule| rules.push(rule))?;
        Ok((rules, end == Dump::Interrupted))
    }

    /// As [`NftRules::inspect_chain`], for all chains of a table: passes each rule to `each`, with its chain, in order.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn inspect_table<T: Default>(
        &mut self,
        table: &str,
        each: impl FnMut(&mut T, &str, InspectedRule),
    ) -> Result<(T, bool), NftError> {
        let (read, end) = self.read(table, None, inspect, each)?;
        Ok((read, end == Dump::Interrupted))
    }
}

fn inspect(family: IpFamily, message: Attributes<'_>, sets: &mut SetIndex) -> Option<InspectedRule> {
    let (decoded, counters) = decode(family, message, sets);
    let content = match decoded {
        // iptables prints the comment of a rule that nft put there, but has no words for it in the rule.
        DecodedRule::Known(rule) if !has_notes(message) => RuleContent::Text(line(message, &rule)),
        _ => RuleContent::Expressions(Box::new(decode_rule(message)?.1)),
    };
    Some(InspectedRule { counters: counters.unwrap_or_default(), content })
}

/// The rule's text. A large table has hundreds of thousands: they are kept without spare room.
fn line(message: Attributes<'_>, rule: &Rule) -> Box<str> {
    let mut text = String::with_capacity(LINE);
    text.push_str("-A ");
    text.push_str(message.text(NFTA_RULE_CHAIN).unwrap_or_default());
    rule.write_to(&mut text);
    text.into()
}

/// Whether the rule has user data, as the comments of nft are.
fn has_notes(message: Attributes<'_>) -> bool {
    message.find(NFTA_RULE_USERDATA).is_some()
}
