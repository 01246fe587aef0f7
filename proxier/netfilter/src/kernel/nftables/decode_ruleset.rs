//! Decodes dumps of any program's tables into [`crate::nft::ruleset`] values.

use super::decode::{self, comment, element_value, name};
use super::encode::*;
use super::expression::{counter_of, counters, read_value};
use super::uapi::*;
use crate::Counters;
use crate::kernel::netlink::{Attributes, text};
use crate::nft::Name;
use crate::nft::ruleset::{Chain, Element, Elements, KeyField, Rule, Set, Table};

/// Decodes a table, with its name.
pub(super) fn table(attributes: Attributes<'_>) -> Option<(Name, Table)> {
    let table = Table {
        handle: attributes.be64(NFTA_TABLE_HANDLE).unwrap_or(0),
        dormant: attributes.be32(NFTA_TABLE_FLAGS).unwrap_or(0) & NFT_TABLE_F_DORMANT != 0,
        comment: decode::table_comment(attributes),
        ..Table::default()
    };
    Some((name(attributes, TABLE)?, table))
}

/// Decodes a chain, with the names of its table and of itself.
pub(super) fn chain(attributes: Attributes<'_>) -> Option<(Name, Name, Chain)> {
    let read = decode::chain(attributes)?;
    let handle = attributes.be64(NFTA_CHAIN_HANDLE).unwrap_or(0);
    let chain = Chain { handle, base: read.base, comment: read.comment, rules: None };
    Some((name(attributes, TABLE)?, read.name, chain))
}

/// The packets and bytes that a base chain's policy decided; zero if it does not count.
pub(super) fn policy_counters(attributes: Attributes<'_>) -> Counters {
    let found = attributes.nest(NFTA_CHAIN_COUNTERS);
    let number = |kind| found?.be64(kind);
    let counters = number(NFTA_COUNTER_BYTES).zip(number(NFTA_COUNTER_PACKETS));
    let counters = counters.map(|(bytes, packets)| Counters { packets, bytes });
    counters.unwrap_or_default()
}

/// Whether the chain is a user-defined one of this table.
pub(super) fn is_user_chain_of(attributes: Attributes<'_>, table: &str) -> bool {
    attributes.find(NFTA_CHAIN_HOOK).is_none() && decode::is_of(attributes, table)
}

/// A base chain of another family, or of `inet` if it is at the interfaces: table, name, whether its policy drops, and
/// interfaces.
pub(super) fn other_chain(attributes: Attributes<'_>, of_inet: bool) -> Option<(Name, Name, bool, Vec<String>)> {
    let hook = attributes.nest(NFTA_CHAIN_HOOK)?;
    let number = hook.be32(NFTA_HOOK_HOOKNUM)?;
    if of_inet && number != NF_INET_INGRESS {
        return None;
    }
    let device = hook.text(NFTA_HOOK_DEV);
    let devices = hook.nest(NFTA_HOOK_DEVS).into_iter().flatten().filter_map(|(kind, name)| {
        let name = text(name)?;
        Some(if kind == NFTA_DEVICE_PREFIX { format!("{name}*") } else { name.to_owned() })
    });
    let devices = device.map(str::to_owned).into_iter().chain(devices).collect();
    let drops = attributes.be32(NFTA_CHAIN_POLICY) == Some(0);
    Some((name(attributes, TABLE)?, name(attributes, NFTA_CHAIN_NAME)?, drops, devices))
}

/// Decodes a rule, with the name of its chain.
pub(in crate::kernel) fn rule(attributes: Attributes<'_>) -> Option<(Name, Rule)> {
    let (chain, read) = decode::rule(attributes)?;
    let counters = attributes.nest(NFTA_RULE_EXPRESSIONS).and_then(counters);
    Some((chain, Rule { handle: read.handle, expressions: read.expressions, comment: read.comment, counters }))
}

/// Decodes a set, with its name.
pub(super) fn set(attributes: Attributes<'_>) -> Option<(Name, Set)> {
    let length = |kind| attributes.be32(kind).and_then(decode::value_length);
    let flags = attributes.be32(NFTA_SET_FLAGS).unwrap_or(0);
    let description = attributes.nest(NFTA_SET_DESC);
    let widths = description.and_then(|description| description.nest(NFTA_SET_DESC_CONCAT)).map(|fields| {
        let width =
            |(_, item)| Attributes::new(item).be32(NFTA_SET_FIELD_LEN).and_then(|width| usize::try_from(width).ok());
        fields.filter(|(kind, _)| *kind == NFTA_LIST_ELEM).filter_map(width).collect()
    });
    let value = (flags & NFT_SET_MAP != 0).then(|| match attributes.be32(NFTA_SET_DATA_TYPE).unwrap_or(0) {
        NFT_DATA_VERDICT => Vec::new(),
        kind => KeyField::all(kind, length(NFTA_SET_DATA_LEN).unwrap_or(0), None),
    });
    let set = Set {
        flags,
        key: KeyField::all(attributes.be32(NFTA_SET_KEY_TYPE).unwrap_or(0), length(NFTA_SET_KEY_LEN)?, widths),
        value,
        size: description.and_then(|description| description.be32(NFTA_SET_DESC_SIZE)),
        timeout: attributes.be64(NFTA_SET_TIMEOUT).unwrap_or(0),
        comment: comment(attributes, NFTA_SET_USERDATA, NOTE_SET_COMMENT),
        elements: Elements::default(),
    };
    Some((name(attributes, NFTA_SET_NAME)?, set))
}

/// Decodes an element, and whether it marks the end of an interval.
pub(super) fn element(item: Attributes<'_>) -> Option<(Element, bool)> {
    let bytes = |kind| item.nest(kind).and_then(read_value).map(Into::into);
    let flags = item.be32(NFTA_SET_ELEM_FLAGS).unwrap_or(0);
    let listed = || {
        let mut list = item.nest(NFTA_SET_ELEM_EXPRESSIONS)?;
        list.find_map(|(_, item)| counter_of(Attributes::new(item)))
    };
    let key = match bytes(NFTA_SET_ELEM_KEY) {
        None if flags & NFT_SET_ELEM_CATCHALL != 0 => Box::default(),
        key => key?,
    };
    let element = Element {
        key,
        end: bytes(NFTA_SET_ELEM_KEY_END),
        value: element_value(item),
        comment: comment(item, NFTA_SET_ELEM_USERDATA, NOTE_COMMENT),
        timeout: item.be64(NFTA_SET_ELEM_TIMEOUT).unwrap_or(0),
        expires: item.be64(NFTA_SET_ELEM_EXPIRATION).unwrap_or(0),
        counters: item.nest(NFTA_SET_ELEM_EXPR).and_then(counter_of).or_else(listed).map(Box::new),
    };
    Some((element, flags & NFT_SET_ELEM_INTERVAL_END != 0))
}
