//! Netlink framing: requests, attributes, acknowledgements, dumps and notifications.
//!
//! Shared by all subsystems, whose messages this module does not interpret.

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
pub(super) use receive::{Attributes, Received, text};
pub(super) use request::Request;
pub(super) use responses::Dump;
pub(super) use socket::Netlink;

/// `struct nlmsghdr`: length, type, flags, sequence number, port ID.
const HEADER: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_HEADER: usize = 4;
/// The alignment of messages and attributes.
const ALIGNMENT: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// In a dump: the table changed, and entries may be missing.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// In an acknowledgement: it contains the header of the request only.
const NLM_F_CAPPED: u16 = 0x100;
/// In an acknowledgement: extended acknowledgement attributes follow.
const NLM_F_ACK_TLVS: u16 = 0x200;

/// The number of requests in one datagram; the errors of all must fit into the receive buffer.
pub(super) const BATCH: usize = 64;
/// The bytes of requests in one datagram.
const BATCH_BYTES: usize = 32 * 1024;

const NLA_F_NESTED: u16 = 0x8000;
/// The bits of an attribute type that are not flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Attribute type flag: the value is in network byte order. ipset requires it.
pub(super) const NLA_F_NET_BYTEORDER: u16 = 0x4000;

/// Fail if the object exists.
pub(super) const NLM_F_EXCL: u16 = 0x200;
/// Create the object if it does not exist.
pub(super) const NLM_F_CREATE: u16 = 0x400;
/// Answer with the created object.
pub(super) const NLM_F_ECHO: u16 = 8;
/// Append the object to the list.
pub(super) const NLM_F_APPEND: u16 = 0x800;

/// The length of `struct nfgenmsg`, the header of all nfnetlink messages.
pub(super) const NFGENMSG_LENGTH: usize = 4;

/// `struct nfgenmsg`: address family (`AF_INET`, `AF_INET6` or 0), version 0, resource ID 0.
pub(super) fn nfgenmsg(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// The message type of an nfnetlink subsystem and message.
pub(super) const fn nfnetlink(subsystem: u8, message: u8) -> u16 {
    u16::from_be_bytes([subsystem, message])
}
