//! Encodes operations on a table as netlink requests.

use super::expression;
use super::uapi::*;
use crate::kernel::netlink::{NLM_F_APPEND, NLM_F_CREATE, Request, nfgenmsg, nfnetlink};
use crate::nft::{BaseChain, Bytes, Chain, Element, Field, Operation, Rule, Set, Table, Value};

/// The table's name, which is attribute 1 in every request.
pub(super) const TABLE: u16 = NFTA_TABLE_NAME;

/// The type of a comment in nft's user data, of all objects but sets.
pub(super) const NOTE_COMMENT: u8 = 0;
pub(super) const NOTE_SET_COMMENT: u8 = 7;
const NOTE_KEY_BYTEORDER: u8 = 0;
const NOTE_VALUE_BYTEORDER: u8 = 1;
const NOTE_KEY_TYPEOF: u8 = 3;
const NOTE_VALUE_TYPEOF: u8 = 4;
/// nft's number for a concatenation expression, in user data.
const CONCATENATION: u32 = 13;
/// nft's number for a verdict expression, in user data.
const VERDICT: u32 = 1;

/// The bytes of elements in one request. The rest of the 65,535 leaves room for the last element.
const LIST_ROOM: usize = 65_000;

/// A request with the table's name as its only attribute.
pub(super) fn request(table: &Table, message: u8, flags: u16) -> Request {
    let kind = nfnetlink(NFNL_SUBSYS_NFTABLES, message);
    let mut request = Request::new(kind, flags, &nfgenmsg(table.family.nfproto()));
    request.text(TABLE, &table.name);
    request
}

/// The request for the elements of keys, up to the first missing one.
pub(super) fn lookup(table: &Table, set: &Set, keys: &[Bytes]) -> Request {
    let mut request = named(request(table, NFT_MSG_GETSETELEM, 0), NFTA_SET_ELEM_LIST_SET, &set.name);
    request.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
        for key in keys {
            list.nested(NFTA_LIST_ELEM, |item| write_bytes(item, NFTA_SET_ELEM_KEY, key));
        }
    });
    request
}

/// Passes the requests of an operation to `emit`, each with the index of its first element.
pub(super) fn requests(table: &Table, operation: &Operation, id: u32, mut emit: impl FnMut(Request, usize)) {
    let new = |message| request(table, message, NLM_F_CREATE);
    let old = |message| request(table, message, 0);
    let request = match operation {
        Operation::AddTable { comment } => {
            let mut request = new(NFT_MSG_NEWTABLE);
            note(&mut request, NFTA_TABLE_USERDATA, NOTE_COMMENT, comment.as_deref());
            request
        }
        Operation::DeleteTable => old(NFT_MSG_DELTABLE),
        Operation::AddChain(chain) => add_chain(new(NFT_MSG_NEWCHAIN), chain),
        Operation::DeleteChain(name) => named(old(NFT_MSG_DELCHAIN), NFTA_CHAIN_NAME, name),
        Operation::FlushChain(name) => named(old(NFT_MSG_DELRULE), NFTA_RULE_CHAIN, name),
        Operation::AddRule { chain, rule } => {
            let request = self::request(table, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
            add_rule(named(request, NFTA_RULE_CHAIN, chain), rule)
        }
        Operation::AddSet(set) => add_set(named(new(NFT_MSG_NEWSET), NFTA_SET_NAME, &set.name), set, id),
        Operation::DeleteSet(set) => named(old(NFT_MSG_DELSET), NFTA_SET_NAME, &set.name),
        Operation::FlushSet(set) => named(old(NFT_MSG_DELSETELEM), NFTA_SET_ELEM_LIST_SET, &set.name),
        Operation::AddElements(set, elements) => {
            return list(elements, true, || named(new(NFT_MSG_NEWSETELEM), NFTA_SET_ELEM_LIST_SET, &set.name), emit);
        }
        Operation::DeleteElements(set, elements) => {
            return list(elements, false, || named(old(NFT_MSG_DELSETELEM), NFTA_SET_ELEM_LIST_SET, &set.name), emit);
        }
        Operation::AddCounter(name) => {
            let mut request = named(new(NFT_MSG_NEWOBJ), 2, name);
            request.attribute(3, &NFT_OBJECT_COUNTER.to_be_bytes()).nested(4, |_| ());
            request
        }
        Operation::DeleteCounter(name) => {
            let mut request = named(old(NFT_MSG_DELOBJ), 2, name);
            request.attribute(3, &NFT_OBJECT_COUNTER.to_be_bytes());
            request
        }
    };
    emit(request, 0);
}

fn named(mut request: Request, kind: u16, name: &str) -> Request {
    request.text(kind, name);
    request
}

/// Appends a string as user data.
fn note(request: &mut Request, kind: u16, number: u8, text: Option<&str>) {
    if let Some(text) = text {
        request.attribute(kind, &entry(number, &[text.as_bytes(), &[0]].concat()));
    }
}

/// An entry of user data: type, length, value.
fn entry(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[number, length], &value[..usize::from(length)]].concat()
}

