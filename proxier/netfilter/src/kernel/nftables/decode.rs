//! Decodes dumps of one table into values that compare with rendered ones.

use std::collections::BTreeMap;

use super::encode::{self, *};
use super::expression::{is_counter, read_list, read_value, read_verdict};
use super::uapi::*;
use crate::kernel::netlink::{Attributes, text};
use crate::nft::{BaseChain, Chain, ChainType, Element, Expression, Hook, Name, Rule, Set, Value};

/// A rule as read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRule {
    /// The handle.
    pub handle: u64,
    /// The expressions.
    pub expressions: Vec<Expression>,
    /// The comment.
    pub comment: Option<Name>,
}

impl ReadRule {
    /// Whether the kernel's rule equals a rendered one.
    #[must_use]
    pub fn is(&self, rule: &Rule) -> bool {
        self.comment == rule.comment && self.expressions == rule.expressions()
    }
}

/// A set as read from the kernel, without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSet {
    flags: u32,
    key: (u32, usize),
    value: Option<(u32, usize)>,
    size: Option<u32>,
    notes: Vec<u8>,
    counter: bool,
}

impl ReadSet {
    /// The kernel's view of a rendered set.
    #[must_use]
    pub fn of(set: &Set) -> Self {
        let value = |fields: &Vec<_>| match set.is_verdict_map() {
            true => (NFT_DATA_VERDICT, 0),
            false => (encode::type_of(fields), Set::length(fields)),
        };
        Self {
            flags: encode::set_flags(set),
            key: (encode::type_of(&set.key), Set::length(&set.key)),
            value: set.value.as_ref().map(value),
            size: set.size,
            notes: encode::set_notes(set),
            counter: set.counter,
        }
    }

    /// Whether the set is anonymous: it belongs to a rule and is deleted with it.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.flags & NFT_SET_ANONYMOUS != 0
    }

    /// Whether it is a map.
    #[must_use]
    pub fn is_map(&self) -> bool {
        self.value.is_some()
    }
}

/// The content of a table, without the elements of its sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadTable {
    /// `comment`
    pub comment: Option<Name>,
    /// `flags dormant`: its chains see no packets.
    pub dormant: bool,
    /// `flags owner`: the port ID of the only netlink socket that may change the table, usually a process ID.
    pub owner: Option<u32>,
    /// The number of objects besides chains and sets: named counters, flowtables and so on.
    pub others: usize,
    /// The chains with their rules, in order.
    pub chains: BTreeMap<Name, (Chain, Vec<ReadRule>)>,
    /// The sets and maps.
    pub sets: BTreeMap<Name, ReadSet>,
    /// The number of elements of each set, if the kernel reports it (6.18 and later).
    pub counts: BTreeMap<Name, usize>,
}

pub(super) fn name(attributes: Attributes<'_>, kind: u16) -> Option<Name> {
    attributes.text(kind).map(Into::into)
}

/// Whether the message is about this table.
pub(super) fn is_of(attributes: Attributes<'_>, table: &str) -> bool {
    attributes.text(TABLE) == Some(table)
}

/// A string in the user data that nft stores (`NFTNL_UDATA_*`).
pub(super) fn comment(attributes: Attributes<'_>, kind: u16, number: u8) -> Option<Name> {
    let mut notes = attributes.find(kind)?;
    while let [found, length, rest @ ..] = notes {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *found == number {
            return text(value).map(Into::into);
        }
        notes = rest;
    }
    None
}

/// The comment of a table.
pub(super) fn table_comment(attributes: Attributes<'_>) -> Option<Name> {
    comment(attributes, NFTA_TABLE_USERDATA, NOTE_COMMENT)
}

/// Decodes a table. [`ReadTable::others`] counts all objects in it, chains and sets included.
pub(super) fn table(attributes: Attributes<'_>) -> ReadTable {
    let u32 = |kind| attributes.be32(kind).unwrap_or(0);
    ReadTable {
        comment: table_comment(attributes),
        dormant: u32(NFTA_TABLE_FLAGS) & NFT_TABLE_F_DORMANT != 0,
        owner: (u32(NFTA_TABLE_FLAGS) & NFT_TABLE_F_OWNER != 0).then(|| u32(NFTA_TABLE_OWNER)),
        others: usize::try_from(u32(NFTA_TABLE_USE)).unwrap_or(usize::MAX),
        ..ReadTable::default()
    }
}

