//! Conditions of iptables rules, one for each option of each match that a walk decides.
//!
//! Variants and fields correspond to options of iptables-extensions(8). Ranges include both ends. A mark, a flag or a
//! type of service matches if `field & mask == value`.

use std::net::IpAddr;

use ipnet::IpNet;
use proxier::model::Protocol;

/// A condition on a packet, possibly negated.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// Whether `!` precedes the option.
    pub negated: bool,
    /// The test.
    pub test: Test,
}

/// First and last port, inclusive.
pub type Ports = (u16, u16);

/// What a condition tests.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// `-s`: the source address is in the network.
    Source(IpNet),
    /// `-d`: the destination address is in the network.
    Destination(IpNet),
    /// `-s` or `-d` with a non-contiguous mask: `address & mask == value`.
    Bits {
        /// The source address (`true`) or the destination address.
        of_source: bool,
        /// The value of the masked bits; IPv4 uses the low 32 bits.
        value: u128,
        /// The compared bits.
        mask: u128,
    },
    /// `-m iprange`: the address is in the range.
    AddressRange {
        /// The source address (`true`) or the destination address.
        of_source: bool,
        /// The first address.
        from: IpAddr,
        /// The last address.
        to: IpAddr,
    },
    /// `-i`: the incoming interface; a trailing `+` matches any rest of the name.
    InInterface(String),
    /// `-o`: the outgoing interface; a trailing `+` matches any rest of the name.
    OutInterface(String),
    /// `-p` with a protocol that Services may use.
    Protocol(Protocol),
    /// `-p` with any other protocol, which no traced packet has.
    OtherProtocol,
    /// `-p icmp`, `-m icmp`: an ICMP packet. Of those only the errors are traced that REJECT sends.
    Icmp {
        /// The type.
        kind: Option<u8>,
        /// Whether a code is given too.
        has_code: bool,
    },
    /// `--sport`, `--sports`: the source port is in one of the ranges.
    SourcePorts(Vec<Ports>),
    /// `--dport`, `--dports`: the destination port is in one of the ranges.
    DestinationPorts(Vec<Ports>),
    /// `--ports`: the source or the destination port is in one of the ranges.
    EitherPorts(Vec<Ports>),
    /// `--ctstate`, `--state`: the conntrack state is one of these.
    State(Vec<CtState>),
    /// Other options of `-m conntrack`.
    Connection(ConntrackMatch),
    /// `-m mark`: the packet mark.
    Mark {
        /// The value of the masked bits.
        value: u32,
        /// The compared bits.
        mask: u32,
    },
    /// `-m connmark`: the connection mark.
    ConnectionMark {
        /// The value of the masked bits.
        value: u32,
        /// The compared bits.
        mask: u32,
    },
    /// `-m addrtype --src-type LOCAL`: the source is one of the node's addresses.
    SourceLocal,
    /// `-m addrtype --dst-type LOCAL`: the destination is one of the node's addresses.
    DestinationLocal,
    /// `-m addrtype` with other types, or limited to an interface.
    AddressKind {
        /// The source address (`true`) or the destination address.
        of_source: bool,
        /// The address has one of these types.
        kinds: Vec<AddressKind>,
        /// Only addresses of the incoming (`true`) or the outgoing interface count.
        limit_in: Option<bool>,
    },
    /// `-m statistic`: matches with this probability, 0 to 1.
    Random(f64),
    /// `-m recent`.
    Recent(RecentMatch),
    /// `-m set`: the set has an entry for the packet.
    Set {
        /// The set's name.
        name: String,
        /// One element for each dimension of the set: from the packet's source (`true`) or its destination.
        of_source: Vec<bool>,
        /// `--return-nomatch`: an entry with the flag `nomatch` matches too.
        return_nomatch: bool,
    },
    /// `-m physdev`.
    Bridged(PhysdevMatch),
    /// `-m ipvs`.
    Ipvs(IpvsMatch),
    /// `--tcp-flags`, `--syn`: of the flags in `mask`, exactly those in `set` are set.
    TcpFlags {
        /// The flags to look at.
        mask: u8,
        /// The flags that must be set.
        set: u8,
    },
    /// `--tcp-option`: the packet has this TCP option. A traced SYN has the options that Linux sends.
    TcpOption(u8),
    /// `-m tcpmss`: the least and the greatest segment size, in bytes.
    SegmentSize(u32, u32),
    /// `-m sctp --chunk-types`. A traced packet has one chunk, INIT.
    Chunks {
        /// All listed chunk types must be present (`all`).
        all: bool,
        /// No other chunk types may be present (`only`).
        only: bool,
        /// INIT is listed.
        init: bool,
        /// Other chunk types are listed.
        others: bool,
    },
    /// `-m length`: the least and the greatest packet length, in bytes.
    Length(u32, u32),
    /// `-m ttl`, `-m hl`: the least and the greatest TTL or hop limit.
    HopLimit(u32, u32),
    /// `-m dscp`, `-m tos`: the type of service or traffic class.
    TypeOfService {
        /// The value of the masked bits.
        value: u8,
        /// The compared bits.
        mask: u8,
    },
    /// `-m owner`: a process on this node sent the packet.
    Owner {
        /// Whether the process must run as root (`true`) or must not.
        root: bool,
    },
    /// `-m pkttype`: broadcast, multicast or, for any other type, unicast.
    PacketKind(AddressKind),
    /// `-m rpfilter`: the route back to the sender uses the incoming interface.
    ReversePath {
        /// `--loose`: a route by any interface counts.
        loose: bool,
    },
    /// `-m devgroup`: the group of an interface.
    DeviceGroup {
        /// The incoming interface (`true`) or the outgoing one.
        incoming: bool,
        /// The value of the masked bits.
        value: u32,
        /// The compared bits.
        mask: u32,
    },
    /// A match on the socket that sends or receives the packet.
    SenderSocket {
        /// The match's name: `socket` or `cgroup`.
        name: String,
        /// `--nowildcard`: a socket that is bound to any address counts, too.
        any_address: bool,
    },
    /// `-m limit`, `-m hashlimit`, `-m connlimit`: earlier packets decide, so the result is an assumption that may be wrong
    /// for the next packet.
    Limited {
        /// The assumed result.
        holds: bool,
        /// The assumption.
        why: &'static str,
    },
    /// `-m quota`: packets match until they have this many bytes.
    Quota {
        /// The bytes.
        bytes: u64,
        /// `! --quota`: packets match from then on.
        after: bool,
    },
    /// A condition whose result is an assumption about the packet.
    Assumed {
        /// The assumed result.
        holds: bool,
        /// The assumption.
        why: &'static str,
    },
}

