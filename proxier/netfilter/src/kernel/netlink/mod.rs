//! Netlink: the one small layer under everything that talks to the kernel in messages.
//!
//! In: requests built from attributes. Out: acknowledgements, or the messages of a dump, as attributes.
//! Must not know: what any message means.

mod batch;
mod error;
#[cfg(test)]
pub(super) mod fuzz;
#[cfg(feature = "testing")]
pub(super) mod fuzzing;
mod generic;
mod multicast;
mod receive;
mod request;
mod responses;
mod socket;
pub mod traffic;

pub(super) use batch::{Batch, Fault};
pub(super) use error::NetlinkError;
pub(super) use generic::{family as generic_family, header as genlmsghdr};
pub(super) use multicast::{Drained, Listener};
pub(super) use receive::{Attributes, Received};
pub(super) use request::Request;
pub(super) use responses::Dump;
pub(super) use socket::Netlink;

/// `struct nlmsghdr`: length, kind, flags, sequence number, port.
const HEADER: usize = 16;
/// `struct nlattr`: length, kind.
const ATTRIBUTE_HEADER: usize = 4;
/// What messages and attributes are padded to.
const ALIGNMENT: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// In an answer to a dump: the kernel's table changed in a way that may have hidden entries.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// In an acknowledgement: it shows only the header of the request, not all of it.
const NLM_F_CAPPED: u16 = 0x100;
/// In an acknowledgement: attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;

/// How many requests go into one datagram: the errors of all of them have to fit into the socket.
pub(super) const BATCH: usize = 64;
/// And how many bytes.
const BATCH_BYTES: usize = 32 * 1024;

const NLA_F_NESTED: u16 = 0x8000;
/// The bits of an attribute's kind that are no flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// In an attribute's kind: its value is in network order. Ipset wants it said.
pub(super) const NLA_F_NET_BYTEORDER: u16 = 0x4000;

/// A request that fails if the thing exists.
pub(super) const NLM_F_EXCL: u16 = 0x200;
/// A request that makes something new.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// A request that adds to the end.
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// The header of all nfnetlink messages: family (`AF_INET`, `AF_INET6` or 0), version 0, resource.
pub(super) fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// The kind of an nfnetlink message: which subsystem, and which of its messages.
pub(super) const fn nfnetlink(subsystem: u8, message: u8) -> u16 {
    u16::from_be_bytes([subsystem, message])
}
