//! Encodes and decodes ipset messages (`linux/netfilter/ipset/ip_set.h`).
//!
//! Decoders accept any bytes and return what is valid.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::netlink::{Attributes, NLA_F_NET_BYTEORDER, NLM_F_CREATE, NLM_F_EXCL, Request, nfgenmsg, nfnetlink};
use crate::ipset::{Entry, IpPortProto, ObservedSet, Set, SetName, SetQuery, SetType};
use crate::{Counters, IpFamily};

const NFNL_SUBSYS_IPSET: u8 = 6;
/// The protocol since Linux 3.1, which all later kernels accept. Version 7 adds nothing that is used here.
const PROTOCOL: u8 = 6;

const IPSET_CMD_PROTOCOL: u8 = 1;
const IPSET_CMD_CREATE: u8 = 2;
const IPSET_CMD_DESTROY: u8 = 3;
const IPSET_CMD_FLUSH: u8 = 4;
const IPSET_CMD_SWAP: u8 = 6;
const IPSET_CMD_LIST: u8 = 7;
const IPSET_CMD_ADD: u8 = 9;
const IPSET_CMD_DEL: u8 = 10;
const IPSET_CMD_TEST: u8 = 11;
const IPSET_CMD_TYPE: u8 = 13;

const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_TYPENAME: u16 = 3;
const IPSET_ATTR_SETNAME2: u16 = 3;
const IPSET_ATTR_REVISION: u16 = 4;
const IPSET_ATTR_FAMILY: u16 = 5;
const IPSET_ATTR_FLAGS: u16 = 6;
const IPSET_ATTR_DATA: u16 = 7;
const IPSET_ATTR_ADT: u16 = 8;
/// In a message, and in each of its entries.
const IPSET_ATTR_LINENO: u16 = 9;

const IPSET_ATTR_IP: u16 = 1;
const IPSET_ATTR_PORT: u16 = 4;
const IPSET_ATTR_PORT_TO: u16 = 5;
const IPSET_ATTR_PROTO: u16 = 7;
const IPSET_ATTR_CADT_FLAGS: u16 = 8;
const IPSET_ATTR_MARK: u16 = 10;
const IPSET_ATTR_NAME: u16 = 18;
const IPSET_ATTR_IFACE: u16 = 23;
const IPSET_ATTR_HASHSIZE: u16 = 18;
const IPSET_ATTR_MAXELEM: u16 = 19;
const IPSET_ATTR_ELEMENTS: u16 = 24;
const IPSET_ATTR_REFERENCES: u16 = 25;
const IPSET_ATTR_BYTES: u16 = 24;
const IPSET_ATTR_PACKETS: u16 = 25;
const IPSET_ATTR_IP2: u16 = 20;
const IPSET_ATTR_CIDR2: u16 = 21;
const IPSET_ATTR_IPADDR_IPV4: u16 = 1;
const IPSET_ATTR_IPADDR_IPV6: u16 = 2;

const IPSET_FLAG_LIST_HEADER: u32 = 1 << 2;
const IPSET_FLAG_WITH_COUNTERS: u32 = 1 << 3;

/// The initial hash size of `ipset create`; the hash grows by itself.
const HASH_SIZE: u32 = 1024;

pub(super) use super::super::netlink::NFGENMSG_LENGTH as HEADER;

/// An operation on entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// Adds entries that may exist.
    Add,
    /// Adds entries that must not exist.
    AddNew,
    /// Deletes entries that must exist.
    Delete,
}

fn new(command: u8, flags: u16) -> Request {
    let family = nfgenmsg(IpFamily::V4.nfproto());
    let mut request = Request::new(nfnetlink(NFNL_SUBSYS_IPSET, command), flags, &family);
    request.attribute(IPSET_ATTR_PROTOCOL, &[PROTOCOL]);
    request
}

fn named(command: u8, name: SetName) -> Request {
    let mut request = new(command, 0);
    request.text(IPSET_ATTR_SETNAME, name.as_str());
    request
}

/// The request for the protocol version, which tells whether ipset is supported.
pub(super) fn protocol() -> Request {
    new(IPSET_CMD_PROTOCOL, 0)
}

/// The request for the revisions of a type.
pub(super) fn revisions(set_type: SetType, family: Option<IpFamily>) -> Request {
    let mut request = new(IPSET_CMD_TYPE, 0);
    request.text(IPSET_ATTR_TYPENAME, set_type.name());
    request.attribute(IPSET_ATTR_FAMILY, &[family.map_or(0, IpFamily::nfproto)]);
    request
}

