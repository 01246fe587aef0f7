//! Expressions: the instructions of the kernel's nf_tables virtual machine.
//!
//! `nft --debug=netlink` prints them. Values decoded from the kernel compare equal to the values that were written.

use super::Name;
use super::field::Load;
use super::rule::Verdict;

/// A 32-bit register (`NFT_REG32_*`), counted from 0. Verdicts have a register of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(pub u8);

/// An operation on a set in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetOperation {
    /// `add`: no effect if the element exists.
    Add,
    /// `update`: restarts the timeout of an existing element.
    Update,
    /// `delete`
    Delete,
}

/// A bytewise comparison, with the kernel's number.
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
    /// All comparisons.
    pub const ALL: [Self; 4] = [Self::Less, Self::LessOrEqual, Self::Greater, Self::GreaterOrEqual];
}

/// A kind of network address translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Translation {
    /// `snat`
    Source,
    /// `dnat`
    Destination,
    /// `redirect`: the destination becomes the local host.
    Redirect,
    /// `masquerade`: the source becomes the address of the output interface.
    Masquerade,
}

/// The first and last register of a range.
pub type Registers = (Register, Register);

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expression {
    /// Loads a value of the packet or connection.
    Load {
        /// The source.
        from: Load,
        /// The length in bytes, where the expression has one.
        width: u32,
        /// The destination register.
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
    /// Sets another value that does not affect routing: `meta nftrace set`, `meta priority set`.
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
        /// The destination register.
        to: Register,
        /// The value.
        value: Vec<u8>,
    },
    /// `(value & mask) ^ xor`, in place.
    Bitwise {
        /// The value.
        register: Register,
        /// The mask, as long as the value.
        mask: Vec<u8>,
        /// The XOR operand, as long as the value.
        xor: Vec<u8>,
    },
    /// Continues the rule only if the value is equal, or not equal.
    Compare {
        /// The value.
        register: Register,
        /// `!=`
        not: bool,
        /// The value to compare with.
        value: Vec<u8>,
    },
    /// Shifts a number in host byte order, in place.
    Shift {
        /// The value.
        register: Register,
        /// The length in bytes.
        length: u32,
        /// `>>` instead of `<<`.
        right: bool,
        /// The number of bits.
        bits: u32,
    },
    /// Converts numbers between network and host byte order, in place.
    ByteOrder {
        /// The value.
        register: Register,
        /// The length in bytes.
        length: u32,
        /// The length of each number in bytes.
        size: u32,
        /// `hton` instead of `ntoh`; both have the same effect.
        to_network: bool,
    },
    /// Continues the rule only if the value compares as given.
    CompareOrder {
        /// The value.
        register: Register,
        /// The comparison.
        order: Comparison,
        /// The value to compare with.
        value: Vec<u8>,
    },
    /// Continues the rule only if the value is in a range, or not.
    Range {
        /// The value.
        register: Register,
        /// `!=`
        not: bool,
        /// The first value of the range.
        from: Vec<u8>,
        /// The last value of the range.
        to: Vec<u8>,
    },
    /// `jhash` or `symhash`: a number that depends on the hashed data only.
    Hash {
        /// The hashed register and its length in bytes; `None` for the packet's addresses and ports.
        of: Option<(Register, u32)>,
        /// The destination register.
        to: Register,
        /// The modulus.
        modulus: u32,
        /// The seed of `jhash`; `None` if the kernel chose one at random, which it does not report.
        seed: Option<u32>,
        /// The offset of the result.
        offset: u32,
    },
    /// Continues the rule only if a set contains the key, or does not.
    ///
    /// Of a map, the value is loaded; of a verdict map, the verdict is executed.
    Lookup {
        /// The set or map.
        set: Name,
        /// The key.
        key: Register,
        /// The destination register of the value; `None` for sets and verdict maps.
        to: Option<Register>,
        /// Whether the map's verdict is executed.
        verdict: bool,
        /// `!=`
        not: bool,
    },
    /// Adds, updates or deletes a set element.
    Dynset {
        /// The set.
        set: Name,
        /// The operation.
        operation: SetOperation,
        /// The key.
        key: Register,
        /// The timeout in milliseconds; 0 for the set's default.
        timeout: u64,
    },
    /// Ends the rule with a verdict.
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
    /// Another translation. Of two registers, the value is chosen from the range between them.
    Translate {
        /// The kind.
        kind: Translation,
        /// `NFPROTO_*`; 0 for the packet's own.
        family: u8,
        /// The address; `None` keeps it.
        address: Option<Registers>,
        /// The port; `None` keeps it.
        port: Option<Registers>,
        /// `NF_NAT_RANGE_*`
        flags: u32,
    },
    /// `masquerade`
    Masquerade {
        /// `fully-random`
        random: bool,
    },
    /// `reject` with ICMP port unreachable.
    Reject {
        /// The ICMP code.
        code: u8,
    },
    /// `reject` with another error.
    RejectWith {
        /// `NFT_REJECT_*`
        kind: u32,
        /// `NFT_REJECT_ICMPX_*`, or a code of the kind.
        code: u8,
    },
    /// `notrack`
    NoTrack,
    /// Has no effect on the packet: `log`, `last`, `flow add`.
    Passive(&'static str),
    /// `counter`
    Counter,
    /// `counter name`
    NamedCounter(Name),
    /// An unsupported expression, by name.
    Unknown(String),
}
