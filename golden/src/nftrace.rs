//! Receives the kernel's nf_tables trace of packets for which rules set `meta nftrace`.

use std::io::ErrorKind;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns::Netns;

/// `NFNLGRP_NFTRACE`
const GROUP: u32 = 9;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 20;
const FAMILY_AT: usize = 16;
const BUFFER: usize = 16 << 20;
/// `NFTA_TRACE_*`
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const HANDLE: u16 = 3;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const POLICY: u16 = 16;
/// `NFT_TRACETYPE_*`
const OF_POLICY: u32 = 1;
const OF_RULE: u32 = 3;
/// `NFTA_VERDICT_CODE`
const CODE: u16 = 1;
const NF_DROP: u32 = 0;

/// A rule that a packet matched, or a chain policy that it reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Family, table and chain: `ip kube-proxy services`.
    pub chain: String,
    /// The handle of the rule; `None` for a policy.
    pub rule: Option<u64>,
    /// Whether the packet is dropped there.
    pub drops: bool,
}

/// Receives trace events.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Subscribes in a namespace.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn new(netns: &Netns) -> Self {
        let socket = netns.enter(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER).expect("a netlink socket");
            socket.bind_auto().expect("bind");
            socket.add_membership(GROUP).expect("listen to traces: this needs root");
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
            socket.set_non_blocking(true).expect("no waiting");
            socket
        });
        Self { socket }
    }

    /// The events since the last call. The kernel sends them before the packet continues.
    ///
    /// # Panics
    /// If events were lost or are malformed.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => events.extend(messages(&bytes).filter_map(event)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return events,
                Err(error) => panic!("the kernel's trace: {error}"),
            }
        }
    }
}

/// The messages of a datagram, with headers.
fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The value of an attribute.
fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn event(message: &[u8]) -> Option<Event> {
    let attributes = &message[HEADER..];
    let text =
        |kind| attribute(attributes, kind).map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    let number = |bytes: Option<&[u8]>| bytes.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let family = match message[FAMILY_AT] {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        other => panic!("a trace of family {other}"),
    };
    let (rule, verdict) = match number(attribute(attributes, TYPE))? {
        OF_RULE => {
            let handle = attribute(attributes, HANDLE)?.try_into().ok().map(u64::from_be_bytes)?;
            (Some(handle), number(attribute(attribute(attributes, VERDICT)?, CODE))?)
        }
        OF_POLICY => (None, number(attribute(attributes, POLICY))?),
        _ => return None,
    };
    let chain = format!("{family} {} {}", text(TABLE)?, text(CHAIN)?);
    Some(Event { chain, rule, drops: verdict == NF_DROP })
}