/// The newest supported revision of a type. Each revision is a superset of the earlier ones.
pub(super) fn read_revision(message: Attributes<'_>) -> Option<u8> {
    message.find_array(IPSET_ATTR_REVISION).map(|[revision]| revision)
}

/// The request to create a set that does not exist.
pub(super) fn create(set: &Set, revision: u8) -> Request {
    let mut request = new(IPSET_CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL);
    request.text(IPSET_ATTR_SETNAME, set.name.as_str());
    request.text(IPSET_ATTR_TYPENAME, set.set_type.name());
    request.attribute(IPSET_ATTR_REVISION, &[revision]);
    request.attribute(IPSET_ATTR_FAMILY, &[set.family.map_or(0, IpFamily::nfproto)]);
    request.nested(IPSET_ATTR_DATA, |data| {
        if set.set_type == SetType::BitmapPort {
            data.attribute(IPSET_ATTR_PORT | NLA_F_NET_BYTEORDER, &0_u16.to_be_bytes());
            data.attribute(IPSET_ATTR_PORT_TO | NLA_F_NET_BYTEORDER, &u16::MAX.to_be_bytes());
        } else {
            data.attribute(IPSET_ATTR_HASHSIZE | NLA_F_NET_BYTEORDER, &HASH_SIZE.to_be_bytes());
            data.attribute(IPSET_ATTR_MAXELEM | NLA_F_NET_BYTEORDER, &set.max_entries.to_be_bytes());
        }
        if set.counters {
            data.attribute(IPSET_ATTR_CADT_FLAGS | NLA_F_NET_BYTEORDER, &IPSET_FLAG_WITH_COUNTERS.to_be_bytes());
        }
    });
    request
}

/// The request to destroy a set.
pub(super) fn destroy(name: SetName) -> Request {
    let mut request = new(IPSET_CMD_DESTROY, NLM_F_EXCL);
    request.text(IPSET_ATTR_SETNAME, name.as_str());
    request
}

/// The request to flush a set.
pub(super) fn flush(name: SetName) -> Request {
    named(IPSET_CMD_FLUSH, name)
}

/// The request to swap two sets.
pub(super) fn swap(one: SetName, other: SetName) -> Request {
    let mut request = named(IPSET_CMD_SWAP, one);
    request.text(IPSET_ATTR_SETNAME2, other.as_str());
    request
}

/// The request to list one set or all, without entries.
pub(super) fn list_headers(name: Option<SetName>) -> Request {
    let mut request = name.map_or_else(|| new(IPSET_CMD_LIST, 0), |name| named(IPSET_CMD_LIST, name));
    request.attribute(IPSET_ATTR_FLAGS | NLA_F_NET_BYTEORDER, &IPSET_FLAG_LIST_HEADER.to_be_bytes());
    request
}

/// The request to list a set with its entries.
pub(super) fn list(name: SetName) -> Request {
    named(IPSET_CMD_LIST, name)
}

/// The question whether a set of this type has what a rule asks it; `None` if a part of it is not known here.
pub(super) fn test(name: SetName, parts: &[&str], query: &SetQuery) -> Option<Request> {
    let mut request = named(IPSET_CMD_TEST, name);
    let end = |at: usize| if query.of_source[at] { query.source } else { query.destination };
    let mut known = true;
    request.nested(IPSET_ATTR_DATA, |data| {
        let mut ip = IPSET_ATTR_IP;
        for (at, part) in parts.iter().enumerate() {
            match *part {
                "ip" | "net" => {
                    put_ip(data, ip, end(at).ip());
                    ip = IPSET_ATTR_IP2;
                }
                "port" => {
                    data.attribute(IPSET_ATTR_PROTO, &[query.protocol]);
                    data.attribute(IPSET_ATTR_PORT | NLA_F_NET_BYTEORDER, &end(at).port().to_be_bytes());
                }
                "mark" => {
                    data.attribute(IPSET_ATTR_MARK | NLA_F_NET_BYTEORDER, &query.mark.to_be_bytes());
                }
                "iface" => {
                    let name = if query.of_source[at] { &query.in_interface } else { &query.out_interface };
                    data.text(IPSET_ATTR_IFACE, name);
                    known &= !name.is_empty();
                }
                _ => known = false,
            }
        }
    });
    known.then_some(request)
}

