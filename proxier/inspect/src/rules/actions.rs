//! Targets of iptables rules: what happens to a packet that matches.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::conditions::Ports;

/// A change of the TTL or hop limit. The kernel keeps it between 0 and 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopChange {
    /// `--ttl-set`, `--hl-set`.
    Set(u8),
    /// `--ttl-inc`, `--hl-inc`.
    Increase(u8),
    /// `--ttl-dec`, `--hl-dec`.
    Decrease(u8),
}

/// A change of a mark: `mark = (mark & !mask) ^ value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetMark {
    /// The bits to toggle after clearing.
    pub value: u32,
    /// The bits to clear first.
    pub mask: u32,
}

/// A copy of the packet mark to the connection mark, or back.
///
/// The kernel computes `target = (target & !target_mask) ^ ((source & source_mask) << left >> right)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyMark {
    /// `--nfmask`: the bits of the packet mark.
    pub nfmask: u32,
    /// `--ctmask`: the bits of the connection mark.
    pub ctmask: u32,
    /// `--left-shift-mark`, in bits.
    pub left: u32,
    /// `--right-shift-mark`, in bits.
    pub right: u32,
}

/// A translation to ranges of addresses or ports, or of only one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatRange {
    /// The first and the last address; `None`: the address stays.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// The first and the last port; `None`: the port stays if it is free.
    pub ports: Option<Ports>,
    /// The original port that maps to the first port of the range: `--to-destination ADDRESS:PORT-PORT/BASE`.
    pub base: Option<u16>,
    /// `--random`, `--random-fully`: the port is chosen at random.
    pub random: bool,
}

/// The action on a matching packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `ACCEPT`: ends the walk through the hook's chain of this table.
    Accept,
    /// `DROP`: discards the packet silently.
    Drop,
    /// `REJECT`: discards the packet and sends an error.
    Reject,
    /// `RETURN`: continues in the calling chain, or with the built-in chain's policy.
    Return,
    /// `MARK`: `mark = (mark & !mask) ^ value`.
    Mark {
        /// The bits to toggle after clearing.
        value: u32,
        /// The bits to clear first.
        mask: u32,
    },
    /// `CONNMARK --set-mark` and its variants.
    ConnectionMark(SetMark),
    /// `CONNMARK --save-mark`: packet mark to connection mark.
    SaveMark(CopyMark),
    /// `CONNMARK --restore-mark`: connection mark to packet mark.
    RestoreMark(CopyMark),
    /// `HMARK`: sets the packet mark to a hash, whose value is not computed.
    HashMark,
    /// `MASQUERADE`: translates the source to the outgoing interface's address.
    Masquerade,
    /// `DNAT` to one address and port.
    Dnat(SocketAddr),
    /// `DNAT` to ranges.
    DnatRange(NatRange),
    /// `SNAT`.
    Snat(NatRange),
    /// `REDIRECT`: to these ports of this node.
    Redirect(NatRange),
    /// `NETMAP`: replaces the network part of the address.
    Netmap(IpNet),
    /// `CT --notrack`, `NOTRACK`: exempts the packet from conntrack.
    NoTrack,
    /// `CT --zone`: answers are looked up in another conntrack zone.
    Zone,
    /// `NFQUEUE`: a program in user space decides.
    Queue {
        /// The queue; `None`: one of several (`--queue-balance`).
        number: Option<u16>,
        /// `--queue-bypass`: packets are accepted if no program listens.
        bypass: bool,
    },
    /// `TOS`, `DSCP`, `ECN`: `field = (field & !mask) ^ value`.
    TypeOfService {
        /// The bits to toggle after clearing.
        value: u8,
        /// The bits to clear first.
        mask: u8,
    },
    /// `TTL`, `HL`: changes the TTL or hop limit.
    HopLimit(HopChange),
    /// `SET`: changes these sets.
    ChangeSets(Vec<String>),
    /// `-j CHAIN`.
    Jump(String),
    /// `-g CHAIN`: as a jump, but a return from the chain returns from this one too.
    Goto(String),
    /// A target whose decision is not followed.
    Unfollowed(String),
    /// A target without effect on verdicts or fields that rules match, such as `LOG`.
    Passive(String),
}
