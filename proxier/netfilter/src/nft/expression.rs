//! The kernel's instructions (`nft --debug=netlink` prints them in these words).
//!
//! In: what statements are made of. Out: values that can be written to the kernel and compared with what it holds.
//! Must not know: numbers of attributes, or why a packet is looked at.

use super::Name;
use super::field::Load;
use super::rule::Verdict;

/// Where instructions leave values for later ones: a word, counted from the first. Verdicts have a place of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(pub u8);

/// What a rule does to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetOperation {
    /// `add`: nothing if it is there.
    Add,
    /// `update`: if it is there, its time begins anew.
    Update,
    /// `delete`
    Delete,
}

/// How two values are compared, byte by byte; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `<`
    Less = 2,
    /// `<=`
    LessOrEqual = 3,
    /// `>`
    Greater = 4,
    /// `>=`
    GreaterOrEqual = 5,
}

impl Comparison {
    /// All.
    pub const ALL: [Self; 4] = [Self::Less, Self::LessOrEqual, Self::Greater, Self::GreaterOrEqual];
}

/// Which end of a connection gets another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Translation {
    /// `snat`
    Source,
    /// `dnat`
    Destination,
    /// `redirect`: the destination becomes this node.
    Redirect,
    /// `masquerade`: the source becomes the address that packets leave with.
    Masquerade,
}

/// From and to, both included.
pub type Registers = (Register, Register);

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expression {
    /// Loads a field of the packet.
    Load {
        /// Where from.
        from: Load,
        /// How many bytes, where that can be said.
        width: u32,
        /// Where to.
        to: Register,
    },
    /// `meta mark set`
    SetMark {
        /// The value.
        from: Register,
    },
    /// `ct mark set`
    SetConnectionMark {
        /// The value.
        from: Register,
    },
    /// Sets something that no rule asks for and that changes no way: `meta nftrace set`, `meta priority set`.
    SetOther {
        /// `meta` or `ct`.
        of: &'static str,
        /// `NFT_META_*` or `NFT_CT_*`
        key: u32,
        /// The value.
        from: Register,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Register,
        /// The value.
        value: Vec<u8>,
    },
    /// `(value & mask) ^ xor`, in place.
    Bitwise {
        /// The value.
        register: Register,
        /// As long as the value.
        mask: Vec<u8>,
        /// As long as the value.
        xor: Vec<u8>,
    },
    /// Goes on only if the value is equal, or not.
    Compare {
        /// The value.
        register: Register,
        /// `!=`
        not: bool,
        /// What it is compared with.
        value: Vec<u8>,
    },
    /// Shifts a number in the machine's order, in place.
    Shift {
        /// The value.
        register: Register,
        /// Its size in bytes.
        length: u32,
        /// `>>` instead of `<<`.
        right: bool,
        /// By how many bits.
        bits: u32,
    },
    /// Converts numbers from network byte order into the machine's, or back, in place.
    ByteOrder {
        /// The value.
        register: Register,
        /// Its size in bytes.
        length: u32,
        /// The size of each number in it.
        size: u32,
        /// `hton` instead of `ntoh`; the same bytes come out.
        to_network: bool,
    },
    /// Goes on only if the value is less or more.
    CompareOrder {
        /// The value.
        register: Register,
        /// How.
        order: Comparison,
        /// What it is compared with.
        value: Vec<u8>,
    },
    /// Goes on only if the value is between two others, or not.
    Range {
        /// The value.
        register: Register,
        /// `!=`
        not: bool,
        /// The least.
        from: Vec<u8>,
        /// The greatest.
        to: Vec<u8>,
    },
    /// `jhash` or `symhash`: a number that depends on nothing but what is hashed.
    Hash {
        /// What is hashed, and its size in bytes; the packet's addresses and ports if `None`.
        of: Option<(Register, u32)>,
        /// Where to.
        to: Register,
        /// How many numbers there are.
        modulus: u32,
        /// The least of them.
        offset: u32,
    },
    /// Goes on only if the key is in a set, or not; of a map, its value is loaded, or its verdict taken.
    Lookup {
        /// The set or map.
        set: Name,
        /// The key.
        key: Register,
        /// Where to load the value; a verdict map has none.
        to: Option<Register>,
        /// Whether a verdict is taken.
        verdict: bool,
        /// `!=`
        not: bool,
    },
    /// Changes a set.
    Dynset {
        /// The set.
        set: Name,
        /// How.
        operation: SetOperation,
        /// The key.
        key: Register,
        /// Milliseconds; 0 where the set's own holds.
        timeout: u64,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// `dnat`
    Dnat {
        /// `NFPROTO_*`
        family: u8,
        /// The address.
        address: Register,
        /// The port.
        port: Register,
    },
    /// Another translation; of two registers the value is chosen between theirs.
    Translate {
        /// Of what.
        kind: Translation,
        /// `NFPROTO_*`; 0 where the packet's counts.
        family: u8,
        /// The address, unless it stays.
        address: Option<Registers>,
        /// The port, unless it stays.
        port: Option<Registers>,
        /// `NF_NAT_RANGE_*`
        flags: u32,
    },
    /// `masquerade`
    Masquerade {
        /// `fully-random`
        random: bool,
    },
    /// `reject` with an ICMP error.
    Reject {
        /// The code that says "port unreachable".
        code: u8,
    },
    /// `reject` in other words.
    RejectWith {
        /// `NFT_REJECT_*`
        kind: u32,
        /// `NFT_REJECT_ICMPX_*` or the kind's own.
        code: u8,
    },
    /// `notrack`
    NoTrack,
    /// Looks on: `log`, `last`, `flow add`.
    Passive(&'static str),
    /// `counter`
    Counter,
    /// `counter name`
    NamedCounter(Name),
    /// Anything that is not ours.
    Unknown(String),
}
