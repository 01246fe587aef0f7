//! The nf_tables decoders as entry points for fuzz targets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::encode::*;
use super::uapi::*;
use super::{decode, decode_ruleset, expression};
use crate::IpFamily;
use crate::kernel::netlink::{Attributes, NFGENMSG_LENGTH, Received, Request, fuzzing};
use crate::nft::ruleset::{Element, Elements, Ruleset, Scope, TableId};
use crate::nft::{self, Field, Name, Operation, Set, Table};

/// Decodes a dump with both decoders: tables, chains, rules, sets and elements.
///
/// # Panics
/// If an object differs after encoding and decoding it again.
pub fn ruleset(datagram: &[u8]) -> Ruleset {
    let mut read = Read { ruleset: Ruleset::new(IpFamily::V4), elements: BTreeMap::new() };
    fuzzing::each(datagram, &mut |received| read.take(received));
    for ((id, name), list) in read.elements {
        let Some(set) = read.ruleset.tables.get_mut(&id).and_then(|table| table.sets.get_mut(&name)) else { continue };
        set.elements = match set.is_interval() && set.key.len() == 1 {
            true => Elements::intervals(list),
            false => Elements::complete(list.into_iter().map(|(element, _)| element).collect()),
        };
    }
    read.ruleset
}

struct Read {
    ruleset: Ruleset,
    elements: BTreeMap<(TableId, Name), Vec<(Element, bool)>>,
}

impl Read {
    fn take(&mut self, received: &Received<'_>) {
        let attributes = received.attributes(NFGENMSG_LENGTH);
        let scope = match received.payload.first() {
            Some(1) => Scope::Both,
            _ => Scope::Family(IpFamily::V4),
        };
        let [_, message] = received.kind.to_be_bytes();
        let Some(name) = decode::name(attributes, TABLE) else { return };
        let id = TableId { scope, name };
        let table = self.ruleset.tables.get_mut(&id);
        match message {
            NFT_MSG_NEWTABLE => {
                let _ = decode::table(attributes);
                self.ruleset.tables.extend(decode_ruleset::table(attributes).map(|(_, table)| (id, table)));
            }
            NFT_MSG_NEWCHAIN => {
                chain(attributes);
                if let (Some(table), Some((_, name, chain))) = (table, decode_ruleset::chain(attributes)) {
                    table.chains.insert(name, chain);
                }
            }
            NFT_MSG_NEWRULE => {
                rule(attributes);
                if let (Some(table), Some((chain, rule))) = (table, decode_ruleset::rule(attributes)) {
                    let chain = table.chains.get_mut(&chain);
                    chain.into_iter().for_each(|chain| chain.rules.get_or_insert_default().push(rule.clone()));
                }
            }
            NFT_MSG_NEWSET => {
                let _ = (decode::set(attributes), decode::count(attributes));
                if let (Some(table), Some((name, set))) = (table, decode_ruleset::set(attributes)) {
                    table.sets.insert(name, set);
                }
            }
            NFT_MSG_NEWSETELEM => {
                elements(attributes);
                let items = decode::element_items(attributes).filter_map(decode_ruleset::element);
                if let Some(set) = decode::name(attributes, NFTA_SET_ELEM_LIST_SET) {
                    self.elements.entry((id, set)).or_default().extend(items);
                }
            }
            NFT_MSG_NEWGEN => _ = attributes.find_array(1).map(u32::from_be_bytes),
            _ => {}
        }
    }
}

fn written(operation: &Operation) -> Vec<u8> {
    let table = Table { family: IpFamily::V4, name: "t".into() };
    let mut bytes = Vec::new();
    requests(&table, operation, 1, |request, _| bytes = request.into_attributes().split_off(NFGENMSG_LENGTH));
    bytes
}

fn chain(attributes: Attributes<'_>) {
    let Some(read) = decode::chain(attributes) else { return };
    let bytes = written(&Operation::AddChain(read.clone()));
    assert_eq!(decode::chain(Attributes::new(&bytes)), Some(read));
}

fn rule(attributes: Attributes<'_>) {
    let Some((_, read)) = decode::rule(attributes) else { return };
    let mut request = Request::new(0, 0, &[]);
    read.expressions.iter().for_each(|one| expression::write(&mut request, one));
    let bytes = request.into_attributes();
    assert_eq!(expression::read_list(Attributes::new(&bytes)), read.expressions);
}

fn elements(attributes: Attributes<'_>) {
    let read: Vec<nft::Element> = decode::elements(attributes).collect();
    if read.is_empty() {
        return;
    }
    let set = Arc::new(Set::of("s", [Field::Port]));
    let bytes = written(&Operation::AddElements(set, read.clone()));
    assert_eq!(decode::elements(Attributes::new(&bytes)).collect::<Vec<_>>(), read);
}
