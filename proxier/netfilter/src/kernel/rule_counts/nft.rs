//! Decodes the counters of iptables-nft rules.

use std::io;

use super::{CountedRule, changed, dnat, string};
use crate::iptables::Table;
use crate::kernel::iptables_nft::{CHAINS_AT_ONCE, TRIES, dump_rules};
use crate::kernel::netlink::{Attributes, Dump, NetlinkError};
use crate::kernel::nftables::chains;
use crate::kernel::nftables::uapi::*;
use crate::{Counters, IpFamily, nft};

/// The offset of the protocol in an IPv4 header, which programs before 1.8.3 compare.
const IPV4_PROTOCOL: u32 = 9;

/// See [`super::counted_rules`].
///
/// A table of many chains is read chain by chain: the kernel begins each part of a dump at the first rule again.
pub(super) fn read<T: Default>(
    family: IpFamily,
    table: Table,
    mut each: impl FnMut(&mut T, &CountedRule<'_>),
) -> io::Result<T> {
    let (chains, complete) = chains(&nft::Table { family, name: table.name().into() })?;
    if !complete {
        return Err(changed(table));
    }
    let is_large = chains.len() > CHAINS_AT_ONCE;
    let parts: Vec<Option<&str>> =
        if is_large { chains.iter().map(|chain| Some(&**chain)).collect() } else { vec![None] };
    let mut socket = None;
    let mut collected = T::default();
    for part in parts {
        let read = |collected: &mut T| {
            dump_rules(&mut socket, family, table.name(), part, &mut |chain, message| {
                if let Some(rule) = counted(family, chain, message) {
                    each(collected, &rule);
                }
            })
        };
        read_part(&mut collected, is_large, read)?.then_some(()).ok_or_else(|| changed(table))?;
    }
    Ok(collected)
}

/// Reads a part until nf_tables does not change meanwhile; `keeps`: whether other parts are collected already.
///
/// Returns whether that was so in one of a few attempts.
fn read_part<T: Default>(
    collected: &mut T,
    keeps: bool,
    mut read: impl FnMut(&mut T) -> Result<Dump, NetlinkError>,
) -> io::Result<bool> {
    for _ in 0..TRIES {
        if read(collected)? == Dump::Complete {
            return Ok(true);
        }
        if !keeps {
            *collected = T::default();
        }
    }
    Ok(false)
}

/// Decodes a rule. What it matches besides the protocol is skipped.
fn counted<'a>(family: IpFamily, chain: &'a str, message: Attributes<'a>) -> Option<CountedRule<'a>> {
    let mut rule = CountedRule { chain, ..CountedRule::default() };
    let mut is_protocol = false;
    let list = || Some(message.nest(NFTA_RULE_EXPRESSIONS)?.filter(|(kind, _)| *kind == NFTA_LIST_ELEM));
    let items = || list().into_iter().flatten().map(|(_, item)| item);
    for item in items().map(Attributes::new) {
        let (Some(name), Some(data)) = (item.text(NFTA_EXPR_NAME), item.nest(NFTA_EXPR_DATA)) else { continue };
        match name {
            "meta" => is_protocol = data.be32(NFTA_META_KEY) == Some(NFT_META_L4PROTO),
            "payload" => {
                is_protocol = family == IpFamily::V4
                    && data.be32(NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_NETWORK_HEADER)
                    && data.be32(NFTA_PAYLOAD_OFFSET) == Some(IPV4_PROTOCOL);
            }
            "cmp" if is_protocol && data.be32(NFTA_CMP_OP) == Some(NFT_CMP_EQ) => {
                let value = data.nest(NFTA_CMP_DATA).and_then(|value| value.find(NFTA_DATA_VALUE));
                rule.protocol = value.and_then(|value| value.first().copied()).unwrap_or(0);
                is_protocol = false;
            }
            "counter" => rule.counters = counters(data)?,
            "match" | "target" => extension(family, data, &mut rule),
            "immediate" => {
                let verdict = data.nest(NFTA_IMMEDIATE_DATA).and_then(|data| data.nest(NFTA_DATA_VERDICT));
                rule.jump = verdict.and_then(|verdict| verdict.text(NFTA_VERDICT_CHAIN));
            }
            _ => {}
        }
    }
    rule.set_fingerprint(items().filter(|item| Attributes::new(item).text(NFTA_EXPR_NAME) != Some("counter")));
    Some(rule)
}

fn counters(data: Attributes<'_>) -> Option<Counters> {
    Some(Counters { packets: data.be64(NFTA_COUNTER_PACKETS)?, bytes: data.be64(NFTA_COUNTER_BYTES)? })
}

fn extension<'a>(family: IpFamily, data: Attributes<'a>, rule: &mut CountedRule<'a>) {
    let [name, revision, structure] = EXTENSION;
    let Some(structure) = data.find(structure) else { return };
    match data.text(name) {
        Some("comment") => rule.comment = string(structure),
        Some("DNAT") => rule.dnat = dnat(family, data.be32(revision).unwrap_or(0), structure),
        _ => {}
    }
}