/// The sets that a message of a list of sets names.
pub(super) fn members(message: Attributes<'_>) -> impl Iterator<Item = SetName> {
    let all = message.nest(IPSET_ATTR_ADT).unwrap_or(Attributes::new(&[]));
    let data = all.filter(|(kind, _)| *kind == IPSET_ATTR_DATA).map(|(_, value)| Attributes::new(value));
    data.filter_map(|data| SetName::parse(data.text(IPSET_ATTR_NAME)?))
}

/// The request to add or delete entries, in order. The kernel stops at the first failure.
pub(super) fn change(verb: Verb, name: SetName, entries: impl Iterator<Item = Entry>) -> Request {
    let (command, flags) = match verb {
        Verb::Add => (IPSET_CMD_ADD, 0),
        Verb::AddNew => (IPSET_CMD_ADD, NLM_F_EXCL),
        Verb::Delete => (IPSET_CMD_DEL, NLM_F_EXCL),
    };
    let mut request = new(command, flags);
    request.text(IPSET_ATTR_SETNAME, name.as_str());
    // The kernel writes the line number of the failed entry here.
    request.attribute(IPSET_ATTR_LINENO, &[0; 4]);
    request.nested(IPSET_ATTR_ADT, |all| {
        // Line 0 means "no line" to the kernel.
        for (line, entry) in (1_u32..).zip(entries) {
            all.nested(IPSET_ATTR_DATA, |data| {
                put_entry(data, &entry);
                data.attribute(IPSET_ATTR_LINENO, &line.to_ne_bytes());
            });
        }
    });
    request
}

/// The index of the failed entry in a request, from the part of the request that the kernel returned.
pub(super) fn failed_entry(shown: &[u8]) -> Option<usize> {
    let attributes = Attributes::new(shown.get(HEADER..)?);
    let line = attributes.ne32(IPSET_ATTR_LINENO)?;
    usize::try_from(line.checked_sub(1)?).ok()
}

fn put_ip(data: &mut Request, kind: u16, ip: IpAddr) {
    data.nested(kind, |nest| {
        match ip {
            IpAddr::V4(ip) => nest.attribute(IPSET_ATTR_IPADDR_IPV4 | NLA_F_NET_BYTEORDER, &ip.octets()),
            IpAddr::V6(ip) => nest.attribute(IPSET_ATTR_IPADDR_IPV6 | NLA_F_NET_BYTEORDER, &ip.octets()),
        };
    });
}

fn put_ip_port_proto(data: &mut Request, place: &IpPortProto) {
    put_ip(data, IPSET_ATTR_IP, place.ip);
    data.attribute(IPSET_ATTR_PROTO, &[place.protocol]);
    data.attribute(IPSET_ATTR_PORT | NLA_F_NET_BYTEORDER, &place.port.to_be_bytes());
}

fn put_entry(data: &mut Request, entry: &Entry) {
    match entry {
        Entry::IpPort(place) => put_ip_port_proto(data, place),
        Entry::IpPortIp(place, other) => {
            put_ip_port_proto(data, place);
            put_ip(data, IPSET_ATTR_IP2, *other);
        }
        Entry::IpPortNet(place, net) => {
            put_ip_port_proto(data, place);
            put_ip(data, IPSET_ATTR_IP2, net.network());
            data.attribute(IPSET_ATTR_CIDR2, &[net.prefix_len()]);
        }
        Entry::Ip(ip) => put_ip(data, IPSET_ATTR_IP, *ip),
        Entry::Port(port) => {
            data.attribute(IPSET_ATTR_PORT | NLA_F_NET_BYTEORDER, &port.to_be_bytes());
        }
    }
}

/// The set that a list message begins; `None` if it continues the entries of the previous one.
pub(super) fn found(message: Attributes<'_>) -> Option<ObservedSet> {
    let name = SetName::parse(message.text(IPSET_ATTR_SETNAME)?)?;
    let type_name = message.text(IPSET_ATTR_TYPENAME)?;
    let family = message.find_array(IPSET_ATTR_FAMILY).and_then(|[family]| IpFamily::of_nfproto(family));
    let data = message.nest(IPSET_ATTR_DATA)?;
    let set = set(name, SetType::parse(type_name), family, data);
    let described = match (&set, family) {
        (Some(set), _) => super::described(set),
        (None, Some(family)) => format!("{type_name} family {}", family.ipset()),
        (None, None) => type_name.to_owned(),
    };
    let references = data.be32(IPSET_ATTR_REFERENCES).unwrap_or_default();
    Some(ObservedSet { name, set, described, references, entries: data.be32(IPSET_ATTR_ELEMENTS) })
}