/// The type of an address, as the kernel's `RTN_*` constants name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// An address of another machine.
    Unicast,
    /// An address of this node.
    Local,
    /// A broadcast address.
    Broadcast,
    /// A multicast address.
    Multicast,
    /// Any other type, which no traced packet has, such as `BLACKHOLE`.
    Other,
}

/// A test on a conntrack entry other than its state.
#[derive(Clone, Debug, PartialEq)]
pub enum ConntrackMatch {
    /// `--ctproto`; `None`: a protocol that Services do not use.
    Protocol(Option<Protocol>),
    /// `--ctorigsrc`, `--ctorigdst`, `--ctreplsrc`, `--ctrepldst`: an address of a tuple is in the network.
    Address {
        /// The reply tuple (`true`) or the original one.
        reply: bool,
        /// The source address (`true`) or the destination address.
        of_source: bool,
        /// The network.
        net: IpNet,
    },
    /// `--ctorigsrcport` and its three siblings: a port of a tuple is in the range.
    Port {
        /// The reply tuple (`true`) or the original one.
        reply: bool,
        /// The source port (`true`) or the destination port.
        of_source: bool,
        /// The range.
        ports: Ports,
    },
    /// `--ctstatus`.
    Status {
        /// Whether a flag other than `NONE` is listed. A new connection has none of them before it is confirmed.
        seen: bool,
    },
    /// `--ctexpire`, which depends on the entry's timeout.
    Expires,
    /// `--ctdir`: the packet is in reply direction (`true`) or in original direction.
    Reply(bool),
}

/// `-m recent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentMatch {
    /// `--name`: the list.
    pub list: String,
    /// What the rule does with the list.
    pub action: RecentAction,
    /// `--seconds`: only entries seen at most so long ago count.
    pub seconds: Option<u32>,
    /// `--hitcount`: only entries seen at least so often count; 0: no limit.
    pub hits: u32,
    /// Whether entries are whole source addresses: `--rsource` without a shorter `--mask`.
    pub of_sender: bool,
}

/// What `-m recent` does with its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecentAction {
    /// `--set`: adds the address; always matches.
    Set,
    /// `--rcheck`: matches if the list has the address.
    Check,
    /// `--update`: as `--rcheck`, and updates the time of the entry.
    Update,
    /// `--remove`: as `--rcheck`, and deletes the entry.
    Remove,
}

/// `-m physdev`: the bridge port of a bridged packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PhysdevMatch {
    /// `--physdev-in`: the port that received the packet; a trailing `+` matches any rest of the name.
    In(String),
    /// `--physdev-out`: the port that will send it.
    Out(String),
    /// `--physdev-is-in`: a bridge port received the packet.
    IsIn,
    /// `--physdev-is-out`: a bridge port will send it.
    IsOut,
    /// `--physdev-is-bridged`: it is bridged and not routed.
    IsBridged,
}

/// `-m ipvs`: properties of the packet's IPVS connection. The first part of a pair is whether it is negated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsMatch {
    /// `--vproto`: the virtual server's protocol number.
    pub protocol: Option<(bool, u8)>,
    /// `--vaddr`: a network that has the virtual server's address.
    pub address: Option<(bool, IpNet)>,
    /// `--vport`: the virtual server's port.
    pub port: Option<(bool, u16)>,
    /// `--vdir`: reply direction (`true`) or original direction.
    pub reply: Option<(bool, bool)>,
    /// `--vmethod`: masquerading (`true`) or another forwarding method.
    pub masquerade: Option<(bool, bool)>,
    /// `--vportctl`: the connection is controlled by another, as FTP data is.
    pub control: bool,
    /// `! --ipvs`: the packet has no IPVS connection.
    pub none: bool,
}

/// A packet's conntrack state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtState {
    /// The first packet of a connection.
    New,
    /// A packet of a connection that has seen packets in both directions.
    Established,
    /// A new connection that an existing one expects.
    Related,
    /// A packet that conntrack cannot assign to a connection.
    Invalid,
    /// A packet that a rule in table raw exempts from conntrack.
    Untracked,
    /// The destination was translated.
    Dnat,
    /// The source was translated.
    Snat,
}