fn add_chain(mut request: Request, chain: &Chain) -> Request {
    request.text(NFTA_CHAIN_NAME, &chain.name);
    if let Some(BaseChain { kind, hook, priority, drop }) = &chain.base {
        request.nested(NFTA_CHAIN_HOOK, |nest| {
            nest.attribute(NFTA_HOOK_HOOKNUM, &(*hook as u32).to_be_bytes());
            nest.attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
        request.attribute(NFTA_CHAIN_POLICY, &u32::from(!drop).to_be_bytes());
        request.text(NFTA_CHAIN_TYPE, kind.name());
    }
    note(&mut request, NFTA_CHAIN_USERDATA, NOTE_COMMENT, chain.comment.as_deref());
    request
}

fn add_rule(mut request: Request, rule: &Rule) -> Request {
    request.nested(NFTA_RULE_EXPRESSIONS, |list| {
        rule.expressions().iter().for_each(|expression| expression::write(list, expression));
    });
    note(&mut request, NFTA_RULE_USERDATA, NOTE_COMMENT, rule.comment.as_deref());
    request
}

/// The `NFT_SET_*` flags of a set.
pub(super) fn set_flags(set: &Set) -> u32 {
    let concatenated = set.interval && set.key.len() > 1;
    let flags = [
        (set.interval, NFT_SET_INTERVAL),
        (set.value.is_some(), NFT_SET_MAP),
        (set.dynamic, NFT_SET_TIMEOUT | NFT_SET_EVAL),
        (concatenated, NFT_SET_CONCAT),
    ];
    flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum()
}

/// The type number of a concatenation: six bits for each field.
pub(super) fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| number << 6 | field.type_number())
}

fn add_set(mut request: Request, set: &Set, id: u32) -> Request {
    let u32 = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    request.attribute(NFTA_SET_FLAGS, &set_flags(set).to_be_bytes());
    request.attribute(NFTA_SET_KEY_TYPE, &type_of(&set.key).to_be_bytes());
    request.attribute(NFTA_SET_KEY_LEN, &u32(Set::length(&set.key)));
    if let Some(value) = &set.value {
        let kind = if set.is_verdict_map() { NFT_DATA_VERDICT } else { type_of(value) };
        request.attribute(NFTA_SET_DATA_TYPE, &kind.to_be_bytes());
        if !set.is_verdict_map() {
            request.attribute(NFTA_SET_DATA_LEN, &u32(Set::length(value)));
        }
    }
    let concatenated = set_flags(set) & NFT_SET_CONCAT != 0;
    if set.size.is_some() || concatenated {
        request.nested(NFTA_SET_DESC, |description| {
            if let Some(size) = set.size {
                description.attribute(NFTA_SET_DESC_SIZE, &size.to_be_bytes());
            }
            if concatenated {
                description.nested(NFTA_SET_DESC_CONCAT, |fields| {
                    for field in &set.key {
                        fields
                            .nested(NFTA_LIST_ELEM, |item| _ = item.attribute(NFTA_SET_FIELD_LEN, &u32(field.width())));
                    }
                });
            }
        });
    }
    request.attribute(NFTA_SET_ID, &id.to_be_bytes());
    request.attribute(NFTA_SET_USERDATA, &set_notes(set));
    if set.counter {
        request.nested(NFTA_SET_EXPR, expression::write_counter);
    }
    request
}