/// The set as a value; `None` if it is not supported.
fn set(name: SetName, set_type: Option<SetType>, family: Option<IpFamily>, data: Attributes<'_>) -> Option<Set> {
    let set_type = set_type?;
    let counters = data.be32(IPSET_ATTR_CADT_FLAGS).is_some_and(|flags| flags & IPSET_FLAG_WITH_COUNTERS != 0);
    if set_type == SetType::BitmapPort {
        let range = (data.be16(IPSET_ATTR_PORT)?, data.be16(IPSET_ATTR_PORT_TO)?);
        // The family of a set of ports has no effect.
        let set = Set { counters, ..Set::new(name, set_type, family.unwrap_or(IpFamily::V4)) };
        return (range == (0, u16::MAX)).then_some(set);
    }
    Some(Set { max_entries: data.be32(IPSET_ATTR_MAXELEM)?, counters, ..Set::new(name, set_type, family?) })
}

/// The supported entries in a list message of a set of this type, with zeros if they do not count.
pub(super) fn entries<'a>(message: Attributes<'a>, set_type: SetType) -> impl Iterator<Item = (Entry, Counters)> + 'a {
    let all = message.nest(IPSET_ATTR_ADT).unwrap_or(Attributes::new(&[]));
    let data = all.filter(|(kind, _)| *kind == IPSET_ATTR_DATA).map(|(_, value)| Attributes::new(value));
    data.filter_map(move |data| {
        let count = |kind| data.be64(kind).unwrap_or_default();
        let counters = Counters { packets: count(IPSET_ATTR_PACKETS), bytes: count(IPSET_ATTR_BYTES) };
        Some((entry(data, set_type)?, counters))
    })
}

fn entry(data: Attributes<'_>, set_type: SetType) -> Option<Entry> {
    match set_type {
        SetType::HashIpPort => Some(Entry::IpPort(place(data)?)),
        SetType::HashIpPortIp => Some(Entry::IpPortIp(place(data)?, ip(data, IPSET_ATTR_IP2)?)),
        SetType::HashIpPortNet => {
            let address = ip(data, IPSET_ATTR_IP2)?;
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let prefix = data.find_array(IPSET_ATTR_CIDR2).map_or(whole, |[prefix]| prefix);
            // The kernel masks the network when the entry is added.
            Some(Entry::IpPortNet(place(data)?, IpNet::new(address, prefix).ok()?.trunc()))
        }
        SetType::HashIp => ip(data, IPSET_ATTR_IP).map(Entry::Ip),
        SetType::BitmapPort => data.be16(IPSET_ATTR_PORT).map(Entry::Port),
    }
}

fn place(data: Attributes<'_>) -> Option<IpPortProto> {
    let [protocol] = data.find_array(IPSET_ATTR_PROTO)?;
    Some(IpPortProto { ip: ip(data, IPSET_ATTR_IP)?, protocol, port: data.be16(IPSET_ATTR_PORT)? })
}

fn ip(data: Attributes<'_>, kind: u16) -> Option<IpAddr> {
    let nest = data.nest(kind)?;
    let v4 = nest.find_array::<4>(IPSET_ATTR_IPADDR_IPV4).map(IpAddr::from);
    v4.or_else(|| nest.find_array::<16>(IPSET_ATTR_IPADDR_IPV6).map(IpAddr::from))
}

/// Decodes a list message and the report of a failed entry.
///
/// # Panics
/// If a set or its entries differ after encoding and decoding them again.
#[cfg(feature = "testing")]
pub(in crate::kernel) fn fuzz(payload: &[u8]) {
    let message = Attributes::new(payload.get(HEADER..).unwrap_or_default());
    let read = |request: Request| request.into_attributes().split_off(HEADER);
    let _ = (read_revision(message), failed_entry(payload));
    if let Some(ObservedSet { set: Some(set), .. }) = found(message) {
        let again = read(create(&set, 5));
        assert_eq!(found(Attributes::new(&again)).and_then(|found| found.set), Some(set));
    }
    for set_type in SetType::ALL {
        let all: Vec<Entry> = entries(message, set_type).map(|(entry, _)| entry).collect();
        let again = read(change(Verb::Add, SetName::new("A"), all.iter().copied()));
        assert!(all.iter().map(ToString::to_string).all(|text| !text.is_empty()));
        assert_eq!(entries(Attributes::new(&again), set_type).map(|(entry, _)| entry).collect::<Vec<_>>(), all);
    }
}

#[cfg(test)]
mod tests;
