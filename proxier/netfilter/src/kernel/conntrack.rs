//! The kernel's conntrack table, over ctnetlink.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{
    Attributes, BATCH, Dump, NFGENMSG_LENGTH, Netlink, NetlinkError, Received, Request, nfgenmsg, nfnetlink,
};
use crate::IpFamily;
use crate::{Flow, Tuple};

const NFNL_SUBSYS_CTNETLINK: u8 = 1;
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_PROTO_NUM`: filter by the protocol of the original tuple.
const FILTER_PROTOCOL: u32 = 1 << 3;

/// The result of a pass over the conntrack table.
#[derive(Debug, Default)]
pub struct Deletions {
    /// Entries deleted, including entries that expired first.
    pub flows: usize,
    /// Entries that the kernel refused to delete.
    pub failed: usize,
    /// The error of the last refusal.
    pub reason: Option<io::Error>,
    /// Whether entries may have been missed because the table changed during the pass.
    pub incomplete: bool,
}

/// The conntrack table of the network namespace.
pub trait ConntrackTable: Send + std::fmt::Debug {
    /// Deletes the entries of a family and protocol for which `unwanted` returns true.
    ///
    /// The table is read once and never copied.
    ///
    /// # Errors
    /// If the table cannot be listed. Entries deleted before the error stay deleted.
    fn delete(
        &mut self,
        family: IpFamily,
        protocol: u8,
        unwanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> io::Result<Deletions>;
}

/// The conntrack table of the running kernel.
#[derive(Debug, Default)]
pub struct SystemConntrack;

impl ConntrackTable for SystemConntrack {
    fn delete(
        &mut self,
        family: IpFamily,
        protocol: u8,
        unwanted: &mut dyn FnMut(&Flow) -> bool,
    ) -> io::Result<Deletions> {
        let mut deleter =
            Deleter { socket: Netlink::open(NETLINK_NETFILTER)?, due: Vec::new(), done: Deletions::default() };
        let mut each = |received: &Received<'_>| {
            let attributes = received.attributes(NFGENMSG_LENGTH);
            match flow(attributes) {
                Some(flow) if flow.protocol == protocol && unwanted(&flow) => deleter.add(family, attributes),
                _ => Ok(()),
            }
        };
        let mut table = Netlink::open(NETLINK_NETFILTER)?;
        let dump = match table.dump(&dump_of(family, Some(protocol)), &mut each) {
            // Kernels before 5.8 ignore the filter; newer ones may still reject it.
            Err(NetlinkError::Refused { errno: libc::EINVAL | libc::EOPNOTSUPP, .. }) => {
                table.dump(&dump_of(family, None), &mut each)?
            }
            dump => dump?,
        };
        deleter.flush()?;
        Ok(Deletions { incomplete: dump == Dump::Interrupted, ..deleter.done })
    }
}

/// Makes the kernel load nf_conntrack, as any request about connection tracking does.
///
/// The request names no entry, so it has no answer.
pub(super) fn load() {
    let question =
        Request::new(nfnetlink(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET), 0, &nfgenmsg(IpFamily::V4.nfproto()));
    let _ = Netlink::open(NETLINK_NETFILTER).map(|mut socket| socket.request(&question));
}

/// Deletes entries in batches, on a second socket: the first one is busy with the dump.
#[derive(Debug)]
struct Deleter {
    socket: Netlink,
    due: Vec<Request>,
    done: Deletions,
}

impl Deleter {
    fn add(&mut self, family: IpFamily, flow: Attributes<'_>) -> Result<(), NetlinkError> {
        self.due.push(deletion(family, flow));
        if self.due.len() < BATCH { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), NetlinkError> {
        let (mut failed, mut reason) = (0, None);
        self.socket.request_all(&self.due, |_, error| {
            // ENOENT: the entry expired.
            if error.errno() != Some(libc::ENOENT) {
                failed += 1;
                reason = Some(error.into());
            }
        })?;
        self.done.flows += self.due.len() - failed;
        self.done.failed += failed;
        self.done.reason = reason.or(self.done.reason.take());
        self.due.clear();
        Ok(())
    }
}

/// The request to delete an entry, identified by the attributes that the kernel sent.
fn deletion(family: IpFamily, flow: Attributes<'_>) -> Request {
    let kind = nfnetlink(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE);
    let mut request = Request::new(kind, 0, &nfgenmsg(family.nfproto()));
    // CTA_ID distinguishes it from a newer entry with the same tuple, unless the kernel reused its memory address.
    for kind in [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID] {
        if let Some(value) = flow.find(kind) {
            request.attribute(kind, value);
        }
    }
    request
}

pub(super) fn dump_of(family: IpFamily, protocol: Option<u8>) -> Request {
    let kind = nfnetlink(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET);
    let mut request = Request::new(kind, 0, &nfgenmsg(family.nfproto()));
    if let Some(protocol) = protocol {
        request.nested(CTA_TUPLE_ORIG, |tuple| {
            tuple.nested(CTA_TUPLE_PROTO, |proto| {
                proto.attribute(CTA_PROTO_NUM, &[protocol]);
            });
        });
        request.nested(CTA_FILTER, |filter| {
            filter.attribute(CTA_FILTER_ORIG_FLAGS, &FILTER_PROTOCOL.to_ne_bytes());
            filter.attribute(CTA_FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
        });
    }
    request
}

/// Decodes an entry; `None` if its protocol has no ports.
pub(super) fn flow(attributes: Attributes<'_>) -> Option<Flow> {
    let (mut original, mut reply) = (None, None);
    for (kind, value) in attributes {
        match kind {
            // The first of each kind, which is also the one that the delete request contains.
            CTA_TUPLE_ORIG => _ = original.get_or_insert(value),
            CTA_TUPLE_REPLY => _ = reply.get_or_insert(value),
            _ => {}
        }
        if original.is_some() && reply.is_some() {
            break;
        }
    }
    let (protocol, original) = tuple(Attributes::new(original?))?;
    let (_, reply) = tuple(Attributes::new(reply?))?;
    Some(Flow { protocol, original, reply })
}

fn tuple(attributes: Attributes<'_>) -> Option<(u8, Tuple)> {
    let ip = attributes.nest(CTA_TUPLE_IP)?;
    let proto = attributes.nest(CTA_TUPLE_PROTO)?;
    let address = |v4, v6| {
        let v4 = ip.find_array::<4>(v4).map(IpAddr::from);
        v4.or_else(|| ip.find_array::<16>(v6).map(IpAddr::from))
    };
    let port = |kind| proto.be16(kind);
    let source = SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?);
    let destination = SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?);
    let [protocol] = proto.find_array(CTA_PROTO_NUM)?;
    Some((protocol, Tuple { source, destination }))
}

/// An entry as the kernel encodes it.
#[cfg(any(test, feature = "testing"))]
fn encoded(flow: &Flow) -> Vec<u8> {
    let mut request = Request::new(0, 0, &[]);
    for (kind, tuple) in [(CTA_TUPLE_ORIG, flow.original), (CTA_TUPLE_REPLY, flow.reply)] {
        request.nested(kind, |out| {
            out.nested(CTA_TUPLE_IP, |ip| {
                for (v4, v6, address) in [
                    (CTA_IP_V4_SRC, CTA_IP_V6_SRC, tuple.source.ip()),
                    (CTA_IP_V4_DST, CTA_IP_V6_DST, tuple.destination.ip()),
                ] {
                    match address {
                        IpAddr::V4(address) => ip.attribute(v4, &address.octets()),
                        IpAddr::V6(address) => ip.attribute(v6, &address.octets()),
                    };
                }
            });
            out.nested(CTA_TUPLE_PROTO, |proto| {
                proto.attribute(CTA_PROTO_NUM, &[flow.protocol]);
                proto.attribute(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
                proto.attribute(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
            });
        });
    }
    request.into_attributes()
}

/// Decodes an entry and encodes the request that deletes it.
///
/// # Panics
/// If the entry differs after encoding and decoding, or the request names another entry.
#[cfg(feature = "testing")]
pub(super) fn fuzz(payload: &[u8]) {
    let attributes = Attributes::new(payload.get(NFGENMSG_LENGTH..).unwrap_or_default());
    let Some(found) = flow(attributes) else { return };
    assert_eq!(flow(Attributes::new(&encoded(&found))), Some(found));
    let deletion = deletion(IpFamily::V4, attributes).into_attributes().split_off(NFGENMSG_LENGTH);
    let named = Attributes::new(&deletion).nest(CTA_TUPLE_ORIG).and_then(tuple);
    assert_eq!(named, Some((found.protocol, found.original)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_tuple() -> impl Strategy<Value = Tuple> {
        any::<(SocketAddr, SocketAddr)>().prop_map(|(a, b)| {
            // Flow labels and scope IDs are not part of a tuple.
            let plain = |address: SocketAddr| SocketAddr::new(address.ip(), address.port());
            Tuple { source: plain(a), destination: plain(b) }
        })
    }

    #[test]
    fn delete_request_names_the_first_of_duplicate_tuples() {
        let tuple_of = |port| {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            Tuple { source: address, destination: address }
        };
        let [first, second] = [1, 2].map(|port| Flow { protocol: 17, original: tuple_of(port), reply: tuple_of(port) });
        let bytes = [encoded(&first), encoded(&second)].concat();
        let read = flow(Attributes::new(&bytes));
        assert_eq!(read, Some(first));
        let deletion = deletion(IpFamily::V4, Attributes::new(&bytes)).into_attributes().split_off(NFGENMSG_LENGTH);
        let named = Attributes::new(&deletion).nest(CTA_TUPLE_ORIG).and_then(tuple);
        assert_eq!(named, Some((17, first.original)));
    }

    proptest! {
        #[test]
        fn flows_round_trip_and_damaged_ones_never_panic(
            protocol: u8,
            original in any_tuple(),
            reply in any_tuple(),
            cut: prop::sample::Index,
            damage: (prop::sample::Index, u8),
        ) {
            let written = Flow { protocol, original, reply };
            let mut bytes = encoded(&written);
            prop_assert_eq!(flow(Attributes::new(&bytes)), Some(written));
            prop_assert_eq!(flow(Attributes::new(&bytes[..cut.index(bytes.len() - 1)])), None);
            let at = damage.0.index(bytes.len());
            bytes[at] = damage.1;
            let _ = flow(Attributes::new(&bytes));
        }
    }
}