/// Decodes a chain.
pub(super) fn chain(attributes: Attributes<'_>) -> Option<Chain> {
    let base = attributes.nest(NFTA_CHAIN_HOOK).map(|hook| {
        let number = hook.be32(NFTA_HOOK_HOOKNUM)?;
        let kind = attributes.text(NFTA_CHAIN_TYPE)?;
        Some(BaseChain {
            kind: ChainType::ALL.into_iter().find(|known| known.name() == kind)?,
            hook: Hook::ALL.into_iter().find(|hook| *hook as u32 == number)?,
            priority: i32::from_be_bytes(hook.find_array(NFTA_HOOK_PRIORITY)?),
            drop: attributes.be32(NFTA_CHAIN_POLICY) == Some(0),
        })
    });
    Some(Chain {
        name: name(attributes, NFTA_CHAIN_NAME)?,
        // A hook or type that is not supported is treated as a regular chain.
        base: base.flatten(),
        comment: comment(attributes, NFTA_CHAIN_USERDATA, NOTE_COMMENT),
    })
}

/// Decodes a rule, with the name of its chain.
pub(super) fn rule(attributes: Attributes<'_>) -> Option<(Name, ReadRule)> {
    let rule = ReadRule {
        handle: attributes.be64(NFTA_RULE_HANDLE)?,
        expressions: attributes.nest(NFTA_RULE_EXPRESSIONS).map(read_list).unwrap_or_default(),
        comment: comment(attributes, NFTA_RULE_USERDATA, NOTE_COMMENT),
    };
    Some((name(attributes, NFTA_RULE_CHAIN)?, rule))
}

/// Decodes a set, with its name.
pub(super) fn set(attributes: Attributes<'_>) -> Option<(Name, ReadSet)> {
    let u32 = |kind| attributes.be32(kind);
    let length = |kind| u32(kind).and_then(value_length);
    let flags = u32(NFTA_SET_FLAGS).unwrap_or(0);
    let value = (flags & NFT_SET_MAP != 0).then(|| {
        let kind = u32(NFTA_SET_DATA_TYPE).unwrap_or(0);
        (kind, if kind == NFT_DATA_VERDICT { 0 } else { length(NFTA_SET_DATA_LEN).unwrap_or(0) })
    });
    let listed = |mut list: Attributes<'_>| list.any(|(_, item)| is_counter(Attributes::new(item)));
    let set = ReadSet {
        flags,
        key: (u32(NFTA_SET_KEY_TYPE).unwrap_or(0), length(NFTA_SET_KEY_LEN)?),
        value,
        size: attributes.nest(NFTA_SET_DESC).and_then(|d| d.find_array(NFTA_SET_DESC_SIZE)).map(u32::from_be_bytes),
        notes: attributes.find(NFTA_SET_USERDATA).unwrap_or_default().to_vec(),
        counter: attributes.nest(NFTA_SET_EXPR).is_some_and(is_counter)
            || attributes.nest(NFTA_SET_EXPRESSIONS).is_some_and(listed),
    };
    Some((name(attributes, NFTA_SET_NAME)?, set))
}

/// The length of keys or values.
///
/// `NFT_DATA_VALUE_MAXLEN` is 64. A much greater length is malformed and must not be allocated.
pub(super) fn value_length(length: u32) -> Option<usize> {
    const MOST: u32 = 1024;
    usize::try_from(length).ok().filter(|_| length <= MOST)
}

/// The name of a set and its number of elements.
pub(super) fn count(attributes: Attributes<'_>) -> Option<(Name, usize)> {
    let count = attributes.be32(NFTA_SET_COUNT)?;
    Some((name(attributes, NFTA_SET_NAME)?, usize::try_from(count).ok()?))
}

/// Decodes the elements of one dump message.
pub(super) fn elements(attributes: Attributes<'_>) -> impl Iterator<Item = Element> {
    element_items(attributes).filter_map(element)
}

/// The attributes of each element of one dump message.
pub(super) fn element_items(attributes: Attributes<'_>) -> impl Iterator<Item = Attributes<'_>> {
    let list = attributes.nest(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(Attributes::new(&[]));
    list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).map(|(_, item)| Attributes::new(item))
}

/// Decodes the value of a map element.
pub(super) fn element_value(item: Attributes<'_>) -> Option<Value> {
    let data = item.nest(NFTA_SET_ELEM_DATA)?;
    let verdict = || read_verdict(data).map(Value::Verdict);
    read_value(data).map(|value| Value::Data(value.into())).or_else(verdict)
}

fn element(item: Attributes<'_>) -> Option<Element> {
    let bytes = |kind| item.nest(kind).and_then(read_value).map(Into::into);
    let timeout = item.be64(NFTA_SET_ELEM_TIMEOUT);
    Some(Element {
        key: bytes(NFTA_SET_ELEM_KEY)?,
        end: bytes(NFTA_SET_ELEM_KEY_END),
        value: element_value(item),
        comment: comment(item, NFTA_SET_ELEM_USERDATA, NOTE_COMMENT),
        timeout: timeout.map(|milliseconds| u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX)),
    })
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