/// The user data that nft needs to print the elements of a set.
pub(super) fn set_notes(set: &Set) -> Vec<u8> {
    // 0: each field has its own byte order.
    let order = 0_u32.to_ne_bytes();
    let mut notes = entry(NOTE_KEY_BYTEORDER, &order);
    if set.value.is_some() {
        notes.extend(entry(NOTE_VALUE_BYTEORDER, &order));
    }
    if set.uses_typeof() {
        notes.extend(entry(NOTE_KEY_TYPEOF, &example(&set.key)));
        if let Some(value) = &set.value {
            let verdict = || [entry(0, &VERDICT.to_ne_bytes()), entry(1, &[])].concat();
            notes.extend(entry(NOTE_VALUE_TYPEOF, &if value.is_empty() { verdict() } else { example(value) }));
        }
    }
    if let Some(comment) = &set.comment {
        notes.extend(entry(NOTE_SET_COMMENT, &[comment.as_bytes(), &[0]].concat()));
    }
    notes
}

fn example(fields: &[Field]) -> Vec<u8> {
    let described = |field: &Field| {
        let (kind, numbers) = field.description();
        let numbers = numbers.iter().zip(0_u8..).flat_map(|(number, at)| entry(at, &number.to_ne_bytes()));
        let numbers: Vec<u8> = numbers.collect();
        [entry(0, &kind.to_ne_bytes()), entry(1, &numbers)].concat()
    };
    match fields {
        [only] => described(only),
        _ => {
            let parts: Vec<u8> =
                fields.iter().zip(0_u8..).flat_map(|(field, at)| entry(at, &described(field))).collect();
            [entry(0, &CONCATENATION.to_ne_bytes()), entry(1, &parts)].concat()
        }
    }
}

fn list(elements: &[Element], whole: bool, new: impl Fn() -> Request, mut emit: impl FnMut(Request, usize)) {
    let mut rest = elements.iter().enumerate().peekable();
    while let Some((first, _)) = rest.peek().copied() {
        let mut request = new();
        request.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            let start = list.size();
            while let Some((_, element)) = rest.next_if(|_| list.size() - start < LIST_ROOM) {
                list.nested(NFTA_LIST_ELEM, |item| write_element(item, element, whole));
            }
        });
        emit(request, first);
    }
}

fn write_bytes(item: &mut Request, kind: u16, bytes: &[u8]) {
    item.nested(kind, |data| _ = data.attribute(NFTA_DATA_VALUE, bytes));
}

fn write_element(item: &mut Request, element: &Element, whole: bool) {
    write_bytes(item, NFTA_SET_ELEM_KEY, &element.key);
    if let Some(end) = &element.end {
        write_bytes(item, NFTA_SET_ELEM_KEY_END, end);
    }
    if !whole {
        return;
    }
    match &element.value {
        Some(Value::Verdict(verdict)) => expression::write_verdict(item, NFTA_SET_ELEM_DATA, verdict),
        Some(Value::Data(bytes)) => write_bytes(item, NFTA_SET_ELEM_DATA, bytes),
        None => {}
    }
    if let Some(seconds) = element.timeout {
        item.attribute(NFTA_SET_ELEM_TIMEOUT, &(u64::from(seconds) * 1000).to_be_bytes());
    }
    note(item, NFTA_SET_ELEM_USERDATA, NOTE_COMMENT, element.comment.as_deref());
}
