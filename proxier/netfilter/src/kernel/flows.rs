//! Lists conntrack entries with their state, as a stream.
//!
//! A table may have millions of entries. Nothing is changed.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::conntrack::{dump_of, flow};
use super::netlink::{Attributes, Dump, NFGENMSG_LENGTH, Netlink, Received};
use crate::Flow;
use crate::IpFamily;

const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;

/// `IPS_SEEN_REPLY`
const SEEN_REPLY: u32 = 1 << 1;
/// The kernel's `enum tcp_conntrack`.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// A conntrack entry with its current state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFlow {
    /// The tuples of both directions.
    pub flow: Flow,
    /// The TCP state; for other protocols `REPLIED` or `UNREPLIED`.
    pub state: &'static str,
    /// Whether a packet of the reply direction was seen.
    pub replied: bool,
    /// The remaining lifetime in seconds.
    pub timeout: u32,
}

/// Passes each conntrack entry of a family to `each`.
///
/// Returns whether entries may be missing because the table changed during the dump.
///
/// # Errors
/// If the table cannot be listed.
pub fn for_each_flow(family: IpFamily, each: &mut dyn FnMut(&LiveFlow)) -> io::Result<bool> {
    let mut take = |received: &Received<'_>| {
        if let Some(flow) = live(received.attributes(NFGENMSG_LENGTH)) {
            each(&flow);
        }
        Ok(())
    };
    let dump = Netlink::open(NETLINK_NETFILTER)?.dump_once(&dump_of(family, None), &mut take)?;
    Ok(dump == Dump::Interrupted)
}

pub(super) fn live(attributes: Attributes<'_>) -> Option<LiveFlow> {
    let number = |kind| attributes.be32(kind);
    let replied = number(CTA_STATUS).unwrap_or_default() & SEEN_REPLY != 0;
    let tcp = attributes.nest(CTA_PROTOINFO).and_then(|info| info.nest(CTA_PROTOINFO_TCP));
    let state = tcp.and_then(|tcp| tcp.find_array::<1>(CTA_PROTOINFO_TCP_STATE));
    let state = state.and_then(|[state]| TCP_STATES.get(usize::from(state)).copied());
    Some(LiveFlow {
        flow: flow(attributes)?,
        state: state.unwrap_or(if replied { "REPLIED" } else { "UNREPLIED" }),
        replied,
        timeout: number(CTA_TIMEOUT).unwrap_or_default(),
    })
}
